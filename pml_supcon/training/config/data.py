"""What is trained on: images, augmentation, batches."""

from dataclasses import dataclass
from typing import Literal

Augment = Literal["auto", "none", "digits", "simclr", "simaugment", "autoaugment", "randaugment", "stacked_randaugment"]


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Images, their augmentation, and batches.

    Attributes:
        data: `digits`, `torchvision:NAME`, `imagefolder:PATH` or `hf:PATH_OR_ID`.
        image_size: side in pixels; default: the images' own where small, else 224.
        max_train: use at most this many training images.
        max_test: use at most this many test images.
        train_fraction: use this share of the training images, every class in its share.
        label_noise: share of the training images whose label becomes another class, drawn with the seed; both stages
            see it, retrieval is scored by the true labels.
        held_out: share of the training images that is not trained on, for the k-NN accuracy in between.
        scored: the images that the encoder is scored on at the end: `test`, or `held_out`, which leaves the test split
            alone while settings are chosen.
        augment: what makes the views; auto: `digits` for small symbols, else `simclr`.
        views: views of each image in a batch.
        batch_size: images in the global batch, over all processes, each in `views` views.
        max_per_class: cap on the images of one class in a batch.
        samples_per_class: exactly this many images of each class present in a batch, instead.
        workers: processes that load images; 0: none. They do not change what is drawn.
        data_on_device: keep images on the accelerator and make the views there; auto: where it is a GPU and the images
            are held in memory.
    """

    data: str = "digits"
    image_size: int | None = None
    max_train: int | None = None
    max_test: int | None = None
    train_fraction: float = 1.0
    label_noise: float = 0.0
    held_out: float = 0.0
    scored: Literal["test", "held_out"] = "test"
    augment: Augment = "auto"
    views: int = 2
    batch_size: int = 256
    max_per_class: int | None = None
    samples_per_class: int | None = None
    workers: int = 0
    data_on_device: Literal["auto"] | bool = "auto"
