"""Mixup and CutMix of a batch of views: torchvision's transforms, applied to all views of a sample alike."""

from typing import Literal, get_args

import torch
from torch import Tensor
from torchvision.transforms import v2

from pml_supcon._checks import check_choice, check_int, check_number
from pml_supcon._tensors import FLOATS, check_dense

Mixing = Literal["mixup", "cutmix", "both"]
LEAST, LARGEST = 0.01, 1000.0  # below 0.01 torch's draws from Beta, in float32, underflow and are 0.5 too often


class BatchMix:
    """Mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019) of a batch: mixed images and soft labels.

    It runs ``MixUp`` and ``CutMix`` of ``torchvision.transforms.v2``. Each call draws one share from
    ``Beta(alpha, alpha)``. The partner of sample ``i`` is sample ``i - 1`` of the same batch, of sample 0 the last:
    batches need a random order, as those of ``MultiViewBatchSampler`` have. View ``v`` of a sample is mixed with view
    ``v`` of its partner, all with one share and one box, so that a sample has one row of soft labels:

        mixup:   x'_iv = share x_iv + (1 - share) x_(i-1)v
        CutMix:  x'_iv = x_(i-1)v inside a box, x_iv outside; share = 1 - box area within the image / (H W)
        both:    y'_i  = share y_i + (1 - share) y_(i-1)

    The draws come from torch's generator of the CPU, also for images on a GPU, which the host never waits for. As the
    ``batch_transform`` of ``SeededDataset`` they depend only on the seed of the batch: each process has its own, for
    any number of workers and after a resume.

    Args:
        kind: "mixup", "cutmix", or "both", which draws one of the two for each batch.
        alpha: parameter of the Beta distribution, in [0.01, 1000]. 1 draws shares uniformly, less draws them nearer to
            0 and 1.
        num_classes: ``C >= 1``, for integer labels.

    Raises:
        TypeError: If an argument has a wrong type, or, when called, if the images are not floating point (mixup) or
            floating point or uint8 (CutMix).
        ValueError: If an argument is out of range, or, when called, if shapes do not fit, integer labels come without
            ``num_classes``, or labels on the CPU are outside ``[0, C)``; on a GPU an assertion of CUDA fails instead.

    Examples:
        >>> mix = BatchMix("cutmix", num_classes=3)
        >>> views, soft = mix(torch.rand(4, 2, 1, 8, 8), torch.tensor([0, 2, 1, 1]))
        >>> views.shape, soft.shape, soft.sum(1)
        (torch.Size([4, 2, 1, 8, 8]), torch.Size([4, 3]), tensor([1., 1., 1., 1.]))
    """

    def __init__(self, kind: Mixing, *, alpha: float = 1.0, num_classes: int | None = None) -> None:
        check_choice("kind", kind, get_args(Mixing))
        self.kind, self.alpha = kind, check_number("alpha", alpha, LEAST, LARGEST)
        self.num_classes = None if num_classes is None else check_int("num_classes", num_classes, low=1)
        mixup, cutmix = (each(alpha=self.alpha, num_classes=self.num_classes) for each in (v2.MixUp, v2.CutMix))
        self._transform = {"mixup": mixup, "cutmix": cutmix, "both": v2.RandomChoice([mixup, cutmix])}[kind]

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            images: ``(B, V, C, H, W)`` or ``(B, C, H, W)``, floating point; for CutMix also uint8. Not modified.
            labels: ``(B,)`` integer classes; ``(B, C)`` label sets, bool or integers 0 and 1; or ``(B, C)`` soft
                labels, floating point. On any device.

        Returns:
            The mixed images, of the shape and dtype given, and soft labels ``(B, C)``, float32 or the floating dtype
            given. Each row has the sum of the two rows, weighted by their shares: 1 for classes.
        """
        self._check_images(images)
        labels = self._checked_labels(labels, len(images))
        # (B, V * C, H, W): torchvision takes the views as channels, and treats all channels of a sample alike.
        mixed, soft = self._transform(images.flatten(1, -3), labels)
        return mixed.view(images.shape), soft

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.kind!r}, alpha={self.alpha}, num_classes={self.num_classes})"

    def _check_images(self, images: Tensor) -> None:
        check_dense("images", images)
        if images.ndim not in (4, 5) or 0 in images.shape:
            raise ValueError(
                "Expected argument `images` to have shape (B, V, C, H, W) or (B, C, H, W) and not to be empty, "
                f"but got {tuple(images.shape)}"
            )
        if images.dtype not in FLOATS and (self.kind != "cutmix" or images.dtype != torch.uint8):
            expected = "floating point of 16 to 64 bits" + (
                " or uint8" if self.kind == "cutmix" else ", as mixup needs"
            )
            raise TypeError(f"Expected argument `images` to be {expected}, but got {images.dtype}")

    def _checked_labels(self, labels: Tensor, number: int) -> Tensor:
        """Return labels that torchvision takes: int64 (B,), float or bool (B, C)."""
        check_dense("labels", labels)
        classes = self.num_classes
        rows_fit = labels.ndim == 2 and classes in (None, labels.shape[1])
        if (labels.ndim != 1 and not rows_fit) or len(labels) != number:
            shapes = f"({number},) or ({number}, {classes or 'C'})"
            raise ValueError(
                f"Expected argument `labels` to have shape {shapes}, one row for each sample of `images`, "
                f"but got {tuple(labels.shape)}"
            )
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            if labels.ndim == 1 or labels.dtype not in (*FLOATS, torch.bool):
                raise TypeError(
                    "Expected argument `labels` to be integers (B,) or bool, integers, floats of 16 to 64 bits (B, C), "
                    f"but got {labels.dtype} {tuple(labels.shape)}"
                )
            return labels
        if classes is None:
            raise ValueError("Expected argument `num_classes` for integer `labels`, but got None")
        most = classes - 1 if labels.ndim == 1 else 1
        labels = labels.long()
        # on the CPU only: elsewhere the host would wait for the values
        if labels.device.type == "cpu" and not 0 <= int(labels.min()) <= int(labels.max()) <= most:
            raise ValueError(
                f"Expected argument `labels` to be in [0, {most}], but got {int(labels.min())} to {int(labels.max())}"
            )
        return labels
