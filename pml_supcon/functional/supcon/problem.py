"""The checked arguments of ``supcon_loss``, the input of every backend."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from pml_supcon._checks import check_bool
from pml_supcon._layouts import view_major_rows
from pml_supcon.functional.supcon import checks
from pml_supcon.functional.supcon.classes import Cap, own_classes, rank_cap, separate_ignored
from pml_supcon.functional.supcon.options import SupConOptions
from pml_supcon.functional.supcon.temperature import TENSORS, TensorTemperature, tensor_temperature
from pml_supcon.targets import Hierarchy, Target

_NO_DIRECTION = 1e-12  # the largest norm of a row that counts as zero


class AnchorLosses(NamedTuple):
    """The loss of every anchor, ``(A,)``, and its validity, ``(A,)`` bool; the loss of an invalid anchor is 0."""

    losses: Tensor
    valid: Tensor

    def mean(self) -> Tensor:
        """Return the batch loss: the mean over valid anchors; 0 with a graph if no anchor is valid."""
        return self.losses.sum() / self.valid.sum().clamp(min=1)

    def completed(self, problem: "Problem") -> "AnchorLosses":
        """Return the losses of the problem's anchors alone, multiplied by the temperature if the options say so."""
        losses, valid = self
        if problem.anchor_mask is not None:
            losses, valid = torch.where(problem.anchor_mask, losses, 0), valid & problem.anchor_mask
        if problem.options.scale_by_temperature:
            losses = losses * problem.given_temperature
        return AnchorLosses(losses, valid)


class CheckedBatch(NamedTuple):
    """View-major rows ``(N, D)``, their labels ``(N, ...)`` or None, and V or None, checked by ``check_batch``."""

    rows: Tensor
    labels: Tensor | None
    num_views: int | None


