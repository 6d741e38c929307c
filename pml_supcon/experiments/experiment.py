"""What an experiment is: trainings, the figures that are taken from them, and the orderings that the paper claims."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TOP1 = "linear_probe/top1"
ACCURACY = "top-1 accuracy, %"

#: The scores of one seed: those of each training, by name.
Scores = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Training:
    """A training, repeated with every seed.

    Attributes:
        name: in the experiment.
        settings: of `train.py`, beside the scale's.
        tuned_as: the settings under which its learning rate is chosen; None: its own.
        factor: of that learning rate.
    """

    name: str
    settings: Mapping[str, Any]
    tuned_as: Mapping[str, Any] | None = None
    factor: float = 1.0


@dataclass(frozen=True)
class Quantity:
    """A figure of each seed: a metric of a training, or how far it spreads over several trainings.

    Attributes:
        trainings: names; with several, the standard deviation over them.
        metric: its name in the scores.
        percent: it is a share, shown in per cent.
    """

    trainings: tuple[str, ...]
    metric: str = TOP1
    percent: bool = True

    def of(self, scores: Scores) -> float | None:
        """The figure of one seed; None where a training diverged and has none."""
        values = [scores[name].get(self.metric) for name in self.trainings]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return None
        return known[0] if len(known) == 1 else statistics.stdev(known)


@dataclass(frozen=True)
class Line:
    """A figure that the table and the drawing show.

    Attributes:
        label: what it is.
        quantity: where it comes from.
        series: the curve that it is on, where `x` says at which place.
        x: a number, or None where the figures have no order.
        paper: the paper's figure, in the same unit as the table shows.
        panel: the drawing that it is in, by what that measures.
    """

    label: str
    quantity: Quantity
    series: str = ""
    x: float | None = None
    paper: float | None = None
    panel: str = ACCURACY


@dataclass(frozen=True)
class Comparison:
    """An ordering of the paper's.

    Attributes:
        ahead: what the paper finds better, or as good.
        behind: what it is compared with.
        title: in words.
        paper: how far ahead it is in the paper, in the unit that the table shows.
        equal: the paper finds both about equal.
        lower: less is better.
        claimed: the paper says so; else it is what a reader would ask.
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
    """One of the paper's claims, and what shows whether it holds.

    Attributes:
        name: on the command line.
        title: of its section.
        claim: the paper's, in a sentence or two.
        source: where in the paper, and on which data its figures are.
        trainings: what is trained.
        lines: what is shown.
        comparisons: what is judged.
        evaluations: settings of `evaluate.py`, each for what the record of a training does not hold.
        evaluated: the trainings that they are for; None: all.
        timed: measure what the losses cost, with their miners.
        x_title: of the drawing.
        x_log: its scale is logarithmic.
        notes: what a reader has to know.
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
    """A metric of a training."""
    return Quantity((name,), metric)


def line_of(name: str, *, paper: float | None = None) -> Line:
    """The accuracy of a training."""
    return Line(f"`{name}`", score_of(name), paper=paper)


def ahead_of(
    ahead: str, behind: str, *, paper: float | None = None, equal: bool = False, claimed: bool = True
) -> Comparison:
    """The accuracy of one training over another's."""
    title = f"`{ahead}` {'about equal to' if equal else 'over'} `{behind}`"
    return Comparison(score_of(ahead), score_of(behind), title, paper, equal, claimed=claimed)


def difference_of(paper: Mapping[str, float], ahead: str, behind: str) -> float | None:
    """How far apart two figures are in the paper, where it has both."""
    return round(paper[ahead] - paper[behind], 2) if ahead in paper and behind in paper else None
