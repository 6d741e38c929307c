"""Rank-N-Contrast as a PML loss; the maths is in ``pml_supcon.functional.rank_n_contrast``."""

from collections.abc import Sequence
from typing import Any

import torch
from pytorch_metric_learning.distances import BaseDistance, LpDistance
from pytorch_metric_learning.losses import BaseMetricLossFunction
from torch import Tensor
from torch.distributed import ProcessGroup

from pml_supcon._checks import check_temperature
from pml_supcon._pml import losses as _pml
from pml_supcon._tensors import to_device
from pml_supcon.distributed.shards import LossInputs
from pml_supcon.functional.rank_n_contrast import checked_numbers, rank_n_contrast_loss, view_major_numbers
from pml_supcon.functional.supcon import checks


class RankNContrastLoss(BaseMetricLossFunction):
    r"""Rank-N-Contrast, a contrastive loss whose labels are numbers: for regression (Zha et al., NeurIPS 2023).

        l_i = -1/(N - 1) * sum_{j != i} [ s_ij - log sum_{k != i, |y_i - y_k| >= |y_i - y_j|} exp(s_ik) ]

    with ``s_ij = -|z_i - z_j| / tau`` on rows that are not normalised. From each anchor, rows with nearer labels become
    nearer. In the paper the encoder is trained with it, and then a regressor on the frozen encoder.

    Call it like any PML loss: ``loss(embeddings, labels, ref_emb=None, ref_labels=None)``. With PML's default reducer
    the loss is the mean over anchors, a scalar > 0, or 0 with a graph for a batch of one row.

    Args:
        temperature: ``tau > 0``.
        **kwargs: arguments of PML's losses: ``distance`` (default ``LpDistance(normalize_embeddings=False)``, the
            Euclidean distance of raw rows), ``reducer``, ``embedding_regularizer``, ``embedding_reg_weight``,
            ``collect_stats``.

    Shape:
        - embeddings: floating point, ``(N, D)`` or ``(B, V, D)``.
        - labels: integers or floating point, finite, ``(N,)``, or ``(N, K)`` for K numbers, whose distance is the sum
          of their absolute differences; ``(B,)`` or ``(B, K)`` for ``(B, V, D)`` embeddings.
        - ref_emb: ``(M, D)``, contrasted in place of the batch; ``ref_labels``: ``(M,)`` or ``(M, K)``.

    Raises:
        ValueError: If an option, shape, device or value is invalid, if ``indices_tuple`` is given, or if a reducer has
            weights of classes. Labels that are not finite raise on the CPU; elsewhere they make the loss NaN.
        TypeError: If embeddings are not floating point, labels are not numbers, or the distance has parameters.

    Note:
        ``O(N^2 log N)`` time; memory is linear in N, since the backward pass computes chunks of anchors again.
        Differentiable once. Under ``torch.compile`` it runs uncompiled. On several processes
        ``GlobalBatchLoss(RankNContrastLoss())`` divides the anchors. PML's default distance would be the cosine
        similarity, which the paper finds worse.

    Examples:
        >>> import torch
        >>> from pml_supcon import losses
        >>> loss = losses.RankNContrastLoss()
        >>> ages = torch.tensor([20.0, 30.0, 31.0])
        >>> ordered, disordered = torch.tensor([[0.0], [10.0], [11.0]]), torch.tensor([[0.0], [11.0], [1.0]])
        >>> bool(loss(ordered, ages) < loss(disordered, ages))
        True
    """

    takes_views = True
    takes_pairs = False

    def __init__(self, temperature: float = 2.0, **kwargs: Any) -> None:
        check_temperature("temperature", temperature)
        _pml.check_parts(kwargs)
        super().__init__(**kwargs)
        if any(parameter.requires_grad for parameter in self.distance.parameters()):
            raise TypeError(
                f"Expected argument `distance` without parameters, but got {type(self.distance).__name__}: "
                "gradients reach the embeddings only"
            )
        self.temperature = temperature
        self.group: ProcessGroup | None = None  # processes that call it with one batch; `GlobalBatchLoss` sets it
        self.add_to_recordable_attributes(list_of_names=["temperature"], is_stat=False)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # its gradient calls autograd, which is not traced
    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: Sequence[Tensor] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of a batch, a scalar under PML's default reducer; see the class for shapes."""
        self.reset_stats()
        rows, numbers = view_major_numbers(embeddings, labels)
        loss_dict = self.compute_loss(rows, numbers, indices_tuple, ref_emb, ref_labels)
        self.add_embedding_regularization_to_loss_dict(loss_dict, rows)
        _pml.check_class_weights(self.reducer, numbers)
        loss: Tensor = self.reducer(loss_dict, rows, numbers)
        return loss

    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: Sequence[Tensor] | None,
        ref_emb: Tensor | None,
        ref_labels: Tensor | None,
    ) -> dict[str, dict[str, Any]]:
        """Return the per-anchor losses of rows ``(N, D)`` in the format of PML's reducers."""
        if indices_tuple is not None:
            raise ValueError("Expected no `indices_tuple` with RankNContrastLoss: every row ranks all others")
        if ref_emb is embeddings and ref_labels is labels:  # PML's convention for rows contrasted with themselves
            ref_emb, ref_labels = None, None
        _pml.record_norms(self.distance, embeddings, embeddings if ref_emb is None else ref_emb)
        terms = rank_n_contrast_loss(
            embeddings,
            labels,
            ref_emb=ref_emb,
            ref_labels=ref_labels,
            temperature=self.temperature,
            similarity=_pml.unless_euclidean(self.distance),
            group=self.group,
        )
        return _pml.loss_dict(terms, self.reducer)

    def check_shard(self, own: LossInputs) -> LossInputs:
        """Return the part of a batch on one process with its labels on the device of the embeddings, or raise."""
        embeddings, labels, ref_emb, ref_labels, *_ = own
        checks.check_embeddings("embeddings", embeddings)
        numbers = to_device(checked_numbers("labels", labels, len(embeddings)), embeddings.device)
        if ref_emb is not None:
            checks.check_fits(embeddings, "ref_emb", ref_emb)
            ref_labels = to_device(checked_numbers("ref_labels", ref_labels, len(ref_emb)), embeddings.device)
        return own._replace(labels=numbers, ref_labels=ref_labels)

    def get_default_distance(self) -> BaseDistance:
        """Return the Euclidean distance of rows that are not normalised, as in the paper."""
        return LpDistance(normalize_embeddings=False)
