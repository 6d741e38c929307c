"""Targets: which rows are whose positives, and by how much, from labels richer than classes.

A loss without a target has class labels: rows of one class are positives of each other, with weight 1. A target gives
each pair a weight ``w_ij >= 0``: row ``j`` is a positive of anchor ``i`` where it is above 0, and a negative elsewhere.
Weights up to 1e-20 count as 0.

    out:  l_i = -1/W_i * sum_{p in P(i)} w_ip log( exp(s_ip) / D_ip )
    in:   l_i = -log( 1/W_i * sum_{p in P(i)} w_ip exp(s_ip) / D_ip )

``W_i`` is the sum of the weights ``w_ip`` over ``P(i)`` for ``normalization="sum"``, and ``|P(i)|`` for "count".
"""

import itertools
import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, get_args
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from pml_supcon._checks import check_choice, check_fraction, check_nested, check_number, check_numbers, shown
from pml_supcon._tensors import FLOATS, check_dense

__all__ = ["LabelSets", "SoftLabels", "Hierarchy", "Kernel", "Target"]  # noqa: RUF022 - by how often they are used

Normalization = Literal["sum", "count"]
SetSimilarity = Literal["jaccard", "overlap", "any"]

#: The targets by handle. The first handle is random, so that an exported loss finds no target in another process.
_TARGETS: WeakValueDictionary[int, "Target"] = WeakValueDictionary()
_HANDLES = itertools.count(secrets.randbits(62))

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
#: A pair with this weight or less is no positive.
NO_WEIGHT = 1e-20
_LEAST_SHARE, _LARGEST_SHARE = 1e-9, 1e12  # products of two stay far above `NO_WEIGHT`, and sums inside float32