@dataclass(frozen=True)
class Problem:
    """The checked input of a backend.

    Attributes:
        embeddings: ``(N, D)``, as given, but for a tensor temperature.
        references: ``(M, D)`` contrasted rows, as the embeddings; None: the embeddings are contrasted with each other.
        start: the first embedding that is an anchor; None: all embeddings are anchors.
        anchor_labels: ``(A,)`` int64, or ``(A, ...)`` as a target prepared them; None with ``pairs``.
        row_labels: ``(M,)`` int64, or ``(M, ...)`` as a target prepared them; None with ``pairs``.
        first_anchor: anchor ``i`` is row ``first_anchor + i`` and is not contrasted with it; None: no anchor is a row.
        cap: ranks that cap the positives, or None.
        pairs: the pairs ``(a1, p, a2, n)`` that replace labels, or None.
        options: the checked options.
        anchor_mask: ``(A,)`` bool: the rows that are anchors, among those that the fields above describe; None: all.
            Backends compute the losses of all, and ``AnchorLosses.completed`` leaves out the others.
        tensor_temperature: the temperature if it is a tensor; embeddings and references are then normalised, if the
            options say so, and divided by it, unless there is a ``similarity``.
    """

    embeddings: Tensor
    references: Tensor | None
    start: int | None
    anchor_labels: Tensor | None
    row_labels: Tensor | None
    first_anchor: int | None
    cap: Cap | None
    pairs: tuple[Tensor, Tensor, Tensor, Tensor] | None
    options: SupConOptions
    anchor_mask: Tensor | None = None
    tensor_temperature: TensorTemperature | None = None

    def given_rows(self) -> tuple[Tensor, Tensor]:
        """Return the anchors ``(A, D)`` and the contrasted rows ``(M, D)``, the same tensor if ``symmetric``.

        They are float32, or float64 for float64 embeddings, and not normalised unless the attributes are.
        """
        return self._sides(lambda rows: rows)

    def prepared_rows(self) -> tuple[Tensor, Tensor]:
        """Return the anchors and the contrasted rows, normalised if the options say so; see ``given_rows``."""
        return self._sides(unit_rows if self.normalize and self.similarity is None else lambda rows: rows)

    def _sides(self, prepare: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        rows = prepare((self.embeddings if self.references is None else self.references).to(self.dtype))
        anchors = rows if self.references is None else prepare(self.embeddings.to(self.dtype))
        return anchors if self.start is None else anchors[self.start : self.start + self.num_anchors], rows

    @property
    def input_dtype(self) -> torch.dtype:
        """The dtype of the embeddings as they were given; a backend may compute its products in it."""
        tensor = self.tensor_temperature
        return self.embeddings.dtype if tensor is None else tensor.input_dtype

    @property
    def device(self) -> torch.device:
        """The device of the embeddings."""
        return self.embeddings.device

    @property
    def num_anchors(self) -> int:
        """The number of anchors, A."""
        number: int = (self.embeddings if self.anchor_labels is None else self.anchor_labels).shape[0]
        return number

    @property
    def num_rows(self) -> int:
        """The number of contrasted rows, M."""
        number: int = (self.embeddings if self.references is None else self.references).shape[0]
        return number

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of sums and losses, float64 for float64 embeddings and float32 otherwise."""
        return torch.float64 if self.embeddings.dtype == torch.float64 else torch.float32

    @property
    def temperature(self) -> float:
        """The temperature that a backend divides products by, a Python float: 1 for a tensor temperature."""
        temperature = self.options.temperature
        return 1.0 if isinstance(temperature, TENSORS) else float(temperature)

    @property
    def given_temperature(self) -> Tensor | float:
        """The temperature of the options, as a float or as a tensor with a graph."""
        return self.temperature if self.tensor_temperature is None else self.tensor_temperature.value

    @property
    def normalize(self) -> bool:
        """True if a backend has to normalise the rows: the options say so, and they are not normalised already."""
        return self.options.normalize and self.tensor_temperature is None

    @property
    def summation(self) -> str:
        """The summation, "out" or "in"."""
        return self.options.summation

    @property
    def denominator(self) -> str:
        """The denominator, "all", "one_positive" or "negatives"."""
        return self.options.denominator

    @property
    def margin(self) -> float:
        """The margin of the denominator "one_positive" as a Python float."""
        return float(self.options.margin)

    @property
    def class_balanced(self) -> bool:
        """True if each class counts once in a denominator."""
        return self.options.class_balanced

    @property
    def similarity(self) -> Callable[[Tensor, Tensor], Tensor] | None:
        """The function that replaces the dot product, or None."""
        return self.options.similarity

    @property
    def target(self) -> Target | None:
        """The target, or None for class labels and listed pairs."""
        return self.options.target

    @property
    def bound(self) -> float:
        """An upper bound of ``|s_ij|`` for any data: ``1 / temperature`` for unit rows, else infinity."""
        if self.tensor_temperature is not None:
            return self.tensor_temperature.bound
        return 1 / self.temperature if self.options.normalize and self.similarity is None else math.inf

    @property
    def symmetric(self) -> bool:
        """True if every row is an anchor that is contrasted with the other rows, so that ``s_ij = s_ji``."""
        return self.references is None and self.start is None

    @property
    def transform_refusal(self) -> str | None:
        """The reason why an operator without forward mode cannot be differentiated here, or None."""
        if torch.compiler.is_compiling():
            return None
        for rows in [self.embeddings] if self.references is None else [self.embeddings, self.references]:
            if unpack_dual(rows).tangent is not None:
                return "it has no forward-mode derivative, and the embeddings carry a tangent"
            if torch._C._functorch.is_gradtrackingtensor(rows):
                return "torch.func cannot differentiate it"
        return None

    def part(self, anchors: slice) -> "Problem":
        """Return the problem for a slice of the anchors, with a start and a stop; not for listed pairs."""
        cap = self.cap
        assert self.anchor_labels is not None  # for the type checker: no pairs, so labels
        return replace(
            self,
            start=anchors.start + (self.start or 0),
            anchor_labels=self.anchor_labels[anchors],
            first_anchor=None if self.first_anchor is None else self.first_anchor + anchors.start,
            cap=cap and Cap(cap.anchor_rank[anchors], cap.anchor_limit[anchors], cap.row_rank),
        )

    def levels(self, target: Hierarchy) -> list[tuple[float, "Problem"]]:
        """Return the weight and the problem, with class labels, of each level of a hierarchy that counts."""
        anchor_labels, row_labels = self.anchor_labels, self.row_labels
        assert anchor_labels is not None  # for the type checker, like the next
        assert row_labels is not None
        options = replace(self.options, target=None)
        return [
            (weight, replace(self, options=options, anchor_labels=ids[: len(anchor_labels)],
                             row_labels=ids[len(anchor_labels) :]))
            for weight, ids in target.levels(torch.cat([anchor_labels, row_labels]))
        ]  # fmt: skip


def check_batch(
    embeddings: Tensor, labels: Tensor | None, num_views: int | None, target: Target | None = None
) -> CheckedBatch:
    """Check the embeddings and labels of ``supcon_loss`` (see there) and return them as view-major rows.

    The labels are then on the device of the embeddings.
    """
    checks.check_embeddings("embeddings", embeddings)
    placed = labels
    if labels is not None:
        placed = checks.check_labels("labels", labels, embeddings.shape[0], embeddings.device, target)
    batch = CheckedBatch(*view_major_rows(embeddings, placed, num_views))
    if labels is not None and embeddings.ndim == 2:  # else all views of a sample have one label
        checks.check_views_agree(labels, num_views)  # as given: labels on the CPU can be read without waiting
    return batch


def build_problem(
    batch: CheckedBatch,
    options: SupConOptions,
    *,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    ref_starts_with_batch: bool = False,
    indices_tuple: Sequence[Tensor] | None = None,
    anchors: Tensor | None = None,
) -> Problem:
    """Check the other tensors of ``supcon_loss`` (see there) and return all arguments as one ``Problem``."""
    embeddings, labels, num_views = batch
    num_rows, target = embeddings.shape[0], options.target
    if labels is None and target is not None and indices_tuple is None:
        raise ValueError(f"Expected `labels` with target={target!r}, but got None")
    if labels is None and indices_tuple is None:
        labels = own_classes(num_rows, num_views, embeddings.device, has_references=ref_emb is not None)
    ref_labels = checks.check_references(
        embeddings, ref_emb, ref_labels, need_labels=indices_tuple is None, target=target
    )
    checks.check_columns_agree(labels, ref_labels)
    if check_bool("ref_starts_with_batch", ref_starts_with_batch):
        checks.check_batch_in_references(labels, ref_labels, has_pairs=indices_tuple is not None)
    pairs = None
    if indices_tuple is not None:
        num_contrasted = num_rows if ref_emb is None else ref_emb.shape[0]
        pairs = checks.check_pairs(indices_tuple, embeddings.device, num_rows, num_contrasted)
    checks.check_options_fit(options, num_views, has_references=ref_emb is not None, has_pairs=pairs is not None)
    if pairs is not None:  # they replace the labels
        labels, ref_labels = None, None
    elif target is not None:
        dtype = torch.promote_types(embeddings.dtype, torch.float32)
        labels, ref_labels = (None if each is None else target.prepare(each, dtype) for each in (labels, ref_labels))
    else:
        labels, ref_labels = checks.int64_labels(labels, ref_labels)
        if options.ignore_label is not None and labels is not None and batch.labels is not None:
            labels, ref_labels = separate_ignored(
                labels, ref_labels, options.ignore_label, num_views, ref_starts_with_batch=ref_starts_with_batch
            )

    num_anchors, start = num_rows, None
    if options.contrast_mode == "one" and num_views != 1:
        assert num_views is not None  # for the type checker: `check_options_fit` raises for None
        num_anchors, start = num_rows // num_views, 0
    anchor_labels = labels if labels is None or start is None else labels[:num_anchors]
    anchor_mask = None
    if anchors is not None:
        anchor_mask = checks.rows_of_mask("anchors", anchors, num_rows, num_views, embeddings.device)[:num_anchors]
    cap = None
    if options.positives_cap is not None and labels is not None and num_views is not None:
        cap = rank_cap(labels, num_views, options.positives_cap // num_views, num_anchors)
    embeddings, ref_emb, tensor = divided_rows(embeddings, ref_emb, options)
    return Problem(
        embeddings=embeddings,
        references=ref_emb,
        start=start,
        anchor_labels=anchor_labels,
        row_labels=labels if ref_emb is None else ref_labels,
        first_anchor=0 if ref_emb is None or ref_starts_with_batch else None,
        cap=cap,
        pairs=pairs,
        options=options,
        anchor_mask=anchor_mask,
        tensor_temperature=tensor,
    )


def divided_rows(
    embeddings: Tensor, ref_emb: Tensor | None, options: SupConOptions
) -> tuple[Tensor, Tensor | None, TensorTemperature | None]:
    """Return rows whose products are similarities over a tensor temperature, and this temperature.

    Rows are as given, and the temperature is None, if it is a number. A similarity function is divided later.
    """
    if not isinstance(options.temperature, TENSORS):
        return embeddings, ref_emb, None
    plain = options.similarity is None
    tensor = tensor_temperature(
        options.temperature, embeddings, unit=plain and options.normalize, products=options.products
    )
    if not plain:
        return embeddings, ref_emb, tensor
    unit = unit_rows if options.normalize else lambda rows: rows
    rows, references = tensor.divide(
        unit(embeddings.to(tensor.value.dtype)),
        None if ref_emb is None else unit(ref_emb.to(tensor.value.dtype)),
    )
    return rows, references, tensor


def unit_rows(rows: Tensor) -> Tensor:
    """Return ``rows / |rows|``; a row of norm 1e-12 or less has no direction: it becomes 0, and so does its gradient.

    ``F.normalize`` gives such a row the gradient of ``row / 1e-12``, which is 1e12 times too large to train with.
    """
    return rows / lengths(rows)


def lengths(rows: Tensor) -> Tensor:
    """Return the L2 norms of rows, ``(N, 1)``; infinity for a row without a direction."""
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return torch.threshold(norms, _NO_DIRECTION, torch.inf)
