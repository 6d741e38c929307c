"""Losses of the pixels of feature maps, for segmentation; the maths is in ``pml_supcon.functional.pixels``."""

from typing import Literal, get_args

import numpy as np
import torch
from pytorch_metric_learning.reducers import BaseReducer, MeanReducer
from torch import Tensor, nn

from pml_supcon._checks import check_choice, check_int, check_number, check_temperature
from pml_supcon._pml import losses as _pml
from pml_supcon.functional.pixels import check_ignore_value, checked_masks, draw_pixels, mask_prototype_loss
from pml_supcon.functional.supcon import AnchorLosses
from pml_supcon.losses.global_batch import GlobalBatchLoss
from pml_supcon.losses.queue import QueueLoss
from pml_supcon.losses.supcon import BaseSupConLoss, check_default_options

Grouping = Literal["mask", "class"]


class PixelSupConLoss(nn.Module):
    r"""L_out or L_in over some pixels of each image, as an auxiliary loss of segmentation (CMT-DeepLab).

        drawn without replacement:  pixel p of an image with probability ~ a_p ** area_exponent
        L = loss over the drawn pixels; positives: the pixels of the same mask, or of the same class

    ``a_p`` is the number of pixels of the mask of ``p`` in its image, so that large masks do not fill the batch.
    ``by="mask"`` contrasts the pixels of each image with each other alone, and takes the mean over the anchors of all
    images. ``by="class"`` contrasts the pixels of the whole batch.

    Args:
        loss: a ``SupConLossOut`` or ``SupConLossIn`` with its options. With ``by="class"`` also a ``QueueLoss`` of it,
            a queue of pixels of earlier batches, or a ``GlobalBatchLoss`` of either, the pixels of all processes.
        num_pixels: pixels of an image, ``>= 1``; an image that has fewer gives all.
        by: "mask": ``masks`` are ids that mean nothing outside their image; "class": they are classes.
        ignore_value: a mask or class that is never drawn; None: there is none.
        area_exponent: any number; 0 draws all pixels alike.
        seed: of the draws, ``>= 0``.

    Shape:
        - features: ``(B, D, h, w)``, floating point.
        - masks: ``(B, h, w)``, any integer dtype, on any device.
        - output: ``()``, or what the reducer of the loss returns; 0 with a graph if all pixels are ignored.

    Raises:
        TypeError: If the loss is none of these, features are not floating point, masks are not integers, or another
            argument has the wrong type.
        ValueError: If shapes do not fit, a number is out of range, a loss that needs ``by="class"`` comes without it,
            or if the loss has an option for views or a target.

    Note:
        Call ``t`` in training mode draws with the numbers that belong to ``(seed, t)``. ``state_dict`` holds ``t``, so
        that a run that loads it continues with the draws of an uninterrupted run. Calls in evaluation mode do not
        advance ``t``. Give each process a seed of its own, ``seed=accelerator.process_index``: else all processes draw
        with the same random numbers, though from different images. Draws are the same on all devices.

        With a ``GlobalBatchLoss``, features or masks that do not fit raise on their process alone, before the
        collectives; the other processes wait until the timeout of the process group.

        On the backends "tiled" and "triton" memory is linear in the pixels: 4 images of 64 x 64 pixels can be drawn
        whole, 16,384 rows. The host waits for the device to count the drawn pixels.

    Source:
        Yu et al., *CMT-DeepLab: Clustering Mask Transformers for Panoptic Segmentation* (CVPR 2022), for ``by="mask"``;
        its authors' code, deeplab2, has the draw. ``by="class"`` and the queue are additions.

    Examples:
        >>> import torch
        >>> from pml_supcon import losses
        >>> loss = losses.PixelSupConLoss(losses.SupConLossOut(temperature=0.1), num_pixels=64, ignore_value=255)
        >>> features, masks = torch.randn(2, 8, 16, 16, requires_grad=True), torch.randint(3, (2, 16, 16))
        >>> loss(features, masks).backward()
        >>> int((features.grad.abs().sum(dim=1) > 0).sum())
        128
    """

    def __init__(
        self,
        loss: nn.Module,
        *,
        num_pixels: int = 1024,
        by: Grouping = "mask",
        ignore_value: int | None = None,
        area_exponent: float = -0.6,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_choice("by", by, get_args(Grouping))
        parts = [loss]
        while isinstance(parts[-1], GlobalBatchLoss | QueueLoss):
            parts.append(parts[-1].loss)
        if not isinstance(parts[-1], BaseSupConLoss):
            raise TypeError(
                "Expected argument `loss` to be a SupConLossOut or SupConLossIn, or a QueueLoss or GlobalBatchLoss of "
                f"one, but got {type(parts[-1]).__name__}"
            )
        if by == "mask" and len(parts) > 1:
            raise ValueError(
                f"Expected by='class' with a {type(loss).__name__}: by='mask' contrasts pixels of one image, but got "
                f"by={by!r}"
            )
        for part in parts:
            check_default_options(part, "pixels, which have a mask or class each")
        check_ignore_value(ignore_value)
        self.loss = loss
        self.num_pixels = check_int("num_pixels", num_pixels, low=1)
        self.by = by
        self.ignore_value = ignore_value
        self.area_exponent = check_number("area_exponent", area_exponent)
        self.seed = check_int("seed", seed, low=0)
        self.draws = 0  # calls in training mode

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # the number of drawn pixels depends on the masks
    def forward(self, features: Tensor, masks: Tensor) -> Tensor:
        """Return the loss of the drawn pixels; see the class for shapes."""
        masks = checked_masks(masks, self.ignore_value, features)
        numbers = np.random.SeedSequence((self.seed, self.draws)).generate_state(1)  # CPU generators use 32 bits
        chosen = draw_pixels(
            masks,
            self.num_pixels,
            ignore_value=self.ignore_value,
            area_exponent=self.area_exponent,
            generator=torch.Generator("cpu").manual_seed(int(numbers[0])),
        )
        # rows (n, D) and labels (n,) of pixel `chosen % (h w)` of image `chosen // (h w)`
        pixels = max(1, masks.shape[1] * masks.shape[2])
        images = chosen // pixels
        rows, labels = features.flatten(2)[images, :, chosen % pixels], masks.flatten()[chosen]
        loss: Tensor
        if isinstance(self.loss, BaseSupConLoss) and self.by == "mask":
            sizes = torch.bincount(images, minlength=max(1, len(masks))).tolist()
            loss = self.loss.loss_of_parts(rows, labels, sizes)
        else:
            loss = self.loss(rows, labels)
        self.draws += self.training
        return loss

    def get_extra_state(self) -> Tensor:
        """Return the number of draws, as a tensor: some formats of checkpoints hold only tensors."""
        return torch.tensor([self.draws], device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the number of draws."""
        self.draws = int(state)

    def extra_repr(self) -> str:
        """Return the options and the number of draws, for ``repr``."""
        return (
            f"num_pixels={self.num_pixels}, by={self.by!r}, ignore_value={self.ignore_value}, "
            f"area_exponent={self.area_exponent}, seed={self.seed}, draws={self.draws}"
        )


class MaskPrototypeLoss(nn.Module):
    r"""The loss of every pixel against the prototypes of the masks of its image (MaX-DeepLab).

        l_p = -log( exp(t_k . g_p / tau) / sum_{k'} exp(t_k' . g_p / tau) )

    with ``g_p`` the unit features of pixel ``p``, which is in mask ``k``, and ``t_k`` the normalised mean of the unit
    features of mask ``k``, with gradient. Prototypes are of one image: the same id in two images is two masks. With the
    default reducer the loss is the mean over all pixels of the batch that are not ignored.

    Args:
        temperature: ``tau > 0``.
        ignore_value: a mask whose pixels are in no prototype and have no loss; None: there is none.
        reducer: a reducer of PML; default: the mean.

    Shape:
        - features: ``(B, D, h, w)``, floating point.
        - masks: ``(B, h, w)``, any integer dtype, on any device.
        - output: ``()``, a scalar >= 0, or what the reducer returns; 0 with a graph if all pixels are ignored.

    Raises:
        TypeError: If features are not floating point, masks are not integers, or another argument has the wrong type.
        ValueError: If shapes do not fit, or the temperature is out of range.

    Note:
        ``O(B h w (D + K))`` memory, K the largest number of masks in an image. Prototypes are of one image, so the
        average of the losses of all processes is the loss of the whole batch if all processes have the same number of
        pixels that are not ignored.

    Source:
        Wang et al., *MaX-DeepLab: End-to-End Panoptic Segmentation with Mask Transformers* (CVPR 2021).

    Examples:
        >>> import torch
        >>> from pml_supcon import losses
        >>> masks = torch.tensor([[[0, 0, 1, 255]]])
        >>> alike, mixed = torch.tensor([[[[1.0, 1, 0, 9]], [[0.0, 0, 1, 9]]], [[[1.0, 0, 1, 9]], [[0.0, 1, 0, 9]]]])
        >>> loss = losses.MaskPrototypeLoss(ignore_value=255)
        >>> bool(loss(alike[None], masks) < loss(mixed[None], masks))
        True
    """

    def __init__(
        self, temperature: float = 0.3, *, ignore_value: int | None = None, reducer: BaseReducer | None = None
    ) -> None:
        super().__init__()
        check_temperature("temperature", temperature)
        check_ignore_value(ignore_value)
        _pml.check_parts({"reducer": reducer})
        self.temperature = temperature
        self.ignore_value = ignore_value
        self.reducer = MeanReducer() if reducer is None else reducer

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # the number of masks depends on their values
    def forward(self, features: Tensor, masks: Tensor) -> Tensor:
        """Return the loss of the pixels, a scalar under the default reducer; see the class for shapes."""
        masks = checked_masks(masks, self.ignore_value, features)  # on the device of the features
        terms = mask_prototype_loss(features, masks, temperature=self.temperature, ignore_value=self.ignore_value)
        # the reducer gets a row (B h w, D) and a label for each pixel, 0 if it is ignored
        rows, labels = features.movedim(1, 3).flatten(0, 2), masks.masked_fill(~terms.valid, 0).flatten()
        _pml.check_class_weights(self.reducer, labels)
        loss_dict = _pml.loss_dict(AnchorLosses(*(each.flatten() for each in terms)), self.reducer)
        loss: Tensor = self.reducer(loss_dict, rows, labels)
        return loss

    def extra_repr(self) -> str:
        """Return the options, for ``repr``."""
        return f"temperature={self.temperature}, ignore_value={self.ignore_value}"
