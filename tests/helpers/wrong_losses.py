"""Supervised contrastive losses with one mistake each, which the oracle must reject.

`batch_loss` computes the loss of a batch with one of `MISTAKES`, for samples with one view (`cap` keeps that many
positives, first in batch order). `anchor_losses` computes the losses of single anchors under the options, with one of
`ANCHOR_MISTAKES`. `WrongGradient` has one of `GRADIENT_MISTAKES`. With `mistake=None` each of them is right.
"""

import torch
import torch.nn.functional as F

from pml_supcon.functional.supcon.problem import AnchorLosses

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
    """Return L_out or L_in with the paper's denominator, mean over anchors, with the mistake."""
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


def sets(rows, labels, *, ref_emb=None, ref_labels=None, indices_tuple=None, num_views=1, contrast_mode="all", **_):
    """Return how often each row is a positive and a negative of each anchor, two `(A, M)` tensors."""
    number = len(rows) // num_views if contrast_mode == "one" else len(rows)
    if indices_tuple is not None:
        positives, negatives = torch.zeros(2, len(rows), len(rows), dtype=rows.dtype)
        a1, p, a2, n = indices_tuple
        positives.index_put_((a1, p), torch.ones(len(p), dtype=rows.dtype), accumulate=True)
        negatives.index_put_((a2, n), torch.ones(len(n), dtype=rows.dtype), accumulate=True)
        return positives, negatives
    same = labels[:number, None] == (labels if ref_emb is None else ref_labels)
    positives = same if ref_emb is not None else same & ~torch.eye(len(rows), dtype=torch.bool)[:number]
    return positives.to(rows.dtype), (~same).to(rows.dtype)


#: Mistakes in the loss of an anchor, each with the options for which it matters.
ANCHOR_MISTAKES = [
    ("other positives in the denominator", {"denominator": "one_positive"}),
    ("the positive left out of its denominator", {"denominator": "one_positive"}),
    ("positives in the denominator", {"denominator": "negatives"}),
    ("an anchor without negatives is valid", {"denominator": "negatives"}),
    ("only the first view is contrasted", {"contrast_mode": "one", "num_views": 2}),
    ("every row is an anchor", {"contrast_mode": "one", "num_views": 2}),
    ("the reference of its own number left out", {"references": True}),
    ("repeats counted twice", {"pairs": True}),
    ("a pair listed as both counted twice", {"pairs": True}),
]


def anchor_losses(rows, labels, *, temperature, summation, denominator="all", mistake=None, **given):
    """Return the loss of every anchor, with the mistake; `given` are the other arguments of the oracle."""
    if mistake == "every row is an anchor":
        given["contrast_mode"] = "all"
    positives, negatives = sets(rows, labels, **given)
    contrasted = F.normalize(given.get("ref_emb", rows), dim=1)
    e = (F.normalize(rows, dim=1)[: len(positives)] @ contrasted.T / temperature).exp()
    if mistake != "repeats counted twice":
        positives, negatives = positives.clamp(max=1), negatives.clamp(max=1)
    if mistake == "only the first view is contrasted":
        later = torch.arange(len(rows)) >= len(rows) // given["num_views"]
        negatives = negatives.masked_fill(later, 0)
    if mistake == "the reference of its own number left out":
        own = torch.eye(*positives.shape, dtype=torch.bool)
        positives, negatives = positives.masked_fill(own, 0), negatives.masked_fill(own, 0)
    union = positives + negatives
    if mistake not in ("a pair listed as both counted twice", "repeats counted twice"):
        union = union.clamp(max=1)
    n = (negatives * e).sum(dim=1, keepdim=True)
    alone = torch.where(negatives > 0, 0, e)  # the term of a positive that is no negative
    d = {"all": (union * e).sum(dim=1, keepdim=True), "one_positive": n + alone, "negatives": n}[denominator]
    if mistake in ("other positives in the denominator", "positives in the denominator"):
        d = (union * e).sum(dim=1, keepdim=True)
    if mistake == "the positive left out of its denominator":
        d = n
    number = positives.sum(dim=1)
    valid = number > 0
    if denominator == "negatives" and mistake != "an anchor without negatives is valid":
        valid = valid & (negatives.sum(dim=1) > 0)
    p = torch.where(positives > 0, e / d, 1)
    if summation == "out":
        losses = -(positives * p.log()).sum(dim=1) / number
    else:
        losses = -((positives * p).sum(dim=1) / number).log()
    return AnchorLosses(torch.where(valid, losses, 0), valid)


GRADIENT_MISTAKES = (
    "no gradient of contrasted rows",
    "no gradient through the normalisation",
    "upstream ignored",
    "temperature forgotten",
    "positives without pull",
)


class WrongGradient(torch.autograd.Function):
    """L_out with the paper's denominator, and a gradient with the mistake."""

    @staticmethod
    def forward(ctx, rows, labels, temperature, mistake):
        ctx.save_for_backward(rows, labels)
        ctx.temperature, ctx.mistake = temperature, mistake
        losses, ctx.valid = anchor_losses(rows, labels, temperature=temperature, summation="out")
        return losses

    @staticmethod
    def backward(ctx, upstream):
        (rows, labels), mistake = ctx.saved_tensors, ctx.mistake
        if mistake == "upstream ignored":
            upstream = torch.full_like(upstream, 1 / len(upstream))
        z = F.normalize(rows, dim=1)
        e = (z @ z.T / ctx.temperature).exp().fill_diagonal_(0)
        positives = (labels[:, None] == labels).to(e).fill_diagonal_(0)
        pull = 0 if mistake == "positives without pull" else positives / positives.sum(dim=1, keepdim=True).clamp(min=1)
        g = (e / e.sum(dim=1, keepdim=True) - pull) * torch.where(ctx.valid, upstream, 0)[:, None]
        if mistake != "temperature forgotten":
            g = g / ctx.temperature
        to_unit_rows = (g if mistake == "no gradient of contrasted rows" else g + g.T) @ z
        along = (to_unit_rows * z).sum(dim=1, keepdim=True) * z
        if mistake == "no gradient through the normalisation":
            along = 0
        return (to_unit_rows - along) / rows.norm(dim=1, keepdim=True), None, None, None
