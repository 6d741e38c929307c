"""The record of an experiment: all that its table and its drawing are made of."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from pml_supcon.experiments.analysis import evaluate_run, figures_of
from pml_supcon.experiments.costs import milliseconds_of
from pml_supcon.experiments.experiment import TOP1, Comparison, Experiment, Training
from pml_supcon.experiments.scales import Scale
from pml_supcon.experiments.statistics import interval_of, judge, margin_of
from pml_supcon.experiments.trainings import Trainings, settings_of
from pml_supcon.experiments.tuning import Choice, choose
from pml_supcon.training.config import TrainSettings
from pml_supcon.training.run_folder import environment

KEPT = ("linear_probe/", "retrieval/", "train/", "miner/", "seconds/")
#: Of the runs, beside versions: where and when they were made.
ORIGIN = ("commit", "date", "device", "cpus", "processes", "precision")


@dataclass
class Outcome:
    """What a training came to: the learning rate; for each seed scores, how it diverged, and the run's origin.

    `not_scored` has why an evaluation came to nothing.
    """

    choice: Choice
    scores: dict[int, dict[str, float]] = field(default_factory=dict)
    diverged: dict[int, str] = field(default_factory=dict)
    not_scored: dict[int, list[str]] = field(default_factory=dict)
    origins: dict[int, dict[str, Any]] = field(default_factory=dict)


def run_experiment(
    experiment: Experiment, scale: Scale, seeds: Sequence[int], trainings: Trainings, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Run what is missing of an experiment, on all processes, and return its record."""
    trainings.seconds.clear()
    outcomes = {
        training.name: run_training(training, experiment, scale, seeds, trainings, tell)
        for training in experiment.trainings
    }
    if experiment.timed:
        for seed in seeds:
            settings = {
                each.name: settings_for(each, scale, outcomes[each.name].choice, seed) for each in experiment.trainings
            }
            for name, cost in milliseconds_of(settings, trainings.accelerator, seed=seed).items():
                outcomes[name].scores[seed]["loss/milliseconds"] = cost
    return record_of(experiment, scale, seeds, outcomes, trainings.seconds, trainings.accelerator.device)


def settings_for(training: Training, scale: Scale, choice: Choice, seed: int) -> TrainSettings:
    """The settings of a training that is scored on the test split."""
    own = {"learning_rate": choice.learning_rate * training.factor, "seed": seed, "pictures": False}
    return settings_of(scale.settings, {**training.settings, **own})


def run_training(
    training: Training,
    experiment: Experiment,
    scale: Scale,
    seeds: Sequence[int],
    trainings: Trainings,
    tell: Callable[[str], None],
) -> Outcome:
    """Choose the learning rate, train with every seed, evaluate."""
    choice = choose(training, scale, trainings)
    tried = ", ".join(f"{rate:g}: {score:.4f}" for rate, score in choice.tried.items())
    if tried:
        tell(f"{experiment.name}: {training.name}, learning rate {choice.learning_rate:g} on held-out images ({tried})")
    outcome = Outcome(choice)
    for seed in seeds:
        settings, started = settings_for(training, scale, choice, seed), time.perf_counter()
        record, path = trainings.record(settings), trainings.path_of(settings)
        outcome.origins[seed] = {
            name: value for name, value in record.items() if name in ORIGIN or name.startswith("version/")
        }
        outcome.scores[seed] = {name: value for name, value in record.items() if name.startswith(KEPT)}
        if "diverged" in record:
            outcome.diverged[seed] = record["diverged"]
        elif experiment.evaluated is None or training.name in experiment.evaluated:
            for wanted in experiment.evaluations:
                found = evaluate_run(path, settings, wanted, trainings.accelerator)
                outcome.scores[seed] |= figures_of(found["sections"], wanted)
                if not found["sections"]:
                    outcome.not_scored.setdefault(seed, []).extend(found["told"])
                took = sum(found["seconds"].values())
                trainings.seconds[f"{path.name}: {', '.join(map(str, wanted.values()))}"] = took
        tell(line_about(experiment, training, settings, outcome, time.perf_counter() - started))
    return outcome


