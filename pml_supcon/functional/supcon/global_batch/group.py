"""The loss of a batch that is sharded over several processes, which divide its work."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from pml_supcon.distributed import collectives
from pml_supcon.distributed.shards import LossInputs, agree_on_shards
from pml_supcon.functional.supcon import tiled
from pml_supcon.functional.supcon.backends import choose_backend
from pml_supcon.functional.supcon.global_batch import ring
from pml_supcon.functional.supcon.global_batch.shard_plan import ShardPlan
from pml_supcon.functional.supcon.options import SupConOptions
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
    """Return `supcon_loss` of a batch that is sharded over the processes of a group, which divide its work.

    Every process gets the losses of all anchors, in the view-major order of the whole batch: the samples of the first
    process, then the samples of the second, and so on. The gradient of a process's rows is the gradient of the sum of
    all processes' results: where all take the same mean, `W` times the gradient of the mean, so that parameters whose
    gradients are averaged over processes (DDP) get exactly the gradient of one process with the whole batch.

    Args:
        embeddings: this process's shard, `(B, V, D)` or `(N, D)`; processes may hold different numbers, or none.
        labels: this process's, `(B,)` or `(N,)`; None on all processes: every sample is its own class.
        group: the processes. All of them have to call, and to go backward.
        replicated: all processes give the same whole batch, and divide only the work.
        ref_emb: this process's shard of the contrasted rows, `(M, D)`.
        ref_labels: this process's, `(M,)`.
        ref_starts_with_batch: see `supcon_loss`; only with `replicated`.
        indices_tuple: see `supcon_loss`; only with `replicated`, and every process then computes all pairs.
        num_views: V of an `(N, D)` input.
        temperature: `tau > 0`. See `supcon_loss` for this and all further options; they are the same on all processes.
        summation: "out" or "in".
        denominator: "all", "one_positive" or "negatives".
        contrast_mode: "all" or "one".
        positives_cap: the largest number of other positive rows; it counts in the order of the whole batch.
        scale_by_temperature: multiply the loss by `temperature`.
        normalize: divide rows by their L2 norm first.
        similarity: a function that replaces the dot product, or None.
        backend: "auto", or one of `BACKENDS` by name.

    Returns:
        `AnchorLosses(losses, valid)` of all anchors of the batch.

    Raises:
        ValueError: on every process, where one has a wrong shard, or differs from the others in width, dtype, views or
            options; names rank and value. `indices_tuple` without `replicated`.
        ConnectionError: a collective failed; names the ranks that are lost.

    Note:
        Embeddings stay where they are on the "tiled" backend (`ring`); for the others, with `ref_emb` and where all
        have the same batch, every process has all rows and takes its part of the anchors.
    """
    inputs = LossInputs(embeddings, labels, ref_emb, ref_labels, num_views)
    create_options = partial(
        SupConOptions,
        temperature=temperature,
        summation=summation,
        denominator=denominator,
        contrast_mode=contrast_mode,
        positives_cap=positives_cap,
        scale_by_temperature=scale_by_temperature,
        normalize=normalize,
        similarity=similarity,
        backend=backend,
    )
    return group_anchor_losses(
        inputs,
        group,
        create_options,
        replicated=replicated,
        ref_starts_with_batch=ref_starts_with_batch,
        indices_tuple=indices_tuple,
    )


def group_anchor_losses(
    inputs: LossInputs,
    group: ProcessGroup,
    create_options: Callable[[], SupConOptions],
    *,
    replicated: bool = False,
    ref_starts_with_batch: bool = False,
    indices_tuple: Sequence[Tensor] | None = None,
) -> AnchorLosses:
    """Return the losses of `group_supcon_loss`.

    `create_options` returns the options. It is called here because an option that is wrong on one process is an error
    on all of them.
    """
    if replicated:
        whole = checked_problem(
            inputs, create_options(), ref_starts_with_batch=ref_starts_with_batch, indices_tuple=indices_tuple
        )
        return divide_anchors(whole, group).scaled(whole)

    # Each process checks its own shard. An error is raised on all: a process that left alone would block the others.
    problem: Problem | None = None
    error: Exception | None = None
    try:
        if indices_tuple is not None or ref_starts_with_batch:
            raise ValueError(
                "Expected neither `indices_tuple` nor `ref_starts_with_batch` with a batch sharded over processes: "
                "they refer to the rows of one process"
            )
        problem = checked_problem(inputs, create_options())
        backend = choose_backend(problem)
    except Exception as local:
        error = local
    same: dict[str, Any] = {}
    if problem is not None and error is None:
        same = {field.name: getattr(problem.options, field.name) for field in fields(problem.options)}
        same["similarity"] = None if problem.similarity is None else "given"
        same["backend taken"] = backend.__name__.rpartition(".")[2]
    sizes = agree_on_shards(inputs, same, error, group)
    assert problem is not None  # for the type checker: processes have agreed, so there was no error

    if backend is tiled and inputs.ref_emb is None:  # the rows stay on their processes
        class_ids = sizes.labels_or_numbers(inputs, group)
        plan = ShardPlan.of(problem, class_ids, sizes.samples, inputs.views, group)
        return ring.anchor_losses(problem, plan).scaled(problem)
    return divide_anchors(checked_problem(sizes.gather(inputs, group), problem.options), group).scaled(problem)


def checked_problem(
    inputs: LossInputs,
    options: SupConOptions,
    *,
    ref_starts_with_batch: bool = False,
    indices_tuple: Sequence[Tensor] | None = None,
) -> Problem:
    """Return the inputs of a loss and its options as a checked problem."""
    return build_problem(
        inputs.embeddings,
        inputs.labels,
        ref_emb=inputs.ref_emb,
        ref_labels=inputs.ref_labels,
        ref_starts_with_batch=ref_starts_with_batch,
        indices_tuple=indices_tuple,
        num_views=inputs.num_views,
        options=options,
    )


def divide_anchors(problem: Problem, group: ProcessGroup) -> AnchorLosses:
    """Return the losses of a problem that all processes hold, each process computing a part of the anchors.

    The gradient of the rows is, on each process, its part of the gradient of the sum of all processes' results. Listed
    pairs are not divided: every process computes all.
    """
    backend = choose_backend(problem)
    if problem.pairs is not None:
        return backend.anchor_losses(problem)  # type: ignore[no-any-return]
    # Process r computes anchors [first, first + sizes[r]); the sizes differ by at most one.
    number, processes, rank = len(problem.anchors), dist.get_world_size(group), dist.get_rank(group)
    sizes = [number // processes + (r < number % processes) for r in range(processes)]
    first = sum(sizes[:rank])
    mine = slice(first, first + sizes[rank]) if sizes[rank] else slice(0, 0)
    losses, valid = backend.anchor_losses(problem.part(mine))
    return AnchorLosses(collectives.gather_rows(losses, sizes, group), collectives.all_gather_rows(valid, sizes, group))
