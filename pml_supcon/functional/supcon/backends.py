"""The backends of the loss by name, and which of them is taken."""

from types import ModuleType

from pml_supcon._checks import check_choice
from pml_supcon.functional.supcon import reference, tiled, triton
from pml_supcon.functional.supcon.problem import Problem

#: Every backend by name; "auto" takes the first that can do what is asked.
BACKENDS: dict[str, ModuleType] = {"triton": triton, "tiled": tiled, "reference": reference}


def choose_backend(backend: str, problem: Problem) -> ModuleType:
    """The backend named, or for "auto" the first that can; a name that cannot serve is refused, never replaced."""
    check_choice("backend", backend, ("auto", *BACKENDS))
    able = [name for name, module in BACKENDS.items() if module.refusal(problem) is None]
    if backend == "auto":
        return BACKENDS[able[0]]
    if backend not in able:
        reason = BACKENDS[backend].refusal(problem)
        raise ValueError(f"backend={backend!r} cannot do this: {reason}; backends that can: {', '.join(able)}")
    return BACKENDS[backend]
