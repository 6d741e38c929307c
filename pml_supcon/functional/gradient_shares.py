"""The part of each pair in the gradient of its anchor's loss, and its share of the total."""

from typing import NamedTuple

import torch
from torch import Tensor

from pml_supcon._checks import check_choice, check_number, check_temperature, shown
from pml_supcon._tensors import check_dense
from pml_supcon.functional.supcon import checks
from pml_supcon.functional.supcon.execution import full_precision

LOSSES = ("supcon_out", "supcon_in", "triplet")
TEMPERATURE = 0.1
MARGIN = 0.05


class GradientShares(NamedTuple):
    """The pairs of ``A`` anchors with all rows, each attribute ``(A, N)``.

    Attributes:
        cosine: Cosine similarities, in ``[-1, 1]``.
        positives: Bool mask of the rows with the anchor's label, without the anchor itself.
        negatives: Bool mask of the rows with another label.
        magnitudes: Lengths of the gradients, ``>= 0``; 0 where a row is neither.
        shares: Magnitudes divided by their sum, in ``[0, 1]``: they sum to 1 over an anchor's positives and to 1 over
            its negatives, or are 0 there if these have no gradient.
    """

    cosine: Tensor
    positives: Tensor
    negatives: Tensor
    magnitudes: Tensor
    shares: Tensor


def gradient_shares(
    embeddings: Tensor,
    labels: Tensor,
    *,
    loss: str = "supcon_out",
    temperature: float = TEMPERATURE,
    margin: float = MARGIN,
    anchors: slice | None = None,
) -> GradientShares:
    r"""Split the gradient of every anchor's loss into the contributions of its positives and negatives.

    With unit rows :math:`z_i = w_i / \lVert w_i \rVert` and :math:`c_{ij} = z_i \cdot z_j`, the loss of anchor i
    depends on its row only through :math:`c_{ij}`, and the contribution of row j to
    :math:`\partial L_i / \partial w_i` has the length

    .. math:: m_{ij} = \left| \frac{\partial L_i}{\partial c_{ij}} \right| \frac{\sqrt{1 - c_{ij}^2}}{\lVert w_i \rVert}

    The first factor depends on the loss. With :math:`P_{ij}` the softmax of :math:`c_{ij} / \tau` over all rows but i:

    - "supcon_out": :math:`|P_{ip} - 1 / |P(i)|| / \tau` for a positive, :math:`P_{in} / \tau` for a negative;
    - "supcon_in": :math:`|P_{ip} - X_{ip}| / \tau` with :math:`X_{ip}` the softmax over the positives, and
      :math:`P_{in} / \tau`;
    - "triplet", :math:`L_i = \sum_{p, n} \max(0, d_{ip} - d_{in} + \text{margin})` with
      :math:`d_{ij} = \lVert z_i - z_j \rVert`: the number of the row's triplets with a loss above 0, divided by
      :math:`d_{ij}`. As :math:`d^2 = 2 - 2c`, the length is this number times
      :math:`\sqrt{(1 + c) / 2} / \lVert w_i \rVert`; at :math:`d = 0`, where the distance has no gradient, it is the
      limit.

    An anchor without a positive has no loss: all its magnitudes are 0.

    Args:
        embeddings: ``(N, D)`` floats, normalised inside. Half precision is computed in float32.
        labels: ``(N,)`` integers, on any device.
        loss: "supcon_out", "supcon_in" or "triplet".
        temperature: :math:`\tau > 0` of the supcon losses, whose denominator sums over all rows but the anchor.
        margin: Margin ``>= 0`` of "triplet" (the sum over all triplets, as PML's ``TripletMarginLoss`` without
            ``swap``).
        anchors: Rows that are anchors; None: all. Memory is a few ``(A, N)`` matrices.

    Returns:
        The pairs ``(A, N)`` of the anchors, see ``GradientShares``, without a gradient of their own.

    Raises:
        TypeError: If embeddings are not floating point, labels are not integers, or an option has the wrong type.
        ValueError: If a shape or an option is wrong, or if a row is zero or not finite.

    Source:
        Khosla et al., *Supervised Contrastive Learning* (NeurIPS 2020), section 3.2.3 and the supplementary derivation
        of the gradient, which has :math:``w_i`` of length 1 and the supcon losses only.

    Examples:
        >>> z = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-1.0, 0.0]])
        >>> found = gradient_shares(z, torch.tensor([0, 0, 0, 1]), anchors=slice(0, 1))
        >>> [round(share, 3) for share in found.shares[0].tolist()]  # the far positive gets the most; row 3 is opposite
        [0.0, 0.375, 0.625, 0.0]
    """
    labels = check_arguments(embeddings, labels, loss, temperature, margin)
    temperature, margin = float(temperature), float(margin)  # torch divides by no fraction
    if not isinstance(anchors, slice | None):
        raise TypeError(f"Expected argument `anchors` to be a slice or None, but got {shown(anchors)}")
    with torch.no_grad(), full_precision(embeddings.device):
        # 1. unit rows z = w / |w|, (N, D), in float32 at least, and cosines c_ij of the anchors with all rows, (A, N)
        wide = embeddings.float() if embeddings.dtype in (torch.float16, torch.bfloat16) else embeddings
        lengths = wide.norm(dim=1, keepdim=True)
        bad = (~(lengths.isfinite() & (lengths > 0))).flatten().nonzero().flatten()
        if len(bad):
            raise ValueError(
                f"Expected argument `embeddings` to have rows that are finite and not zero, but got {len(bad)} of "
                f"{len(lengths)} that are not (the first is row {int(bad[0])})"
            )
        z, labels = wide / lengths, labels.long()
        chosen = torch.arange(len(z), device=z.device)[anchors or slice(None)]
        cosine = (z[chosen] @ z.T).clamp_(-1, 1)  # only rounding exceeds the range
        # 2. masks of positives and negatives, (A, N)
        positives = labels[chosen, None] == labels
        negatives = ~positives
        positives.scatter_(1, chosen[:, None], False)
        # 3. |dL_i / dc_ij| sqrt(1 - c_ij^2), (A, N)
        if loss == "triplet":
            # count / d * sqrt(1 - c^2) = count * sqrt((1 + c) / 2), as d = sqrt(2 - 2c)
            pulls = _triplet_counts(cosine, positives, negatives, margin) * ((1 + cosine) / 2).sqrt_()
        else:
            weights = _supcon_weights(cosine / temperature, positives, negatives, loss) / temperature
            pulls = weights * (1 - cosine).mul_(1 + cosine).sqrt_()
        # 4. divide by |w_i|; an anchor without positives has no loss
        magnitudes = pulls.masked_fill_(~positives.any(dim=1, keepdim=True), 0) / lengths[chosen]
        return GradientShares(cosine, positives, negatives, magnitudes, _shares(magnitudes, positives, negatives))


