"""The experiments at every scale, the choice of learning rates, and the statistics."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from pml_supcon.experiments.experiment import TOP1, Comparison, Experiment, Quantity, Training, score_of
from pml_supcon.experiments.record import compared
from pml_supcon.experiments.registry import EXPERIMENTS
from pml_supcon.experiments.runner import TrainingRunner, run_experiment, settings_for
from pml_supcon.experiments.scales import SCALES
from pml_supcon.experiments.statistics import Interval, interval_of, judge, margin_of
from pml_supcon.experiments.tuning import Choice, candidates, choose, settings_of
from pml_supcon.samplers import MultiViewBatchSampler


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("scale", SCALES)
def test_experiments_are_sound_at_every_scale(name, scale):
    experiment, scale = EXPERIMENTS[name](SCALES[scale]), SCALES[scale]
    names = [training.name for training in experiment.trainings]
    assert len(set(names)) == len(names)
    assert experiment.comparisons
    quantities = [line.quantity for line in experiment.lines]
    quantities += [side for each in experiment.comparisons for side in (each.ahead, each.behind)]
    assert {used for quantity in quantities for used in quantity.trainings} <= set(names)
    assert len({line.label + line.panel for line in experiment.lines}) == len(experiment.lines)
    most = scale.settings.get("max_train")
    for training in experiment.trainings:  # `settings_for` raises for contradictions
        chosen = settings_for(training, scale, Choice(0.1, {}), seed=1)
        assert (chosen.seed, chosen.scored, chosen.learning_rate) == (1, "test", 0.1 * training.factor)
        share = (
            chosen.train_fraction * (chosen.max_train / most if most else 1) / (2 if "classes" in chosen.data else 1)
        )
        labels = torch.arange(round(scale.images * share)) % 10
        if scale.name != "imagenet":  # a batch for each of two processes
            options = {"num_replicas": 2, "rank": 0, "drop_last": True}
            assert len(MultiViewBatchSampler(labels, batch_size=chosen.batch_size, **options))
        for rate, tuned in candidates(training, scale).items():  # without the test split
            assert (tuned.scored, tuned.seed, tuned.learning_rate) == ("held_out", 0, rate)
            assert tuned.held_out > 0
    if name not in ("batch-size", "few-labels"):  # rows of a table share the budget
        rows = [settings_for(each, scale, Choice(0.1, {}), 0) for each in experiment.trainings]
        assert len({(each.epochs, each.batch_size, each.views, each.held_out, each.encoder) for each in rows}) == 1
    tried = {len(candidates(training, scale)) for training in experiment.trainings}
    assert len(tried) == 1, "the same effort for every method"
    assert tried.pop() > 1


@pytest.mark.parametrize(
    ("scores", "best", "at_edge"),
    [
        ({0.01: 0.5, 0.03: 0.7, 0.1: 0.7, 0.3: 0.1, 1.0: 0.1}, 0.03, False),  # the smallest among equals
        ({0.01: 0.5, 0.03: 0.6, 0.1: 0.7, 0.3: 0.8, 1.0: 0.9}, 1.0, True),
    ],
)
def test_the_best_learning_rate_on_held_out_images_is_chosen(scores, best, at_edge):
    choice = choose(scores, Training("a", {"method": "simclr"}), SCALES["digits"])
    assert (choice.learning_rate, choice.at_edge, dict(choice.tried)) == (best, at_edge, scores)


def test_the_learning_rate_is_chosen_by_held_out_scores_under_the_tuned_settings(tmp_path):
    class Recorded(TrainingRunner):
        def run(self, settings):
            asked.append(settings)
            return {TOP1: 1 - abs(settings.learning_rate - 0.1) if settings.scored == "held_out" else 0.5}

    asked = []
    accelerator = SimpleNamespace(mixed_precision="no", device=torch.device("cpu"))
    training = Training("a", {"method": "supcon_out", "temperature": 0.5}, {"method": "supcon_in"}, factor=2.0)
    experiment = Experiment("x", "", "", "", [training], [], [])
    record = run_experiment(experiment, SCALES["digits"], [3], Recorded(tmp_path, accelerator), lambda line: None)
    assert record["trainings"]["a"]["learning_rate"] == 0.2
    tuning, final = [each for each in asked if each.scored == "held_out"], asked[-1]
    assert {(each.method, each.temperature) for each in tuning} == {("supcon_in", 0.1)}
    assert (final.scored, final.seed, final.learning_rate, final.temperature) == ("test", 3, 0.2, 0.5)
    assert len(asked) == len(tuning) + 1


def test_a_given_learning_rate_is_the_only_candidate():
    scale = SCALES["digits"].with_settings({"learning_rate": 0.7, "epochs": 3})
    for optimizer in ("sgd", "lars"):
        training = Training("a", {"method": "simclr", "optimizer": optimizer})
        assert candidates(training, scale) == {}
        assert choose({}, training, scale) == Choice(0.7, {})
    few = EXPERIMENTS["few-labels"](scale).trainings
    steps = [  # the same for every share of the labels
        each.settings.get("epochs", 3)
        * math.ceil(round(each.settings.get("train_fraction", 1) * 251) / each.settings.get("batch_size", 64))
        for each in few
    ]
    assert steps == [12] * len(few)


def test_settings_that_a_method_lacks_are_left_out_and_contradictions_refused():
    common = {"temperature": 0.5, "head_dim": 64, "epochs": 3}
    assert settings_of(common, {"method": "cross_entropy"}).temperature == 0.1  # the unused default
    assert settings_of(common, {"method": "supcon_in"}).temperature == 0.5
    with pytest.raises(ValueError, match="Expected no --temperature with triplet"):
        settings_of(common, {"method": "triplet", "temperature": 0.2})


def test_the_name_of_a_run_depends_on_all_settings_that_affect_its_results(tmp_path):
    plain, half = (TrainingRunner(tmp_path, SimpleNamespace(mixed_precision=precision)) for precision in ("no", "bf16"))
    one, same, other, named = (
        settings_of({}, {"method": "simclr", **more})
        for more in ({}, {"workers": 2, "pictures": False}, {"epochs": 7}, {"mixed_precision": "bf16"})
    )
    assert plain.path_of(one) == plain.path_of(same) != plain.path_of(other)
    assert plain.path_of(one) != half.path_of(one) == plain.path_of(named)  # the launcher's precision counts


def test_intervals_equal_the_paired_t_test():
    ours, theirs = np.random.default_rng(0).normal(0.9, 0.02, (2, 5))
    found = interval_of(list(ours - theirs))
    expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert math.isclose(found.mean, (ours - theirs).mean(), abs_tol=3e-6)
    assert math.isclose(found.low, expected.low, abs_tol=3e-6)
    assert math.isclose(found.high, expected.high, abs_tol=3e-6)
    assert interval_of([0.5]) == Interval(0.5, None, None)
    assert judge(interval_of([1e-8, -2e-9, 3e-8])) == "not told apart"  # float32 and float64


@pytest.mark.parametrize(
    ("difference", "verdict", "as_equal"),
    [
        (Interval(0.03, 0.01, 0.05), "held", "not told apart"),
        (Interval(0.05, 0.03, 0.07), "held", "reversed"),
        (Interval(0.03, -0.01, 0.07), "not told apart", "not told apart"),
        (Interval(0.0, 0.0, 0.0), "not told apart", "held"),
        (Interval(-0.005, -0.008, -0.002), "reversed", "held"),
        (Interval(-0.05, -0.08, -0.022), "reversed", "reversed"),
        (Interval(0.005, None, None), "not told apart", "not told apart"),
        (Interval(-1 / 540, -1 / 540, -1 / 540), "not told apart", "not told apart"),  # one image with every seed
    ],
)
def test_verdicts(difference, verdict, as_equal):
    assert judge(difference) == verdict
    assert judge(difference, equal_within=0.02) == as_equal


def test_about_equal_is_two_points_or_a_quarter_of_the_error():
    assert margin_of([0.5, 0.6], lower=False) == 0.02
    assert margin_of([0.97, 0.99], lower=False) == pytest.approx(0.005)
    assert margin_of([0.03, 0.05], lower=True) == pytest.approx(0.01)


def test_quantities_and_comparisons():
    seeds = [{"a": {TOP1: 0.9, "ece": 0.1}, "b": {TOP1: 0.8}, "c": {TOP1: 0.5}}, {"a": {TOP1: 0.8}, "b": {TOP1: 0.6}}]
    assert math.isclose(Quantity(("a", "b", "c")).of(seeds[0]), np.std([0.9, 0.8, 0.5], ddof=1))
    ahead = compared(Comparison(score_of("a"), score_of("b"), "a over b"), seeds)
    np.testing.assert_allclose(ahead["differences"], [0.1, 0.2])
    assert (ahead["verdict"], ahead["equal_within"]) == ("not told apart", None)
    equal = compared(Comparison(score_of("a"), score_of("b"), "a as b", equal=True), seeds)
    assert equal["equal_within"] == pytest.approx(0.02)  # a quarter of the mean error, 0.225, is more
    lower = compared(Comparison(score_of("a"), score_of("b"), "a under b", lower=True), seeds)
    np.testing.assert_allclose(lower["differences"], [-0.1, -0.2])
    lost = compared(Comparison(score_of("a", "ece"), score_of("b"), "lost"), seeds)
    assert (lost["verdict"], lost["mean"], lost["differences"][1]) == ("diverged", None, None)
