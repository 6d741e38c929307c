"""The definition: dense, differentiable any number of times, never optimised."""

import torch
from torch import Tensor

from pml_supcon.functional.supcon.execution import products
from pml_supcon.functional.supcon.problem import AnchorLosses


def anchor_losses(rows: Tensor, past: Tensor) -> AnchorLosses:
    """Return the loss of every row; products of rows ``(N, D)``, and of past rows ``(N, D')``, are the exponents."""
    # s_ij = z_i . z_j / kappa and s*_ij = z*_i . z*_j / kappa*, (N, N); the lowest number for a row with itself, whose
    # exponential is 0
    own = torch.eye(rows.shape[0], dtype=torch.bool, device=rows.device)
    s, s_past = (products(x, x).masked_fill(own, torch.finfo(x.dtype).min) for x in (rows, past))
    # l_i = -sum_{j != i} p_ij(past) log p_ij(present), (N,)
    log_p = s.log_softmax(dim=1).masked_fill(own, 0)
    losses = -(s_past.softmax(dim=1) * log_p).sum(dim=1)
    return AnchorLosses(losses, torch.full_like(losses, rows.shape[0] > 1, dtype=torch.bool))
