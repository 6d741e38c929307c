"""The loss of a batch that several processes hold together, its work shared out among them."""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from pml_supcon.distributed import collectives
from pml_supcon.distributed.shards import Rows, agree_on_shares
from pml_supcon.functional.supcon import tiled
from pml_supcon.functional.supcon.backends import choose_backend
from pml_supcon.functional.supcon.global_batch import ring
from pml_supcon.functional.supcon.global_batch.shard_plan import Spread
from pml_supcon.functional.supcon.problem import AnchorLosses, Problem, build_problem


def group_supcon_loss(
    embeddings: Tensor,
    labels: Tensor | None = None,
    *,
    group: ProcessGroup,
    replicated: bool = False,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    ref_starts_with_batch: bool = False,
    indices_tuple: Sequence[Tensor] | None = None,
    num_views: int | None = None,
    temperature: float = 0.1,
    summation: str = "out",
    denominator: str = "all",
    contrast_mode: str = "all",
    positives_cap: int | None = None,
    scale_by_temperature: bool = False,
    normalize: bool = True,
    similarity: Callable[[Tensor, Tensor], Tensor] | None = None,
    backend: str = "auto",
) -> AnchorLosses:
    """`supcon_loss` of a batch that the processes of a group hold together, its work shared out among them.

    Every process gets the losses of all anchors, in the view-major order of the whole batch: the samples of the first
    process, then those of the second, and so on. The gradient of a process's rows is that of the sum of what all
    processes make of the losses: where all take the same mean, `W` times that of the mean, so that parameters whose
    gradients are averaged over processes (DDP) get exactly the gradient of one process with the whole batch.

    Args:
        embeddings: this process's share, `(B, V, D)` or `(N, D)`; processes may hold different numbers, or none.
        labels: this process's, `(B,)` or `(N,)`; None on all processes: every sample is its own class.
        group: the processes. All of them have to call, and to go backward.
        replicated: all processes give the same whole batch, and share out the work alone.
        ref_emb: this process's share of the contrasted rows, `(M, D)`.
        ref_labels: this process's, `(M,)`.
        ref_starts_with_batch: see `supcon_loss`; only with `replicated`.
        indices_tuple: see `supcon_loss`; only with `replicated`, and every process then computes all pairs.
        num_views: V of an `(N, D)` input.
        temperature: this and what follows as in `supcon_loss`, the same on all processes.
        summation: "out" or "in".
        denominator: "all", "one_positive" or "negatives".
        contrast_mode: "all" or "one".
        positives_cap: counts in the order of the whole batch.
        scale_by_temperature: multiply the loss by `temperature`.
        normalize: divide rows by their L2 norm first.
        similarity: in place of the dot product.
        backend: "auto", or one by name.

    Returns:
        `AnchorLosses(losses, valid)` of all anchors of the batch.

    Raises:
        ValueError: on every process, where one has a wrong share, or differs from the others in width, dtype, views or
            options; names rank and value. `indices_tuple` without `replicated`.
        ConnectionError: a collective failed; names the ranks that are lost.

    Note:
        Embeddings stay where they are on the "tiled" backend (`ring`); for the others, with `ref_emb` and where all
        have the same batch, every process has all rows and takes its part of the anchors.
    """
    options: dict[str, Any] = {
        "temperature": temperature,
        "summation": summation,
        "denominator": denominator,
        "contrast_mode": contrast_mode,
        "positives_cap": positives_cap,
        "normalize": normalize,
    }

    def build(whole: Rows) -> tuple[ModuleType, Problem]:
        problem = build_problem(
            whole.embeddings,
            whole.labels,
            ref_emb=whole.ref_emb,
            ref_labels=whole.ref_labels,
            num_views=whole.num_views,
            ref_starts_with_batch=ref_starts_with_batch,
            indices_tuple=indices_tuple,
            similarity=similarity,
            **options,
        )
        return choose_backend(backend, problem), problem

    own = Rows(embeddings, labels, ref_emb, ref_labels, num_views)
    if replicated:
        losses, valid = by_anchors(*build(own), group)
    else:
        module, problem, error = None, None, None
        try:
            if indices_tuple is not None or ref_starts_with_batch:
                raise ValueError(
                    "Expected neither `indices_tuple` nor `ref_starts_with_batch` with a batch spread over processes: "
                    "they speak of the rows of one process"
                )
            module, problem = build(own)
        except Exception as local:  # whatever it is, the others have to hear of it
            error = local
        taken = None if module is None else module.__name__.rpartition(".")[2]
        same = options | {"scale_by_temperature": scale_by_temperature, "backend": backend, "backend taken": taken}
        shares = agree_on_shares(own, same, error, group)
        assert module is not None  # for the type checker: processes have agreed, so there was no error
        assert problem is not None
        if module is tiled and ref_emb is None:
            spread = Spread.of(
                problem, shares.labels_or_numbers(own, group), shares.samples, own.views, positives_cap, group
            )
            losses, valid = ring.anchor_losses(problem, spread)
        else:
            losses, valid = by_anchors(*build(shares.gather(own, group)), group)
    return AnchorLosses(losses * float(temperature) if scale_by_temperature else losses, valid)


def by_anchors(backend: ModuleType, problem: Problem, group: ProcessGroup) -> AnchorLosses:
    """The losses of a problem that all processes of the group have alike, each computing those of some anchors.

    All get all losses; the gradient of the rows is, on each process, its part of the gradient of what all make of them.
    Listed pairs are not shared out: every process computes all.
    """
    if problem.pairs is not None:
        return backend.anchor_losses(problem)  # type: ignore[no-any-return]
    number, processes, rank = len(problem.anchors), dist.get_world_size(group), dist.get_rank(group)
    sizes = [number // processes + (r < number % processes) for r in range(processes)]
    first = sum(sizes[:rank])
    mine = slice(first, first + sizes[rank]) if sizes[rank] else slice(0, 0)
    losses, valid = backend.anchor_losses(problem.part(mine))
    return AnchorLosses(collectives.gather_rows(losses, sizes, group), collectives.all_gather_rows(valid, sizes, group))
