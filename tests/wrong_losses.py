"""Supervised contrastive losses with one mistake each: what the oracle must reject.

`MISTAKES` names them, `batch_loss` computes them; with `mistake=None` it is right, so that each differs by its mistake
alone. Rows are samples seen once; `cap` keeps that many positives, first in batch order.
"""

import torch
import torch.nn.functional as F

MISTAKES = (
    "rows not normalised",
    "temperature forgotten",
    "self kept in the denominator",
    "self kept among the positives",
    "mean on the wrong side of the logarithm",
    "sum over positives for their mean",
    "sum over anchors for their mean",
    "anchors without positive counted as zeros",
    "positives left out of the denominator",
    "only the positive itself and the negatives in the denominator",
    "negatives left out of the denominator",
    "dropped positives left in the denominator",
    "dropped positives among the negatives only",
    "scaled by the temperature",
)


def batch_loss(rows, labels, temperature, *, summation, cap=None, mistake=None):
    """L_out or L_in with the paper's denominator, mean over anchors, but for the mistake."""
    z = rows if mistake == "rows not normalised" else F.normalize(rows, dim=1)
    s = z @ z.T / (1 if mistake == "temperature forgotten" else temperature)
    self_pairs = torch.eye(len(rows), dtype=torch.bool)
    negatives = labels[:, None] != labels
    every_positive = ~negatives & ~self_pairs
    positives = every_positive if cap is None else every_positive & (every_positive.cumsum(dim=1) <= cap)
    if mistake == "self kept among the positives":
        positives = positives | self_pairs
    members = {
        "self kept in the denominator": positives | negatives | self_pairs,
        "positives left out of the denominator": negatives,
        "negatives left out of the denominator": positives,
        "dropped positives left in the denominator": every_positive | negatives,
        "dropped positives among the negatives only": negatives | (every_positive & ~positives),
    }.get(mistake, positives | negatives)
    log_d = s.masked_fill(~members, -torch.inf).logsumexp(dim=1, keepdim=True)
    if mistake == "only the positive itself and the negatives in the denominator":
        log_d = torch.logaddexp(s, s.masked_fill(~negatives, -torch.inf).logsumexp(dim=1, keepdim=True))
    log_p = s - log_d
    number = positives.sum(dim=1).to(s.dtype)
    divisor = torch.ones_like(number) if mistake == "sum over positives for their mean" else number.clamp(min=1)
    inside = (summation == "in") != (mistake == "mean on the wrong side of the logarithm")
    if inside:
        losses = divisor.log() - log_p.masked_fill(~positives, -torch.inf).logsumexp(dim=1)
    else:
        losses = -log_p.masked_fill(~positives, 0).sum(dim=1) / divisor
    losses = losses[number > 0]
    if mistake == "scaled by the temperature":
        losses = losses * temperature
    if mistake == "sum over anchors for their mean":
        return losses.sum()
    return losses.sum() / (len(rows) if mistake == "anchors without positive counted as zeros" else len(losses))
