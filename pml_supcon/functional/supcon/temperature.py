"""A temperature that is a tensor with a graph, so that the loss has a gradient for it.

Rows are divided by it before a backend reads them, with autograd: no backend has a derivative for the temperature.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pml_supcon._checks import check_temperature, shown
from pml_supcon._tensors import check_dense, traced

#: The largest `|s|` up to which rows over the temperature, and their products, are well inside float16.
FLOAT16_BOUND = 2.0**15


class BoundedTemperature(NamedTuple):
    """A tensor temperature with a lower bound that the host has: the tensor's own value may be on a GPU."""

    value: Tensor
    minimum: float


#: The types of a temperature that is a tensor; the compiler of PyTorch 2.7 cannot trace ``isinstance(x, A | B)``.
TENSORS = (Tensor, BoundedTemperature)


class TensorTemperature(NamedTuple):
    """The temperature of a problem if it is a tensor.

    Attributes:
        value: ``()``, in the dtype of the losses.
        bound: an upper bound of ``|s_ij|`` of unit rows; infinity if the host has none.
        input_dtype: the dtype of the embeddings before they were divided by the temperature; float32 in place of 16
            bits if products of 16 bits would not be safe.
    """

    value: Tensor
    bound: float
    input_dtype: torch.dtype

    def divide(self, rows: Tensor, references: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return rows ``(N, D)`` and references ``(M, D)`` whose products are ``s_ij = z_i . z_j / tau``."""
        if references is None:  # both factors of a product are rows: (z_i / sqrt(tau)) . (z_j / sqrt(tau))
            return rows * self.value.rsqrt(), None
        return rows / self.value, references  # (z_i / tau) . z_j, and the references need no gradient


def check_tensor(temperature: Tensor | BoundedTemperature) -> None:
    """Raise unless the temperature is a floating-point tensor of one value, above 0 if the host can read it."""
    value = temperature.value if isinstance(temperature, BoundedTemperature) else temperature
    check_dense("temperature", value, values=False)
    if not value.is_floating_point():
        raise TypeError(f"Expected argument `temperature` to be floating point, but got {value.dtype}")
    if value.numel() != 1:
        raise ValueError(f"Expected argument `temperature` to be one value, but got shape {tuple(value.shape)}")
    number = number_of(value)
    if number is not None:
        check_temperature("temperature", number)


def tensor_temperature(
    temperature: Tensor | BoundedTemperature, embeddings: Tensor, *, unit: bool, products: str
) -> TensorTemperature:
    """Return a checked temperature for embeddings, whose rows are of length 1 if ``unit`` is true.

    Raises:
        ValueError: If it is on another device, or if ``products`` is "float16" and the range of the rows is not known.
    """
    value, minimum = temperature if isinstance(temperature, BoundedTemperature) else (temperature, 0.0)
    if value.device != embeddings.device:
        raise ValueError(
            f"Expected argument `temperature` to be on the device of the embeddings, {embeddings.device}, but got "
            f"{value.device}; `loss.to(device)` moves the temperature of a loss"
        )
    least = number_of(value) or minimum
    bound = 1 / least if unit and least else math.inf
    input_dtype = embeddings.dtype
    if bound > FLOAT16_BOUND:
        if products == "float16" and unit:
            raise ValueError(
                "Expected a number or a `LearnableTemperature` with `products='float16'`, at least "
                f"{1 / FLOAT16_BOUND:.1e}: the range of float16 is too small for any other temperature, but got "
                f"{shown(value)}"
            )
        input_dtype = torch.promote_types(input_dtype, torch.float32)
    dtype = torch.promote_types(embeddings.dtype, torch.float32)
    return TensorTemperature(value.reshape(()).to(dtype), bound, input_dtype)


def number_of(value: Tensor) -> float | None:
    """Return the value of a tensor on the CPU; None if a device would have to wait, or an operation is traced."""
    if traced(value) or value.device.type != "cpu":
        return None
    if torch._C._functorch.is_functorch_wrapped_tensor(value):
        return None
    return float(value.detach())
