"""The registry of the experiments."""

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

#: The functions of the experiments by name, in the order of the result pages.
EXPERIMENTS: dict[str, Callable[[Scale], Experiment]] = {
    claim.__name__.replace("_", "-"): claim
    for claim in (
        *(losses, methods, positives, temperature, batch_size, optimizers, augmentations, stability),
        *(corruption, head, mining, few_labels, label_noise, transfer, joint),
    )
}