class Target:
    """The base of all targets: a subclass defines ``weights``, over two blocks of labels.

    Attributes:
        normalization: "sum" or "count": the divisor ``W_i`` of an anchor's terms.
        symmetric: True if ``w_ij = w_ji`` for all labels; the weights of a block then serve its rows and its columns.
        checks_weights: True if losses check on the CPU that weights are finite and not negative.

    Examples:
        >>> class SameSign(Target):
        ...     symmetric = True
        ...     def weights(self, anchors, rows):
        ...         return (anchors.sign()[:, None] == rows.sign()).float()
        >>> SameSign().weights(torch.tensor([-2, 3]), torch.tensor([-1, 1, 5]))
        tensor([[1., 0., 0.],
                [0., 1., 1.]])
    """

    normalization: str = "sum"
    symmetric: ClassVar[bool] = False
    checks_weights: ClassVar[bool] = True
    handle: ClassVar[int]  # of each object another one, by which an operator of PyTorch names it

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """Return a new object with a handle; copies and unpickled objects get handles of their own."""
        target = super().__new__(cls)
        object.__setattr__(target, "handle", next(_HANDLES))  # also of a frozen class
        _TARGETS[target.handle] = target
        return target

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes without the handle."""
        return {name: value for name, value in vars(self).items() if name != "handle"}

    def __repr__(self) -> str:
        """Return the class and its plain attributes, the same on all processes."""
        plain = (bool, int, float, str, tuple, type(None))
        options = (f"{name}={value!r}" for name, value in Target.__getstate__(self).items() if isinstance(value, plain))
        return f"{type(self).__name__}({', '.join(options)})"

    def weights(self, anchors: Tensor, rows: Tensor) -> Tensor:
        """Return ``w_ij >= 0`` for the labels of some anchors and of some rows, ``(len(anchors), len(rows))``.

        Labels are what ``prepare`` returned. The pair of an anchor with itself is left out by the loss. The method runs
        on blocks, in several threads, without a gradient.
        """
        raise NotImplementedError(f"Expected {type(self).__name__} to define `weights(anchors, rows)`")

    def check(self, name: str, labels: Tensor) -> None:
        """Raise unless the labels, ``(number, ...)``, are what the target expects; ``name`` is that of the argument.

        Values are checked on the CPU only: elsewhere the host would wait for the device.
        """

    def prepare(self, labels: Tensor, dtype: torch.dtype) -> Tensor:
        """Return labels ``(N, ...)`` as ``weights`` reads them, once a batch; ``dtype`` is that of the losses."""
        return labels

    def refusal(self, denominator: str) -> str | None:
        """Return the reason why the target has no meaning with a denominator, or None."""
        return None


@dataclass(frozen=True)
class LabelSets(Target):
    """Several labels a row: positives share labels.

    Args:
        similarity: ``w_ij`` of two sets: "jaccard" (shared labels over all labels of the two; 1 for two empty sets),
            "overlap" (the share of the anchor's labels that row ``j`` has) or "any" (1 if they share a label).
        threshold: weights below it, in [0, 1], become 0.
        normalization: "sum" or "count"; see ``pml_supcon.targets``. "jaccard" with threshold 0.5 and "count" is the
            ``MultiSupConLoss`` of pytorch-metric-learning 3.

    Shape:
        - labels: ``(N, C)``, or ``(B, C)`` for ``(B, V, D)`` embeddings: bool, or 0 and 1 in any dtype.

    Raises:
        ValueError: If an argument is invalid; in a loss, if labels are not 0 and 1 (values are checked on the CPU).

    Source:
        Zhang and Wu, *Multi-Label Supervised Contrastive Learning* (AAAI 2024); Audibert et al., *Exploring Contrastive
        Learning for Multi-Label Text Classification* (2024).

    Examples:
        >>> sets = torch.tensor([[1, 1, 0], [0, 1, 1], [0, 0, 0]], dtype=torch.bool)
        >>> target = LabelSets()
        >>> rows = target.prepare(sets, torch.float32)
        >>> target.weights(rows, rows)[0]  # of {0, 1} with itself, {1, 2} and the empty set
        tensor([1.0000, 0.3333, 0.0000])
    """

    similarity: str = "jaccard"
    threshold: float = 0.0
    normalization: str = "sum"
    checks_weights: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_choice("similarity", self.similarity, get_args(SetSimilarity))
        object.__setattr__(self, "threshold", check_fraction("threshold", self.threshold, zero=True, one=True))
        check_choice("normalization", self.normalization, get_args(Normalization))

    @property
    def symmetric(self) -> bool:  # type: ignore[override]
        """True unless the sets are compared with the anchor's alone."""
        return self.similarity != "overlap"

    def weights(self, anchors: Tensor, rows: Tensor) -> Tensor:
        """Return the similarities of two blocks of sets; see the class."""
        # |y_i & y_j|, (A, M): a product of zeros and ones
        shared = anchors @ rows.T
        if self.similarity == "any":
            return shared.sign_()
        sizes = anchors.sum(dim=1, keepdim=True)
        if self.similarity == "jaccard":
            # |y_i | y_j| = |y_i| + |y_j| - |y_i & y_j|
            w = shared.div_((sizes + rows.sum(dim=1)).sub_(shared))
        else:
            w = shared.div_(sizes.clamp_(min=1))
        return w.masked_fill_(w < self.threshold, 0) if self.threshold > 0 else w

    def check(self, name: str, labels: Tensor) -> None:
        """Raise unless labels are ``(number, C)`` with values 0 and 1."""
        if labels.dtype not in (torch.bool, *_INTEGERS, *FLOATS):
            raise TypeError(
                f"Expected argument `{name}` to be bool, or 0 and 1, with LabelSets, but got {labels.dtype}"
            )
        _check_columns(name, labels, "one column for each label")
        values_known = labels.dtype != torch.bool and labels.device.type == "cpu" and not torch.compiler.is_compiling()
        if values_known and bool(((labels != 0) & (labels != 1)).any()):
            raise ValueError(
                f"Expected argument `{name}` to hold 0 and 1 with LabelSets, but got other values; "
                "`targets.SoftLabels` takes shares"
            )

    def prepare(self, labels: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the sets as zeros and ones; for "jaccard" with a label of its own for empty sets."""
        sets = labels.to(dtype)
        if self.similarity != "jaccard":
            return sets
        # (N, C + 1): two empty sets share this label, so that their similarity is 1 / 1
        return torch.cat([sets, 1 - sets.amax(dim=1, keepdim=True)], dim=1)


@dataclass(frozen=True)
class SoftLabels(Target):
    """Shares of classes, as from mixup, CutMix or a teacher: ``w_ij = <y_i, y_j>``.

    One-hot labels give the loss of class labels.

    Args:
        normalization: "sum" or "count"; see ``pml_supcon.targets``.

    Shape:
        - labels: ``(N, C)``, or ``(B, C)`` for ``(B, V, D)`` embeddings: floats in [0, 1e12], one of each row at least
          1e-9.

    Raises:
        ValueError: If an argument is invalid; in a loss, if labels are (values are checked on the CPU).

    Source:
        Kim et al., *A Generalized Supervised Contrastive Learning Framework* (arXiv 2206.00384).

    Examples:
        >>> target = SoftLabels()
        >>> target.weights(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.75, 0.25], [0.0, 1.0]]))
        tensor([[0.7500, 0.0000]])
    """

    normalization: str = "sum"
    symmetric: ClassVar[bool] = True
    checks_weights: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_choice("normalization", self.normalization, get_args(Normalization))

    def weights(self, anchors: Tensor, rows: Tensor) -> Tensor:
        """Return the dot products of two blocks of labels."""
        return anchors @ rows.T

    def check(self, name: str, labels: Tensor) -> None:
        """Raise unless labels are floats ``(number, C)``, finite, not negative, and no row is zero or nearly so."""
        if labels.dtype not in FLOATS:
            raise TypeError(
                f"Expected argument `{name}` to be floating point with SoftLabels, but got {labels.dtype}; "
                "`targets.LabelSets` takes 0 and 1"
            )
        _check_columns(name, labels, "one column for each class")
        if labels.device.type != "cpu" or torch.compiler.is_compiling() or not len(labels):
            return
        low, high = labels.detach().aminmax()
        if not (low >= 0 and high <= _LARGEST_SHARE):
            raise ValueError(
                f"Expected argument `{name}` to hold finite shares in [0, 1e12] with SoftLabels, but got values from "
                f"{labels.min().item():g} to {labels.max().item():g}"
            )
        largest = labels.amax(dim=1)
        empty = (largest < _LEAST_SHARE).nonzero()
        if len(empty):
            row = int(empty[0])
            raise ValueError(
                f"Expected argument `{name}` to have a share >= {_LEAST_SHARE:g} in every row with SoftLabels, "
                f"but the largest of row {row} is {largest[row].item():g}: it would be no row's positive"
            )

    def prepare(self, labels: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the shares in the dtype of the losses; they get no gradient."""
        return labels.detach().to(dtype)


