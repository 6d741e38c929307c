"""A queue of past embeddings as further contrasted rows for our losses (MoCo: He et al., CVPR 2020)."""

from typing import Any

import torch
from torch import Tensor, nn

from pml_supcon._checks import check_int
from pml_supcon._layouts import view_major_rows
from pml_supcon.functional.supcon import checks
from pml_supcon.losses.supcon import BaseSupConLoss
from pml_supcon.targets import Target


class QueueLoss(nn.Module):
    r"""``SupConLossOut`` or ``SupConLossIn`` over a batch and a queue of the batches before it, exact.

        contrasted rows = the batch (or a momentum encoder's keys of it), then the rows of the queue

    Anchors are the rows of the batch. Anchor ``i`` is contrasted with all these rows except row ``i``, its own
    embedding or key. After the loss, in training mode only, the rows of the batch (its keys, if given) replace the
    oldest rows of the queue. Without labels every sample is its own class, and all rows of the queue are negatives.
    With a ``target`` of the loss the queue keeps the labels that the target describes, such as label sets.

    Args:
        loss: a ``SupConLossOut`` or ``SupConLossIn``, with its options except ``positives_cap``.
        embedding_size: width D of the embeddings, >= 1.
        queue_size: number of rows Q of the queue, at least the ``V * B`` of a batch.
        dtype: of the queue. Embeddings of lower precision are converted to it; embeddings of higher precision raise.

    Shape:
        - embeddings: ``(B, V, D)``, or ``(N, D)``, view-major if ``SupConLossOut(num_views=V)`` is given.
        - labels: ``(B,)`` or ``(N,)``, any integer dtype, on any device; None in all calls or in none. With a target of
          the loss ``(B, ...)`` or ``(N, ...)`` as it says, of one dtype and number of columns in all calls.
        - anchors: bool mask of the rows or samples of the batch that are anchors, ``(N,)`` or ``(B,)``; default: all.
        - keys: the shape of the embeddings, a momentum encoder's output for the same views; they get no gradient.

    Raises:
        ValueError: If sizes, widths, dtypes or devices do not fit, if a batch is larger than the queue, if only some
            calls have labels, if labels do not fit the target or those in the queue, or if the loss has a
            ``positives_cap``.
        TypeError: If the loss is another one, or an argument has the wrong type.

    Note:
        ``state_dict`` holds the whole queue: ``queue_embeddings`` ``(Q, D)``, ``queue_labels`` ``(Q,)`` int64 (-1:
        without labels; with a target ``(Q, ...)`` in the dtype of the labels), and its position (``next_row``,
        ``num_filled``, ``labelled``). A run that loads it continues exactly like an uninterrupted run. A step does not
        synchronise with the device. Under ``GlobalBatchLoss`` the batch is the batch of all processes: they divide the
        work, and each keeps the same queue.

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
                "`CrossBatchMemory` accepts losses of pytorch-metric-learning"
            )
        if loss.positives_cap is not None:
            raise ValueError(
                "Expected a loss without `positives_cap`, which counts in the batch order of samples and not in a "
                f"queue, but got positives_cap={loss.positives_cap}"
            )
        check_int("embedding_size", embedding_size, low=1)
        check_int("queue_size", queue_size, low=1)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise TypeError(f"Expected argument `dtype` to be a floating-point torch.dtype, but got {dtype!r}")
        self.loss = loss
        self.embedding_size = embedding_size
        self.queue_size = queue_size
        self.register_buffer("queue_embeddings", torch.zeros(queue_size, embedding_size, dtype=dtype))
        self.register_buffer("queue_labels", torch.full((queue_size,), -1))
        self.next_row = 0
        self.num_filled = 0
        self.labelled: bool | None = None  # None: the queue is empty

    @property
    def num_views(self) -> int | None:
        """V of ``(N, D)`` embeddings, if the loss has it."""
        return self.loss.num_views

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # else each position of the queue recompiles
    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        keys: Tensor | None = None,
        *,
        anchors: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of a batch against itself (or its keys) and the queue; see the class for shapes."""
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
        own_rows, row_labels, _ = view_major_rows(embeddings, own_labels, self.num_views)
        assert row_labels is not None  # for the type checker
        rows = own_rows
        if keys is not None:
            rows, _, _ = view_major_rows(keys.detach().to(self.queue_embeddings.dtype), None, self.num_views)
        if self.training and len(rows) > self.queue_size:
            raise ValueError(
                f"Expected `queue_size` to be at least the {len(rows)} rows of a batch, all of which enter the queue, "
                f"but got {self.queue_size}"
            )
        # the loss takes the rows, which it then need not order by view again, unless only their shape gives the views
        more = {} if anchors is None else {"anchors": anchors}
        by_sample = (self.loss.contrast_mode == "one" or bool(more)) and self.num_views is None
        past_labels = self.queue_labels[: self.num_filled] if self.num_filled else row_labels[:0]
        loss: Tensor = self.loss(  # `cat` copies: writing to the queue afterwards does not change the graph
            embeddings if by_sample else own_rows,
            own_labels if by_sample else row_labels,
            ref_emb=torch.cat([rows, self.queue_embeddings[: self.num_filled]]),
            ref_labels=torch.cat([row_labels, past_labels]),
            ref_starts_with_batch=True,
            **more,
        )
        if self.training and len(rows):
            self._enqueue(rows.detach(), None if labels is None else row_labels)
        return loss

    def get_extra_state(self) -> Tensor:
        """Return the position of the queue, as a tensor: some formats of checkpoints hold only tensors."""
        labelled = -1 if self.labelled is None else int(self.labelled)
        return torch.tensor([self.next_row, self.num_filled, labelled], device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the position of the queue."""
        next_row, num_filled, labelled = state.tolist()
        if not 0 <= next_row < self.queue_size or not 0 <= num_filled <= self.queue_size:
            raise ValueError(
                f"Expected the state of a queue of {self.queue_size} rows, but got {num_filled} filled rows "
                f"and next row {next_row}"
            )
        self.next_row, self.num_filled = next_row, num_filled
        self.labelled = None if labelled < 0 else bool(labelled)

    def extra_repr(self) -> str:
        """Return the sizes and the position of the queue, for ``repr``."""
        return (
            f"embedding_size={self.embedding_size}, queue_size={self.queue_size}, "
            f"dtype={self.queue_embeddings.dtype}, num_filled={self.num_filled}, next_row={self.next_row}"
        )

    def _enqueue(self, rows: Tensor, labels: Tensor | None) -> None:
        """Replace the oldest rows by the rows of a batch, in order; wrap around at the end."""
        if labels is not None and not self.num_filled:  # an empty queue takes any kind of labels
            self.queue_labels = empty_like_rows(self.queue_labels, labels)
        number, before_end = len(rows), min(len(rows), self.queue_size - self.next_row)
        for part, start in ((slice(0, before_end), self.next_row), (slice(before_end, number), 0)):
            place = slice(start, start + part.stop - part.start)
            self.queue_embeddings[place] = rows[part]
            self.queue_labels[place] = -1 if labels is None else labels[part]
        self.next_row = (self.next_row + number) % self.queue_size
        self.num_filled = min(self.num_filled + number, self.queue_size)
        self.labelled = labels is not None

    def _labels(self, embeddings: Tensor, labels: Tensor | None) -> Tensor:
        """Return the labels of the batch, int64 without a target; without labels every sample is its own class."""
        target = self.loss.target
        if target is not None and labels is None:
            raise ValueError(f"Expected `labels` with target={target!r}, but got None")
        if self.labelled is not None and self.labelled != (labels is not None):
            given, before = ("no labels", "labels") if self.labelled else ("labels", "no labels")
            raise ValueError(
                f"Expected {before} as in the calls that filled the queue, but got {given}; use one `QueueLoss` with "
                "labels and another without"
            )
        if labels is not None:
            labels = checks.check_labels("labels", labels, len(embeddings), embeddings.device, target).detach()
            labels = labels if target is not None else labels.long()
            if self.num_filled:
                check_like_memory(labels, self.queue_labels, "queue")
            return labels
        if embeddings.ndim == 3:
            return torch.arange(len(embeddings), device=embeddings.device)
        if self.num_views is None:
            raise ValueError(
                "Expected `labels`, or known views: (B, V, D) embeddings or a loss with `num_views`, but got neither"
            )
        view_major_rows(embeddings, None, self.num_views)  # raises unless the rows are a whole number of samples
        return torch.arange(len(embeddings) // self.num_views, device=embeddings.device).repeat(self.num_views)

    def _check_rows(self, name: str, rows: Tensor) -> None:
        """Raise if the rows do not fit the queue in width, device or dtype."""
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
                f"Expected argument `{name}` in a dtype that the queue's {dtype} holds exactly, "
                f"but got {rows.dtype}; use QueueLoss(..., dtype={needed})"
            )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, *errors: list[str]
    ) -> None:
        saved, dtype = state_dict.get(f"{prefix}queue_embeddings"), self.queue_embeddings.dtype
        if isinstance(saved, Tensor) and torch.promote_types(saved.dtype, dtype) != dtype:
            errors[-1].append(  # torch would round silently
                f"Expected the state of a queue that {dtype} holds exactly, but got {saved.dtype}; "
                f"use QueueLoss(..., dtype={saved.dtype})"
            )
            return
        saved_labels = state_dict.get(f"{prefix}queue_labels")
        if isinstance(saved_labels, Tensor):
            self.queue_labels = memory_for_state(self.queue_labels, saved_labels, self.loss.target, errors[-1])
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *errors)


def empty_like_rows(memory: Tensor, labels: Tensor) -> Tensor:
    """Return the memory of labels, or a new one of as many rows if the labels have other columns or another dtype."""
    if memory.shape[1:] == labels.shape[1:] and memory.dtype == labels.dtype:
        return memory
    return labels.new_zeros(len(memory), *labels.shape[1:])


def check_like_memory(labels: Tensor, memory: Tensor, name: str) -> None:
    """Raise unless labels have the columns and the dtype of those in a queue or memory."""
    if labels.shape[1:] != memory.shape[1:] or labels.dtype != memory.dtype:
        expected = ", ".join(map(str, (len(labels), *memory.shape[1:])))
        raise ValueError(
            f"Expected `labels` like those in the {name}, ({expected}{',' * (memory.ndim == 1)}) {memory.dtype}, "
            f"but got {tuple(labels.shape)} {labels.dtype}"
        )


def memory_for_state(memory: Tensor, saved: Tensor, target: Target | None, errors: list[str]) -> Tensor:
    """Return a memory of labels that takes the saved ones as they are, for a target; add an error if it cannot."""
    if target is None:
        if saved.dtype != memory.dtype:  # torch would convert silently
            errors.append(
                f"Expected a state with class labels, {memory.dtype}, but got labels {tuple(saved.shape)} "
                f"{saved.dtype}; give the loss its `target` first"
            )
        return memory
    fits = saved.ndim > 0 and len(saved) == len(memory)
    return torch.zeros_like(saved, device=memory.device) if fits else memory
