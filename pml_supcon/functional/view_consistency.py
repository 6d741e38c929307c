"""Consistency of points that a network predicts in several views of an image (MobRecon, CVPR 2022)."""

import torch
from torch import Tensor

from pml_supcon._geometry import apply_maps, check_invertible, invert_maps
from pml_supcon._tensors import FLOATS, check_dense, to_device
from pml_supcon.functional.supcon.problem import AnchorLosses


def view_consistency_loss(points: Tensor, geometry: Tensor, *, weights: Tensor | None = None) -> AnchorLosses:
    r"""Return the view consistency loss of every sample: its points must agree once each view's geometry is undone.

    With ``u_v`` the points predicted in view ``v``, over all pairs of views ``a < b``, all K points and both
    coordinates:

        points in the image:   l = mean |T_a^-1 u_a - T_b^-1 u_b|,   T_v the map from the image to view v
        points in space:       l = mean |R_ab u_a - u_b|,            R_ab = Q_b Q_a^T the rotation from view a to view b

    ``Q_v`` turns ``(x, y)`` by the angle of view ``v`` and keeps ``z``, the coordinate along the camera axis. From a
    map ``T = [A | t]`` it is the orthogonal matrix nearest to ``A``: exact for rotations, shifts and scales, and a
    reflection for a mirrored view, which shows the mirrored object.

    Args:
        points: ``(B, V, K, 2)``, ``(x, y)`` in pixels of each view (see ``views.map_points``), or ``(B, V, K, 3)``,
            ``(x, y, z)`` in any unit about an origin that all views share, such as a joint; floating point, V >= 2.
            Half precision is computed in float32.
        geometry: ``(B, V, 2, 3)``, as the datasets of ``views`` return it with ``with_geometry=True``. For points in
            space also ``(B, V)``: angles in degrees, clockwise. Floating point, on any device.
        weights: ``(B, V, K)``, bool or floating point >= 0, such as the points visible in each view. A pair of views
            counts with the product of its two weights; where that is 0, points may be NaN or infinite.

    Returns:
        ``AnchorLosses(losses, valid)``, two ``(B,)`` tensors, losses >= 0, in pixels of the image or in the unit of
        the points. ``.mean()`` is the batch loss. A sample without weight in any pair has the loss 0 and is not valid.

    Raises:
        TypeError: If an argument is no tensor or has a wrong dtype.
        ValueError: If the geometry is missing, shapes do not fit, there is one view, or, on the CPU, if a map cannot
            be inverted or a weight is negative or not finite. On other devices such a loss is not finite, or wrong.

    Source:
        Chen et al., *MobRecon: Mobile-Friendly Hand Mesh Reconstruction from Monocular Image* (CVPR 2022), with two
        views; here all pairs of any number. In space the differences are taken in the frame of the second view, as
        there: a sum of absolute values depends on the frame, so that the loss is not quite symmetric in the views.

    Examples:
        >>> import torch
        >>> from pml_supcon.functional import view_consistency_loss
        >>> shift = torch.tensor([[[1.0, 0, 0], [0, 1, 0]], [[1, 0, 2], [0, 1, 0]]])  # the second view: 2 to the right
        >>> found = torch.tensor([[[3.0, 5]], [[5, 5]]])  # the same place of the image
        >>> view_consistency_loss(found[None], shift[None]).mean()
        tensor(0.)
    """
    weights = _checked(points, geometry, weights)
    dtype = torch.promote_types(points.dtype, torch.float32)
    points, geometry = points.to(dtype), to_device(geometry, points.device).to(dtype)
    # every pair of views a < b: (P,), P = V (V - 1) / 2
    a, b = torch.triu_indices(points.shape[1], points.shape[1], 1, device=points.device)
    if points.shape[-1] == 2:
        # T_v^-1 u_v (B, V, K, 2), then the differences of pairs (B, P, K, 2)
        undone = apply_maps(invert_maps(geometry), points)
        differences = undone[:, a] - undone[:, b]
    else:
        # Q_v (B, V, 2, 2) and R_ab = Q_b Q_a^T (B, P, 2, 2)
        turns = rotations(geometry)
        between = (turns[:, b].unsqueeze(-2) * turns[:, a].unsqueeze(-3)).sum(-1)
        # R_ab u_a - u_b (B, P, K, 3): x and y are turned, z is kept
        xy, z = points[:, a].split((2, 1), dim=-1)
        turned = (between.unsqueeze(-3) * xy.unsqueeze(-2)).sum(-1)
        differences = torch.cat([turned, z], dim=-1) - points[:, b]
    # w_a w_b (B, P, K); a pair of weight 0 has the difference 0, also if a point is not finite: 0 * NaN is NaN
    if weights is None:
        pairs = differences.new_ones(differences.shape[:-1])
    else:
        weights = weights.to(dtype)
        pairs = weights[:, a] * weights[:, b]
        differences = torch.where(pairs[..., None] > 0, differences, 0)
    # l = sum w_a w_b |.| / sum w_a w_b over pairs and points, (B,)
    each = differences.abs().mean(dim=-1)
    total = pairs.sum((1, 2))
    valid = total > 0
    return AnchorLosses((pairs * each).sum((1, 2)) / torch.where(valid, total, 1), valid)


