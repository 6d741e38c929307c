"""Any loss, over the embeddings of all processes."""

import inspect
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from pml_supcon.functional import collectives
from pml_supcon.functional.shares import Rows, agree_on_shares
from pml_supcon.functional.supcon import checks
from pml_supcon.losses.queue import QueueLoss
from pml_supcon.losses.sharing import batch_shared_by
from pml_supcon.losses.supcon import SupConLoss


class GlobalBatchLoss(nn.Module):
    r"""A loss over the embeddings of all processes, exact: as if one process held the whole batch.

        L = loss(rows of process 0, rows of process 1, ...)

    Every process calls it with its own rows and gets the loss of the whole batch. The gradient of a process's rows is
    `W` times theirs in `L` (`W` processes), so that the average over processes that `DistributedDataParallel` and
    Accelerate take is exactly the gradient of one process with the whole batch. Processes may hold different numbers
    of rows, or none. Without a process group, or with one process, it is the loss itself.

    `SupConLossOut` and `SupConLossIn` share out the pairs: with the "tiled" backend a process meets the rows of the
    others one block at a time and does `1/W` of the work in the memory of its own share; other backends, and these
    losses inside `QueueLoss` and other wrappers, gather all rows and take `1/W` of the anchors. Losses of
    pytorch-metric-learning are computed on every process from all rows.

    Args:
        loss: a loss that is called like PML's: `loss(embeddings, labels, ...)`.
        miner: a PML miner, which mines in the whole batch (on the first process, for all).
        num_views: V of `(N, D)` embeddings that are view-major; default: that of the loss, if it has one.
        group: the processes; default: all.

    Shape:
        - embeddings: this process's `(N, D)` or `(B, V, D)`; losses of PML get all `(B, V, D)` as view-major rows.
        - labels: this process's `(N,)` or `(B,)`, any integer dtype, or None where the loss needs none.
        - the batch: samples of the first process, then of the second, and so on, view-major.

    Raises:
        ValueError: on every process, where one has a wrong share, or differs from the others in width, dtype, views or
            the loss's options; names rank and value. `indices_tuple`: pairs of one process; give a `miner`.
        ConnectionError: a process is gone; names its rank.

    Note:
        All processes have to call it, and to go backward. The numbers of rows are compared at each call, which waits
        for the device once.

    Example:
        >>> import torch
        >>> from pml_supcon import distributed, losses
        >>> loss = distributed.GlobalBatchLoss(losses.SupConLossOut(temperature=0.1))
        >>> embeddings, labels = torch.randn(8, 2, 4), torch.arange(8) % 3
        >>> bool(loss(embeddings, labels) == losses.SupConLossOut(temperature=0.1)(embeddings, labels))
        True
    """

    def __init__(
        self,
        loss: nn.Module,
        *,
        miner: nn.Module | None = None,
        num_views: int | None = None,
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        if not callable(loss):
            raise TypeError(f"Expected argument `loss` to be a loss module, but got {type(loss).__name__}")
        checks.check_num_views(num_views)
        self.loss = loss
        self.miner = miner
        self.num_views = getattr(loss, "num_views", None) if num_views is None else num_views
        self.group = group

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: Any = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        **more: Tensor,
    ) -> Tensor:
        """The loss of the whole batch, a scalar; `more` tensors go by row or sample, as the embeddings do."""
        group = collectives.default_group(self.group)
        own = Rows(embeddings, labels, ref_emb, ref_labels, self.num_views, more)
        alone = ref_emb is None and indices_tuple is None and self.miner is None and not more
        if group is not None and alone and isinstance(self.loss, SupConLoss) and not self.loss.needs_all_rows():
            return self.loss.loss_of_group(embeddings, labels, group)
        whole, error = own, None
        try:
            check(own, indices_tuple, spread=group is not None)
        except (ValueError, TypeError) as problem:
            error = problem
        if group is not None:
            same = {"loss": describe(self.loss)}
            if error is None:
                same |= {name: f"{tuple(x.shape[1:])} {x.dtype}" for name, x in more.items()}
            whole = agree_on_shares(own, same, error, group).gather(own, group)
        elif error is not None:
            raise error
        if whole.embeddings.ndim == 3 and not getattr(self.loss, "takes_views", False):
            whole = whole.view_major()
        arguments: dict[str, Any] = {"labels": whole.labels, "ref_emb": whole.ref_emb, "ref_labels": whole.ref_labels}
        arguments["indices_tuple"] = self._mine(whole, group) if self.miner is not None else indices_tuple
        arguments = {name: value for name, value in arguments.items() if value is not None} | dict(whole.more)
        with nullcontext() if group is None else batch_shared_by(group):
            loss: Tensor = self.loss(whole.embeddings, **arguments)
        return loss

    @torch.no_grad()
    def _mine(self, whole: Rows, group: ProcessGroup | None) -> tuple[Tensor, ...]:
        """What the miner finds in the batch; the same on all processes, also where it draws at random."""
        assert self.miner is not None
        rows = whole.view_major()
        references = () if rows.ref_emb is None else (rows.ref_emb, rows.ref_labels)
        if group is None:
            return tuple(self.miner(rows.embeddings, rows.labels, *references))
        found: tuple[Tensor, ...] = ()
        if dist.get_rank(group) == 0:
            found = tuple(self.miner(rows.embeddings, rows.labels, *references))
        return collectives.broadcast_indices(found, group, rows.embeddings.device)


def check(own: Rows, indices_tuple: Any, *, spread: bool) -> None:
    """Refuse a share of the batch that cannot be right."""
    embeddings, labels, ref_emb, ref_labels, num_views, more = own
    checks.check_embeddings("embeddings", embeddings)
    if labels is not None:
        checks.check_labels("labels", labels, len(embeddings), embeddings.device)
    if embeddings.ndim == 2 and num_views is not None and len(embeddings) % num_views:
        raise ValueError(
            f"Expected the rows of `embeddings` to be num_views={num_views} views of every sample, but "
            f"{len(embeddings)} is not a multiple of {num_views}"
        )
    if ref_emb is not None:
        checks.check_embeddings("ref_emb", ref_emb)
    if ref_labels is not None:
        checks.check_labels("ref_labels", ref_labels, 0 if ref_emb is None else len(ref_emb), embeddings.device)
    for name, tensor in more.items():
        if len(tensor) != len(embeddings):
            raise ValueError(
                f"Expected `{name}` to go by row, as the {len(embeddings)} of `embeddings`, but got {len(tensor)}"
            )
    if spread and indices_tuple is not None:
        raise ValueError(
            "Expected no `indices_tuple` with several processes: it names the rows of one of them; give the miner to "
            "`GlobalBatchLoss(loss, miner=...)`, which mines in the whole batch"
        )


def describe(module: nn.Module) -> str:
    """Classes and plain options of a loss and all inside it."""
    plain = (bool, int, float, str, type(None))
    said = []
    for part in module.modules():
        names = [name for name in inspect.signature(type(part).__init__).parameters if hasattr(part, name)]
        options = {name: getattr(part, name) for name in names if isinstance(getattr(part, name), plain)}
        if isinstance(part, QueueLoss):  # as full on all processes
            options |= {"num_filled": part.num_filled, "next_row": part.next_row}
        said.append(f"{type(part).__name__}({', '.join(f'{name}={value!r}' for name, value in options.items())})")
    return " ".join(said)
