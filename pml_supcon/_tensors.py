"""Checks of tensors that need no values of them, and conversions to a device or dtype; torch only."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from pml_supcon._checks import check_type

#: The floating-point dtypes of 16 to 64 bits.
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_dense(name: str, value: Any, *, values: bool = True) -> None:
    """Raise unless the value is a tensor with a dense layout, not quantised, and not on the meta device.

    Args:
        name: The argument's name.
        value: The argument.
        values: False accepts the meta device, where a function gives shapes and dtypes only.

    Raises:
        TypeError: If it is no tensor, sparse, nested, of another layout or quantised.
        ValueError: If it is on the meta device.
    """
    check_type(name, value, Tensor, "a torch.Tensor")
    if value.layout != torch.strided or value.is_nested or value.is_quantized:
        kind = "a nested tensor" if value.is_nested else value.dtype if value.is_quantized else f"layout {value.layout}"
        raise TypeError(f"Expected argument `{name}` to be a dense tensor, but got {kind}")
    if values and value.is_meta:
        raise ValueError(f"Expected argument `{name}` to have values, but got a tensor on the meta device")


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; the host waits for a GPU only to copy from it to the CPU."""
    if device.type == "cuda" and x.device.type == "cpu":
        pinned = x if torch.compiler.is_compiling() else x.pin_memory()  # `torch.compile` cannot trace it
        return pinned.to(device, non_blocking=True)
    return x.to(device)


def widen_integers(labels: Tensor) -> Tensor:
    """Return integers of any dtype, or bools, as int64, and floats as they are: torch compares uint64 with no other."""
    return labels if labels.is_floating_point() else labels.to(torch.int64)


def traced(x: Tensor) -> bool:
    """Return True if operations are traced (``torch.compile``, ``torch.export``, ``make_fx``, fake tensors)."""
    if torch.compiler.is_compiling():
        return True
    return torch._C._len_torch_dispatch_stack() > 0 or type(x) not in (Tensor, Parameter)
