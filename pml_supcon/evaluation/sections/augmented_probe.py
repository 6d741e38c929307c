"""The paper's linear classifier on any frozen encoder: trained over augmented images by an optimizer of timm."""

from typing import Any

from accelerate import Accelerator
from torch import nn

from pml_supcon.data.images import ImageData
from pml_supcon.training.callbacks import all_finite
from pml_supcon.training.config import Plan
from pml_supcon.training.config.settings import Schedule
from pml_supcon.training.launch import check_launch
from pml_supcon.training.loop import run_stage
from pml_supcon.training.optimization import check_optimizer
from pml_supcon.training.stage import build_classifier_stage


def train_augmented_probe(
    encoder: nn.Module,
    data: ImageData,
    accelerator: Accelerator,
    *,
    optimizer: str,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    augment: str = "auto",
    seed: int = 0,
    optimizer_args: dict[str, Any] | None = None,
    weight_decay: float = 0.0,
    schedule: Schedule = "cosine",
    workers: int = 0,
) -> nn.Linear:
    """Train a linear classifier over augmented training images; all processes call it, each for its share of a batch.

    It is stage 2 of `train.py`. The paper (section 4 and appendix) trains with LARS, RMSprop or SGD with momentum.

    Args:
        encoder: images `(N, C, H, W)` to features `(N, width)`. Left frozen, in evaluation mode, on the device.
        data: the images that are trained on are `data.train`.
        accelerator: the processes.
        optimizer: any timm optimizer (`lars`, `rmsprop`, `sgd`, ...).
        epochs: passes over the training images, >= 1.
        learning_rate: peak learning rate, > 0; it falls to 0 with the `cosine`.
        batch_size: images in a batch over all processes, a multiple of their number.
        augment: what makes the views, as `--augment` of `train.py`.
        seed: of the weights, the batches and the augmentation.
        optimizer_args: the optimizer's own arguments, such as `momentum`.
        weight_decay: not on the bias.
        schedule: what the learning rate follows: `cosine` or `constant`.
        workers: processes that load images.

    Returns:
        The classifier, the same on all processes.

    Raises:
        ValueError: an option is out of range, or the optimizer or the augmentation is unknown.
        FloatingPointError: the loss, its gradient or the weights became infinite or NaN.
        Stopped: a signal came.
    """
    check_launch(accelerator)
    check_optimizer(optimizer, "probe_optimizer")
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"Expected argument `{name}` to be at least 1, but got {value}")
    if not learning_rate > 0:
        raise ValueError(f"Expected argument `learning_rate` to be above 0, but got {learning_rate}")
    if schedule not in ("cosine", "constant"):
        raise ValueError(f"Expected argument `schedule` to be cosine or constant, but got {schedule!r}")
    if batch_size % accelerator.num_processes:
        raise ValueError(
            f"Expected argument `batch_size` to be a multiple of the {accelerator.num_processes} processes, but got "
            f"{batch_size}"
        )
    plan = Plan(
        epochs=epochs,
        optimizer=optimizer,
        optimizer_args=optimizer_args or {},
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        warmup_epochs=0.0,
        schedule=schedule,
        decay_epochs=[],
        decay_rate=0.1,
    )
    stage = build_classifier_stage(
        encoder, data, data.train, accelerator, plan, batch_size=batch_size, augment=augment, seed=seed, workers=workers
    )
    run_stage(stage, stage.first_step, accelerator)
    if not all_finite(stage.model):
        raise FloatingPointError(f"the weights of the classifier are no longer finite after step {stage.last_step}")
    model: Any = stage.model
    classifier: nn.Linear = model.top
    return classifier
