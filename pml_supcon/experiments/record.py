"""The record of an experiment: scores, intervals, verdicts, versions and commits as JSON, without prose."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from pml_supcon.experiments.experiment import Comparison, Experiment, Scores
from pml_supcon.experiments.scales import Scale
from pml_supcon.experiments.statistics import interval_of, judge, margin_of
from pml_supcon.experiments.tuning import Choice
from pml_supcon.training.environment import environment


@dataclass
class Outcome:
    """The results of one training over all seeds.

    Attributes:
        choice: The learning rate.
        scores: Scores by seed.
        diverged: The error message of each seed that diverged.
        not_scored: By seed, the reasons for which an evaluation has no scores.
        origins: By seed, versions, commit, date and hardware of the run.
    """

    choice: Choice
    scores: dict[int, dict[str, float]] = field(default_factory=dict)
    diverged: dict[int, str] = field(default_factory=dict)
    not_scored: dict[int, list[str]] = field(default_factory=dict)
    origins: dict[int, dict[str, Any]] = field(default_factory=dict)


def record_of(
    experiment: Experiment,
    scale: Scale,
    seeds: Sequence[int],
    outcomes: Mapping[str, Outcome],
    seconds: Mapping[str, float],
    device: torch.device,
) -> dict[str, Any]:
    """Return the results of an experiment, ready for JSON; shares stay shares, not per cent."""
    scores = [{name: outcome.scores[seed] for name, outcome in outcomes.items()} for seed in seeds]
    now = environment(device)
    origins = [origin for outcome in outcomes.values() for origin in outcome.origins.values()]
    return {
        "experiment": experiment.name,
        "scale": scale.name,
        "seeds": list(seeds),
        "settings": dict(scale.settings),
        "trainings": {
            training.name: {
                "settings": dict(training.settings),
                "learning_rate": outcome.choice.learning_rate * training.factor,
                "tried": {f"{rate:g}": score for rate, score in outcome.choice.tried.items()},
                "at_edge": outcome.choice.at_edge,
                "diverged": {str(seed): message for seed, message in outcome.diverged.items()},
                "not_scored": {str(seed): reasons for seed, reasons in outcome.not_scored.items()},
                "scores": {str(seed): outcome.scores[seed] for seed in seeds},
            }
            for training, outcome in ((each, outcomes[each.name]) for each in experiment.trainings)
        },
        "lines": [
            {
                "x": line.x,
                "percent": line.quantity.percent,
                "paper": line.paper,
                "values": [line.quantity.of(each) for each in scores],
            }
            for line in experiment.lines
        ],
        "comparisons": [compared(comparison, scores) for comparison in experiment.comparisons],
        "seconds": dict(seconds),
        "origin": {  # all distinct values of the runs
            name: sorted({str(origin[name]) for origin in origins if name in origin})
            for name in dict.fromkeys(name for origin in origins for name in origin)
        },
        "assembled": {name: now[name] for name in ("commit", "date", "device")},
    }


def compared(comparison: Comparison, scores: Sequence[Scores]) -> dict[str, Any]:
    """Return the paired differences over seeds (one entry of ``scores`` each), their interval and the verdict."""
    sign = -1 if comparison.lower else 1
    pairs = [(comparison.ahead.of(each), comparison.behind.of(each)) for each in scores]
    differences = [None if ahead is None or behind is None else sign * (ahead - behind) for ahead, behind in pairs]
    known = [value for pair in pairs for value in pair if value is not None]
    outcome: dict[str, Any] = {"mean": None, "low": None, "high": None, "equal_within": None, "verdict": "diverged"}
    if len(known) == 2 * len(pairs):
        interval = interval_of([each for each in differences if each is not None])
        within = margin_of(known, lower=comparison.lower) if comparison.equal else None
        outcome = {**asdict(interval), "equal_within": within, "verdict": judge(interval, equal_within=within)}
    return {
        "paper": comparison.paper,
        "percent": comparison.ahead.percent,
        "claimed": comparison.claimed,
        "differences": differences,
        **outcome,
    }


def with_text(record: Mapping[str, Any], experiment: Experiment) -> dict[str, Any]:
    """Return a record with the experiment's titles, claim, notes and row labels, for tables and plots.

    Raises:
        ValueError: If the record has another number of lines or comparisons than the experiment.
    """
    rows = zip(record["lines"], experiment.lines, strict=True)
    orderings = zip(record["comparisons"], experiment.comparisons, strict=True)
    return {
        **record,
        **{name: getattr(experiment, name) for name in ("title", "claim", "source", "notes", "x_title", "x_log")},
        "lines": [{**row, "label": line.label, "series": line.series, "panel": line.panel} for row, line in rows],
        "comparisons": [{**row, "title": comparison.title} for row, comparison in orderings],
    }
