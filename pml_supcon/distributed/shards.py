"""The shards of a batch on the processes of a group: checked for agreement, and gathered."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from pml_supcon._layouts import flatten_views, split_views
from pml_supcon.distributed import collectives


class LossInputs(NamedTuple):
    """Arguments of a loss: ``(B, V, D)`` or ``(N, D)`` embeddings, labels, references and their labels, V if known.

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
        """``(B,)``: the labels of the first view."""
        return None if self.labels is None else self.labels[: self.samples]

    def by_sample(self) -> "LossInputs":
        """Return view-major rows ``(N, D)`` with known views as ``(B, V, D)``, and anything else unchanged."""
        views = self.num_views
        if self.embeddings.ndim == 3 or views is None:
            return self
        return self._replace(
            embeddings=split_views(self.embeddings, views),
            labels=self.sample_labels,
            num_views=None,
            more={name: split_views(tensor, views) for name, tensor in self.more.items()},
        )

    def view_major(self) -> "LossInputs":
        """Return ``(B, V, D)`` as view-major rows ``(V * B, D)`` with their labels, and rows unchanged."""
        if self.embeddings.ndim == 2:
            return self
        views = self.embeddings.shape[1]

        def rows(x: Tensor) -> Tensor:
            by_view = x.ndim > 1 and x.shape[1] == views
            return flatten_views(x) if by_view else x.repeat(views, *[1] * (x.ndim - 1))

        return self._replace(
            embeddings=flatten_views(self.embeddings),
            labels=None if self.labels is None else self.labels.repeat(views),
            num_views=views,
            more={name: rows(tensor) for name, tensor in self.more.items()},
        )


class ShardSizes(NamedTuple):
    """The numbers of samples and of references on each process, by rank."""

    samples: list[int]
    references: list[int]

    def labels(self, own: LossInputs, group: ProcessGroup) -> Tensor | None:
        """Return the labels of all samples, ``(B,)`` int64; equal labels of any integer dtypes stay equal."""
        labels = own.sample_labels
        return None if labels is None else collectives.all_gather_rows(labels.to(torch.int64), self.samples, group)

    def gather(self, own: LossInputs, group: ProcessGroup) -> LossInputs:
        """Return the inputs of all processes, by rank; gradients return to the process that holds the rows."""
        labels = self.labels(own, group)
        own = own.by_sample()
        ref_emb, ref_labels = own.ref_emb, own.ref_labels
        if ref_emb is not None:
            ref_emb = collectives.gather_rows(ref_emb, self.references, group)
        if ref_labels is not None:
            ref_labels = collectives.all_gather_rows(ref_labels.to(torch.int64), self.references, group)
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

    Raises:
        ValueError: On every process, if one has an error or differs from the others; names rank and value.
        ConnectionError: If a collective fails; names the lost ranks.
    """
    sizes = {"samples": 0, "references": 0}
    if error is None:
        sizes = {"samples": own.samples, "references": 0 if own.ref_emb is None else len(own.ref_emb)}
        same = {**same, **shard_properties(own)}
    notes = collectives.agree(sizes, {name: str(value) for name, value in same.items()}, error, group)
    return ShardSizes(notes["samples"], notes["references"])


def shard_properties(own: LossInputs) -> dict[str, Any]:
    """Return the properties of a shard that must be equal on all processes."""
    by_row = {"ref_emb": own.ref_emb, **own.more}
    return {
        "embedding width": own.embeddings.shape[-1],
        "dtype of the embeddings": own.embeddings.dtype,
        "device of the embeddings": own.embeddings.device.type,
        "number of views": own.embeddings.shape[1] if own.embeddings.ndim == 3 else own.num_views,
        "labels given": own.labels is not None,
        "ref_labels given": own.ref_labels is not None,
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