def rotations(geometry: Tensor) -> Tensor:
    """Return the orthogonal matrices ``(B, V, 2, 2)`` of maps ``(B, V, 2, 3)`` or of angles ``(B, V)``, in degrees."""
    if geometry.ndim == 2:
        turns = geometry.deg2rad()
        cos, sin, sign = turns.cos(), turns.sin(), torch.ones_like(turns)
    else:
        # nearest to A = [[p, q], [r, s]]: proportional to A + sign(det A) adj(A)^T, as of a polar decomposition
        (p, q), (r, s) = (geometry[..., row, :2].unbind(-1) for row in (0, 1))
        sign = (p * s - q * r).sign()
        cos, sin = p + sign * s, r - sign * q
        norm = torch.hypot(cos, sin)
        cos, sin = cos / norm, sin / norm
    rows: Tensor = torch.stack([cos, -sign * sin, sin, sign * cos], dim=-1)
    return rows.reshape(*rows.shape[:-1], 2, 2)


def _checked(points: Tensor, geometry: Tensor | None, weights: Tensor | None) -> Tensor | None:
    """Check the arguments; return the weights on the device of the points."""
    check_dense("points", points)
    if points.ndim != 4 or points.shape[-1] not in (2, 3) or not points.shape[2]:
        raise ValueError(
            "Expected argument `points` to have shape (B, V, K, 2) in the image or (B, V, K, 3) in space, "
            f"but got {tuple(points.shape)}"
        )
    if points.dtype not in FLOATS:
        raise TypeError(f"Expected argument `points` to be floating point of 16 to 64 bits, but got {points.dtype}")
    if points.shape[1] < 2:
        raise ValueError(f"Expected argument `points` to have at least 2 views, but got {tuple(points.shape)}")
    batch, in_space = tuple(points.shape[:2]), points.shape[-1] == 3
    expected = f"{(*batch, 2, 3)}, a map for each view" + (f", or {batch}, angles" if in_space else "")
    if geometry is None:
        raise ValueError(f"Expected argument `geometry` of shape {expected}, but geometry is missing: got None")
    check_dense("geometry", geometry)
    if geometry.shape not in ((*batch, 2, 3), *([batch] if in_space else [])):
        raise ValueError(f"Expected argument `geometry` to have shape {expected}, but got {tuple(geometry.shape)}")
    if geometry.dtype not in FLOATS:
        raise TypeError(f"Expected argument `geometry` to be floating point of 16 to 64 bits, but got {geometry.dtype}")
    if geometry.ndim == 4:
        check_invertible("geometry", geometry)
    if weights is None:
        return None
    check_dense("weights", weights)
    if weights.shape != points.shape[:3]:
        raise ValueError(
            f"Expected argument `weights` to have shape {tuple(points.shape[:3])}, one for each of `points`, "
            f"but got {tuple(weights.shape)}"
        )
    if weights.dtype not in (torch.bool, *FLOATS):
        raise TypeError(f"Expected argument `weights` to be bool or floating point, but got {weights.dtype}")
    known = weights.device.type == "cpu" and not torch.compiler.is_compiling()
    if known and not ((weights >= 0) & (weights < torch.inf)).all():
        low, high = weights.aminmax()
        raise ValueError(f"Expected argument `weights` to be finite and at least 0, but got {low:g} to {high:g}")
    return to_device(weights, points.device)
