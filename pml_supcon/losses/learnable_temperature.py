"""A temperature that is trained with the model."""

import math

import torch
from torch import Tensor, nn

from pml_supcon._checks import check_number, check_temperature


class LearnableTemperature(nn.Module):
    r"""The temperature of a ``SupConLossOut`` or ``SupConLossIn``, learnt with the model (CLIP, Radford et al. 2021).

        tau = exp(logarithm),   minimum <= tau <= maximum

    The parameter is the logarithm, a step of which multiplies the temperature. It is a parameter of the loss:
    ``loss.parameters()`` gives it to an optimiser, and ``loss.state_dict()`` saves it. Each call first moves it back
    into its range, as CLIP clamps its own after each step; its gradient is exact in the range and at the two ends.

    Args:
        initial: the first temperature, in ``[minimum, maximum]``.
        minimum: the lowest temperature, above 0. Similarities are at most ``1 / minimum``; CLIP's minimum is 0.01.
        maximum: the highest temperature.

    Shape:
        - output: ``()``, the temperature, float32 (``.double()`` makes it float64).

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If an argument is out of range.

    Note:
        - Exclude it from weight decay, which would pull the temperature towards 1, like all parameters with fewer than
          two dimensions: ``{"params": loss.parameters(), "weight_decay": 0}`` as a parameter group.
        - Move the loss to the device of the embeddings, ``loss.to(device)``.
        - On several processes all need the same temperature: wrap the loss in ``DistributedDataParallel`` too, or make
          model and loss one module. The mean over processes is then the gradient of one process with the whole batch.
          Different temperatures raise an error, on a GPU in the first ten calls only, since the host waits for it.
        - A backend reads rows that are normalised and divided by the temperature in float32. On "triton", embeddings of
          16 bits are still multiplied in float16 if the minimum is at least 3.1e-5, and in float32 if it is below.
        - ``loss.temperature`` is the temperature as a number, also among PML's recordable attributes.

    Examples:
        >>> import torch
        >>> from pml_supcon import losses
        >>> loss = losses.SupConLossOut(temperature=losses.LearnableTemperature(initial=0.5))
        >>> optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
        >>> embeddings = torch.eye(4).repeat(2, 1)  # two views that agree: the lower the temperature, the better
        >>> loss(embeddings, torch.arange(4).repeat(2)).backward()
        >>> optimizer.step()
        >>> loss.temperature < 0.5
        True
    """

    def __init__(self, initial: float = 0.1, minimum: float = 0.01, maximum: float = 1.0) -> None:
        super().__init__()
        for name, value in (("minimum", minimum), ("maximum", maximum), ("initial", initial)):
            check_temperature(name, value)
        check_number("maximum", maximum, low=float(minimum))
        check_number("initial", initial, low=float(minimum), high=float(maximum))
        self.initial, self.minimum, self.maximum = float(initial), float(minimum), float(maximum)
        self.logarithm = nn.Parameter(torch.full((), math.log(initial)))

    def forward(self) -> Tensor:
        """Return the temperature, ``()``, with a graph."""
        with torch.no_grad():
            self.logarithm.clamp_(math.log(self.minimum), math.log(self.maximum))
        return self.logarithm.exp()

    @property
    def number(self) -> float:
        """The temperature as a number; the host waits for its device."""
        logarithm = self.logarithm.item()  # after a step out of range, until the next call
        return math.exp(min(max(logarithm, math.log(self.minimum)), math.log(self.maximum)))

    def extra_repr(self) -> str:
        """Return the range, for ``repr``."""
        return f"minimum={self.minimum}, maximum={self.maximum}"
