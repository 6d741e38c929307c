"""Sums per anchor for the weights of a target, from which the losses and their gradients follow."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pml_supcon.functional.supcon.problem import AnchorLosses
from pml_supcon.functional.supcon.tiled.statistics import AnchorSums, Formula


class WeightedStatistics(AnchorSums):
    """The sums over the pairs of each anchor with the weights ``w_ij`` of a target, ``(A,)`` each.

    ``x_ip`` is ``s_ip``, or for "one_positive" ``log q_p``, as in ``Statistics``. ``log_share`` is then the log of
    the sum of ``w_ip (1 - q_p)`` (L_out) or of ``w_ip q_p (1 - q_p)`` (L_in). Before pairs are added, ``log_neg`` is
    minus infinity except for "one_positive".
    """

    height = 6

    def __init__(self, table: Tensor, formula: Formula) -> None:
        # (6, A): the sums below as one tensor, saved for the backward pass
        self.table, self.formula = table, formula
        self.summation, self.denominator = formula.summation, formula.denominator
        self.total: Tensor = table[0]  # sum of w_ip
        self.number: Tensor = table[1]  # |P(i)|, only for the normalization "count"
        self.linear: Tensor = table[2]  # minus the sum of w_ip x_ip, for L_out
        self.log_neg: Tensor = table[3]  # log of the sum of exp(s) over N(i), for "all" over all other rows
        self.log_pos: Tensor = table[4]  # log of the sum of w_ip exp(x_ip), for L_in
        self.log_share: Tensor = table[5]

    @property
    def sums(self) -> list[Tensor]:
        """The total of the weights, their number, and the sum of ``-w x``."""
        return [self.total, self.number, self.linear]

    @property
    def logarithms(self) -> list[Tensor]:
        """``log_pos``, ``log_share`` and ``log_neg``; for "one_positive" ``log_neg`` is complete from the start."""
        return [self.log_pos, self.log_share, *([] if self.denominator == "one_positive" else [self.log_neg])]

    def add_pairs(self, s: Tensor, w: Tensor, anchors: slice) -> None:
        """Add a block of similarities and weights, ``(len(anchors), rows)``; ``s`` of an anchor's own row is -inf."""
        used, log_w, x = w > 0, w.log(), s
        self.total[anchors] += w.sum(dim=1)
        self.number[anchors] += used.sum(dim=1)
        if self.denominator == "one_positive":
            # x = log q with q = sigmoid(logit); log(1 - q) = log q - logit
            logit = self.logits(s, anchors)
            x = F.logsigmoid(logit)
            log_share = (log_w if self.summation == "out" else log_w + x).add(x).sub_(logit)
            self._add_exponentials(self.log_share[anchors], log_share, used)
        elif self.denominator == "all":
            self.log_neg[anchors] = torch.logaddexp(self.log_neg[anchors], s.logsumexp(dim=1))
        else:
            self._add_exponentials(self.log_neg[anchors], s, ~used)
        # - sum of w x: equation 2; log of the sum of w exp(x): equation 3
        if self.summation == "out":
            self.linear[anchors] -= torch.where(used, w * x, 0).sum(dim=1)
        else:
            self._add_exponentials(self.log_pos[anchors], x + log_w, used)

    def losses(self) -> AnchorLosses:
        """Return equation 2 or 3 from the sums."""
        valid, n = self.total > 0, self.divisor()
        if self.denominator == "negatives":
            valid = valid & (self.log_neg != -torch.inf)
        # out: 1/n sum w (log D_i - x);  in: log n - log sum w exp(x) + log D_i; "one_positive" has D_ip inside x
        out = self.summation == "out"
        terms = self.linear / n if out else n.log() - self.log_pos
        if self.denominator != "one_positive":
            terms = terms + (self.total / n * self.log_neg if out else self.log_neg)
        elif self.formula.margin:  # exp(s_ip) / D_ip = q exp(eps)
            terms = terms - self.formula.margin * (self.total / n if out else 1)
        return AnchorLosses(torch.where(valid, terms, 0), valid)

    def divisor(self) -> Tensor:
        """Return ``n_i``, ``(A,)``: the total of the weights or their number, 1 for an anchor without weights."""
        return torch.where(self.total > 0, self.number if self.formula.counts else self.total, 1)

    def push(self) -> Tensor:
        """Return ``k_i`` ``(A,)``, the factor of ``exp(s_ij) / D_i`` in the gradient; 0 if the denominator is empty."""
        one_positive = self.denominator == "one_positive"
        if self.summation == "out":
            k = (self.log_share.exp() if one_positive else self.total) / self.divisor()
        else:
            k = (self.log_share - self.log_pos).exp() if one_positive else torch.ones_like(self.total)
        return torch.where((self.total > 0) & (self.log_neg != -torch.inf), k, 0)

    def factors(self, upstream: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``f`` and ``g``, ``(A,)`` each, of the gradient of "all" and "negatives" without a shift.

            out:  u_i d l_i / d s_ij = f_i exp(s_ij) - g_i w_ij
            in:   u_i d l_i / d s_ij = f_i exp(s_ij) - g_i w_ij exp(s_ij)

        The first term is only over the pairs in the denominator.
        """
        k = self.push()
        f = torch.where(k > 0, upstream * k * (-self.log_neg).exp(), 0)
        g = upstream / self.divisor() if self.summation == "out" else upstream * (-self.log_pos).exp()
        return f, torch.where(self.total > 0, g, 0)

    def pair_gradient(self, s: Tensor, w: Tensor, anchors: slice) -> Tensor:
        """Return ``d l_i / d s_ij`` of a block, in logarithms; ``s`` of an anchor's own row is -inf."""
        used = w > 0
        # push: k_i exp(s_ij - log_neg_i) over the pairs in the denominator
        log_neg = self.log_neg[anchors, None]
        push = self.push()[anchors, None] * (s - log_neg.masked_fill(log_neg == -torch.inf, torch.inf)).exp()
        if self.denominator != "all":
            push = push.masked_fill(used, 0)
        # pull: w / n (out), or w exp(x) / sum of w exp(x) (in); for "one_positive" times 1 - q
        logit = self.logits(s, anchors) if self.denominator == "one_positive" else s
        if self.summation == "out":
            pull = w / self.divisor()[anchors, None]
        else:
            x = F.logsigmoid(logit) if self.denominator == "one_positive" else s
            pull = (x + w.log() - self.log_pos[anchors, None]).exp()
        if self.denominator == "one_positive":
            pull = pull * torch.sigmoid(-logit)
        return push - torch.where(used, pull, 0)