@dataclass(frozen=True)
class Hierarchy(Target):
    """A tree of labels: a sum of losses over its levels, ``sum_l lambda_l L(classes at level l)``.

    The per-anchor losses are scaled so that their mean over all anchors with a positive is this sum, also where an
    anchor has a positive at coarse levels only.

    Args:
        level_weights: ``lambda_l >= 0``, from the coarsest level to the finest, not all 0.

    Shape:
        - labels: ``(N, L)``, or ``(B, L)`` for ``(B, V, D)`` embeddings: integers, from the coarsest level to the
          finest. A label at a finer level has one label above it.

    Raises:
        ValueError: If weights are invalid; in a loss, if the levels do not nest (values are checked on the CPU).

    Source:
        Zhang et al., *Use All The Labels: A Hierarchical Multi-Label Contrastive Learning Framework* (CVPR 2022),
        without its constraint between levels.

    Examples:
        >>> from pml_supcon import losses
        >>> loss = losses.SupConLossOut(target=Hierarchy([0.25, 0.75]))
        >>> animals = torch.tensor([[0, 0], [0, 1], [1, 2], [0, 0]])  # coarse, fine
        >>> bool(loss(torch.randn(4, 2, 8), animals) > 0)
        True
    """

    level_weights: Sequence[float]
    symmetric: ClassVar[bool] = True
    checks_weights: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_numbers("level_weights", self.level_weights)
        if not self.level_weights or min(self.level_weights) < 0 or max(self.level_weights) == 0:
            raise ValueError(
                "Expected argument `level_weights` to be numbers >= 0, one above 0, for each level, "
                f"but got {shown(self.level_weights)}"
            )
        object.__setattr__(self, "level_weights", tuple(float(weight) for weight in self.level_weights))

    def check(self, name: str, labels: Tensor) -> None:
        """Raise unless labels are integers ``(number, L)`` and every finer label has one coarser one."""
        levels = len(self.level_weights)
        if labels.dtype not in _INTEGERS:
            raise TypeError(f"Expected argument `{name}` to hold integers with Hierarchy, but got {labels.dtype}")
        if labels.ndim != 2 or labels.shape[1] != levels:
            raise ValueError(
                f"Expected argument `{name}` to have shape ({len(labels)}, {levels}) with {levels} `level_weights`, "
                f"but got {tuple(labels.shape)}"
            )
        if labels.device.type == "cpu" and not torch.compiler.is_compiling():
            check_nested(labels, name)

    def levels(self, labels: Tensor) -> list[tuple[float, Tensor]]:
        """Return the weight and the classes ``(N,)`` of each level that counts, from labels ``(N, L)``.

        A class is a path from the root: two rows are of one class at a level if all their labels up to it are equal.
        """
        found = []
        classes = labels.new_zeros(len(labels), dtype=torch.int64)
        for weight, column in zip(self.level_weights, labels.T, strict=True):
            # sort by class so far, then by label; each change starts a class (sorting waits for no device)
            order = torch.argsort(column, stable=True)
            order = order[torch.argsort(classes[order], stable=True)]
            pairs = torch.stack([classes[order], column[order].to(torch.int64)])
            starts = (pairs[:, 1:] != pairs[:, :-1]).any(dim=0)
            classes = torch.zeros_like(classes)
            classes[order[1:]] = starts.cumsum(dim=0)
            if weight > 0:
                found.append((weight, classes))
        return found

    def weights(self, anchors: Tensor, rows: Tensor) -> Tensor:
        """Raise: a hierarchy is a sum of losses, one for each level, and has no weights of its own."""
        raise TypeError("Expected a target with weights, but got a Hierarchy, a sum of losses over its levels")


