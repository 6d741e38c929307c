"""A wrapper that computes any loss over the embeddings of all processes."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from pml_supcon._checks import check_int, check_type
from pml_supcon._layouts import view_major_rows
from pml_supcon._tensors import check_dense
from pml_supcon.distributed import collectives
from pml_supcon.distributed.shards import LossInputs, agree_on_shards
from pml_supcon.functional.supcon import checks
from pml_supcon.functional.supcon.global_batch.group import check_inputs
from pml_supcon.losses.learnable_temperature import LearnableTemperature
from pml_supcon.losses.queue import QueueLoss
from pml_supcon.losses.rank_n_contrast import RankNContrastLoss
from pml_supcon.losses.relation_distillation import RelationDistillation
from pml_supcon.losses.supcon import BaseSupConLoss, SupConLossIn, SupConLossOut
from pml_supcon.targets import Target

OWN_LOSSES = (SupConLossOut, SupConLossIn)  # the exact classes: a subclass may compute anything
#: The losses whose work the processes of their `group` divide.
DIVISIBLE = (BaseSupConLoss, RankNContrastLoss, RelationDistillation)


class GlobalBatchLoss(nn.Module):
    r"""A loss over the embeddings of all processes, exact: as if one process held the whole batch.

        L = loss(rows of process 0, rows of process 1, ...)

    Every process calls it with its own rows and gets the loss of the whole batch. The gradient of the rows is ``W``
    times their gradient in ``L`` (``W`` processes). The average over processes that ``DistributedDataParallel`` and
    Accelerate take is then exactly the gradient of one process with the whole batch. Processes may hold different
    numbers of rows, or none. Without a process group, or with one process, the wrapper returns the loss itself.

    ``SupConLossOut`` and ``SupConLossIn`` divide their pairs over the processes. With the "tiled" backend a process
    receives the rows of the others one block at a time: it does ``1/W`` of the work, in memory proportional to its own
    rows. With other backends, and inside ``QueueLoss``, ``CrossModalLoss`` and other wrappers, these losses gather all
    rows and compute ``1/W`` of the anchors, as ``RankNContrastLoss`` does, or of the pairs, as
    ``RelationDistillation`` does. Losses of pytorch-metric-learning are computed on every process from all rows.

    Args:
        loss: a loss with the call of PML's losses: ``loss(embeddings, labels, ...)``.
        miner: a PML miner, which mines in the whole batch (on the first process, for all).
        num_views: V of view-major ``(N, D)`` embeddings; default: the ``num_views`` of the loss, if it has one.
        group: the processes; default: all.

    Shape:
        - embeddings: ``(N, D)`` or ``(B, V, D)`` of this process; losses of PML get ``(B, V, D)`` as view-major rows.
        - labels: ``(N,)`` or ``(B,)`` of this process, any integer dtype, any device, or None if the loss needs none;
          numbers, or rows of them, for ``RankNContrastLoss``; with a ``target`` of the loss ``(N, ...)`` or
          ``(B, ...)`` as it says.
        - ref_emb: ``(M, D)`` of this process, the second tower of ``CrossModalLoss``.
        - the batch: samples of the first process, then of the second, and so on, view-major.
        - other tensors that the loss accepts by keyword, like ``anchors``, ``keys`` or ``past_embeddings``: one entry
          per row or sample.

    Raises:
        ValueError: On every process, if the rows of one are invalid, or differ from the others in width, dtype, views
            or the options of the loss; the error names the rank and the value. Also for ``indices_tuple``, which lists
            rows of one process: pass a ``miner``; and for a ``miner`` with a ``target`` of the loss.
        ConnectionError: If a collective fails; the error names the lost ranks.

    Warns:
        UserWarning: Once, if two processes hold bit-identical rows and labels in one of the first ten calls, as with a
            sampler whose ``num_replicas`` was forgotten: each sample would be its own positive. Names the ranks.

    Note:
        All processes must call it, and its backward pass. The numbers of rows are compared at each call, on the host,
        which does not wait for the device to do so. CUDA embeddings in a gloo group are copied through the host. A loss
        of PML that draws at random draws on each process separately; a miner draws once, for all.

    Examples:
        >>> import torch
        >>> from pml_supcon import losses
        >>> loss = losses.GlobalBatchLoss(losses.SupConLossOut(temperature=0.1))
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
        check_type("loss", loss, nn.Module, "a loss module")
        check_type("miner", miner, (nn.Module, type(None)), "a miner module or None")
        check_type("group", group, (ProcessGroup, type(None)), "a ProcessGroup or None")
        if num_views is not None:
            check_int("num_views", num_views, low=1)
        views_of_loss = getattr(loss, "num_views", None)
        if None not in (num_views, views_of_loss) and num_views != views_of_loss:
            raise ValueError(
                f"Expected argument `num_views` to equal num_views={views_of_loss} of the loss, but got {num_views}"
            )
        if miner is not None and not getattr(loss, "takes_pairs", True):
            raise ValueError(f"Expected no `miner` with {type(loss).__name__}, which takes no pairs")
        self.loss = loss
        self.miner = miner
        target_of(loss, mined=miner is not None)  # raises if the two do not go together
        self.num_views = views_of_loss if num_views is None else num_views
        self.group = group

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: Any = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        **more: Tensor | None,
    ) -> Tensor:
        """Return the loss of the whole batch, a scalar; ``more`` tensors have one entry per row or sample."""
        group = collectives.default_group(self.group)
        given = {name: tensor for name, tensor in more.items() if tensor is not None}
        own = LossInputs(embeddings, labels, ref_emb, ref_labels, self.num_views, given)
        if group is not None:
            return self._loss_of_group(own, indices_tuple, group)  # type: ignore[no-any-return]
        if (
            self.miner is None
            and isinstance(self.loss, BaseSupConLoss | QueueLoss)
            and self.num_views == self.loss.num_views
        ):
            pairs = {"indices_tuple": indices_tuple, "ref_emb": ref_emb, "ref_labels": ref_labels}
            given |= {name: value for name, value in pairs.items() if value is not None}
            loss: Tensor = self.loss(embeddings, labels, **given)  # it checks its arguments itself
            return loss
        own = check(own, self.loss, mined=self.miner is not None)
        if indices_tuple is not None:
            number = own.embeddings.shape[:-1].numel()
            others = number if own.ref_emb is None else len(own.ref_emb)
            checks.check_pairs(indices_tuple, own.embeddings.device, number, others)
        return self._loss_over(own.by_sample(), indices_tuple, None)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # collectives, and branches on their results
    def _loss_of_group(self, own: LossInputs, indices_tuple: Any, group: ProcessGroup) -> Tensor:
        """Return the loss of the batch of all processes; our own losses do not gather the rows."""
        loss = self.loss
        plain = self.miner is None and indices_tuple is None and own.ref_emb is None and set(own.more) <= {"anchors"}
        if plain and isinstance(loss, BaseSupConLoss) and type(loss) in OWN_LOSSES and not loss.needs_all_rows():
            return loss.loss_of_group(own.embeddings, own.labels, group, self.num_views, own.more.get("anchors"))
        error: Exception | None = None
        try:
            if indices_tuple is not None:
                raise ValueError(
                    "Expected no `indices_tuple` with several processes: it lists the rows of one of them; pass the "
                    "miner to `GlobalBatchLoss(loss, miner=...)`, which mines in the whole batch"
                )
            own = check(own, self.loss, mined=self.miner is not None)
        except Exception as local:  # the other processes must raise too
            error = local
        same = {"loss": describe(self.loss)} | learnt_temperatures(self.loss)
        sizes = agree_on_shards(own, same, error, group)
        return self._loss_over(sizes.gather(own, group), None, group)

    def _loss_over(self, rows: LossInputs, indices_tuple: Any, group: ProcessGroup | None) -> Tensor:
        """Return the loss of rows that all processes hold."""
        given = [ids for ids in (rows.labels, rows.ref_labels) if ids is not None]
        if target_of(self.loss) is None and not any(ids.is_floating_point() for ids in given):
            # torch compares uint64 with no other dtype
            labels, ref_labels = checks.int64_labels(rows.labels, rows.ref_labels)
            rows = rows._replace(labels=labels, ref_labels=ref_labels)
        if self.miner is not None:
            indices_tuple = self._mine(rows.view_major(), group)
        if not getattr(self.loss, "takes_views", False):
            rows = rows.view_major()
        arguments = {
            "labels": rows.labels,
            "indices_tuple": indices_tuple,
            "ref_emb": rows.ref_emb,
            "ref_labels": rows.ref_labels,
            **rows.more,
        }
        with divided_among(self.loss, group):
            loss: Tensor = self.loss(
                rows.embeddings, **{name: value for name, value in arguments.items() if value is not None}
            )
        return loss

    @torch.no_grad()
    def _mine(self, rows: LossInputs, group: ProcessGroup | None) -> list[Tensor]:
        """Return the pairs that the miner selects, the same on all processes even if it draws at random."""
        assert self.miner is not None  # for the type checker
        mine = partial(self.miner, rows.embeddings, rows.labels, rows.ref_emb, rows.ref_labels)
        if group is None:
            return list(mine())
        return collectives.broadcast_from_first(mine, group, rows.embeddings.device)


