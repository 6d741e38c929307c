"""Affine maps in pixels, ``(..., 2, 3)``: from the points of an image to the points of a view of it.

A point is ``(x, y)``: x to the right, y down, ``(0, 0)`` at the centre of the upper left pixel. A map ``T = [A | t]``
takes ``p`` to ``A p + t``. Sums of products are written out: a matrix product is of lower precision under autocast.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pml_supcon._checks import check_bool
from pml_supcon._tensors import FLOATS, check_dense

LEAST_DETERMINANT = 1e-6  # of an invertible map, over the mean square of its linear part: about 10 units of float32


def map_points(points: Tensor, geometry: Tensor, *, inverse: bool = False) -> Tensor:
    r"""Return points of an image as points of its views, or back.

        u = A p + t,        with ``inverse``: p = A^-1 (u - t),        T = [A | t]

    Points are ``(x, y)`` in pixels: x to the right, y down, ``(0, 0)`` at the centre of the upper left pixel. A point
    of a view of side ``S`` is visible if both its coordinates are in ``[-0.5, S - 0.5]``.

    Args:
        points: ``(..., K, 2)``, floating point of 16 to 64 bits.
        geometry: ``(..., 2, 3)``, the maps from image to view, as the datasets return them with ``with_geometry=True``.
            Leading dimensions of maps and points broadcast: ``points[:, None]``, ``(B, 1, K, 2)``, and
            ``(B, V, 2, 3)`` give ``(B, V, K, 2)``.
        inverse: from view to image.

    Returns:
        ``(..., K, 2)``, in the wider dtype of the two.

    Raises:
        TypeError: If an argument has a wrong type or is not floating point.
        ValueError: If shapes do not fit, or, on the CPU, if a map is to be inverted and cannot be. On other devices
            its points are then not finite.

    Examples:
        >>> half = torch.tensor([[0.5, 0.0, -0.25], [0.0, 0.5, -0.25]])  # an image of 8 x 8 as a view of 4 x 4
        >>> map_points(torch.tensor([[0.5, 6.5]]), half)
        tensor([[0., 3.]])
        >>> map_points(torch.tensor([[0.0, 3.0]]), half, inverse=True)
        tensor([[0.5000, 6.5000]])
    """
    check_bool("inverse", inverse)
    for name, value, shape in (("points", points, (2,)), ("geometry", geometry, (2, 3))):
        check_dense(name, value)
        if value.dtype not in FLOATS:
            raise TypeError(f"Expected argument `{name}` to be floating point of 16 to 64 bits, but got {value.dtype}")
        if value.ndim < 2 or value.shape[-len(shape) :] != shape:
            expected = "(..., K, 2)" if name == "points" else "(..., 2, 3)"
            raise ValueError(f"Expected argument `{name}` to have shape {expected}, but got {tuple(value.shape)}")
    try:
        torch.broadcast_shapes(points.shape[:-2], geometry.shape[:-2])
    except RuntimeError:
        raise ValueError(
            "Expected `geometry` (..., 2, 3) and `points` (..., K, 2) with leading dimensions that broadcast, but got "
            f"{tuple(geometry.shape)} and {tuple(points.shape)}"
        ) from None
    if inverse:
        check_invertible("geometry", geometry)
    return apply_maps(invert_maps(geometry) if inverse else geometry, points)


def apply_maps(maps: Tensor, points: Tensor) -> Tensor:
    """Return ``A p + t`` for maps ``(..., 2, 3)`` and points ``(..., K, 2)``."""
    # (..., 1, 2, 2) times (..., K, 1, 2), summed over the last axis
    return (maps[..., None, :, :2] * points.unsqueeze(-2)).sum(-1) + maps[..., None, :, 2]


def compose_maps(second: Tensor, first: Tensor) -> Tensor:
    """Return the map ``A_2 (A_1 p + t_1) + t_2`` of maps ``(..., 2, 3)``."""
    # (..., 2, 2, 1) times (..., 1, 2, 3), summed over the middle axis: [A_2 A_1 | A_2 t_1]
    return (second[..., :2].unsqueeze(-1) * first.unsqueeze(-3)).sum(-2) + F.pad(second[..., 2:], (2, 0))


def invert_maps(maps: Tensor) -> Tensor:
    """Return the maps ``[A^-1 | -A^-1 t]`` of maps ``(..., 2, 3)``."""
    (a, b), (c, d) = ((row[..., 0], row[..., 1]) for row in (maps[..., 0, :], maps[..., 1, :]))
    adjugate = torch.stack([d, -b, -c, a], dim=-1).unflatten(-1, (2, 2))
    inverse = adjugate / (a * d - b * c)[..., None, None]
    return torch.cat([inverse, -(inverse * maps[..., None, :, 2]).sum(-1, keepdim=True)], dim=-1)


def check_invertible(name: str, maps: Tensor) -> None:
    """Raise unless all maps ``(..., 2, 3)`` on the CPU can be inverted; elsewhere the host would wait for them."""
    if maps.device.type != "cpu" or torch.compiler.is_compiling():
        return
    linear = maps.detach().double()[..., :2].reshape(-1, 2, 2)
    determinants = linear[:, 0, 0] * linear[:, 1, 1] - linear[:, 0, 1] * linear[:, 1, 0]
    finite = maps.isfinite().reshape(-1, 6).all(1)
    good = finite & (determinants.abs() > LEAST_DETERMINANT * linear.square().mean((1, 2)))
    if not good.all():
        index = int(good.byte().argmin())
        shown = maps.detach().reshape(-1, 2, 3)[index].tolist()
        raise ValueError(f"Expected argument `{name}` to hold maps that can be inverted, but got {shown}")
