"""The registry of the backends, and the choice among them."""

from collections.abc import Sequence
from functools import reduce
from types import ModuleType
from typing import get_args

import torch
from torch import Tensor

from pml_supcon.functional.supcon import dense, reference, tiled, triton
from pml_supcon.functional.supcon.options import BackendName
from pml_supcon.functional.supcon.problem import AnchorLosses, Problem
from pml_supcon.targets import Hierarchy

#: Every backend by name, in the order in which "auto" asks them.
BACKENDS: dict[str, ModuleType] = dict(zip(get_args(BackendName), (dense, triton, tiled, reference), strict=True))


def solve(problem: Problem) -> AnchorLosses:
    """Return the losses of a problem, from the backend that its options choose."""
    if isinstance(problem.target, Hierarchy):
        return sum_of_levels([(weight, solve(level)) for weight, level in problem.levels(problem.target)])
    terms: AnchorLosses = choose_backend(problem).anchor_losses(problem)
    return terms.completed(problem)


def solve_mean(problem: Problem) -> Tensor:
    """Return the mean of ``solve``'s losses over valid anchors; ``triton`` computes it in its own kernels."""
    if isinstance(problem.target, Hierarchy):
        return reduce(torch.add, [weight * solve_mean(level) for weight, level in problem.levels(problem.target)])
    backend = choose_backend(problem)
    if backend is triton and problem.anchor_mask is None:
        mean = triton.mean_loss(problem)
        return mean * problem.given_temperature if problem.options.scale_by_temperature else mean
    terms: AnchorLosses = backend.anchor_losses(problem)
    return terms.completed(problem).mean()


def sum_of_levels(levels: Sequence[tuple[float, AnchorLosses]]) -> AnchorLosses:
    """Return per-anchor losses whose mean is the weighted sum of the levels' means, from weights and losses.

    A level of ``n_l`` valid anchors is scaled by ``n / n_l``, with ``n`` the anchors that are valid at any level.
    """
    valid = reduce(torch.logical_or, [terms.valid for _, terms in levels])
    number = valid.sum()
    losses = [weight * number / terms.valid.sum().clamp(min=1) * terms.losses for weight, terms in levels]
    return AnchorLosses(reduce(torch.add, losses), valid)


def choose_backend(problem: Problem, *, any_size: bool = False) -> ModuleType:
    """Return the named backend, or for "auto" the first that supports the problem; ``dense`` for small problems only.

    A named backend that does not support the problem is an error: it is never replaced. With ``any_size`` the choice
    does not depend on the numbers of rows.
    """
    backend = problem.options.backend
    if backend == "auto":
        for name, module in BACKENDS.items():
            # the refusal first: the compiler would make the number of pairs a constant of its graph
            if refusal(name, problem) is not None:
                continue
            if module is not dense or (dense.is_preferred(problem) and not any_size):
                return module
        backend = "triton"  # no backend can: float16 products need this one
    reason = refusal(backend, problem)
    if reason is not None:
        able = ", ".join(name for name in BACKENDS if refusal(name, problem) is None) or "none"
        raise ValueError(f"backend={backend!r} cannot do this: {reason}; backends that can: {able}")
    return BACKENDS[backend]


def refusal(name: str, problem: Problem) -> str | None:
    """Return the reason why a backend cannot solve the problem, or None."""
    if problem.options.products == "float16" and name != "triton":
        return "its products are float32 or float64, and products='float16' asks for less"
    reason: str | None = BACKENDS[name].refusal(problem)
    return reason
