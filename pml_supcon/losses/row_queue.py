"""A queue of the rows of past batches and their labels, the common part of the losses that have one."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pml_supcon._checks import check_int
from pml_supcon.functional.supcon import checks
from pml_supcon.losses.supcon import BaseSupConLoss
from pml_supcon.targets import Target


class RowQueue(nn.Module):
    """A loss with a queue of rows: its buffers, its position, and its state.

    ``state_dict`` holds the whole queue: ``queue_embeddings`` ``(Q, D)``, ``queue_labels`` ``(Q,)`` int64 (-1: without
    labels; with a target ``(Q, ...)`` in the dtype of the labels), and its position (``next_row``, ``num_filled``,
    ``labelled``).

    Args:
        loss: the loss of a batch and the rows of the queue.
        embedding_size: width D of the rows, >= 1.
        queue_size: number of rows Q, >= 1.
        dtype: of the rows.

    Raises:
        TypeError: If the loss is no ``SupConLossOut`` or ``SupConLossIn``, or an argument has the wrong type.
        ValueError: If a size is below 1.
    """

    takes_views: ClassVar[bool] = True
    hint: ClassVar[str] = ""  # the end of the error for another loss
    queue_embeddings: Tensor
    queue_labels: Tensor

    def __init__(self, loss: nn.Module, embedding_size: int, queue_size: int, dtype: torch.dtype) -> None:
        super().__init__()
        if not isinstance(loss, BaseSupConLoss):
            raise TypeError(
                "Expected argument `loss` to be a SupConLossOut or SupConLossIn, but got "
                f"{type(loss).__name__}{self.hint}"
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

    def _check_labelled(self, labels: Tensor | None) -> None:
        """Raise unless a batch has labels like those that filled the queue, or none as they had none."""
        if self.labelled is not None and self.labelled != (labels is not None):
            given, before = ("no labels", "labels") if self.labelled else ("labels", "no labels")
            raise ValueError(
                f"Expected {before} as in the calls that filled the queue, but got {given}; use one "
                f"`{type(self).__name__}` with labels and another without"
            )

    def _check_room(self, number: int) -> None:
        """Raise if the rows of a batch that enter the queue are more than it has."""
        if self.training and number > self.queue_size:
            raise ValueError(
                f"Expected `queue_size` to be at least the {number} rows of a batch, all of which enter the queue, "
                f"but got {self.queue_size}"
            )

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
                f"`{type(self).__name__}.to` moves the queue"
            )
        needed = torch.promote_types(rows.dtype, dtype)
        if needed != dtype:
            raise ValueError(
                f"Expected argument `{name}` in a dtype that the queue's {dtype} holds exactly, "
                f"but got {rows.dtype}; use {type(self).__name__}(..., dtype={needed})"
            )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, *errors: list[str]
    ) -> None:
        saved, dtype = state_dict.get(f"{prefix}queue_embeddings"), self.queue_embeddings.dtype
        if isinstance(saved, Tensor) and torch.promote_types(saved.dtype, dtype) != dtype:
            errors[-1].append(  # torch would round silently
                f"Expected the state of a queue that {dtype} holds exactly, but got {saved.dtype}; "
                f"use {type(self).__name__}(..., dtype={saved.dtype})"
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