@contextmanager
def divided_among(loss: nn.Module, group: ProcessGroup | None) -> Iterator[None]:
    """Set the group of every loss of ours inside a loss during a call.

    It is reset afterwards: the same loss called alone, in an evaluation for example, must not wait for other processes.
    """
    divisible = [part for part in loss.modules() if isinstance(part, DIVISIBLE)]
    for part in divisible:
        part.group = group
    try:
        yield
    finally:
        for part in divisible:
            part.group = None


def target_of(loss: nn.Module, *, mined: bool = False) -> Target | None:
    """Return the target of the SupCon losses inside a loss, or None; raise for one with a miner."""
    targets = (part.target for part in loss.modules() if isinstance(part, BaseSupConLoss))
    target = next((target for target in targets if target is not None), None)
    if mined and target is not None:
        raise ValueError(
            f"Expected no `miner` with target={target!r}, whose weights its pairs would replace; the loss contrasts "
            "all rows without it"
        )
    return target


def check(own: LossInputs, loss: nn.Module, *, mined: bool) -> LossInputs:
    """Return the batch on this process with all labels on the device of the embeddings, or raise if it is invalid.

    A loss with labels of another kind, or with two towers, checks them itself (``check_shard``).
    """
    plain_check = partial(check_inputs, need_ref_labels=mined, target=target_of(loss, mined=mined))
    own_check: Any = getattr(loss, "check_shard", plain_check)
    checked: LossInputs = own_check(own)
    embeddings, labels = own.embeddings, own.labels
    if mined:
        check_dense("embeddings", embeddings)
        if labels is None:
            raise ValueError("Expected `labels` with a `miner`, but got None")
    if embeddings.ndim == 2:
        view_major_rows(embeddings, labels, own.num_views)  # raises unless the rows are a whole number of samples
        if labels is not None:
            checks.check_views_agree(labels, own.num_views)
    for name, tensor in own.more.items():
        if not isinstance(tensor, Tensor) or tensor.ndim == 0 or len(tensor) not in (len(embeddings), own.samples):
            given = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"Expected `{name}` to have {len(embeddings)} entries like `embeddings`, but got {given}")
    return checked