def _supcon_weights(s: Tensor, positives: Tensor, negatives: Tensor, loss: str) -> Tensor:
    """Return ``|dL_i / ds_ij|`` ``(A, N)``, 0 for the anchor itself."""
    # P_ij, (A, N): the softmax over all rows but the anchor; 0 without any
    softmax = s.masked_fill(~(positives | negatives), -torch.inf).softmax(dim=1).nan_to_num_(nan=0.0)
    # out: |P_ip - 1 / |P(i)||, and P_in
    if loss == "supcon_out":
        evenly = positives.to(s.dtype) / positives.sum(dim=1, keepdim=True).clamp(min=1)
        return (softmax - evenly).abs_()
    # in: |P_ip - X_ip| = X_ip * (sum over negatives of P_in), a product without cancellation
    among_positives = s.masked_fill(~positives, -torch.inf).softmax(dim=1).nan_to_num_(nan=0.0)
    return torch.where(positives, among_positives * (softmax * negatives).sum(dim=1, keepdim=True), softmax)


def _triplet_counts(cosine: Tensor, positives: Tensor, negatives: Tensor, margin: float) -> Tensor:
    """Return the number of each row's triplets with a loss above 0, ``(A, N)``, by sorting instead of listing them."""
    # d_ij and d_ij + margin, (A, N)
    distance = (2 - 2 * cosine).sqrt_()
    reach = distance + margin
    # sorted distances of the negatives, and sorted d + margin of the positives; other rows are at the far end
    near = distance.masked_fill(~negatives, torch.inf).sort(dim=1).values
    far = reach.masked_fill(~positives, -torch.inf).sort(dim=1).values
    # binary search counts the partners of each row in its triplets
    nearer = torch.searchsorted(near, reach)  # negatives with d_in < d_ip + margin
    farther = cosine.shape[1] - torch.searchsorted(far, distance, right=True)  # positives with d_ip + margin > d_in
    return torch.where(positives, nearer, farther * negatives).to(cosine.dtype)


def _shares(magnitudes: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """Return the magnitudes divided by their sum over the positives, and over the negatives, of each anchor."""
    shares = torch.zeros_like(magnitudes)
    for kind in (positives, negatives):
        own = magnitudes * kind
        total = own.sum(dim=1, keepdim=True)
        shares += own / total.masked_fill_(total == 0, 1)
    return shares


def check_arguments(embeddings: Tensor, labels: Tensor, loss: str, temperature: float, margin: float) -> Tensor:
    """Return the labels on the device of the embeddings, or raise if an argument does not fit ``gradient_shares``."""
    check_choice("loss", loss, LOSSES)
    check_temperature("temperature", temperature)
    check_number("margin", margin, low=0)
    checks.check_embeddings("embeddings", embeddings, dims=(2,))
    check_dense("embeddings", embeddings)
    return checks.check_labels("labels", labels, len(embeddings), embeddings.device)
