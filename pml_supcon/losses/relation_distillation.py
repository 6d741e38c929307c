"""Relation distillation as a PML loss; the maths is in ``pml_supcon.functional.relation_distillation``."""

from typing import Any

from pytorch_metric_learning.distances import BaseDistance, CosineSimilarity
from pytorch_metric_learning.losses import BaseMetricLossFunction
from torch import Tensor
from torch.distributed import ProcessGroup

from pml_supcon._checks import check_choice, check_temperature
from pml_supcon._pml import losses as _pml
from pml_supcon.distributed.shards import LossInputs
from pml_supcon.functional.relation_distillation import BACKENDS, checked_rows, relation_distillation_loss


class RelationDistillation(BaseMetricLossFunction):
    r"""The distillation of Co2L, which keeps the similarities between rows of a past model (Cha et al., ICCV 2021).

        l_i = -sum_{j != i} p_ij(past, kappa*) log p_ij(present, kappa)

    with ``p_ij(z, kappa)`` the softmax of ``z_i . z_j / kappa`` over all rows ``j`` but ``i``. The rows of a batch keep
    their relations to each other, while the space that they are in may turn or change its width.

    Call it with the embeddings of one batch by both models: ``loss(embeddings, past_embeddings)``. With PML's default
    reducer the loss is the mean over rows, a scalar >= 0, or 0 with a graph for a batch of one row.

    Args:
        temperature: ``kappa > 0``, of the present rows.
        past_temperature: ``kappa* > 0``, of the past rows; lower than ``kappa``, it sharpens the target.
        backend: "tiled" (linear memory, any device) or "reference" (the definition, dense).
        **kwargs: arguments of PML's losses: ``distance`` (``CosineSimilarity``, the default, or
            ``DotProductSimilarity``), ``reducer``, ``embedding_regularizer`` (of the present rows),
            ``embedding_reg_weight``, ``collect_stats``.

    Shape:
        - embeddings: floating point, ``(N, D)`` or ``(B, V, D)``.
        - past_embeddings: floating point, ``(N, D')`` or ``(B, V, D')``, on the same device; they get no gradient.

    Raises:
        ValueError: If an option, shape or device is invalid, or a reducer has weights of classes.
        TypeError: If embeddings are not floating point.

    Note:
        The backend "tiled" is differentiable once. On several processes use
        ``GlobalBatchLoss(RelationDistillation())(embeddings, past_embeddings=past_embeddings)``, with the keyword: the
        rows of all processes count, and the processes divide the pairs.

    Examples:
        >>> import torch
        >>> from pml_supcon import losses
        >>> loss = losses.RelationDistillation(temperature=0.2, past_temperature=0.2)
        >>> z = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
        >>> turned = z.roll(1, dims=1)  # other coordinates, the same relations
        >>> entropy = loss(z, z)
        >>> bool(torch.isclose(loss(turned, z), entropy)), bool(loss(z.flip(0), z) > entropy)
        (True, True)
    """

    takes_views = True
    takes_pairs = False

    def __init__(
        self,
        temperature: float = 0.2,
        past_temperature: float = 0.01,
        *,
        backend: str = "tiled",
        **kwargs: Any,
    ) -> None:
        check_temperature("temperature", temperature)
        check_temperature("past_temperature", past_temperature)
        check_choice("backend", backend, BACKENDS)
        _pml.check_parts(kwargs)
        super().__init__(**kwargs)
        if _pml.similarity_of(self.distance)[1] is not None:
            raise ValueError(
                "Expected argument `distance` to be a CosineSimilarity or a DotProductSimilarity, "
                f"but got {type(self.distance).__name__}"
            )
        self.temperature = temperature
        self.past_temperature = past_temperature
        self.backend = backend
        self.group: ProcessGroup | None = None  # processes that call it with one batch; `GlobalBatchLoss` sets it
        self.add_to_recordable_attributes(list_of_names=["temperature", "past_temperature"], is_stat=False)

    def forward(self, embeddings: Tensor, past_embeddings: Tensor) -> Tensor:
        """Return the loss of a batch, a scalar under PML's default reducer; see the class for shapes."""
        if self.collect_stats:  # else there are no statistics, and PML's search for them takes microseconds
            self.reset_stats()
        rows, past = checked_rows(embeddings, past_embeddings)
        loss_dict = self.compute_loss(rows, past)
        self.add_embedding_regularization_to_loss_dict(loss_dict, rows)
        _pml.check_class_weights(self.reducer, None)
        loss: Tensor = self.reducer(loss_dict, rows, None)
        return loss

    def compute_loss(self, embeddings: Tensor, past_embeddings: Tensor) -> dict[str, dict[str, Any]]:
        """Return the losses of rows ``(N, D)`` in the format of PML's reducers."""
        _pml.record_norms(self.distance, embeddings, embeddings)
        terms = relation_distillation_loss(
            embeddings,
            past_embeddings,
            temperature=self.temperature,
            past_temperature=self.past_temperature,
            normalize=_pml.similarity_of(self.distance)[0],
            backend=self.backend,
            group=self.group,
        )
        return _pml.loss_dict(terms, self.reducer)

    def check_shard(self, own: LossInputs) -> LossInputs:
        """Return the part of a batch on one process with past rows detached, or raise."""
        past = own.more.get("past_embeddings")
        if past is None or own.labels is not None or own.ref_emb is not None:
            raise ValueError(
                "Expected `past_embeddings` by keyword, and no labels or `ref_emb`, with RelationDistillation: "
                "`loss(embeddings, past_embeddings=past_embeddings)`"
            )
        checked_rows(own.embeddings, past)
        return own._replace(more={**own.more, "past_embeddings": past.detach()})

    def get_default_distance(self) -> BaseDistance:
        """Return the cosine similarity, as in the paper."""
        return CosineSimilarity()
