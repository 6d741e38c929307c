"""The shards of a batch on the processes of a group: checked for agreement, and gathered."""

import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from pml_supcon._layouts import flatten_views, repeat_labels, split_views
from pml_supcon._tensors import widen_integers
from pml_supcon.distributed import collectives

#: The calls of a group whose shards are compared: a sampler without its rank is wrong from the first batch on.
COMPARED_CALLS = 10

_calls: WeakKeyDictionary[ProcessGroup, int] = WeakKeyDictionary()  # of `agree_on_shards`

#: The integer dtype of each number of bytes.
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class LossInputs(NamedTuple):
    """The arguments of a loss: ``(B, V, D)`` or ``(N, D)`` embeddings, labels, references and their labels, V if known.

    ``more`` are further tensors with one entry per row or sample, like the embeddings.
    """

    embeddings: Tensor
    labels: Tensor | None = None
    ref_emb: Tensor | None = None
    ref_labels: Tensor | None = None
    num_views: int | None = None
    more: Mapping[str, Tensor] = MappingProxyType({})

    @property
    def views(self) -> int:
        """The number of rows of each sample; 1 if samples are unknown."""
        return self.embeddings.shape[1] if self.embeddings.ndim == 3 else self.num_views or 1

    @property
    def samples(self) -> int:
        """The number of samples, or of rows if samples are unknown."""
        return len(self.embeddings) if self.embeddings.ndim == 3 else len(self.embeddings) // self.views

    @property
    def sample_labels(self) -> Tensor | None:
        """``(B, ...)``: the labels of the first view."""
        return None if self.labels is None else self.labels[: self.samples]

    def by_sample(self) -> "LossInputs":
        """Return view-major rows ``(N, D)`` with known views as ``(B, V, D)``, and anything else unchanged."""
        views = self.num_views
        if self.embeddings.ndim == 3 or views is None:
            return self

        def rows(x: Tensor) -> Tensor:
            return x if len(x) == len(self.embeddings) else repeat_labels(x, views)

        return self._replace(
            embeddings=split_views(self.embeddings, views),
            labels=self.sample_labels,
            num_views=None,
            more={name: split_views(rows(tensor), views) for name, tensor in self.more.items()},
        )

    def view_major(self) -> "LossInputs":
        """Return ``(B, V, D)`` as view-major rows ``(V * B, D)`` with their labels, and rows unchanged."""
        if self.embeddings.ndim == 2:
            return self
        views = self.embeddings.shape[1]

        def rows(x: Tensor) -> Tensor:
            by_view = x.ndim > 1 and x.shape[1] == views
            return flatten_views(x) if by_view else repeat_labels(x, views)

        return self._replace(
            embeddings=flatten_views(self.embeddings),
            labels=None if self.labels is None else repeat_labels(self.labels, views),
            num_views=views,
            more={name: rows(tensor) for name, tensor in self.more.items()},
        )


class ShardSizes(NamedTuple):
    """The numbers of samples and of references on each process, by rank."""

    samples: list[int]
    references: list[int]

    def labels(self, own: LossInputs, group: ProcessGroup) -> Tensor | None:
        """Return the labels of all samples, ``(B, ...)``; integers as int64: equal ones of any dtypes stay equal."""
        labels = own.sample_labels
        return None if labels is None else collectives.all_gather_rows(widen_integers(labels), self.samples, group)

    def gather(self, own: LossInputs, group: ProcessGroup) -> LossInputs:
        """Return the inputs of all processes, by rank; gradients return to the process that holds the rows."""
        labels = self.labels(own, group)
        own = own.by_sample()
        ref_emb, ref_labels = own.ref_emb, own.ref_labels
        if ref_emb is not None:
            ref_emb = collectives.gather_rows(ref_emb, self.references, group)
        if ref_labels is not None:
            ref_labels = collectives.all_gather_rows(widen_integers(ref_labels), self.references, group)
        return LossInputs(
            embeddings=collectives.gather_rows(own.embeddings, self.samples, group),
            labels=labels,
            ref_emb=ref_emb,
            ref_labels=ref_labels,
            num_views=own.num_views,
            more={name: collectives.gather_rows(x, self.samples, group) for name, x in own.more.items()},
        )


def agree_on_shards(
    own: LossInputs, same: Mapping[str, Any], error: Exception | None, group: ProcessGroup
) -> ShardSizes:
    """Return the sizes of the shards of all processes.

    ``same`` are values that must be equal on all processes, by name, besides shapes and dtypes; ``error`` is an error
    in the shard of this process, or None.

    Warns:
        UserWarning: Once on every process, if shards of two ranks are bit-identical in one of the first
            ``COMPARED_CALLS`` calls of the group; names the ranks.

    Raises:
        ValueError: On every process, if one has an error or differs from the others; the error names the rank and
            the value.
        ConnectionError: If a collective fails; the error names the lost ranks.
    """
    sizes = {"samples": 0, "references": 0, "checksum": 0}
    compared = is_first_call(group)
    if error is None:
        try:
            references = 0 if own.ref_emb is None else len(own.ref_emb)
            sizes = {
                "samples": own.samples,
                "references": references,
                "checksum": int(checksum(own)) if compared else 0,
            }
            same = {name: shown_to_others(value, compared) for name, value in same.items()} | shard_properties(own)
        except Exception as local:  # out of memory, or values that do not exist (meta): the others must raise too
            error = local
    # with an error the embeddings may be no tensor; NumPy's arrays have a `device` too, a string
    device = own.embeddings.device if isinstance(own.embeddings, Tensor) else torch.device("cpu")
    notes = collectives.agree(sizes, {name: str(value) for name, value in same.items()}, error, group, device)
    if same_ranks := ranks_with_equal_shards(notes["checksum"]):
        warn_of_equal_shards(same_ranks)
    return ShardSizes(notes["samples"], notes["references"])


