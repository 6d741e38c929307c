"""The options of the loss, created and checked once."""

import numbers
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from pml_supcon._checks import check_choice, check_number

SUMMATIONS = ("out", "in")
DENOMINATORS = ("all", "one_positive", "negatives")
CONTRAST_MODES = ("all", "one")
BACKEND_NAMES = ("triton", "tiled", "reference")


@dataclass(frozen=True)
class SupConOptions:
    """The keyword arguments of ``supcon_loss`` that do not depend on the batch; see there for their meaning.

    Raises:
        TypeError: If an option has the wrong type.
        ValueError: If an option has a value that no batch can make valid.
    """

    temperature: float = 0.1
    summation: str = "out"
    denominator: str = "all"
    contrast_mode: str = "all"
    positives_cap: int | None = None
    scale_by_temperature: bool = False
    normalize: bool = True
    similarity: Callable[[Tensor, Tensor], Tensor] | None = None
    backend: str = "auto"

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, above=0)
        check_choice("summation", self.summation, SUMMATIONS)
        check_choice("denominator", self.denominator, DENOMINATORS)
        check_choice("contrast_mode", self.contrast_mode, CONTRAST_MODES)
        check_choice("backend", self.backend, ("auto", *BACKEND_NAMES))
        check_cap(self.positives_cap, None)
        if self.similarity is not None and not callable(self.similarity):
            raise TypeError(
                "Expected argument `similarity` to be None or a function of two tensors, "
                f"but got {type(self.similarity).__name__}"
            )


def check_cap(positives_cap: int | None, num_views: int | None) -> None:
    """Raise unless the cap is None or a multiple of the number of views, where that is known."""
    if positives_cap is None:
        return
    is_int = isinstance(positives_cap, numbers.Integral) and not isinstance(positives_cap, bool)
    if not is_int or positives_cap < 0 or positives_cap % (num_views or 1):
        views = "" if num_views is None else f", {num_views}"
        raise ValueError(
            f"Expected argument `positives_cap` to be None or a multiple >= 0 of the number of views{views}, "
            f"but got {positives_cap!r}"
        )
