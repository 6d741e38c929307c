"""The options of the loss, created and checked once."""

import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from pml_supcon._checks import INT64, check_bool, check_choice, check_int, check_number, check_temperature, shown
from pml_supcon.functional.supcon.temperature import TENSORS, BoundedTemperature, check_tensor
from pml_supcon.targets import Target, check_target

Summation = Literal["out", "in"]
Denominator = Literal["all", "one_positive", "negatives"]
ContrastMode = Literal["all", "one"]
BackendName = Literal["dense", "triton", "tiled", "reference"]
Backend = Literal["auto", BackendName]
Products = Literal["auto", "float32", "float16"]

TEMPERATURE = 0.1


@dataclass(frozen=True)
class SupConOptions:
    """The keyword arguments of ``supcon_loss`` that do not depend on the batch; see there for their meaning.

    Raises:
        TypeError: If an option has the wrong type.
        ValueError: If an option has a value that no batch can make valid.
    """

    temperature: float | Tensor | BoundedTemperature = TEMPERATURE
    summation: str = "out"
    denominator: str = "all"
    contrast_mode: str = "all"
    positives_cap: int | None = None
    margin: float = 0.0
    class_balanced: bool = False
    ignore_label: int | None = None
    scale_by_temperature: bool = False
    normalize: bool = True
    similarity: Callable[[Tensor, Tensor], Tensor] | None = None
    backend: str = "auto"
    products: str = "auto"
    target: Target | None = None

    def __post_init__(self) -> None:
        if isinstance(self.temperature, TENSORS):
            check_tensor(self.temperature)
        else:
            check_temperature("temperature", self.temperature)
        check_choice("summation", self.summation, get_args(Summation))
        check_choice("denominator", self.denominator, get_args(Denominator))
        check_choice("contrast_mode", self.contrast_mode, get_args(ContrastMode))
        check_choice("backend", self.backend, get_args(Backend))
        check_choice("products", self.products, get_args(Products))
        check_bool("scale_by_temperature", self.scale_by_temperature)
        check_bool("normalize", self.normalize)
        cap = self.positives_cap
        if cap is not None and (
            not isinstance(cap, numbers.Integral) or isinstance(cap, bool) or not 0 <= cap <= INT64[1]
        ):
            raise ValueError(
                "Expected argument `positives_cap` to be None or a multiple >= 0 of the number of views, "
                f"but got {shown(cap)}"
            )
        if check_number("margin", self.margin, low=0, high=1000) > 0 and self.denominator != "one_positive":
            raise ValueError(
                f"Expected `denominator='one_positive'` with margin={shown(self.margin)}, which lowers the positive in "
                f"its own denominator, but got {self.denominator!r}"
            )
        if check_bool("class_balanced", self.class_balanced) and self.denominator != "all":
            raise ValueError(
                "Expected `denominator='all'` with `class_balanced`, which weights all classes in one denominator, "
                f"but got {self.denominator!r}"
            )
        if self.class_balanced and self.target is not None:
            raise ValueError(
                "Expected no `target` with `class_balanced`, which counts the rows of a class, so that it needs class "
                "labels"
            )
        if self.ignore_label is not None:
            check_int("ignore_label", self.ignore_label)
            if self.target is not None:
                raise ValueError(
                    "Expected no `target` with `ignore_label`, which is a class label, but got "
                    f"{type(self.target).__name__}"
                )
        if self.products == "float16" and not self.normalize:
            raise ValueError(
                "Expected `normalize=True` with `products='float16'`: its range is too small for rows of any length"
            )
        check_target(self.target)
        reason = None if self.target is None else self.target.refusal(self.denominator)
        if reason is not None:
            raise ValueError(
                f"Expected another `denominator` than {self.denominator!r} with {type(self.target).__name__}: {reason}"
            )
        if self.target is not None and cap is not None:
            raise ValueError(
                "Expected no `positives_cap` with `target`: it counts the samples of a class, so that it needs class "
                "labels"
            )
        if self.similarity is not None and not callable(self.similarity):
            raise TypeError(
                "Expected argument `similarity` to be None or a function of two tensors, "
                f"but got {type(self.similarity).__name__}"
            )


def check_cap(positives_cap: int | None, num_views: int) -> None:
    """Raise unless the cap is None or a multiple of the number of views."""
    if positives_cap is not None and positives_cap % num_views:
        raise ValueError(
            f"Expected argument `positives_cap` to be None or a multiple >= 0 of the number of views, {num_views}, "
            f"but got {positives_cap!r}"
        )
