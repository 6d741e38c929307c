"""PML's loss wrappers that accept losses by class name, extended to our losses."""

from collections.abc import Sequence
from typing import Any

import torch
from pytorch_metric_learning import losses as pml
from torch import Tensor

from pml_supcon._checks import check_bool, check_int, check_type
from pml_supcon._tensors import check_dense
from pml_supcon.functional.supcon import checks
from pml_supcon.losses.row_queue import check_like_memory, empty_like_rows, memory_for_state
from pml_supcon.losses.supcon import BaseSupConLoss
from pml_supcon.targets import Target

# Keep references to PML's classes: a user may replace `pml.CrossBatchMemory` by ours, and `supported_losses` must still
# find the original.
_PMLCrossBatchMemory, _PMLSelfSupervisedLoss = pml.CrossBatchMemory, pml.SelfSupervisedLoss
OWN_LOSSES = ["SupConLossOut", "SupConLossIn"]


class CrossBatchMemory(pml.CrossBatchMemory):
    """PML's memory of past embeddings (Wang et al., CVPR 2020), which also accepts our losses.

    Arguments and calls are the same as for ``pytorch_metric_learning.losses.CrossBatchMemory``: embeddings ``(N, D)``,
    labels ``(N,)``. A batch first enters the memory, and is then contrasted with all rows of the memory, detached. With
    one of our losses and no miner, ``indices_tuple`` or ``enqueue_mask``, no list of all pairs is built as in PML. This
    saves memory and gives the same value, and ``contrast_mode="one"`` works. ``positives_cap`` raises. With a loss with
    a ``target`` the labels are ``(N, ...)`` as it says, and the memory keeps them in their dtype.

    Unlike in PML, ``state_dict`` holds the position in the memory, so that a loaded memory is used. States that PML
    saved load with ``strict=False``, as an empty memory. ``QueueLoss`` is the exact form of the same idea: gradients
    reach the rows of the batch also as contrasted rows, and it accepts the keys of a momentum encoder.

    Raises:
        ValueError: If a batch is larger than the memory or has another width, or an ``enqueue_mask`` is not ``(N,)``
            bool; for a ``miner``, ``indices_tuple`` or ``enqueue_mask`` with a ``target``.

    Examples:
        >>> import torch
        >>> from pml_supcon import losses
        >>> loss = losses.CrossBatchMemory(losses.SupConLossOut(), embedding_size=4, memory_size=16)
        >>> loss(torch.randn(8, 4), torch.arange(4).repeat(2)).ndim
        0
    """

    embedding_memory: Tensor
    label_memory: Tensor
    queue_idx: int
    has_been_filled: bool

    def __init__(
        self,
        loss: torch.nn.Module,
        embedding_size: int,
        memory_size: int = 1024,
        miner: torch.nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        check_supported(loss, self.supported_losses())
        check_int("embedding_size", embedding_size, low=1)
        check_int("memory_size", memory_size, low=1)
        check_type("miner", miner, (torch.nn.Module, type(None)), "a miner module or None")
        super().__init__(loss, embedding_size, memory_size, miner, **kwargs)
        self._check_unlisted(miner=miner)

    @property
    def num_views(self) -> int | None:
        """V of the embeddings, if the loss has it."""
        return getattr(self.loss, "num_views", None)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # else each position recompiles
    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: Sequence[Tensor] | None = None,
        enqueue_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of a batch ``(N, D)`` against the memory, which it enters.

        With an ``enqueue_mask``, ``(N,)`` bool, its rows enter the memory, and the other rows are the anchors.
        """
        checks.check_embeddings("embeddings", embeddings, dims=(2,))
        check_dense("embeddings", embeddings)  # the memory holds values
        if embeddings.shape[1] != self.embedding_size:
            raise ValueError(
                f"Expected argument `embeddings` to have the width embedding_size={self.embedding_size}, "
                f"but got {tuple(embeddings.shape)}"
            )
        if enqueue_mask is not None:
            check_mask(enqueue_mask, len(embeddings))
        entering = len(embeddings) if enqueue_mask is None else int(enqueue_mask.sum())
        if entering > self.memory_size:
            raise ValueError(
                f"Expected `memory_size` to be at least the {entering} rows of a batch that enter the memory, "
                f"but got {self.memory_size}"
            )
        target = self._check_unlisted(miner=self.miner, indices_tuple=indices_tuple, enqueue_mask=enqueue_mask)
        labels = checks.check_labels("labels", labels, len(embeddings), embeddings.device, target)
        if target is None:
            labels = labels.to(torch.int64)  # PML's memory takes no other unsigned integers than uint8
        elif self._is_empty() and len(labels):
            self.label_memory = empty_like_rows(self.label_memory, labels.detach())
        elif not self._is_empty():
            check_like_memory(labels, self.label_memory, "memory")
        if indices_tuple is not None:
            checks.check_pairs(indices_tuple, embeddings.device, len(embeddings), len(embeddings))
            if enqueue_mask is not None:
                raise ValueError("Expected at most one of `indices_tuple` and `enqueue_mask`, but got both")
        listed = self.miner is not None or indices_tuple is not None or enqueue_mask is not None
        if listed or not isinstance(self.loss, BaseSupConLoss):
            loss: Tensor = super().forward(embeddings, labels, indices_tuple, enqueue_mask)
            return loss
        self.reset_stats()
        # as in PML, the memory follows the embeddings
        self.embedding_memory = self.embedding_memory.to(embeddings.device, embeddings.dtype)
        self.label_memory = self.label_memory.to(embeddings.device, labels.dtype)
        older = self._rows_that_stay(len(embeddings))
        loss = self.loss(
            embeddings,
            labels,
            ref_emb=torch.cat([embeddings.detach(), *(self.embedding_memory[part] for part in older)]),
            ref_labels=torch.cat([labels, *(self.label_memory[part] for part in older if part.stop > part.start)]),
            ref_starts_with_batch=True,
        )
        self.add_to_memory(embeddings, labels, len(embeddings))
        return loss

    def add_to_memory(self, embeddings: Tensor, labels: Tensor, batch_size: int) -> None:
        """Replace the oldest rows of the memory."""
        if batch_size:  # PML would mark the memory as filled although nothing enters it
            super().add_to_memory(embeddings, labels, batch_size)
        else:
            self.curr_batch_idx = torch.arange(0, device=labels.device)

    def _is_empty(self) -> bool:
        return self.queue_idx == 0 and not self.has_been_filled

    def _check_unlisted(self, **given: Any) -> Target | None:
        """Return the target of the loss, if it has one; raise if something that lists pairs is given beside it."""
        target = getattr(self.loss, "target", None) if isinstance(self.loss, BaseSupConLoss) else None
        names = [name for name, value in given.items() if value is not None]
        if target is None or not names:
            return target
        hint = "the loss contrasts all rows of batch and memory without it"
        if names == ["enqueue_mask"]:
            hint = "`QueueLoss(loss, ...)(embeddings, labels, keys=...)` takes a momentum encoder's rows"
        raise ValueError(
            f"Expected no `{names[0]}` with target={target!r}, whose weights its pairs would replace; {hint}"
        )

    def _rows_that_stay(self, number: int) -> list[slice]:
        """Return the filled rows of the memory that a batch of ``number`` rows does not replace."""
        end = self.queue_idx + number
        if end > self.memory_size:
            first = end - self.memory_size
            return [slice(first, self.queue_idx)]
        return [slice(0, self.queue_idx), *([slice(end, self.memory_size)] if self.has_been_filled else [])]

    def get_extra_state(self) -> Tensor:
        """Return the position in the memory, as a tensor: some formats of checkpoints hold only tensors."""
        return torch.tensor([self.queue_idx, self.has_been_filled], device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the position in the memory."""
        queue_idx, filled = state.tolist()
        if not 0 <= queue_idx < self.memory_size:
            raise ValueError(f"Expected the state of a memory of {self.memory_size} rows, but got next row {queue_idx}")
        self.queue_idx, self.has_been_filled = queue_idx, bool(filled)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(f"{prefix}embedding_memory")
        if isinstance(saved, Tensor):  # the dtype of the memory is the dtype of the first embeddings
            self.embedding_memory = self.embedding_memory.to(saved.dtype)
        saved_labels = state_dict.get(f"{prefix}label_memory")
        if isinstance(saved_labels, Tensor):
            target = self._check_unlisted()
            self.label_memory = memory_for_state(self.label_memory, saved_labels, target, args[-1])
        super()._load_from_state_dict(state_dict, prefix, *args)

    @staticmethod
    def supported_losses() -> list[str]:
        """Return the names of the accepted losses."""
        return [*_PMLCrossBatchMemory.supported_losses(), *OWN_LOSSES]


class SelfSupervisedLoss(pml.SelfSupervisedLoss):
    """PML's wrapper for views without labels, for any number of views, which also accepts our losses.

    Call it like PML's, ``loss(embeddings, ref_emb)``, or with more views, ``loss(first, second, third)``, each
    ``(N, D)``; or with all of them as ``(B, V, D)``. Each sample is its own class.

    Args:
        loss: a loss of PML that needs only embeddings and labels, or one of ours. Symmetric, it equals
            ``SupConLossOut()(embeddings)`` with ``(B, V, D)``.
        symmetric: True: every row is an anchor, contrasted with all others. False: the rows of the first view are
            anchors, contrasted only with the rows of the other views.

    Raises:
        ValueError: If there are fewer than two views, or views of different shapes; for ``symmetric=False`` with a loss
            of ours that has ``num_views``, which would describe the first view only; for a loss with a ``target``,
            which describes labels.

    Examples:
        >>> import torch
        >>> from pml_supcon import losses
        >>> one, other, third = torch.randn(3, 8, 4)
        >>> wrapped = losses.SelfSupervisedLoss(losses.SupConLossOut())(one, other, third)
        >>> bool(torch.isclose(wrapped, losses.SupConLossOut()(torch.stack([one, other, third], dim=1))))
        True
    """

    takes_views = True

    def __init__(self, loss: torch.nn.Module, symmetric: bool = True, **kwargs: Any) -> None:
        check_supported(loss, self.supported_losses())
        check_bool("symmetric", symmetric)
        super().__init__(loss, symmetric=symmetric, **kwargs)
        self._check_no_target()
        num_views = getattr(loss, "num_views", None) if isinstance(loss, BaseSupConLoss) else None
        if not symmetric and num_views not in (None, 1):
            raise ValueError(
                "Expected a loss without `num_views` with `symmetric=False`, where the anchors are one view, "
                f"but got num_views={num_views}"
            )

    def forward(self, embeddings: Tensor, ref_emb: Tensor | None = None, *more_ref_emb: Tensor) -> Tensor:
        """Return the loss of V views ``(N, D)``, or of ``(B, V, D)``; the label of a sample is its number."""
        self._check_no_target()
        views = views_of(embeddings, (ref_emb, *more_ref_emb) if ref_emb is not None or more_ref_emb else ())
        # unlike in PML, the labels are on the device of the embeddings
        labels = torch.arange(len(views[0]), device=views[0].device)
        own = isinstance(self.loss, BaseSupConLoss)
        loss: Tensor
        if self.symmetric and own:
            loss = self.loss(torch.stack(views, dim=1), labels)
        elif self.symmetric:
            loss = self.loss(torch.cat(views), labels.repeat(len(views)))
        else:
            anchors = views[0][:, None] if own else views[0]
            references, ref_labels = torch.cat(views[1:]), labels.repeat(len(views) - 1)
            loss = self.loss(anchors, labels, ref_emb=references, ref_labels=ref_labels)
        return loss

    def _check_no_target(self) -> None:
        target = getattr(self.loss, "target", None) if isinstance(self.loss, BaseSupConLoss) else None
        if target is not None:
            raise ValueError(
                "Expected a loss without `target`, since each sample is its own class here, but got "
                f"target={target!r}; with labels call the loss itself: `loss(embeddings, labels)` with (B, V, D) views"
            )

    @staticmethod
    def supported_losses() -> list[str]:
        """Return the names of the accepted losses."""
        return [*_PMLSelfSupervisedLoss.supported_losses(), *OWN_LOSSES]


def check_mask(mask: Tensor, number: int) -> None:
    """Raise unless an ``enqueue_mask`` is ``number`` bools; PML would take integers as row numbers."""
    check_dense("enqueue_mask", mask)
    if mask.dtype != torch.bool or mask.shape != (number,):
        raise ValueError(
            f"Expected argument `enqueue_mask` to be bool ({number},), one entry for each embedding, "
            f"but got {mask.dtype} {tuple(mask.shape)}"
        )


def check_supported(loss: object, names: Sequence[str]) -> None:
    """Raise unless the class of a loss has one of the names."""
    if type(loss).__name__ not in names:
        raise TypeError(f"Expected argument `loss` to be one of {', '.join(names)}, but got {type(loss).__name__}")


def views_of(embeddings: Tensor, others: Sequence[Any]) -> list[Tensor]:
    """Return the views, each ``(N, D)``, of ``(B, V, D)`` embeddings or of the first view and the others."""
    checks.check_embeddings("embeddings", embeddings, dims=(2,) if others else (2, 3))
    views = list(embeddings.unbind(dim=1)) if embeddings.ndim == 3 else [embeddings]
    if len(views) + len(others) < 2:
        raise ValueError(
            "Expected at least two views, `loss(embeddings, ref_emb)` or (B, V, D) embeddings, "
            f"but got {tuple(embeddings.shape)} alone"
        )
    for view in others:
        checks.check_fits(views[0], "ref_emb", view)
        if view.shape != views[0].shape:
            raise ValueError(
                f"Expected argument `ref_emb` and all other views to have the shape of the first, "
                f"{tuple(views[0].shape)}, but got {tuple(view.shape)}"
            )
        views.append(view)
    return views