@dataclass(frozen=True)
class Kernel(Target):
    """Numbers: rows whose numbers are near are positives.

        w_ij = exp( -|y_i - y_j|^2 / (2 sigma^2) )

    Every row is a positive of every anchor, so that only the denominator "all" has a meaning.

    Args:
        sigma: > 0, in the unit of the labels: the distance at which a weight is 0.61.
        normalization: "sum" or "count"; see ``pml_supcon.targets``.

    Shape:
        - labels: ``(N,)`` or ``(N, K)``, or ``(B,)`` or ``(B, K)`` for ``(B, V, D)`` embeddings: finite numbers.

    Raises:
        ValueError: If an argument is invalid; in a loss, if labels are not finite (values are checked on the CPU), or
            with another denominator than "all".

    Source:
        Dufumier et al., *Contrastive Learning with Continuous Proxy Meta-Data for 3D MRI Classification* (y-aware
        InfoNCE, MICCAI 2021).

    Examples:
        >>> target = Kernel(sigma=2.0)
        >>> ages = target.prepare(torch.tensor([20.0, 22.0, 60.0]), torch.float32)
        >>> target.weights(ages, ages)[0]
        tensor([1.0000, 0.6065, 0.0000])
    """

    sigma: float
    normalization: str = "sum"
    symmetric: ClassVar[bool] = True
    checks_weights: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_number("sigma", self.sigma, above=0)
        check_choice("normalization", self.normalization, get_args(Normalization))

    def weights(self, anchors: Tensor, rows: Tensor) -> Tensor:
        """Return the kernel of the distances of two blocks of scaled numbers."""
        wide = torch.promote_types(anchors.dtype, rows.dtype)
        # differences and not products: these would lose the digits of large numbers
        distances = torch.cdist(anchors.to(wide), rows.to(wide), compute_mode="donot_use_mm_for_euclid_dist")
        return distances.square_().neg_().exp_()

    def check(self, name: str, labels: Tensor) -> None:
        """Raise unless labels are numbers ``(number,)`` or ``(number, K)``, finite, and finite over ``sigma``."""
        if labels.dtype not in (*_INTEGERS, *FLOATS):
            raise TypeError(f"Expected argument `{name}` to hold numbers with Kernel, but got {labels.dtype}")
        if labels.ndim not in (1, 2) or 0 in labels.shape[1:]:
            raise ValueError(
                f"Expected argument `{name}` to have shape ({len(labels)},) or ({len(labels)}, K) with Kernel, "
                f"but got {tuple(labels.shape)}"
            )
        if labels.device.type != "cpu" or torch.compiler.is_compiling():
            return
        if not bool(self.prepare(labels, torch.float32).isfinite().all()):
            raise ValueError(
                f"Expected argument `{name}` to be finite with Kernel, also divided by sigma={self.sigma:g}, "
                "but got NaN or infinity"
            )

    def prepare(self, labels: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the numbers over ``sigma sqrt(2)``, ``(N, K)``; integers and float64 stay exact until subtracted."""
        wide = torch.float64 if labels.dtype == torch.float64 or not labels.is_floating_point() else torch.float32
        if labels.device.type == "mps":
            wide = torch.float32
        numbers = labels.detach().to(wide) / (self.sigma * math.sqrt(2))
        return numbers[:, None] if labels.ndim == 1 else numbers

    def refusal(self, denominator: str) -> str | None:
        """Return the reason why "one_positive" and "negatives" have no meaning: there are no negatives."""
        if denominator == "all":
            return None
        return "every row is a positive of every anchor; use denominator='all'"


def _check_columns(name: str, labels: Tensor, columns: str) -> None:
    if labels.ndim != 2 or labels.shape[1] == 0:
        raise ValueError(
            f"Expected argument `{name}` to have shape ({len(labels)}, C), {columns}, but got {tuple(labels.shape)}"
        )


def target_of(handle: int) -> Target:
    """Return the target with a handle.

    Raises:
        RuntimeError: If it no longer exists, or is one of another process.
    """
    target = _TARGETS.get(handle)
    if target is None:
        raise RuntimeError(
            "Expected the target of a compiled loss to exist, but it was deleted or belongs to another process; "
            "compile or export the loss in this process, and keep it"
        )
    return target


def check_target(target: object) -> None:
    """Raise unless the value is None or a target with a known normalization."""
    if isinstance(target, Target):
        check_choice("normalization", target.normalization, get_args(Normalization))  # of a user's own subclass
    elif target is not None:
        hint = f"; did you mean {target.__name__}()?" if isinstance(target, type) and issubclass(target, Target) else ""
        raise TypeError(f"Expected argument `target` to be None or a target of `pml_supcon.targets`, "
                        f"but got {shown(target)}{hint}")  # fmt: skip


def check_target_labels(name: str, labels: Tensor, number: int, target: Target) -> None:
    """Raise unless labels are a dense tensor with one entry for each of ``number`` rows, as the target expects."""
    check_dense(name, labels, values=False)
    if labels.ndim == 0 or len(labels) != number:
        raise ValueError(
            f"Expected argument `{name}` to have {number} entries, one for each embedding, "
            f"but got shape {tuple(labels.shape)}"
        )
    target.check(name, labels)
