"""Pixels of feature maps as rows of a loss: draws of pixels, and the loss of mask prototypes.

Both are from MaX-DeepLab (Wang et al., CVPR 2021) and its successor CMT-DeepLab.
"""

import torch
from torch import Tensor

from pml_supcon._checks import check_int, check_number, check_temperature, check_type
from pml_supcon._tensors import FLOATS, check_dense, to_device
from pml_supcon.functional.supcon.checks import LABEL_DTYPES
from pml_supcon.functional.supcon.execution import full_precision, products
from pml_supcon.functional.supcon.problem import AnchorLosses, unit_rows


def draw_pixels(
    masks: Tensor,
    num_pixels: int,
    *,
    ignore_value: int | None = None,
    area_exponent: float = -0.6,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Draw pixels of each image without replacement, by the areas of their masks.

    Pixel ``p`` has the weight ``w_p = a_p ** area_exponent``, with ``a_p`` the number of pixels of its mask in its
    image. Pixels are drawn one after another, each with a probability in proportion to its weight among the pixels that
    are left. The same distribution is computed at once, by the ``num_pixels`` largest keys of an image (Gumbel top-k):

        key_p = log w_p - log(-log u_p),   u_p uniform in (0, 1)

    Args:
        masks: ``(B, h, w)`` integers, the mask or class of each pixel.
        num_pixels: pixels of an image, ``>= 1``. An image that has fewer gives all.
        ignore_value: a mask that is never drawn; None: there is none.
        area_exponent: any number. 0 draws all pixels alike; -1 draws the first pixel from all masks alike.
        generator: CPU generator, so that all devices draw alike. None: PyTorch's global one.

    Returns:
        ``(n,)`` int64, the pixels as indices into ``masks.flatten()``, ascending; ``n <= B * num_pixels``.

    Raises:
        TypeError: If masks are not integers, or another argument has the wrong type.
        ValueError: If masks are not ``(B, h, w)``, a number is out of range, or the generator is not on the CPU.

    Note:
        The host waits for the device, since the number of pixels depends on the masks.

    Source:
        Yu et al., *CMT-DeepLab* (CVPR 2022); its authors' code, deeplab2, has the keys and the exponent -0.6.

    Examples:
        >>> import torch
        >>> from pml_supcon.functional import draw_pixels
        >>> masks = torch.tensor([[[0, 0, 0, 0], [0, 0, 0, 7]], [[1, 1, 255, 255], [255, 255, 255, 255]]])
        >>> draw_pixels(masks, 3, ignore_value=255, area_exponent=-9)[-2:]
        tensor([8, 9])
    """
    check_int("num_pixels", num_pixels, low=1)
    exponent = check_number("area_exponent", area_exponent)
    check_type("generator", generator, (torch.Generator, type(None)), "a torch.Generator or None")
    if generator is not None and generator.device.type != "cpu":
        raise ValueError(f"Expected argument `generator` to be on the CPU, but got one on {generator.device}")
    masks = checked_masks(masks, ignore_value)
    slots, areas = number_masks(masks, ignore_value)
    images, pixels = slots.shape
    # key_p = exponent log a_p - log e_p with e_p = -log u_p exponential, (B, P); minus infinity: ignored. Ties have
    # negligible probability in float64.
    noise = torch.empty(images, pixels, dtype=torch.float64, device="cpu").exponential_(generator=generator)
    keys = exponent * areas.gather(1, slots.clamp(min=0)).double().log() - to_device(noise, masks.device).log()
    keys = keys.masked_fill(slots < 0, -torch.inf)
    # the largest keys of each image, as indices into all pixels, (n,)
    best, places = keys.topk(min(num_pixels, pixels), dim=1)
    places = places + pixels * torch.arange(images, device=masks.device)[:, None]
    return places[best > -torch.inf].sort().values


def mask_prototype_loss(
    features: Tensor, masks: Tensor, *, temperature: float = 0.3, ignore_value: int | None = None
) -> AnchorLosses:
    r"""Return the loss of every pixel against the prototypes of the masks of its image.

    With ``g_p = f_p / |f_p|`` the unit features of pixel ``p``, which is in mask ``k``, in each image:

        m_k = mean of g_q over the pixels q of mask k,   t_k = m_k / |m_k|
        l_p = -log( exp(t_k . g_p / tau) / sum_{k'} exp(t_k' . g_p / tau) )

    The sum goes over the masks of the image. Gradients reach ``g_p`` and, through the prototypes, all ``g_q``.

    Args:
        features: ``(B, D, h, w)`` floating point. Half precision is computed in float32.
        masks: ``(B, h, w)`` integers, on any device. An id means nothing outside its image.
        temperature: ``tau > 0``.
        ignore_value: a mask whose pixels are in no prototype and have no loss and no gradient; None: there is none.

    Returns:
        ``AnchorLosses(losses, valid)``, two ``(B, h, w)`` tensors, losses >= 0. A pixel is valid if it is not ignored;
        the loss of the others is 0. ``.mean()`` is the batch loss: the mean over all valid pixels, 0 (with a graph) if
        there is none.

    Raises:
        TypeError: If features are not floating point, masks are not integers, or another argument has the wrong type.
        ValueError: If shapes do not fit, or the temperature is out of range.

    Note:
        ``O(B h w (D + K))`` memory and ``O(B h w D K)`` time, K the largest number of masks in an image. An image with
        one mask has the loss 0. A pixel of norm 0 has no direction: its row is 0, and so is its gradient.

    Source:
        Wang et al., *MaX-DeepLab: End-to-End Panoptic Segmentation with Mask Transformers* (CVPR 2021), the
        instance discrimination. The authors' code, deeplab2, leaves out regions without instances ("stuff"): give their
        pixels ``ignore_value`` to do so.

    Examples:
        >>> import torch
        >>> from pml_supcon.functional import mask_prototype_loss
        >>> angles = torch.tensor([0.0, 0.3, 1.2, 2.5, 0.1, 0.5, 1.0, 2.2], dtype=torch.float64)
        >>> features = torch.stack([angles.cos(), angles.sin()]).view(1, 2, 2, 4)
        >>> masks = torch.tensor([[[0, 0, 1, 255], [0, 0, 1, 2]]])
        >>> print(f"{mask_prototype_loss(features, masks, ignore_value=255).mean():.9f}")
        0.306935255
    """
    check_temperature("temperature", temperature)
    masks = checked_masks(masks, ignore_value, features)
    slots, areas = number_masks(masks, ignore_value)
    valid, absent = slots >= 0, areas == 0
    dtype = torch.promote_types(features.dtype, torch.float32)
    with full_precision(features.device):
        # g_p, (B, P, D): the features of an ignored pixel, which may be NaN, are replaced by ones
        rows = features.to(dtype).flatten(2).transpose(1, 2).masked_fill(~valid[..., None], 1)
        pixels = unit_rows(rows.flatten(0, 1)).view(rows.shape)
        # m_k = sum_q c_qk g_q with c_qk = 1 / a_k for pixels q of mask k and else 0, (B, P, K); t_k, (B, K, D). Masks
        # that an image lacks are ones too: at 0 the second derivative of a norm is NaN
        numbers = torch.arange(areas.shape[1], device=slots.device)
        members = slots[..., None] == numbers
        shares = members.to(dtype) / areas.clamp(min=1)[:, None]
        means = products(shares.transpose(1, 2), pixels.transpose(1, 2))
        means = means.masked_fill(absent[..., None], 1)
        prototypes = unit_rows(means.flatten(0, 1)).view(means.shape)
        # s_pk = t_k . g_p / tau, (B, P, K), over the masks of the image. The first always counts: no sum is empty
        s = products(pixels, prototypes) / float(temperature)
        s = s.masked_fill((absent & (numbers > 0))[:, None], -torch.inf)
        # l_p = log sum_k' exp(s_pk') - s_pk, (B, P)
        losses = s.logsumexp(dim=2) - s.gather(2, slots.clamp(min=0)[..., None])[..., 0]
    losses = torch.where(valid, losses, 0)
    return AnchorLosses(losses.view(masks.shape), valid.view(masks.shape))


def number_masks(masks: Tensor, ignore_value: int | None) -> tuple[Tensor, Tensor]:
    """Return the number of each pixel's mask among the masks of its image, in the order of ids, and areas.

    Returns:
        The numbers from 0 on, ``(B, h w)`` int64, -1 where a pixel is ignored, and the number of pixels of each mask,
        ``(B, K)`` int64, K >= 1 the largest number of masks in an image; 0 where an image has fewer.
    """
    ids = masks.flatten(1)
    images = torch.arange(len(ids), device=ids.device)
    # the ids of the batch as 0 .. U - 1, and U where ignored, (B, P)
    values, places = ids.unique(return_inverse=True)
    ignored = len(values)
    if ignore_value is not None:
        places = places.masked_fill(ids == ignore_value, ignored)
    # the S masks of the batch by image, then by id, the ignored one of an image last: their areas, and the mask of each
    # pixel, (B, P)
    keys = images[:, None] * (ignored + 1) + places
    found, numbers, areas = keys.unique(return_inverse=True, return_counts=True)
    owners = found // (ignored + 1)
    # number in the image = number in the batch - number of the image's first mask
    first = torch.searchsorted(owners, images)
    slots = (numbers - first[:, None]).masked_fill(places == ignored, -1)
    most = max(1, int(slots.max()) + 1) if slots.numel() else 1
    # (S,) to (B, K)
    kept = found % (ignored + 1) < ignored
    within = torch.arange(len(found), device=ids.device) - first[owners]
    table = ids.new_zeros(len(ids), most).index_put_((owners[kept], within[kept]), areas[kept])
    return slots, table


def checked_masks(masks: Tensor, ignore_value: int | None, features: Tensor | None = None) -> Tensor:
    """Return masks ``(B, h, w)`` as int64, on the device of the features ``(B, D, h, w)`` if given, or raise."""
    check_dense("masks", masks)
    check_ignore_value(ignore_value)
    if masks.dtype not in LABEL_DTYPES:
        raise TypeError(f"Expected argument `masks` to hold integers, but got {masks.dtype}")
    if masks.ndim != 3:
        raise ValueError(
            f"Expected argument `masks` to have shape (B, h, w), the mask of each pixel, but got {tuple(masks.shape)}"
        )
    if features is None:
        return masks.long()
    check_dense("features", features)
    if features.dtype not in FLOATS:
        raise TypeError(f"Expected argument `features` to be floating point, but got {features.dtype}")
    if features.ndim != 4 or not features.shape[1]:
        raise ValueError(f"Expected argument `features` to have shape (B, D, h, w), but got {tuple(features.shape)}")
    size = (len(features), *features.shape[2:])
    if masks.shape != size:
        raise ValueError(
            f"Expected argument `masks` to have the size (B, h, w) of the features, {size}, but got "
            f"{tuple(masks.shape)}; resize masks by nearest neighbour, `F.interpolate(..., mode='nearest')`"
        )
    return to_device(masks.long(), features.device)


def check_ignore_value(ignore_value: int | None) -> None:
    """Raise unless the ignored mask is an integer or None."""
    if ignore_value is not None:
        check_int("ignore_value", ignore_value)
