"""The experiments by name, in the order of the result pages."""

from collections.abc import Callable

from pml_supcon.experiments.claims.analyses import corruption, head, transfer
from pml_supcon.experiments.claims.hyperparameters import (
    augmentations,
    batch_size,
    optimizers,
    positives,
    stability,
    temperature,
)
from pml_supcon.experiments.claims.labels import few_labels, label_noise
from pml_supcon.experiments.claims.objectives import joint, losses, methods, mining
from pml_supcon.experiments.experiment import Experiment
from pml_supcon.experiments.scales import Scale

EXPERIMENTS: dict[str, Callable[[Scale], Experiment]] = {
    "losses": losses,
    "methods": methods,
    "positives": positives,
    "temperature": temperature,
    "batch-size": batch_size,
    "optimizers": optimizers,
    "augmentations": augmentations,
    "stability": stability,
    "corruption": corruption,
    "head": head,
    "mining": mining,
    "few-labels": few_labels,
    "label-noise": label_noise,
    "transfer": transfer,
    "joint": joint,
}
