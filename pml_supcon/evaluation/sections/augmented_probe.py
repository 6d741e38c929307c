"""The paper's linear classifier on a frozen encoder, trained on augmented images by an optimizer of timm."""

from typing import Any

from accelerate import Accelerator
from torch import nn

from pml_supcon.data.images import ImageData
from pml_supcon.training.callbacks import all_finite
from pml_supcon.training.config.settings import OptimizationSettings
from pml_supcon.training.launch import check_launch
from pml_supcon.training.loop import run_stage
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
    workers: int = 0,
) -> nn.Linear:
    """Train a linear classifier on augmented training images. All processes call it and divide each batch.

    This is stage 2 of `train.py`. The paper (section 4 and appendix) trains with LARS, RMSprop or SGD with momentum.

    Args:
        encoder: Maps images ``(N, C, H, W)`` to features ``(N, width)``. Afterwards it is frozen, in evaluation mode,
            on the device.
        data: The data; the classifier trains on ``data.train``.
        accelerator: The processes.
        optimizer: An optimizer of timm (``lars``, ``rmsprop``, ``sgd``, ...).
        epochs: Passes over the training images, at least 1.
        learning_rate: Peak learning rate, above 0; a cosine schedule decays it to 0.
        batch_size: Images in a batch over all processes, a multiple of their number.
        augment: The augmentation, as for `--augment` of `train.py`.
        seed: Seed of the weights, the batches and the augmentation.
        workers: Processes that load images.

    Returns:
        The classifier, the same on all processes.

    Raises:
        ValueError: If ``batch_size`` is not a multiple of the processes, or the augmentation is unknown.
        FloatingPointError: If the loss, its gradient or a weight became infinite or NaN.
        Stopped: If the process received a signal.
    """
    check_launch(accelerator)
    if batch_size % accelerator.num_processes:
        raise ValueError(
            f"Expected argument `batch_size` to be a multiple of the {accelerator.num_processes} processes, but got "
            f"{batch_size}"
        )
    plan = OptimizationSettings(
        epochs=epochs,
        optimizer=optimizer,
        optimizer_args={},
        learning_rate=learning_rate,
        weight_decay=0.0,
        warmup_epochs=0.0,
        schedule="cosine",
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
