"""A queue of past embeddings as further contrasted rows for our losses (MoCo: He et al., CVPR 2020)."""

import torch
from torch import Tensor, nn

from pml_supcon._layouts import view_major_rows
from pml_supcon.functional.supcon import checks
from pml_supcon.losses.row_queue import RowQueue, check_like_memory


class QueueLoss(RowQueue):
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

    hint = "; `CrossBatchMemory` accepts losses of pytorch-metric-learning"

    def __init__(
        self, loss: nn.Module, embedding_size: int, queue_size: int, *, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(loss, embedding_size, queue_size, dtype)
        if self.loss.positives_cap is not None:
            raise ValueError(
                "Expected a loss without `positives_cap`, which counts in the batch order of samples and not in a "
                f"queue, but got positives_cap={self.loss.positives_cap}"
            )

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
        self._check_room(len(rows))
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

    def _labels(self, embeddings: Tensor, labels: Tensor | None) -> Tensor:
        """Return the labels of the batch, int64 without a target; without labels every sample is its own class."""
        target = self.loss.target
        if target is not None and labels is None:
            raise ValueError(f"Expected `labels` with target={target!r}, but got None")
        self._check_labelled(labels)
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
