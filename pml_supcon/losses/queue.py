"""A queue of past embeddings as further contrasted rows (MoCo: He et al., CVPR 2020) around our losses."""

from typing import Any

import torch
from torch import Tensor, nn

from pml_supcon._layouts import view_major_rows
from pml_supcon.functional.supcon import checks
from pml_supcon.losses.supcon import BaseSupConLoss


class QueueLoss(nn.Module):
    r"""`SupConLossOut` or `SupConLossIn` over a batch and a queue of the batches before it, exact.

        contrasted rows = the batch (or a momentum encoder's keys of it), then what the queue holds

    Anchors are the rows of the batch; anchor `i` is contrasted with all these rows but row `i`, its own embedding or
    key. The loss is that of all these rows at once, of which only the batch's are anchors. Afterwards, in training mode
    alone, the rows of the batch (the keys, where there are any) take the place of the oldest in the queue. Without
    labels every sample is its own class, and all rows of the queue are negatives.

    Args:
        loss: a `SupConLossOut` or `SupConLossIn`, with its options; `positives_cap` is refused.
        embedding_size: width D of the embeddings, >= 1.
        queue_size: rows Q of the queue, at least the `V * B` of a batch.
        dtype: of the queue. Embeddings of lower precision are stored and compared in it, exactly; of higher refused.

    Shape:
        - embeddings: `(B, V, D)`, or `(N, D)`, view-major where the views count (`SupConLossOut(num_views=V)`).
        - labels: `(B,)` or `(N,)`, any integer dtype; None in all calls or in none.
        - keys: the shape of the embeddings: a momentum encoder's of the same views; no gradient reaches them.

    Raises:
        ValueError: sizes, widths, dtypes or devices that do not fit; a batch larger than the queue; labels in some
            calls and not in others; `positives_cap`.
        TypeError: another loss, or embeddings, keys or labels of the wrong type.

    Note:
        `state_dict` holds all of the queue: `queue_embeddings` `(Q, D)`, `queue_labels` `(Q,)` int64 (-1: label-free),
        and where it stands (`next_row`, `num_filled`, `labelled`). A run that loads it goes on exactly as it would
        have. A step needs no number from the device. Under `GlobalBatchLoss` the batch is that of all processes, which
        share out the work, and each keeps the same queue.

    Examples:
        >>> import torch
        >>> from pml_supcon import losses
        >>> loss = losses.QueueLoss(losses.SupConLossOut(temperature=0.1), embedding_size=4, queue_size=64)
        >>> for _ in range(3):
        ...     value = loss(torch.randn(8, 2, 4), torch.arange(8) % 3)
        >>> loss.num_filled
        48
    """

    takes_views = True
    queue_embeddings: Tensor
    queue_labels: Tensor

    def __init__(
        self, loss: nn.Module, embedding_size: int, queue_size: int, *, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        if not isinstance(loss, BaseSupConLoss):
            raise TypeError(
                f"Expected argument `loss` to be a SupConLossOut or SupConLossIn, but got {type(loss).__name__}; "
                "`CrossBatchMemory` takes losses of pytorch-metric-learning"
            )
        if loss.positives_cap is not None:
            raise ValueError(
                "Expected a loss without `positives_cap`, which counts samples in the order of one batch, where rows "
                f"of the queue have no place; but got positives_cap={loss.positives_cap}"
            )
        for name, size in (("embedding_size", embedding_size), ("queue_size", queue_size)):
            if not checks.is_int(size) or size < 1:
                raise ValueError(f"Expected argument `{name}` to be an integer >= 1, but got {size!r}")
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise TypeError(f"Expected argument `dtype` to be a floating-point torch.dtype, but got {dtype!r}")
        self.loss = loss
        self.embedding_size = embedding_size
        self.queue_size = queue_size
        self.register_buffer("queue_embeddings", torch.zeros(queue_size, embedding_size, dtype=dtype))
        self.register_buffer("queue_labels", torch.full((queue_size,), -1))
        self.next_row = 0
        self.num_filled = 0
        self.labelled: bool | None = None  # None: nothing in the queue says so yet

    @property
    def num_views(self) -> int | None:
        """V of `(N, D)` embeddings, where the loss knows it."""
        return self.loss.num_views

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # else it compiles anew wherever the queue stands
    def forward(self, embeddings: Tensor, labels: Tensor | None = None, keys: Tensor | None = None) -> Tensor:
        """The loss of a batch against itself (or its keys) and the queue; see the class for shapes."""
        self._check_rows("embeddings", embeddings)
        if keys is not None:
            self._check_rows("keys", keys)
            if keys.shape != embeddings.shape:
                raise ValueError(
                    f"Expected argument `keys` to have the shape of the embeddings, {tuple(embeddings.shape)}, "
                    f"but got {tuple(keys.shape)}"
                )
        own_labels = self._labels(embeddings, labels)
        embeddings = embeddings.to(self.queue_embeddings.dtype)
        contrasted = embeddings if keys is None else keys.detach().to(self.queue_embeddings.dtype)
        rows, row_labels, _ = view_major_rows(contrasted, own_labels, self.num_views)
        assert row_labels is not None  # for the type checker: they were given
        if self.training and len(rows) > self.queue_size:
            raise ValueError(
                f"Expected `queue_size` to be at least the {len(rows)} rows of a batch, all of which enter the queue, "
                f"but got {self.queue_size}"
            )
        loss: Tensor = self.loss(  # `cat` copies: the graph does not see what enters the queue next
            embeddings,
            own_labels,
            ref_emb=torch.cat([rows, self.queue_embeddings[: self.num_filled]]),
            ref_labels=torch.cat([row_labels, self.queue_labels[: self.num_filled]]),
            ref_starts_with_batch=True,
        )
        if self.training and len(rows):
            self._enqueue(rows.detach(), None if labels is None else row_labels)
        return loss

    def get_extra_state(self) -> Tensor:
        """Where the queue stands: a tensor, since some formats of checkpoints hold nothing else."""
        labelled = -1 if self.labelled is None else int(self.labelled)
        return torch.tensor([self.next_row, self.num_filled, labelled])

    def set_extra_state(self, state: Tensor) -> None:
        """Let the queue stand where it stood."""
        next_row, num_filled, labelled = state.tolist()
        if not 0 <= next_row < self.queue_size or not 0 <= num_filled <= self.queue_size:
            raise ValueError(
                f"Expected the state of a queue of {self.queue_size} rows, but got one with {num_filled} rows filled "
                f"and row {next_row} the next"
            )
        self.next_row, self.num_filled = next_row, num_filled
        self.labelled = None if labelled < 0 else bool(labelled)

    def extra_repr(self) -> str:
        """What `repr` shows beside the loss."""
        return (
            f"embedding_size={self.embedding_size}, queue_size={self.queue_size}, "
            f"dtype={self.queue_embeddings.dtype}, num_filled={self.num_filled}, next_row={self.next_row}"
        )

    def _enqueue(self, rows: Tensor, labels: Tensor | None) -> None:
        """Put the rows of a batch in the place of the oldest, in order, going on at the start after the end."""
        number, before_end = len(rows), min(len(rows), self.queue_size - self.next_row)
        for part, start in ((slice(0, before_end), self.next_row), (slice(before_end, number), 0)):
            place = slice(start, start + part.stop - part.start)
            self.queue_embeddings[place] = rows[part]
            self.queue_labels[place] = -1 if labels is None else labels[part]
        self.next_row = (self.next_row + number) % self.queue_size
        self.num_filled = min(self.num_filled + number, self.queue_size)
        self.labelled = labels is not None

    def _labels(self, embeddings: Tensor, labels: Tensor | None) -> Tensor:
        """The labels of the batch, int64; without any, each sample's own, none of which is in the queue."""
        if self.labelled is not None and self.labelled != (labels is not None):
            came, before = ("no labels", "labels") if self.labelled else ("labels", "no labels")
            raise ValueError(
                f"Expected {before} as in the calls that filled the queue, but got {came}: its rows would be compared "
                "by labels that they do not have; take a `QueueLoss` for each"
            )
        if labels is not None:
            checks.check_labels("labels", labels, len(embeddings), embeddings.device)
            return labels.long()
        if embeddings.ndim == 3:
            return torch.arange(len(embeddings), device=embeddings.device)
        if self.num_views is None:
            raise ValueError(
                "Expected `labels`, or views that are known: (B, V, D) embeddings, or the loss's `num_views`"
            )
        view_major_rows(embeddings, None, self.num_views)  # refuses rows that are no whole number of samples
        return torch.arange(len(embeddings) // self.num_views, device=embeddings.device).repeat(self.num_views)

    def _check_rows(self, name: str, rows: Tensor) -> None:
        """Refuse rows that the queue cannot hold."""
        checks.check_embeddings(name, rows)
        dtype, device = self.queue_embeddings.dtype, self.queue_embeddings.device
        if rows.shape[-1] != self.embedding_size:
            raise ValueError(
                f"Expected argument `{name}` to have the width embedding_size={self.embedding_size}, "
                f"but got {tuple(rows.shape)}"
            )
        if rows.device != device:
            raise ValueError(
                f"Expected argument `{name}` to be on the device of the queue, {device}, but got {rows.device}; "
                "`QueueLoss.to` moves the queue"
            )
        needed = torch.promote_types(rows.dtype, dtype)
        if needed != dtype:
            raise ValueError(
                f"Expected argument `{name}` in a dtype that the queue's, {dtype}, holds exactly, "
                f"but got {rows.dtype}; give QueueLoss(..., dtype={needed})"
            )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, *errors: list[str]
    ) -> None:
        saved, dtype = state_dict.get(f"{prefix}queue_embeddings"), self.queue_embeddings.dtype
        if isinstance(saved, Tensor) and torch.promote_types(saved.dtype, dtype) != dtype:
            errors[-1].append(  # torch would round without a word
                f"Expected the state of a queue that {dtype} holds exactly, but got {saved.dtype}; "
                f"give QueueLoss(..., dtype={saved.dtype})"
            )
            return
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *errors)
