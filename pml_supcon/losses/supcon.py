"""L_out and L_in as PML losses; the maths is in ``pml_supcon.functional.supcon``."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from pytorch_metric_learning.distances import BaseDistance, CosineSimilarity
from pytorch_metric_learning.losses import BaseMetricLossFunction
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from pml_supcon._checks import check_bool, check_int
from pml_supcon._pml import losses as _pml
from pml_supcon._tensors import widen_integers
from pml_supcon.distributed.shards import LossInputs
from pml_supcon.functional.supcon.backends import solve, solve_mean
from pml_supcon.functional.supcon.global_batch.group import divide_anchors, group_losses
from pml_supcon.functional.supcon.options import TEMPERATURE, SupConOptions, check_cap
from pml_supcon.functional.supcon.problem import AnchorLosses, CheckedBatch, build_problem, check_batch
from pml_supcon.functional.supcon.temperature import BoundedTemperature
from pml_supcon.losses.learnable_temperature import LearnableTemperature
from pml_supcon.targets import Target


def _option(name: str) -> Any:
    """Return a property that reads and replaces one field of ``self.options``."""

    def get(self: "BaseSupConLoss") -> Any:
        return getattr(self.options, name)

    def put(self: "BaseSupConLoss", value: Any) -> None:
        self.options = replace(self.options, **{name: value})

    return property(get, put, doc=f"The option ``{name}``.")


def check_default_options(loss: nn.Module, rows: str, **more: Any) -> None:
    """Raise unless the options of a loss that refer to views or other labels, and ``more``, have their defaults."""
    defaults = {"num_views": None, "positives_cap": None, "contrast_mode": "all", "target": None} | more
    for option, default in defaults.items():
        if (value := getattr(loss, option, default)) != default:
            raise ValueError(f"Expected a loss with {option}={default!r} for {rows}, but got {option}={value!r}")


class BaseSupConLoss(BaseMetricLossFunction):
    """The common part of ``SupConLossOut`` and ``SupConLossIn``.

    Attributes:
        options: The checked options; if the temperature is learnt, with the first one.
        learnt_temperature: The temperature as a module, or None if it is fixed.
        num_views: V of ``(N, D)`` embeddings, or None.
        group: Processes that all call the loss with the same batch, and divide its work; None: no other process.
            ``GlobalBatchLoss`` sets it for the time of a call.
    """

    summation: ClassVar[str]
    takes_views: ClassVar[bool] = True
    denominator = _option("denominator")
    contrast_mode = _option("contrast_mode")
    positives_cap = _option("positives_cap")
    margin = _option("margin")
    class_balanced = _option("class_balanced")
    ignore_label = _option("ignore_label")
    scale_by_temperature = _option("scale_by_temperature")
    backend = _option("backend")
    products = _option("products")
    target = _option("target")

    def __init__(
        self,
        temperature: float | LearnableTemperature = TEMPERATURE,
        *,
        denominator: str = "all",
        contrast_mode: str = "all",
        positives_cap: int | None = None,
        margin: float = 0.0,
        class_balanced: bool = False,
        ignore_label: int | None = None,
        num_views: int | None = None,
        scale_by_temperature: bool = False,
        backend: str = "auto",
        products: str = "auto",
        target: Target | None = None,
        **kwargs: Any,
    ) -> None:
        _pml.check_parts(kwargs)
        super().__init__(**kwargs)
        learnt = temperature if isinstance(temperature, LearnableTemperature) else None
        self.options = SupConOptions(
            temperature=fixed(temperature) if learnt is None else learnt.initial,
            summation=self.summation,
            denominator=denominator,
            contrast_mode=contrast_mode,
            positives_cap=positives_cap,
            margin=margin,
            class_balanced=class_balanced,
            ignore_label=ignore_label,
            scale_by_temperature=scale_by_temperature,
            backend=backend,
            products=products,
            target=target,
        )
        if num_views is not None:
            check_cap(positives_cap, check_int("num_views", num_views, low=1))
        self.num_views = num_views
        self.learnt_temperature: LearnableTemperature | None = None
        self.group: ProcessGroup | None = None
        self.add_to_recordable_attributes(list_of_names=["temperature"], is_stat=False)
        self.learnt_temperature = learnt  # after PML has read the number, for which the host waits

    @property
    def temperature(self) -> float:
        """The temperature as a number; the host waits for the device of a learnt one."""
        learnt = self.learnt_temperature
        return self.options.temperature if learnt is None else learnt.number  # type: ignore[return-value]

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "temperature":
            super().__setattr__(name, value)
        elif isinstance(value, LearnableTemperature):  # PyTorch would add a module beside the property
            self.learnt_temperature = value
        else:
            self.options = replace(self.options, temperature=fixed(value))
            self.learnt_temperature = None

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: Sequence[Tensor] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        ref_starts_with_batch: bool = False,
        anchors: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of a batch, a scalar under PML's default reducer; see the class for shapes.

        With ``ref_starts_with_batch`` the first N rows of ``ref_emb`` are the batch and a memory follows: anchor ``i``
        is not contrasted with row ``i``. ``anchors`` is a bool mask of the rows ``(N,)``, or of the samples ``(B,)``,
        that are anchors; all rows are contrasted.
        """
        # PML's forward, except that views become rows first, and all arguments are checked
        if self.collect_stats:  # else there are no statistics, and PML's search for them takes microseconds
            self.reset_stats()
        given = labels
        embeddings, labels, num_views = check_batch(embeddings, labels, self.num_views, self.target)
        if ref_emb is embeddings and ref_labels is given:  # PML's convention, also for labels from another device
            ref_labels = labels
        more: dict[str, Any] = {} if anchors is None else {"anchors": anchors}
        if check_bool("ref_starts_with_batch", ref_starts_with_batch):
            more["ref_starts_with_batch"] = True
        loss_dict = self.compute_loss(embeddings, labels, indices_tuple, ref_emb, ref_labels, num_views, **more)
        self.add_embedding_regularization_to_loss_dict(loss_dict, embeddings)
        labels = None if labels is None else widen_integers(labels)
        _pml.check_class_weights(self.reducer, labels)
        loss: Tensor = self.reducer(loss_dict, embeddings, labels)
        return loss

    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: Sequence[Tensor] | None,
        ref_emb: Tensor | None,
        ref_labels: Tensor | None,
        num_views: int | None = None,
        *,
        ref_starts_with_batch: bool = False,
        anchors: Tensor | None = None,
    ) -> dict[str, dict[str, Any]]:
        """Return the per-anchor losses of checked rows ``(N, D)`` in the format of PML's reducers."""
        if ref_emb is embeddings and ref_labels is labels:  # PML's convention for rows contrasted with themselves
            ref_emb, ref_labels = None, None
        _pml.record_norms(self.distance, embeddings, embeddings if ref_emb is None else ref_emb)
        problem = build_problem(
            CheckedBatch(embeddings, labels, num_views),
            self._options_of_call(),
            ref_emb=ref_emb,
            ref_labels=ref_labels,
            ref_starts_with_batch=ref_starts_with_batch,
            indices_tuple=indices_tuple,
            anchors=anchors,
        )
        if self.group is None and _pml.is_mean(self.reducer):
            return _pml.reduced(solve_mean(problem))
        terms = solve(problem) if self.group is None else divide_anchors(problem, self.group)
        return _pml.loss_dict(terms, self.reducer)

    def loss_of_group(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        group: ProcessGroup,
        num_views: int | None = None,
        anchors: Tensor | None = None,
    ) -> Tensor:
        """Return the mean loss of a batch that is sharded over a group; see ``group_supcon_loss`` for the gradients."""
        self.reset_stats()
        views, more = (
            self.num_views if num_views is None else num_views,
            {} if anchors is None else {"anchors": anchors},
        )
        inputs = LossInputs(embeddings, labels, num_views=views, more=more)
        return group_losses(inputs, self._options_of_call(), group).mean()

    def loss_of_parts(self, embeddings: Tensor, labels: Tensor, sizes: Sequence[int]) -> Tensor:
        """Return the loss of rows ``(N, D)`` whose consecutive parts of these sizes are contrasted each alone.

        The reducer gets the anchors of all parts. Class labels ``(N,)`` mean nothing outside their part.
        """
        self.reset_stats()
        options = self._options_of_call()
        parts = zip(embeddings.split(sizes), labels.split(sizes), strict=True)
        solved = [solve(build_problem(check_batch(rows, ids, None), options)) for rows, ids in parts]
        terms = AnchorLosses(*map(torch.cat, zip(*solved, strict=True)))
        loss_dict = _pml.loss_dict(terms, self.reducer)
        self.add_embedding_regularization_to_loss_dict(loss_dict, embeddings)
        _pml.check_class_weights(self.reducer, labels)
        loss: Tensor = self.reducer(loss_dict, embeddings, labels)
        return loss

    def needs_all_rows(self) -> bool:
        """Return True if a distance, reducer, regulariser or statistic of PML needs the rows of the whole batch."""
        _, similarity = _pml.similarity_of(self.distance)
        plain = similarity is None and _pml.is_mean(self.reducer)
        return not plain or self.collect_stats or self.embedding_regularizer is not None

    def _options_of_call(self) -> SupConOptions:
        """Return the options with the distance and the learnt temperature as they are now."""
        normalize, similarity = _pml.similarity_of(self.distance)
        now: dict[str, Any] = {}
        if not normalize or similarity is not None:
            now = {"normalize": normalize, "similarity": similarity}
        if self.learnt_temperature is not None:
            now["temperature"] = BoundedTemperature(self.learnt_temperature(), self.learnt_temperature.minimum)
        return replace(self.options, **now) if now else self.options

    def get_default_distance(self) -> BaseDistance:
        """Return the cosine similarity, as in the paper."""
        return CosineSimilarity()


