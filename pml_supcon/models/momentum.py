"""The momentum encoder: a slow copy of the trained encoder, for the keys of a queue (MoCo: He et al., CVPR 2020)."""

from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pml_supcon._checks import check_fraction, check_type


class MomentumEncoder(nn.Module):
    r"""A copy of an encoder whose weights are a moving average of the trained weights.

        w <- momentum * w + (1 - momentum) * w_online

    The online encoder is the trained one. The copy starts with its weights and returns embeddings without gradient.
    Call ``update_parameters(online)`` after each step of the optimiser: it averages parameters and copies buffers
    (running statistics of BatchNorm). The copy starts in the mode of the encoder, training or evaluation; afterwards
    ``train()`` and ``eval()`` of the two are independent.

    Args:
        encoder: the online encoder, plain or in ``DistributedDataParallel``; it is copied.
        momentum: in [0, 1); 0 makes each update a copy of the online encoder. May change between updates.

    Raises:
        TypeError: If ``encoder`` is not a module, or the momentum not a number.
        ValueError: If the momentum is outside [0, 1), or an online encoder has other parameters.

    Note:
        ``state_dict`` has the weights of the copy; their names begin with "encoder.". Half precision is too coarse for
        an average with a momentum near 1: keep float32 weights under autocast.

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
        check_type("encoder", encoder, nn.Module, "a torch.nn.Module")
        self.momentum = momentum
        self.encoder = deepcopy(_unwrap(encoder)).requires_grad_(False)

    @property
    def momentum(self) -> float:
        """The weight of the copy in an update."""
        return self._momentum

    @momentum.setter
    def momentum(self, momentum: float) -> None:
        self._momentum = check_fraction("momentum", momentum, zero=True)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the output of the copy, without gradient."""
        with torch.no_grad():
            return self.encoder(*args, **kwargs)

    @torch.no_grad()
    def update_parameters(self, online: nn.Module) -> None:
        """Move the copy's weights towards the weights of the online encoder, and copy its buffers."""
        # AveragedModel of torch only copies in its first update, and every update branches on a counter tensor, a
        # synchronisation where it is on a GPU. ModelEmaV3 of timm sets its copy to evaluation mode and averages buffers
        # by default; keys need the mode of training and current buffers.
        check_type("online", online, nn.Module, "a torch.nn.Module")
        online = _unwrap(online)
        own, theirs = list(self.encoder.parameters()), list(online.parameters())
        own_buffers, their_buffers = list(self.encoder.buffers()), list(online.buffers())
        for kind, mine, other in (("parameters", own, theirs), ("buffers", own_buffers, their_buffers)):
            if [x.shape for x in mine] != [x.shape for x in other]:
                raise ValueError(
                    f"Expected an online encoder with the {kind} of the copied one, {len(mine)} tensors, but got "
                    f"{len(other)}" + (" of other shapes" if len(mine) == len(other) else "")
                )
        if own:
            get_ema_multi_avg_fn(self.momentum)(own, theirs, 0)
        for buffer, online_buffer in zip(own_buffers, their_buffers, strict=True):
            buffer.copy_(online_buffer)

    def extra_repr(self) -> str:
        """Return the options for ``repr``."""
        return f"momentum={self.momentum}"


def _unwrap(module: nn.Module) -> nn.Module:
    """Return the module inside data-parallel wrappers."""
    while isinstance(module, DataParallel | DistributedDataParallel):
        module = module.module
    return module