def is_first_call(group: ProcessGroup) -> bool:
    """Count a call of a group, and return True for the first ``COMPARED_CALLS``, in which the host waits for values.

    The checksum reads all rows, ``O(N D)``. On one core 8,192 rows of 128 columns took 6.6 ms.
    """
    _calls[group] = _calls.get(group, 0) + 1
    return _calls[group] <= COMPARED_CALLS


def shown_to_others(value: Any, compared: bool) -> Any:
    """Return a value that must be equal on all processes; a tensor as a number, on a GPU only if ``compared``."""
    if not isinstance(value, Tensor):
        return value
    return float(value.detach()) if compared or value.device.type == "cpu" else "a tensor"


@torch.no_grad()
def checksum(own: LossInputs) -> int | Tensor:
    """Return a checksum of the bits of the embeddings and labels of a shard, a scalar int64 tensor on their device.

    It is 0 for a shard whose rows are all equal, of an encoder that has collapsed for example: such shards may be equal
    on processes that hold different samples.
    """
    if not len(own.embeddings):
        return 0
    # (N, D): the bits of the rows as integers, whose sums wrap round and do not depend on the order of addition.
    bits = own.embeddings.detach().view(INTEGERS[own.embeddings.element_size()]).flatten(0, -2)
    # (N,): the high half is added to the low one, since a product moves bits upwards only; one copy of the rows at most
    rows = (bits >> 4 * bits.element_size()).bitwise_xor_(bits).mul_(random_integers(bits[0]) | 1).sum(-1)
    varied = (rows != rows[0]).any()
    total = scrambled(rows + random_integers(rows)).sum()
    if own.labels is not None:
        labels = widen_integers(own.labels).flatten()
        labels = labels.double().view(torch.int64) if labels.is_floating_point() else labels
        total = total + 3 * scrambled(labels + random_integers(labels)).sum()
    return total * varied


def random_integers(like: Tensor) -> Tensor:
    """Return a pseudo-random integer for each place of a 1-D integer tensor."""
    return scrambled(torch.arange(1, len(like) + 1, device=like.device)).to(like.dtype)


def scrambled(x: Tensor) -> Tensor:
    """Return the finaliser of SplitMix64 of int64 values: a bijection after which close values differ in many bits."""
    x = (x ^ x >> 30) * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ x >> 27) * (0x94D049BB133111EB - 2**64)
    return x ^ x >> 31


def ranks_with_equal_shards(checksums: Sequence[int]) -> str:
    """Return the ranks with a checksum that another rank has too, as text: "0 and 1; 2 and 3"; "" if there are none."""
    ranks: dict[int, list[str]] = {}
    for rank, own in enumerate(checksums):
        ranks.setdefault(own, []).append(str(rank))
    return "; ".join(" and ".join(equal) for own, equal in ranks.items() if own and len(equal) > 1)


@cache  # a warning at the first step says it all, whichever filters are set
def warn_of_equal_shards(ranks: str) -> None:
    """Warn that processes hold the same rows."""
    warnings.warn(
        f"Expected different samples on each process, but got the same embeddings and labels on ranks {ranks}: each "
        "sample is contrasted with copies of itself. Divide the batches: "
        "`MultiViewBatchSampler(..., num_replicas=world_size, rank=rank)`, or a `DistributedSampler`",
        stacklevel=2,
    )


def shard_properties(own: LossInputs) -> dict[str, Any]:
    """Return the properties of a shard that must be equal on all processes."""
    by_row = {"ref_emb": own.ref_emb, **own.more}
    labels = {"labels": own.labels, "ref_labels": own.ref_labels}
    return {
        "embedding width": own.embeddings.shape[-1],
        "dtype of the embeddings": own.embeddings.dtype,
        "device of the embeddings": own.embeddings.device.type,
        "number of views": own.embeddings.shape[1] if own.embeddings.ndim == 3 else own.num_views,
        "labels given": own.labels is not None,
        "ref_labels given": own.ref_labels is not None,
        **{
            name: f"rows {tuple(x.shape[1:])} {widen_integers(x[:0]).dtype}"
            for name, x in labels.items()
            if x is not None
        },
        "requires a gradient": needs_gradient(own.embeddings),
        **{
            name: f"rows {tuple(x.shape[1:])} {x.dtype}{' with a gradient' if needs_gradient(x) else ''}"
            for name, x in by_row.items()
            if x is not None
        },
    }


def needs_gradient(x: Tensor) -> bool:
    """Return True if autograd records operations on the tensor."""
    return x.requires_grad and torch.is_grad_enabled()