def learnt_temperatures(module: nn.Module) -> dict[str, Tensor]:
    """Return the logarithms of the learnt temperatures inside a loss, by name."""
    return {
        f"log of {name}": part.logarithm
        for name, part in module.named_modules()
        if isinstance(part, LearnableTemperature)
    }


def describe(module: nn.Module) -> str:
    """Return the classes, plain options, targets and saved state of a loss and of all modules in it, as one string."""
    plain = (bool, int, float, str, type(None))
    parts = []
    for part in module.modules():
        inits = [vars(kind)["__init__"] for kind in type(part).__mro__ if "__init__" in vars(kind)]
        names = dict.fromkeys(name for init in inits for name in signature(init).parameters)
        if isinstance(part, BaseSupConLoss) and part.learnt_temperature is not None:
            names.pop("temperature")  # the host would wait for it; `learnt_temperatures` has it
        values = {name: getattr(part, name, part) for name in names}
        options = {name: value for name, value in values.items() if isinstance(value, plain)}
        # its own `repr` could have the address of an attribute
        options |= {name: Target.__repr__(value) for name, value in values.items() if isinstance(value, Target)}
        if type(part).get_extra_state is not nn.Module.get_extra_state:
            options["state"] = str(part.get_extra_state().tolist())
        for name, buffer in part.named_buffers(recurse=False):
            options[name] = str(buffer.dtype)
        parts.append(f"{type(part).__name__}({', '.join(f'{name}={value}' for name, value in options.items())})")
    return " ".join(parts)
