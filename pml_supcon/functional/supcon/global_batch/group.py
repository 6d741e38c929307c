"""The loss of a batch that is sharded over several processes, which divide its work."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from pml_supcon._checks import check_bool, check_type
from pml_supcon._layouts import flatten_views, split_views
from pml_supcon.distributed import collectives
from pml_supcon.distributed.shards import LossInputs, agree_on_shards
from pml_supcon.functional.supcon import checks, tiled, triton
from pml_supcon.functional.supcon.backends import choose_backend, sum_of_levels
from pml_supcon.functional.supcon.classes import separate_ignored
from pml_supcon.functional.supcon.global_batch import own_rows, ring
from pml_supcon.functional.supcon.global_batch.shard_plan import ShardPlan
from pml_supcon.functional.supcon.options import SupConOptions
from pml_supcon.functional.supcon.problem import AnchorLosses, Problem, build_problem, check_batch
from pml_supcon.targets import Hierarchy, Target


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
    anchors: Tensor | None = None,
    num_views: int | None = None,
    **options: Any,
) -> AnchorLosses:
    """Return ``supcon_loss`` of a batch that is sharded over the processes of a group, which divide its work.

    Every process gets the losses of all anchors, in the view-major order of the whole batch: the samples of the first
    process, then the samples of the second, and so on. The gradient of a process's rows is the gradient of the sum of
    the results of all processes. If all of them take the same mean, it is ``W`` times the gradient of the mean:
    averaging gradients over processes (DDP) then gives exactly the gradient of one process with the whole batch.

    Args:
        embeddings: the shard of this process, ``(B, V, D)`` or ``(N, D)``; the numbers of rows may differ, or be 0.
        labels: the labels of the shard, ``(B, ...)`` or ``(N, ...)``; None on all processes: every sample is its own
            class.
        group: the processes. All of them must call the function, and its backward pass.
        replicated: all processes hold the same whole batch, and divide only the work.
        ref_emb: the contrasted rows of this process, ``(M, D)``.
        ref_labels: their labels, ``(M, ...)``.
        ref_starts_with_batch: see ``supcon_loss``; only with ``replicated``.
        indices_tuple: see ``supcon_loss``; only with ``replicated``, and every process then computes all pairs.
        anchors: bool mask of the anchors of the shard, ``(N,)`` or ``(B,)``; see ``supcon_loss``.
        num_views: V of an ``(N, D)`` input.
        **options: the options of ``supcon_loss``, from ``temperature`` to ``backend``, the same on all processes;
            ``positives_cap`` counts in the order of the whole batch.

    Returns:
        ``AnchorLosses(losses, valid)`` of all anchors of the batch.

    Raises:
        ValueError: On every process, if the shard of one is invalid, or differs from the others in width, dtype, views
            or options; the error names the rank and the value. Also for ``indices_tuple`` without ``replicated``.
        ConnectionError: If a collective fails; the error names the lost ranks.

    Note:
        On the "tiled" backend embeddings stay on their processes, and blocks of rows rotate (``ring``). For the other
        backends, with ``ref_emb`` and with ``replicated``, every process holds all rows and computes a part of the
        anchors; on "triton" also the whole gradient of its own rows (``own_rows``).
    """
    check_type("group", group, ProcessGroup, "a ProcessGroup")
    if check_bool("replicated", replicated):
        checked = SupConOptions(**options)
        problem = build_problem(
            check_batch(embeddings, labels, num_views, checked.target),
            checked,
            ref_emb=ref_emb,
            ref_labels=ref_labels,
            ref_starts_with_batch=ref_starts_with_batch,
            indices_tuple=indices_tuple,
            anchors=anchors,
        )
        return divide_anchors(problem, group)
    more = {} if anchors is None else {"anchors": anchors}
    inputs = LossInputs(embeddings, labels, ref_emb, ref_labels, num_views, more)
    try:
        if indices_tuple is not None or check_bool("ref_starts_with_batch", ref_starts_with_batch):
            raise ValueError(
                "Expected neither `indices_tuple` nor `ref_starts_with_batch` with a batch sharded over processes: "
                "they refer to the rows of one process"
            )
        checked = SupConOptions(**options)
    except Exception as error:
        agree_on_shards(inputs, {}, error, group)  # raises on all processes
        raise
    return group_losses(inputs, checked, group)


def group_losses(inputs: LossInputs, options: SupConOptions, group: ProcessGroup) -> AnchorLosses:
    """Return ``group_supcon_loss`` of shards for checked options."""
    # Each process checks its own shard. An error is raised on all: a process that left alone would block the others.
    problem: Problem | None = None
    error: Exception | None = None
    same: dict[str, Any] = {}
    try:
        inputs = check_inputs(
            inputs, need_ref_labels=True, target=options.target
        )  # labels are gathered on the device of the embeddings
        problem = problem_of(inputs, options)
        # the shards of other processes can have other sizes; the levels of a hierarchy have one backend
        backend = choose_backend(levels_of(problem)[0][1], any_size=True)
        same = {**vars(options), "backend taken": backend.__name__.rpartition(".")[2]}
        same["temperature"] = problem.given_temperature
        same["similarity"] = None if options.similarity is None else "given"
        if options.target is not None:  # its own `repr` could have the address of an attribute
            same["target"] = Target.__repr__(options.target)
    except Exception as local:
        error = local
    sizes = agree_on_shards(inputs, same, error, group)
    assert problem is not None  # for the type checker: processes have agreed, so there was no error
    if problem.anchor_mask is not None:  # of the whole batch
        views = 1 if options.contrast_mode == "one" else inputs.views
        problem = replace(problem, anchor_mask=gathered_mask(problem.anchor_mask, views, sizes.samples, group))

    if inputs.ref_emb is None and (backend is tiled or (backend is triton and problem.symmetric)):
        labels = sizes.labels(inputs, group)
        if labels is None:  # every sample is its own class
            labels = torch.arange(sum(sizes.samples), device=inputs.embeddings.device)
        elif options.ignore_label is not None:
            labels, _ = separate_ignored(labels, None, options.ignore_label, None)

        def sharded(problem: Problem, labels: Tensor) -> AnchorLosses:
            if backend is triton:
                return own_rows.sharded_losses(problem, labels, sizes.samples, inputs.views, group).completed(problem)
            plan = ShardPlan.of(problem, labels, sizes.samples, inputs.views, group)  # rows stay on their processes
            return ring.anchor_losses(problem, plan).completed(problem)

        if not isinstance(options.target, Hierarchy):
            return sharded(problem, labels)
        options.target.check("labels", labels)  # they may be nested on each process, but not together
        ids = [ids for _, ids in options.target.levels(labels)]
        levels = zip(levels_of(problem), ids, strict=True)
        return sum_of_levels([(weight, sharded(level, ids)) for (weight, level), ids in levels])
    whole = problem_of(sizes.gather(inputs._replace(more={}), group), options)
    return divide_anchors(replace(whole, anchor_mask=problem.anchor_mask), group)


def gathered_mask(mask: Tensor, views: int, samples: list[int], group: ProcessGroup) -> Tensor:
    """Return the mask of the anchors of all processes, ``(views * B,)``, from the mask of this one; both view-major."""
    return flatten_views(collectives.all_gather_rows(split_views(mask, views), samples, group))


def levels_of(problem: Problem) -> list[tuple[float, Problem]]:
    """Return the weights and problems of the levels of a hierarchy, or the problem itself with the weight 1."""
    return problem.levels(problem.target) if isinstance(problem.target, Hierarchy) else [(1.0, problem)]


def check_inputs(inputs: LossInputs, *, need_ref_labels: bool, target: Target | None = None) -> LossInputs:
    """Return the inputs of a loss with all labels on the device of the embeddings, or raise if a tensor is invalid."""
    embeddings, labels = inputs.embeddings, inputs.labels
    checks.check_embeddings("embeddings", embeddings)
    if labels is not None:
        labels = checks.check_labels("labels", labels, len(embeddings), embeddings.device, target)
    ref_labels = checks.check_references(
        embeddings, inputs.ref_emb, inputs.ref_labels, need_labels=need_ref_labels, target=target
    )
    return inputs._replace(labels=labels, ref_labels=ref_labels)


def problem_of(inputs: LossInputs, options: SupConOptions) -> Problem:
    """Return the inputs of a loss and its options as a checked problem."""
    batch = check_batch(inputs.embeddings, inputs.labels, inputs.num_views, options.target)
    anchors = inputs.more.get("anchors")
    return build_problem(batch, options, ref_emb=inputs.ref_emb, ref_labels=inputs.ref_labels, anchors=anchors)


def divide_anchors(problem: Problem, group: ProcessGroup) -> AnchorLosses:
    """Return the losses of a problem that all processes hold; each process computes a part of the anchors.

    The gradient of the rows is, on each process, its part of the gradient of the sum of the results of all processes.
    Listed pairs are not divided: every process computes all.
    """
    if isinstance(problem.target, Hierarchy):
        return sum_of_levels([(weight, divide_anchors(level, group)) for weight, level in levels_of(problem)])
    backend = choose_backend(problem)
    if problem.pairs is not None:
        terms: AnchorLosses = backend.anchor_losses(problem)
        return terms.completed(problem)
    # Process r computes anchors [first, first + sizes[r]); the sizes differ by at most one.
    number, processes, rank = problem.num_anchors, dist.get_world_size(group), dist.get_rank(group)
    sizes = [number // processes + (r < number % processes) for r in range(processes)]
    if backend is triton and problem.symmetric:
        return own_rows.replicated_losses(problem, sizes, group).completed(problem)
    first = sum(sizes[:rank])
    mine = slice(first, first + sizes[rank]) if sizes[rank] else slice(0, 0)
    losses, valid = backend.anchor_losses(problem.part(mine))
    terms = AnchorLosses(
        collectives.gather_rows(losses, sizes, group), collectives.all_gather_rows(valid, sizes, group)
    )
    return terms.completed(problem)
