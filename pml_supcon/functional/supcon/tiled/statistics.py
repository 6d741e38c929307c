"""Sums per anchor, from which the losses and their gradients follow, and the elementwise maths over positives."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup

from pml_supcon.distributed import collectives
from pml_supcon.functional.supcon.problem import AnchorLosses, Problem

Sums = TypeVar("Sums", bound="AnchorSums")


class Formula(NamedTuple):
    """The options that choose the formula of a loss; see ``supcon_loss``."""

    summation: str
    denominator: str
    margin: float
    class_balanced: bool
    counts: bool  # the divisor is the number of positives, and not the sum of their weights

    @classmethod
    def of(cls, problem: Problem) -> "Formula":
        """Return the formula of a problem."""
        counts = problem.target is not None and problem.target.normalization == "count"
        return cls(problem.summation, problem.denominator, problem.margin, problem.class_balanced, counts)


class AnchorSums(ABC):
    """Sums per anchor, the rows of a ``table``; they are gathered block by block, and the losses follow from them.

    Of the rows, ``sums`` and ``logarithms`` (of sums) add up over disjoint sets of pairs; the others are complete.
    """

    table: Tensor
    formula: Formula
    log_neg: Tensor  # log of the sum over N(i) of exp(s)
    log_pos: Tensor  # of a sum over P(i)
    log_share: Tensor  # of a sum over P(i)
    height: ClassVar[int]  # the number of rows

    @abstractmethod
    def __init__(self, table: Tensor, formula: Formula) -> None: ...

    @classmethod
    def of(cls, log_neg: Tensor, formula: Formula) -> Self:
        """Return the sums with no positive added yet, from the sums over negatives, ``log_neg`` ``(A,)``."""
        sums = cls(log_neg.new_zeros(cls.height, len(log_neg)), formula)
        sums.log_neg.copy_(log_neg)
        for logarithm in (sums.log_pos, sums.log_share):
            logarithm.fill_(-torch.inf)
        return sums

    @property
    @abstractmethod
    def sums(self) -> list[Tensor]:
        """The rows that add up."""

    @property
    @abstractmethod
    def logarithms(self) -> list[Tensor]:
        """The rows whose exponentials add up."""

    @abstractmethod
    def losses(self) -> AnchorLosses:
        """Return equation 2 or 3 from the sums."""

    def copy(self) -> Self:
        """Return a copy with its own memory."""
        return type(self)(self.table.clone(), self.formula)

    def logits(self, s: Tensor, anchors: slice) -> Tensor:
        """Return ``log(q / (1 - q)) = s - log_neg - eps`` of a block, for "one_positive"."""
        logits = s - self.log_neg[anchors, None]
        return logits.sub_(self.formula.margin) if self.formula.margin else logits

    @staticmethod
    def merged(parts: Sequence[Sums]) -> Sums:
        """Return the sums over all pairs from partial sums over disjoint parts of them; the first is changed."""
        first, *others = parts
        for other in others:
            for mine, theirs in zip(first.sums, other.sums, strict=True):
                mine += theirs
            for mine, theirs in zip(first.logarithms, other.logarithms, strict=True):
                mine.copy_(torch.logaddexp(mine, theirs))
        return first

    def reduced(self, group: ProcessGroup) -> Self:
        """Return the sums over all pairs from the partial sums of all processes; ``self`` is changed."""
        sums = collectives.all_reduce(torch.stack(self.sums), group)
        logarithms = collectives.all_logsumexp(torch.stack(self.logarithms), group)
        for mine, whole in zip([*self.sums, *self.logarithms], [*sums, *logarithms], strict=True):
            mine.copy_(whole)
        return self

    @staticmethod
    def _add_exponentials(log_sum: Tensor, x: Tensor, positives: Tensor) -> None:
        log_sum.copy_(torch.logaddexp(log_sum, x.masked_fill(~positives, -torch.inf).logsumexp(dim=1)))


class Statistics(AnchorSums):
    """The sums over the positives and negatives of each anchor, ``(A,)`` each, for class labels.

    For "one_positive" with ``q_p = exp(s_ip - eps) / (exp(s_ip - eps) + sum over N(i))``, ``eps`` the margin,
    ``log_share`` is the log of the sum over ``P(i)`` of ``1 - q_p`` (L_out) or of ``q_p (1 - q_p)`` (L_in); see
    ``negative_share``.
    """

    height = 5

    def __init__(self, table: Tensor, formula: Formula) -> None:
        # (5, A): the sums below as one tensor, saved for the backward pass
        self.table, self.formula = table, formula
        self.summation, self.denominator = formula.summation, formula.denominator
        self.number: Tensor = table[0]  # number of positives, |P(i)|
        self.log_neg: Tensor = table[1]  # log of the sum over N(i) of exp(s)
        self.log_pos: Tensor = table[2]  # log of the sum over P(i) of exp(x); x is s, or log q for "one_positive"
        self.linear: Tensor = table[3]  # minus the sum over P(i) of x, for L_out
        self.log_share: Tensor = table[4]

    @property
    def sums(self) -> list[Tensor]:
        """The number of positives, and the sum of ``-x``."""
        return [self.number, self.linear]

    @property
    def logarithms(self) -> list[Tensor]:
        """``log_pos`` and ``log_share``; ``log_neg`` is complete from the start."""
        return [self.log_pos, self.log_share]

    def log_neg_or_0(self) -> Tensor:
        """Return ``log_neg``, with 0 for anchors without negatives."""
        return self.log_neg.masked_fill(self.log_neg == -torch.inf, 0)

    def add_positives(self, s: Tensor, positives: Tensor, anchors: slice) -> None:
        """Add a block of similarities ``s`` ``(len(anchors), rows)`` and the mask of its positives."""
        # |P(i)|
        self.number[anchors] += positives.sum(dim=1)
        x = s
        if self.denominator == "one_positive":
            # x = log q with q = sigmoid(logit), D_ip = exp(s_ip - eps) + sum over N(i)
            logit = self.logits(s, anchors)
            x = F.logsigmoid(logit)
            # log(1 - q) = log q - logit for L_out, log(q (1 - q)) for L_in
            log_share = x - logit if self.summation == "out" else 2 * x - logit
            self._add_exponentials(self.log_share[anchors], log_share, positives)
        # - sum over P(i) of x: equation 2
        if self.summation == "out":
            self.linear[anchors] -= torch.where(positives, x, 0).sum(dim=1)
        # log of the sum over P(i) of exp(x): equation 3, and the positives' part of D_i for "all"
        if self.summation == "in" or self.denominator == "all":
            self._add_exponentials(self.log_pos[anchors], x, positives)

    def losses(self) -> AnchorLosses:
        """Return equation 2 or 3 from the sums."""
        valid = self.number > 0
        if self.denominator == "negatives":
            valid = valid & (self.log_neg != -torch.inf)
        number = self.number.clamp(min=1)
        # out: -1/|P| sum x + log D_i;  in: log |P| - log sum exp(x) + log D_i; "one_positive" has D_ip inside x
        terms = self.linear / number if self.summation == "out" else number.log() - self.log_pos
        if self.denominator != "one_positive":
            terms = terms + self.log_denominator()
        elif self.formula.margin:  # exp(s_ip) / D_ip = q exp(eps)
            terms = terms - self.formula.margin
        return AnchorLosses(torch.where(valid, terms, 0), valid)

    def log_denominator(self, anchors: slice = slice(None)) -> Tensor:
        """Return ``log D_i`` for the denominators that are the same for all positives of an anchor."""
        log_neg = self.log_neg[anchors]
        if self.denominator != "all":
            return log_neg
        log_pos = self.log_pos[anchors]
        if self.formula.class_balanced:  # the mean over P(i); log_neg is a sum of means already
            log_pos = log_pos - self.number[anchors].clamp(min=1).log()
        return torch.logaddexp(log_neg, log_pos)

    def negative_share(self) -> Tensor:
        """Return ``k_i`` ``(A,)`` in ``d l_i / d s_in = k_i exp(s_in - log_neg_i)``; 0 without positives."""
        # all: k_i = (sum over N(i)) / D_i;  negatives: 1
        # one_positive: the mean of 1 - q over P(i) (out), or sum of q (1 - q) over sum of q (in)
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
        """Return the factor ``(A,)`` of ``exp(s_ij)`` (shifted: ``exp(s_ij - log_neg_i)``) in a negative's gradient."""
        weight = (upstream * self.negative_share()).masked_fill(self.log_neg == -torch.inf, 0)
        return weight if shifted else weight * (-self.log_neg_or_0()).exp()

    def positive_line(self, upstream: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return slope and offset, ``(A,)`` each, of ``u_i d l_i / d s_ip = slope_i exp(s_ip) + offset_i``.

        None for "one_positive", whose gradient is not of this form.
        """
        if self.denominator == "one_positive":
            return None
        if self.summation == "out":
            # P_ip - 1 / |P|, with P_ip = exp(s_ip) / D_i for "all" and 0 for "negatives"
            slope = (-self.log_denominator()).exp() if self.denominator == "all" else torch.zeros_like(upstream)
            slope = slope / self.number if self.formula.class_balanced else slope
            offset = -1 / self.number
        else:
            # P_ip - exp(s_ip) / pos_i = -k_i exp(s_ip) / pos_i, with pos_i the sum over P(i)
            slope = -self.negative_share() * (-self.log_pos).exp()
            offset = torch.zeros_like(upstream)
        some = self.number > 0
        return torch.where(some, upstream * slope, 0), torch.where(some, upstream * offset, 0)

    def positive_gradient(self, s: Tensor, anchors: slice) -> Tensor:
        """Return ``d l_i / d s_ip`` of a block of similarities as if every pair were a positive."""
        number = self.number[anchors, None].clamp(min=1)
        if self.denominator == "one_positive":
            # x = log q: d x / d s = 1 - q. out: -(1 - q) / |P|;  in: -q (1 - q) / sum over P(i) of q
            logit = self.logits(s, anchors)
            if self.summation == "out":
                return -torch.sigmoid(-logit) / number
            return -(F.logsigmoid(logit) - self.log_pos[anchors, None]).exp() * torch.sigmoid(-logit)
        # X_ip of the specification: 1 / |P| (out), or the softmax over P(i) (in); for "all" the gradient is P_ip - X_ip
        pull = 1 / number if self.summation == "out" else (s - self.log_pos[anchors, None]).exp()
        if self.denominator == "negatives":
            return (-pull).expand_as(s)
        share = (s - self.log_denominator(anchors)[:, None]).exp()
        return (share / number if self.formula.class_balanced else share) - pull