def fixed(temperature: Any) -> float:
    """Return a temperature that is no module; raise if it is a tensor, which the loss would not save or move."""
    if isinstance(temperature, Tensor | nn.Module):
        raise TypeError(
            "Expected argument `temperature` to be a number or a `LearnableTemperature`, but got "
            f"{type(temperature).__name__}"
        )
    return temperature  # type: ignore[no-any-return]


class SupConLossOut(BaseSupConLoss):
    r"""L_out, the supervised contrastive loss that the paper recommends (Khosla et al., NeurIPS 2020, equation 2).

        l_i = -1/|P(i)| * sum_{p in P(i)} log( exp(z_i . z_p / tau) / D_ip )

    Call it like any PML loss: ``loss(embeddings, labels, indices_tuple=None, ref_emb=None, ref_labels=None)``. With the
    bool mask ``anchors=``, ``(N,)`` or ``(B,)``, only some rows are anchors.
    ``embeddings`` are floating point, ``(N, D)`` with labels ``(N,)``, or ``(B, V, D)`` with labels ``(B,)``. Labels
    have any integer dtype and are on any device, or are None if the views are known (SimCLR); with a ``target`` they
    are what it says. With PML's default reducer the loss is the mean over the anchors that have a positive and a
    non-empty denominator, a scalar >= 0 for ``denominator="all"`` with class labels.

    Args:
        temperature: ``tau > 0``, a number, or a ``LearnableTemperature``: then a parameter of the loss.
        denominator: the terms of ``D_ip``: "all" (the paper), "one_positive" or "negatives".
        contrast_mode: "all": every row is an anchor; "one": the rows of the first view are.
        positives_cap: the largest number of positives besides the other views of the anchor's own sample; a multiple
            of V.
        margin: ``eps``, from 0 to 1000, only with "one_positive": the positive counts as ``exp(s_ip - eps)`` in its
            denominator.
        class_balanced: each class counts once in ``D_i``, whatever its number of rows in the batch; only with "all".
        ignore_label: a label that means "unlabelled": its rows are contrasted, and are positives of nothing but their
            own views.
        num_views: V of ``(N, D)`` embeddings, view-major (``torch.cat`` of the views), for the options that need it.
        scale_by_temperature: multiply the loss by ``temperature``, like the authors' code.
        backend: "auto", "dense" (closed form, small batches), "triton" (fused CUDA kernels), "tiled" (linear memory,
            any device) or "reference" (the definition).
        products: "auto", or the precision of the products of rows, "float32" or "float16" (on "triton", for float32
            embeddings of a model that ran in 16 bits); see ``supcon_loss``.
        target: None for class labels, or a target of ``pml_supcon.targets`` for label sets, soft labels, hierarchies or
            numbers: it says what labels are.
        **kwargs: arguments of PML's losses: ``distance``, ``reducer``, ``embedding_regularizer``,
            ``embedding_reg_weight``, ``collect_stats``. A distance other than a dot product needs the "reference"
            backend, which "auto" then chooses.

    Raises:
        ValueError: If an option, shape, device or value is invalid.
        TypeError: If embeddings are not floating point, or labels are not integers.
        IndexError: If ``indices_tuple`` has row numbers out of range.

    Note:
        It differs from PML 2.9's ``SupConLoss`` in three ways: all anchors with a positive are in the mean, while PML's
        default reducer leaves out losses of exactly 0; a batch without negatives has the paper's loss, while PML
        returns 0; a row of norm 0 has the gradient 0, while PML's is about 1e12 times too large.
        ``pml_supcon.functional.supcon_loss`` has the definitions.
        Use ``pml_supcon.losses.GlobalBatchLoss`` on several processes. PML's ``DistributedLossWrapper`` concatenates
        the rows of the processes: ``(N, D)`` rows are then no longer view-major. With it pass ``(B, V, D)`` embeddings
        if an option needs the views, and no ``positives_cap``, which would count in another order on each process.

    Examples:
        >>> import torch
        >>> from pml_supcon import losses
        >>> loss = losses.SupConLossOut(temperature=0.1)
        >>> embeddings = torch.eye(4).repeat(2, 1)  # two views that agree, four orthogonal samples
        >>> print(f"{loss(embeddings, torch.arange(4).repeat(2)):.4f}")
        0.0003
        >>> print(f"{loss(torch.eye(4)[:, None].repeat(1, 2, 1), torch.arange(4)):.4f}")
        0.0003
    """

    summation = "out"


class SupConLossIn(BaseSupConLoss):
    r"""L_in, the supervised contrastive loss with the mean inside the logarithm (Khosla et al., equation 3).

        l_i = -log( 1/|P(i)| * sum_{p in P(i)} exp(z_i . z_p / tau) / D_ip )

    It is never above L_out on the same batch (Jensen), and equal to it if every anchor has one positive. It trains
    worse in the paper. Input, options and errors are the same as for ``SupConLossOut``.

    Examples:
        >>> import torch
        >>> from pml_supcon import losses
        >>> _ = torch.manual_seed(0)
        >>> embeddings, labels = torch.randn(8, 4), torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
        >>> bool(losses.SupConLossIn()(embeddings, labels) < losses.SupConLossOut()(embeddings, labels))
        True
    """

    summation = "in"
