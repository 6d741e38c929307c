"""The scales of the experiments: data, encoder, budget and candidate learning rates."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

CONFIGS = Path(__file__).parent.parent / "configs"
CIFAR_TRANSFER = ("torchvision:CIFAR100", "torchvision:SVHN", "torchvision:STL10")
IMAGENET_TRANSFER = (
    *("torchvision:CIFAR10", "torchvision:CIFAR100", "torchvision:Food101", "torchvision:Flowers102"),
    *("torchvision:DTD", "torchvision:OxfordIIITPet", "torchvision:FGVCAircraft"),
)
NATURAL = ("simaugment", "autoaugment", "randaugment", "stacked_randaugment")


@dataclass(frozen=True)
class Scale:
    """The settings that all trainings of all experiments share.

    Attributes:
        name: The name on the command line.
        settings: Settings of ``train.py``.
        tuning: Settings that replace these while learning rates are chosen on held-out images.
        learning_rates: Candidates by optimizer; other optimizers use the candidates of ``sgd``.
        batch_sizes: Batch sizes of the experiment `batch-size`.
        augmentations: Augmentations of the experiments `augmentations` and `stability`.
        label_shares: Shares of the training images of the experiment `few-labels`.
        images: The number of training images.
        triplets_per_anchor: Random triplets per anchor of the triplet loss; None: all of the batch (cubic in its size).
        transfer: The data sets for transfer; None: training has the first half of the classes, transfer the second.
        tune_variants: Choose a learning rate for each number of positives; otherwise all share one.
        seeds: The number of seeds, from 0.
    """

    name: str
    settings: Mapping[str, Any]
    tuning: Mapping[str, Any]
    learning_rates: Mapping[str, tuple[float, ...]]
    batch_sizes: tuple[int, ...]
    augmentations: tuple[str, ...] = NATURAL
    label_shares: tuple[float, ...] = (0.01, 0.1, 0.25, 0.5, 1.0)
    transfer: tuple[str, ...] | None = None
    images: int = 0
    triplets_per_anchor: int | None = None
    tune_variants: bool = True
    seeds: int = 3

    def with_settings(self, given: Mapping[str, Any]) -> "Scale":
        """Return this scale with other settings; a given learning rate is the only candidate."""
        rates = {"sgd": (float(given["learning_rate"]),)} if "learning_rate" in given else self.learning_rates
        return replace(self, settings={**self.settings, **given}, learning_rates=rates)

    def rates_for(self, optimizer: str) -> tuple[float, ...]:
        """Return the candidate learning rates of an optimizer."""
        return self.learning_rates.get(optimizer, self.learning_rates["sgd"])

    @property
    def halves(self) -> tuple[str, str] | None:
        """The data with the first and the second half of its classes; None if the scale names transfer data."""
        if self.transfer is not None:
            return None
        data = self.settings["data"]
        prefix = f"{data}{'&' if '?' in data else '?'}classes="
        return f"{prefix}0-4", f"{prefix}5-9"


def settings_of_config(name: str) -> dict[str, Any]:
    """Read a file of ``pml_supcon/configs``."""
    read: dict[str, Any] = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    return read


# Scikit-learn's digits (8 x 8, 10 classes) and a resnet10t of 16 to 128 channels. Training uses 251 of the 1,257
# training images, so that errors remain to compare; learning rates are chosen on the other 1,006; 540 test images.
DIGITS = Scale(
    name="digits",
    settings={
        "data": "digits",
        "augment": "digits",
        "held_out": 0.8,
        "encoder": "resnet10t",
        "encoder_args": {"channels": [16, 32, 64, 128]},
        "small_stem": True,
        "channels_last": True,
        "batch_size": 64,
        "epochs": 40,
        "warmup_epochs": 2.0,
        "knn_every": 1000,
        "save_every": 1000,
    },
    tuning={},
    learning_rates={
        "sgd": (0.01, 0.03, 0.1, 0.3, 1.0),
        "lars": (0.1, 0.3, 1.0, 3.0, 10.0),
        "rmsprop": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
    },
    batch_sizes=(16, 32, 64, 128),
    augmentations=("digits", *NATURAL),
    label_shares=(0.1, 0.25, 0.5, 1.0),
    images=251,
    seeds=5,
)
# The first 4,000 training images of CIFAR-10, of which 3,200 are trained on and 800 held out to choose learning rates;
# the first 2,000 test images; a resnet10t of 32 to 256 channels with its default stem; 25 epochs of 50 steps, because
# with L_out the embeddings stay collapsed for some hundred steps. bfloat16 takes 0.6 of the time on a CPU that has it.
CIFAR10_SMALL = Scale(
    name="cifar10-small",
    settings={
        "data": "torchvision:CIFAR10",
        "max_train": 4000,
        "max_test": 2000,
        "held_out": 0.2,
        "augment": "simclr",
        "encoder": "resnet10t",
        "encoder_args": {"channels": [32, 64, 128, 256]},
        "small_stem": False,
        "channels_last": True,
        "mixed_precision": "bf16",
        "batch_size": 64,
        "epochs": 25,
        "warmup_epochs": 1.0,
        "knn_every": 1000,
        "save_every": 100,
    },
    tuning={},
    learning_rates={
        "sgd": (0.01, 0.04, 0.16, 0.64),
        "lars": (0.3, 1.0, 3.0, 10.0),
        "rmsprop": (3e-4, 1e-3, 3e-3, 1e-2),
    },
    batch_sizes=(32, 64, 128, 256, 512),
    images=3200,
    tune_variants=False,
    triplets_per_anchor=100,
)
# All of CIFAR-10 and a ResNet-18 with the stem for small images, 100 epochs in bfloat16
# (`pml_supcon/configs/cifar10_resnet18.yaml`). Learning rates are chosen on 5,000 held-out training images, then all
# 50,000 are trained on.
CIFAR10 = Scale(
    name="cifar10",
    settings=settings_of_config("cifar10_resnet18"),
    tuning={"held_out": 0.1, "knn_every": 1000},
    learning_rates={"sgd": (0.1, 0.2, 0.5, 1.0), "lars": (1.0, 2.0, 4.0, 8.0), "rmsprop": (3e-4, 1e-3, 3e-3, 1e-2)},
    batch_sizes=(256, 512, 1024, 2048),
    transfer=CIFAR_TRANSFER,
    images=50_000,
    triplets_per_anchor=100,
)
# ImageNet-1k and a ResNet-50 with the paper's values (`pml_supcon/configs/imagenet_resnet50.yaml`). Learning rates are
# chosen on 1% held-out training images, with a tenth of the epochs.
IMAGENET = Scale(
    name="imagenet",
    settings=settings_of_config("imagenet_resnet50"),
    tuning={"held_out": 0.01, "epochs": 35, "knn_every": 1000},
    learning_rates={"lars": (0.2, 0.4, 0.8), "sgd": (0.05, 0.1, 0.2), "rmsprop": (3e-5, 1e-4, 3e-4)},  # for 256 images
    batch_sizes=(512, 1024, 2048, 4096, 6144),
    transfer=IMAGENET_TRANSFER,
    images=1_281_167,
    tune_variants=False,
    triplets_per_anchor=100,
)
SCALES = {scale.name: scale for scale in (DIGITS, CIFAR10_SMALL, CIFAR10, IMAGENET)}
