"""The momentum encoder: a slow copy of the encoder in training, for a queue's keys (MoCo: He et al., CVPR 2020)."""

import numbers
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn


class MomentumEncoder(nn.Module):
    r"""A copy of an encoder whose weights follow those of the encoder in training, step by step.

        w <- momentum * w + (1 - momentum) * w_online

    It starts as a copy and gives embeddings without gradient. Call `update_parameters(online)` after each step of the
    optimiser. Parameters are averaged; buffers (running statistics of BatchNorm) are copied from the online encoder at
    each update. The copy is in training or evaluation mode as the encoder was, and is switched by `train()` and
    `eval()`, apart from the online encoder.

    Args:
        encoder: the online encoder, also inside `DistributedDataParallel`; it is copied.
        momentum: in [0, 1); 0 makes each update a copy of the online encoder. May be set anew between updates.

    Raises:
        TypeError: `encoder` is no module.
        ValueError: a momentum outside [0, 1), or an online encoder with other parameters.

    Note:
        `state_dict` holds the copy's weights, by the encoder's names after "encoder.". Weights of half precision are
        too coarse to be averaged at a momentum near 1: keep float32 weights under autocast.

    Examples:
        >>> online = nn.Linear(4, 2)
        >>> slow = MomentumEncoder(online, momentum=0.9)
        >>> _ = nn.init.zeros_(online.weight)
        >>> slow.update_parameters(online)
        >>> slow(torch.randn(3, 4)).requires_grad
        False
    """

    def __init__(self, encoder: nn.Module, momentum: float = 0.999) -> None:
        super().__init__()
        if not isinstance(encoder, nn.Module):
            raise TypeError(f"Expected argument `encoder` to be a torch.nn.Module, but got {type(encoder).__name__}")
        self.momentum = momentum
        self.encoder = deepcopy(_unwrap(encoder)).requires_grad_(False)

    @property
    def momentum(self) -> float:
        """The weight of the copy in an update."""
        return self._momentum

    @momentum.setter
    def momentum(self, momentum: float) -> None:
        number = isinstance(momentum, numbers.Real) and not isinstance(momentum, bool)
        if not number or not 0 <= momentum < 1:
            raise ValueError(
                f"Expected argument `momentum` to be in [0, 1), where 1 would keep the first copy for ever, "
                f"but got {momentum!r}"
            )
        self._momentum = float(momentum)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the output of the copy, without gradient."""
        with torch.no_grad():
            return self.encoder(*args, **kwargs)

    @torch.no_grad()
    def update_parameters(self, online: nn.Module) -> None:
        """Move the copy's weights towards those of the online encoder, and copy its buffers."""
        # Not torch's AveragedModel: its first update only copies, and each reads its counter from the device (a sync).
        # timm's ModelEmaV3, which averages weights for evaluation, sets its copy to evaluation mode; keys need the mode
        # of training.
        online = _unwrap(online)
        pairs = []
        for what in ("parameters", "buffers"):
            own, theirs = list(getattr(self.encoder, what)()), list(getattr(online, what)())
            if [x.shape for x in own] != [x.shape for x in theirs]:
                raise ValueError(
                    f"Expected an online encoder with the {what} of the one copied, {len(own)} tensors, but got "
                    f"{len(theirs)}" + (" of other shapes" if len(own) == len(theirs) else "")
                )
            pairs.append((own, theirs))
        (own, theirs), (own_buffers, their_buffers) = pairs
        if own:
            get_ema_multi_avg_fn(self.momentum)(own, theirs, 0)
        for mine, other in zip(own_buffers, their_buffers, strict=True):
            mine.copy_(other)

    def extra_repr(self) -> str:
        """Return the options for ``repr``."""
        return f"momentum={self.momentum}"


def _unwrap(module: nn.Module) -> nn.Module:
    """Return the module inside data-parallel wrappers."""
    while isinstance(module, DataParallel | DistributedDataParallel):
        module = module.module
    return module
