"""The definition of an experiment: its trainings, the values taken from them, and the paper's orderings."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TOP1 = "linear_probe/top1"
ACCURACY = "top-1 accuracy, %"

#: Scores of one seed, by training and metric.
Scores = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Training:
    """A training, repeated with every seed.

    Attributes:
        name: The name within the experiment.
        settings: Settings of ``train.py`` in addition to the scale's.
        tuned_as: The settings under which the learning rate is chosen; None: ``settings``.
        factor: The factor on the chosen learning rate.
    """

    name: str
    settings: Mapping[str, Any]
    tuned_as: Mapping[str, Any] | None = None
    factor: float = 1.0


@dataclass(frozen=True)
class Quantity:
    """A value for each seed: a metric of one training, or its standard deviation over several trainings.

    Attributes:
        trainings: Names of trainings.
        metric: The name of the metric in the scores.
        percent: The metric is a share; tables show it in per cent.
    """

    trainings: tuple[str, ...]
    metric: str = TOP1
    percent: bool = True

    def of(self, scores: Scores) -> float | None:
        """Return the value of one seed, or None if a diverged training lacks the metric."""
        values = [scores[name].get(self.metric) for name in self.trainings]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return None
        return known[0] if len(known) == 1 else statistics.stdev(known)


@dataclass(frozen=True)
class Line:
    """A row of the table and of the plot.

    Attributes:
        label: The name of the row.
        quantity: The values.
        series: The curve of the plot that the row is a point of.
        x: The position on that curve; None for rows without an order.
        paper: The paper's value, in the unit of the table.
        panel: The panel of the plot, named by its metric.
    """

    label: str
    quantity: Quantity
    series: str = ""
    x: float | None = None
    paper: float | None = None
    panel: str = ACCURACY


@dataclass(frozen=True)
class Comparison:
    """An ordering that the paper claims.

    Attributes:
        ahead: The better or equally good side.
        behind: The other side.
        title: The name of the row.
        paper: The difference in the paper, in the unit of the table.
        equal: The paper finds both sides about equal.
        lower: Smaller values are better.
        claimed: The paper claims the ordering; False for a further comparison of ours.
    """

    ahead: Quantity
    behind: Quantity
    title: str
    paper: float | None = None
    equal: bool = False
    lower: bool = False
    claimed: bool = True


@dataclass(frozen=True)
class Experiment:
    """One of the paper's claims and the trainings that test it.

    Attributes:
        name: The name on the command line.
        title: The title of the section.
        claim: The paper's claim in one or two sentences.
        source: The place in the paper, and its data.
        trainings: The trainings.
        lines: The rows of the table and the plot.
        comparisons: The orderings to judge.
        evaluations: Settings of ``evaluate.py``, for scores that the record of a training lacks.
        evaluated: The names of the trainings to evaluate; None: all.
        timed: Measure the time of the losses with their miners.
        x_title: The title of the plot's x axis.
        x_log: Use a logarithmic x axis.
        notes: Sentences below the table.
    """

    name: str
    title: str
    claim: str
    source: str
    trainings: Sequence[Training]
    lines: Sequence[Line]
    comparisons: Sequence[Comparison]
    evaluations: Sequence[Mapping[str, Any]] = ()
    evaluated: Sequence[str] | None = None
    timed: bool = False
    x_title: str = ""
    x_log: bool = False
    notes: Sequence[str] = ()


def score_of(name: str, metric: str = TOP1) -> Quantity:
    """Return a metric of a training."""
    return Quantity((name,), metric)


def line_of(name: str, *, paper: float | None = None) -> Line:
    """Return the row with the accuracy of a training."""
    return Line(f"`{name}`", score_of(name), paper=paper)


def ahead_of(
    ahead: str,
    behind: str,
    *,
    metric: str = TOP1,
    title: str = "",
    paper: float | None = None,
    equal: bool = False,
    lower: bool = False,
    claimed: bool = True,
) -> Comparison:
    """Return the ordering of two trainings by a metric."""
    title = title or f"`{ahead}` {'about equal to' if equal else 'over'} `{behind}`"
    return Comparison(score_of(ahead, metric), score_of(behind, metric), title, paper, equal, lower, claimed)


def difference_of(paper: Mapping[str, float], ahead: str, behind: str) -> float | None:
    """Return the difference of two values of the paper, or None if it lacks one."""
    return round(paper[ahead] - paper[behind], 2) if ahead in paper and behind in paper else None
