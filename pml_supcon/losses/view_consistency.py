"""View consistency with PML's reducers; the maths is in ``pml_supcon.functional.view_consistency``."""

from pytorch_metric_learning.reducers import BaseReducer, ClassWeightedReducer, MeanReducer
from torch import Tensor, nn

from pml_supcon._pml import losses as _pml
from pml_supcon.functional.view_consistency import view_consistency_loss


class ViewConsistencyLoss(nn.Module):
    r"""The disagreement of points predicted in several views of an image, once each view's known geometry is undone.

        points in the image:   l = mean |T_a^-1 u_a - T_b^-1 u_b|,   T_v the map from the image to view v
        points in space:       l = mean |R_ab u_a - u_b|,            R_ab the rotation from view a to view b

    over all pairs of views ``a < b``, all points and coordinates. It needs no labels: add it to the loss of the
    labelled images, with a weight.

    Args:
        reducer: PML's reducer of the losses of the samples, by default their mean.

    Shape:
        - points: ``(B, V, K, 2)`` in pixels of each view, or ``(B, V, K, 3)`` in space; V >= 2.
        - geometry: ``(B, V, 2, 3)``, as the datasets of ``views`` return it with ``with_geometry=True``; for points in
          space also angles ``(B, V)`` in degrees, clockwise.
        - weights: ``(B, V, K)``, bool or floating point >= 0, such as the points that each view shows; or None.

    Raises:
        TypeError: If an argument has a wrong type or dtype.
        ValueError: If the geometry is missing, shapes do not fit, there is one view, a map on the CPU cannot be
            inverted, or the reducer has weights of classes.

    Note:
        See ``functional.view_consistency_loss`` for details and the source. The loss of a sample needs no other
        sample. On several processes, the mean of their losses is the loss of the whole batch if all have the same
        number of valid samples; without ``weights``, all samples are valid.

    Examples:
        >>> import torch
        >>> from pml_supcon import losses, views
        >>> geometry = torch.tensor([[[1.0, 0, 0], [0, 1, 0]], [[0, 1, 0], [-1, 0, 7]]]).expand(4, 2, 2, 3)
        >>> truth = 7 * torch.rand(4, 1, 5, 2)  # five points of 8 x 8 images; the second view is turned by 90 degrees
        >>> loss, found = losses.ViewConsistencyLoss(), views.map_points(truth, geometry)
        >>> bool(loss(found, geometry) < 1e-5), bool(loss(found.flip(1), geometry) < 1e-5)
        (True, False)
    """

    def __init__(self, reducer: BaseReducer | None = None) -> None:
        super().__init__()
        _pml.check_parts({"reducer": reducer})
        self.reducer = MeanReducer() if reducer is None else reducer
        if any(isinstance(part, ClassWeightedReducer) for part in self.reducer.modules()):
            raise ValueError(
                "Expected argument `reducer` without weights of classes, as points have none, but got a "
                "ClassWeightedReducer"
            )

    def forward(self, points: Tensor, geometry: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the loss of a batch, a scalar under PML's default reducer; see the class for shapes."""
        terms = view_consistency_loss(points, geometry, weights=weights)
        loss: Tensor = self.reducer(_pml.loss_dict(terms, self.reducer), points, None)
        return loss
