"""What the losses and their gradients need to know of each anchor, and the elementwise maths over positives."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup

from pml_supcon.distributed import collectives
from pml_supcon.functional.supcon.problem import AnchorLosses


class Statistics:
    """Sums over the positives and negatives of each anchor, `(A,)` each, gathered block by block.

    Attributes:
        table: `(5, A)`, the sums below as one tensor, to be kept for the backward pass.
        number: of positives.
        log_neg: log of the sum over `N(i)` of `exp(s)`.
        log_pos: log of the sum over `P(i)` of `exp(x)`; `x` is `s`, or for "one_positive" the log of
            `exp(s) / (exp(s) + sum over N(i))`.
        linear: minus the sum over `P(i)` of `x`, for L_out.
        log_share: for "one_positive", log of the sum over `P(i)` of what `negative_share` averages.
    """

    def __init__(self, table: Tensor, summation: str, denominator: str) -> None:
        self.table, self.summation, self.denominator = table, summation, denominator
        self.number: Tensor = table[0]
        self.log_neg: Tensor = table[1]
        self.log_pos: Tensor = table[2]
        self.linear: Tensor = table[3]
        self.log_share: Tensor = table[4]

    @classmethod
    def of(cls, log_neg: Tensor, summation: str, denominator: str) -> "Statistics":
        """Those of anchors whose negatives are summed, `log_neg` `(A,)`, before any positive is seen."""
        statistics = cls(log_neg.new_zeros(5, len(log_neg)), summation, denominator)
        statistics.log_neg.copy_(log_neg)
        for logarithm in (statistics.log_pos, statistics.log_share):
            logarithm.fill_(-torch.inf)
        return statistics

    def copy(self) -> "Statistics":
        """The same in memory of its own."""
        return Statistics(self.table.clone(), self.summation, self.denominator)

    def log_neg_or_0(self) -> Tensor:
        """`log_neg`, 0 where there are no negatives."""
        return self.log_neg.masked_fill(self.log_neg == -torch.inf, 0)

    @classmethod
    def merged(cls, parts: Sequence["Statistics"]) -> "Statistics":
        """Those over all positives, from parts that saw some of them each; the first is changed."""
        first, *others = parts
        for other in others:
            first.number += other.number
            first.linear += other.linear
            for mine, theirs in ((first.log_pos, other.log_pos), (first.log_share, other.log_share)):
                mine.copy_(torch.logaddexp(mine, theirs))
        return first

    def reduced(self, group: ProcessGroup) -> "Statistics":
        """Those over all positives, from processes that saw some of them each; `self` is changed."""
        sums = collectives.all_reduce(torch.stack([self.number, self.linear]), group)
        logarithms = collectives.all_logsumexp(torch.stack([self.log_pos, self.log_share]), group)
        for mine, whole in zip(
            (self.number, self.linear, self.log_pos, self.log_share), (*sums, *logarithms), strict=True
        ):
            mine.copy_(whole)
        return self

    def add_positives(self, s: Tensor, positives: Tensor, anchors: slice) -> None:
        """Add a block of similarities `s` and its mask."""
        self.number[anchors] += positives.sum(dim=1)
        x = s
        if self.denominator == "one_positive":
            margin = s - self.log_neg[anchors, None]
            x = F.logsigmoid(margin)
            log_share = F.logsigmoid(-margin) if self.summation == "out" else x + F.logsigmoid(-margin)
            self._add_exponentials(self.log_share[anchors], log_share, positives)
        if self.summation == "out":
            self.linear[anchors] -= torch.where(positives, x, 0).sum(dim=1)
        if self.summation == "in" or self.denominator == "all":
            self._add_exponentials(self.log_pos[anchors], x, positives)

    @staticmethod
    def _add_exponentials(log_sum: Tensor, x: Tensor, positives: Tensor) -> None:
        log_sum.copy_(torch.logaddexp(log_sum, x.masked_fill(~positives, -torch.inf).logsumexp(dim=1)))

    def losses(self) -> AnchorLosses:
        """Equations 2 and 3 from the sums."""
        valid = self.number > 0
        if self.denominator == "negatives":
            valid = valid & (self.log_neg != -torch.inf)
        number = self.number.clamp(min=1)
        terms = self.linear / number if self.summation == "out" else number.log() - self.log_pos
        if self.denominator != "one_positive":
            terms = terms + self.log_denominator()
        return AnchorLosses(torch.where(valid, terms, 0), valid)

    def log_denominator(self, anchors: slice = slice(None)) -> Tensor:
        """`log D_i`, where it is one for all positives."""
        log_neg = self.log_neg[anchors]
        return torch.logaddexp(log_neg, self.log_pos[anchors]) if self.denominator == "all" else log_neg

    def negative_share(self) -> Tensor:
        """`k_i` in `d l_i / d s_in = k_i exp(s_in) / (sum over N(i) of exp(s))`; 0 without a positive."""
        if self.denominator == "all":
            share = (self.log_neg - self.log_denominator()).exp()
        elif self.denominator == "negatives":
            share = torch.ones_like(self.log_neg)
        elif self.summation == "out":
            share = self.log_share.exp() / self.number
        else:
            share = (self.log_share - self.log_pos).exp()
        return torch.where(self.number > 0, share, 0)

    def negative_weight(self, upstream: Tensor, *, shifted: bool) -> Tensor:
        """`(A,)`: the factor of `exp(s_ij)` (`exp(s_ij - log_neg_i)` if shifted) in what a negative's pair weighs."""
        weight = (upstream * self.negative_share()).masked_fill(self.log_neg == -torch.inf, 0)
        return weight if shifted else weight * (-self.log_neg_or_0()).exp()

    def positive_gradient(self, s: Tensor, anchors: slice) -> Tensor:
        """`d l_i / d s_ip` over a block of similarities, as if every pair were a positive."""
        number = self.number[anchors, None].clamp(min=1)
        if self.denominator == "one_positive":
            margin = s - self.log_neg[anchors, None]
            if self.summation == "out":
                return -torch.sigmoid(-margin) / number
            return -(F.logsigmoid(margin) - self.log_pos[anchors, None]).exp() * torch.sigmoid(-margin)
        pull = 1 / number if self.summation == "out" else (s - self.log_pos[anchors, None]).exp()
        if self.denominator == "negatives":
            return (-pull).expand_as(s)
        return (s - self.log_denominator(anchors)[:, None]).exp() - pull