def line_about(
    experiment: Experiment, training: Training, settings: TrainSettings, outcome: Outcome, seconds: float
) -> str:
    """What is told when a training is over."""
    came = outcome.diverged.get(settings.seed) or f"top-1 {outcome.scores[settings.seed][TOP1]:.4f}"
    rate = f"learning rate {settings.learning_rate:g}"
    return f"{experiment.name}: {training.name}, {rate}, seed {settings.seed}: {came} ({seconds:.0f} s)"


def record_of(
    experiment: Experiment,
    scale: Scale,
    seeds: Sequence[int],
    outcomes: Mapping[str, Outcome],
    seconds: Mapping[str, float],
    device: torch.device,
) -> dict[str, Any]:
    """All of an experiment as JSON holds it; shares stay shares."""
    scores = {seed: {name: outcome.scores[seed] for name, outcome in outcomes.items()} for seed in seeds}
    now = environment(device)
    origins = [origin for outcome in outcomes.values() for origin in outcome.origins.values()]
    return {
        "experiment": experiment.name,
        "scale": scale.name,
        "title": experiment.title,
        "claim": experiment.claim,
        "source": experiment.source,
        "notes": list(experiment.notes),
        "x_title": experiment.x_title,
        "x_log": experiment.x_log,
        "seeds": list(seeds),
        "settings": dict(scale.settings),
        "trainings": {
            training.name: {
                "settings": dict(training.settings),
                "learning_rate": outcomes[training.name].choice.learning_rate * training.factor,
                "tried": {f"{rate:g}": score for rate, score in outcomes[training.name].choice.tried.items()},
                "at_edge": outcomes[training.name].choice.at_edge,
                "diverged": {str(seed): how for seed, how in outcomes[training.name].diverged.items()},
                "not_scored": {str(seed): why for seed, why in outcomes[training.name].not_scored.items()},
                "scores": {str(seed): scores[seed][training.name] for seed in seeds},
            }
            for training in experiment.trainings
        },
        "lines": [
            {
                "label": line.label,
                "series": line.series,
                "x": line.x,
                "panel": line.panel,
                "percent": line.quantity.percent,
                "paper": line.paper,
                "values": [line.quantity.of(scores[seed]) for seed in seeds],
            }
            for line in experiment.lines
        ],
        "comparisons": [
            compared(comparison, [scores[seed] for seed in seeds]) for comparison in experiment.comparisons
        ],
        "seconds": dict(seconds),
        "origin": {  # all values that the runs have
            name: sorted({str(origin[name]) for origin in origins if name in origin})
            for name in dict.fromkeys(name for origin in origins for name in origin)
        },
        "assembled": {name: now[name] for name in ("commit", "date", "device")},
    }


def compared(comparison: Comparison, scores: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """How far ahead what the paper has ahead is, with every seed, and the verdict."""
    sign = -1 if comparison.lower else 1
    pairs = [(comparison.ahead.of(each), comparison.behind.of(each)) for each in scores]
    differences = [None if ahead is None or behind is None else sign * (ahead - behind) for ahead, behind in pairs]
    known = [value for pair in pairs for value in pair if value is not None]
    told: dict[str, Any] = {"mean": None, "low": None, "high": None, "equal_within": None, "verdict": "diverged"}
    if len(known) == 2 * len(pairs):
        found = interval_of([each for each in differences if each is not None])
        within = margin_of(known, lower=comparison.lower) if comparison.equal else None
        told = {**asdict(found), "equal_within": within, "verdict": judge(found, equal_within=within)}
    return {
        "title": comparison.title,
        "paper": comparison.paper,
        "percent": comparison.ahead.percent,
        "claimed": comparison.claimed,
        "differences": differences,
        **told,
    }
