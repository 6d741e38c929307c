"""The registry of the backends, and the choice among them."""

from types import ModuleType
from typing import get_args

from pml_supcon.functional.supcon import reference, tiled, triton
from pml_supcon.functional.supcon.options import BackendName
from pml_supcon.functional.supcon.problem import AnchorLosses, Problem

#: Every backend by name; "auto" takes the first that supports the problem.
BACKENDS: dict[str, ModuleType] = dict(zip(get_args(BackendName), (triton, tiled, reference), strict=True))


def solve(problem: Problem) -> AnchorLosses:
    """Return the losses of a problem, from the backend that its options choose."""
    terms: AnchorLosses = choose_backend(problem).anchor_losses(problem)
    return terms.scaled(problem)


def choose_backend(problem: Problem) -> ModuleType:
    """Return the named backend, or for "auto" the first that supports the problem.

    A named backend that does not support the problem is an error: it is never replaced.
    """
    backend = problem.options.backend
    able = [name for name, module in BACKENDS.items() if module.refusal(problem) is None]
    if backend == "auto":
        return BACKENDS[able[0]]
    if backend not in able:
        reason = BACKENDS[backend].refusal(problem)
        raise ValueError(f"backend={backend!r} cannot do this: {reason}; backends that can: {', '.join(able)}")
    return BACKENDS[backend]
