"""Runs on the digits lower the loss for every kind of method, miner, augmentation and optimizer; losses by formula."""

import functools
import json
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import NamedTuple, get_args

import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import nn

from pml_supcon.losses import SupConLossOut
from pml_supcon.training import app as train
from pml_supcon.training.config import TrainSettings
from pml_supcon.training.config.settings import Method
from pml_supcon.training.methods import EncoderWithTop, build_criterion, build_loss, build_top

TINY = ["--max-train", 480, "--max-test", 60, "--batch-size", 24, "--epochs", 2, "--warmup-epochs", 0.25]
TINY += ["--encoder-args.channels", "[8, 8, 8, 8]", "--optimizer", "adamw", "--learning-rate", 0.01]
ONE_STEP = ["--max-train", 24, "--epochs", 1, "--warmup-epochs", 0, "--optimizer", "sgd", "--weight-decay", 0]
NO_STEP = ["--learning-rate", 1e-30]
ENDS = 8  # steps at either end that are compared, of 40


class Ran(NamedTuple):
    folder: Path
    rows: list
    metrics: dict

    def losses(self, stage=1):
        return [row["loss"] for row in self.rows if row["stage"] == stage and "loss" in row]

    def rates(self):
        return [row["learning_rate"] for row in self.rows if "loss" in row]

    def epochs(self, stage=1):
        return [row for row in self.rows if row["stage"] == stage and "loss" not in row]

    def weights(self, *, part="model", at=-1):
        """Return the weights in a checkpoint, and the statistics of BatchNorm."""
        saved = load_file(sorted((self.folder / "checkpoints").glob("step-*"))[at] / "weights.safetensors")
        return {key.removeprefix(f"{part}."): saved[key] for key in saved if key.startswith(f"{part}.")}

    def parameters(self):
        return {key: value for key, value in self.weights().items() if "running" not in key and "num_b" not in key}


def run(folder, *arguments):
    train.main([*map(str, TINY), *map(str, arguments), "--output", str(folder / "run")])
    rows = [json.loads(line) for line in (folder / "run" / "history.jsonl").read_text().splitlines()]
    return Ran(folder / "run", rows, json.loads((folder / "run" / "metrics.json").read_text()))


def lowered(losses):
    """Return True if the mean loss of the last steps is clearly below the mean of the first steps."""
    return sum(losses[-ENDS:]) < 0.975 * sum(losses[:ENDS])


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def settings(method, **options):
    return TrainSettings(method=method, **options)


@pytest.fixture(autouse=True, scope="module")
def no_pictures():
    """Draw nothing, because pictures take longer than the runs; `test_train.py` covers them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pml_supcon.training.train.draw", lambda *arguments: None)
        yield


@pytest.fixture(scope="module")
def of_method(tmp_path_factory):
    """Return a function that trains a method at its first call and returns the same run afterwards."""

    @functools.cache
    def run_of(method):
        rate = ["--optimizer", "sgd", "--learning-rate", 0.02] if method == "max_margin" else []
        return run(tmp_path_factory.mktemp(method), "--method", method, *rate)

    return run_of


@pytest.fixture(scope="module")
def first_step(tmp_path_factory):
    """Run one step that changes nothing, so that the weights are the initial ones."""
    return run(tmp_path_factory.mktemp("still"), *ONE_STEP, *NO_STEP)


# methods and miners


@pytest.mark.parametrize("method", get_args(Method))
def test_method_lowers_its_loss(method, of_method):
    assert len(of_method(method).losses()) == 40
    assert lowered(of_method(method).losses())


def test_without_steps_no_loss_falls(tmp_path):
    """The comparison above can fail."""
    assert not lowered(run(tmp_path, *NO_STEP).losses())


@pytest.mark.parametrize(
    ("miner", "method"),
    [
        ("ohem", "joint"),
        ("capped_positives", "supcon_out"),
        ("batch_hard", "triplet"),
        slow("semi_hard", "triplet"),
        slow("distance_weighted", "triplet"),
        slow("ohem", "triplet"),
        slow("batch_hard", "supcon_out"),
    ],
)
def test_miner_lowers_the_loss_of_what_it_chooses(miner, method, of_method, tmp_path):
    ran, plain = run(tmp_path, "--method", method, "--miner", miner), of_method(method)
    if miner == "semi_hard":  # by choice each loss is in (0, margin), trained or not
        assert all(0 < loss < 0.05 for loss in ran.losses())
    else:
        assert lowered(ran.losses())
    assert ran.losses()[0] != plain.losses()[0], "the same images and weights: the miner chose nothing"
    seen = {name: value for name, value in ran.epochs()[0].items() if name.startswith("miner/")}
    assert seen["miner/seconds"] > 0
    assert seen.get("miner/triplets", seen.get("miner/positive_pairs")) > 0
    assert {name: ran.metrics[name] for name in seen} == {name: ran.epochs()[-1][name] for name in seen}
    if miner in ("batch_hard", "ohem"):
        assert seen["miner/positive_similarity"] < seen["miner/positive_similarity_all"]
        assert seen["miner/negative_similarity"] > seen["miner/negative_similarity_all"]
    if miner == "capped_positives":
        assert seen["miner/positive_pairs"] == 48  # one for each of 24 x 2 rows
    assert not any(name.startswith("miner/") for name in plain.epochs()[0])


# augmentation and optimisation


@pytest.mark.parametrize("augment", ["none", slow("digits"), slow("randaugment")])
def test_augmentation_lets_the_loss_fall(augment, of_method, tmp_path):
    rate = ["--optimizer", "sgd", "--learning-rate", 0.1]
    ran, default = run(tmp_path, "--augment", augment, *rate), of_method("supcon_out")
    assert lowered(ran.losses())
    assert (ran.losses()[0] == default.losses()[0]) == (augment == "digits")  # the choice of auto


@pytest.mark.parametrize(
    ("optimizer", "rate", "last", "schedule"),
    [
        ("sgd", 0.05, 0.01, ["steps", "--decay-epochs", "[1, 1.5]"]),
        slow("rmsprop", 0.001, 0.7**3, ["exponential", "--decay-epochs", "[0.5]", "--decay-rate", 0.7]),
        slow("lars", 1, 1, ["constant"]),
    ],
)
def test_optimizer_and_schedule_lower_the_loss(optimizer, rate, last, schedule, tmp_path):
    ran = run(tmp_path, "--optimizer", optimizer, "--learning-rate", rate, "--schedule", *schedule)
    assert lowered(ran.losses())
    rates = [each / rate for each in ran.rates()]
    assert rates[0] == pytest.approx(0.01)  # a quarter of an epoch of warm-up, 5 steps
    assert rates == sorted(rates[:6]) + sorted(rates[6:], reverse=True)
    assert rates[5] == pytest.approx(1)
    assert rates[-1] == pytest.approx(last)


def test_clipped_gradients(first_step, tmp_path):
    ran = run(tmp_path, *ONE_STEP, "--learning-rate", 0.1, "--clip-gradient-norm", 0.03)
    change = [ran.parameters()[key] - start for key, start in first_step.parameters().items()]
    assert ran.rows[0]["gradient_norm"] == pytest.approx(first_step.rows[0]["gradient_norm"], rel=1e-4)
    assert ran.rows[0]["gradient_norm"] > 0.1  # before it is clipped
    moved = torch.cat([part.flatten() for part in change]).norm()
    assert float(moved) == pytest.approx(0.1 * 1.9 * 0.03, rel=1e-3)  # Nesterov: 1 + momentum times the gradient


def test_moving_average_is_scored(tmp_path):
    ran = run(tmp_path, "--max-train", 72, "--ema", 0.8, "--save-every", 1, "--keep", 9)
    average = {key: value.double() for key, value in ran.weights(at=0).items()}
    for step in range(1, 6):
        decay = min(0.8, 1 - (1 + step) ** (-2 / 3))  # rises: the first weights are forgotten
        for key, value in ran.weights(at=step).items():
            average[key] = decay * average[key] + (1 - decay) * value if value.is_floating_point() else value
    found, last = ran.weights(part="ema.module"), ran.weights()
    saved = load_file(ran.folder / "encoder" / "model.safetensors")
    for key, value in found.items():
        torch.testing.assert_close(value.double(), average[key].double(), atol=1e-5, rtol=1e-4)
    for key, value in saved.items():
        assert torch.equal(value, found[f"encoder.{key}"])
    assert any((value != last[f"encoder.{key}"]).any() for key, value in saved.items())


def test_compiled_model_computes_the_same(tmp_path, monkeypatch):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(EncoderWithTop, "compile", lambda self: nn.Module.compile(self, backend=backend))
    compiled = run(tmp_path / "compiled", "--max-train", 48, "--compile")
    assert graphs
    plain = run(tmp_path / "plain", "--max-train", 48)
    assert compiled.losses() == pytest.approx(plain.losses(), rel=1e-4)
    assert compiled.weights().keys() == plain.weights().keys()


def test_channels_last(of_method, tmp_path):
    ran = run(tmp_path, "--channels-last")
    assert lowered(ran.losses())
    assert ran.losses()[0] == pytest.approx(of_method("supcon_out").losses()[0], rel=1e-4)
    model = EncoderWithTop(nn.Conv2d(4, 8, 3), nn.Identity(), channels_last=True)
    assert model.encoder.weight.is_contiguous(memory_format=torch.channels_last)
    assert model.features(torch.randn(2, 4, 8, 8)).is_contiguous(memory_format=torch.channels_last)


@pytest.fixture
def fresh_accelerate():
    """Reset the precision, which accelerate sets once in a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_half_precision(fresh_accelerate, of_method, tmp_path):
    full = of_method("supcon_out").losses()[0]
    AcceleratorState._reset_state(reset_partial_state=True)
    ran = run(tmp_path, "--mixed-precision", "bf16")
    assert lowered(ran.losses())
    assert ran.losses()[0] == pytest.approx(full, rel=0.02)
    assert ran.losses()[0] != full
    assert all(value.dtype == torch.float32 for value in ran.parameters().values())


# models


def test_head_options_reach_the_head():
    options = {"head_layers": 3, "head_width": 20, "head_dim": 16, "head_batch_norm": True}
    weights = build_top(settings("supcon_in", **options), width=8, num_classes=3).state_dict()
    assert [tuple(value.shape) for value in weights.values() if value.ndim == 2] == [(20, 8), (20, 20), (16, 20)]
    assert sum("running_mean" in key for key in weights) == 2


def test_encoder_starts_from_saved_weights(of_method, first_step, tmp_path):
    given = of_method("supcon_out").folder / "encoder"
    ran = run(tmp_path, *ONE_STEP, *NO_STEP, "--encoder-weights", given)
    saved = load_file(given / "model.safetensors")
    own = {key.removeprefix("encoder."): value for key, value in ran.parameters().items() if key.startswith("encoder")}
    assert len(own) > 30
    assert all(torch.equal(value, saved[key]) for key, value in own.items())
    assert any((value != first_step.parameters()[f"encoder.{key}"]).any() for key, value in own.items())


# data


def test_shares_of_the_images(tmp_path):
    ran = run(tmp_path, "--max-train", "null", "--train-fraction", 0.2, "--held-out", 0.25, "--label-noise", 0.1)
    assert ran.metrics["train/images"] == 188  # of 251, 63 held out
    assert ran.metrics["train/wrong_labels"] == 19
    assert ran.metrics["train/steps"] == 2 * 8  # 7 batches of 24, one of 20


def test_held_out_images_are_scored_in_between(tmp_path):
    options = ["--max-train", 120, "--held-out", 0.3, "--epochs", 5, "--knn-every", 2]
    ran = run(tmp_path / "one", *options)
    found = {row["epoch"]: row["knn_accuracy"] for row in ran.epochs() if "knn_accuracy" in row}
    assert list(found) == [2, 4, 5]
    assert all(0.1 < accuracy <= 1 for accuracy in found.values())
    assert ran.metrics["train/knn_accuracy"] == found[5]
    other = run(tmp_path / "other", *options, "--max-test", 30)  # the test split has no part in it
    assert [row.get("knn_accuracy") for row in other.epochs()] == [row.get("knn_accuracy") for row in ran.epochs()]


def test_rows_of_epochs_have_throughput_and_alignment(of_method):
    rows = of_method("supcon_out").epochs()
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, 20), (2, 40)]
    assert all(row["images_per_second"] > 0 and 0 <= row["data_wait"] < 1 for row in rows)
    assert all(0 <= row["alignment"] <= 4 and -8 <= row["uniformity"] <= 0 for row in rows)
    assert not any("alignment" in row for row in of_method("cross_entropy").epochs())


def test_tracker_logs_what_the_history_holds(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    ran = run(tmp_path, "--max-train", 48, "--tracker", "tensorboard")
    seen = {}
    for file in ran.folder.rglob("events.out.tfevents.*"):
        read = events.EventAccumulator(str(file)).Reload()
        seen |= {tag: read.Scalars(tag) for tag in read.Tags()["scalars"]}
    assert [event.value for event in seen["stage1/loss"]] == pytest.approx(ran.losses())
    assert [event.step for event in seen["stage1/loss"]] == [1, 2, 3, 4]
    assert [event.value for event in seen["stage1/learning_rate"]] == pytest.approx(ran.rates())
    assert seen["retrieval/precision_at_1"][-1].value == pytest.approx(ran.metrics["retrieval/precision_at_1"])


# stage 2


@pytest.mark.parametrize(("optimizer", "rate", "average"), [slow("sgd", 0.2, False), ("rmsprop", 0.01, True)])
def test_stage2_leaves_the_encoder_as_it_is(optimizer, rate, average, tmp_path):
    options = ["--stage2-optimizer", optimizer, "--stage2-learning-rate", rate, "--stage2-epochs", 3]
    options += ["--stage2-augment", "none", *(["--ema", 0.5] if average else [])]
    ran = run(tmp_path, "--epochs", 1, "--keep", 9, *options)
    assert len(ran.losses(2)) == 60
    assert lowered(ran.losses(2))
    first = ran.weights(part="ema.module" if average else "model", at=0)  # the end of stage 1
    encoder = {key: value for key, value in first.items() if key.startswith("encoder.")}
    assert sum("running_mean" in key for key in encoder) > 8
    saved = load_file(ran.folder / "encoder" / "model.safetensors")
    assert len(saved) == len(encoder)
    for at in (1, 2, 3):
        later = ran.weights(at=at)
        assert all(torch.equal(value, later[key]) for key, value in encoder.items())
    assert all(torch.equal(value, saved[key.removeprefix("encoder.")]) for key, value in encoder.items())
    assert ran.metrics["stage2"] == optimizer


# joint and the losses themselves


def test_classifier_alone_gives_the_encoder_no_gradient():
    gradients = {}
    for alone in (False, True):
        torch.manual_seed(0)
        top = build_top(settings("joint", head_dim=4, classifier_alone=alone), width=6, num_classes=3)
        features = torch.randn(8, 6, requires_grad=True)
        outputs = top(features)
        assert outputs.shape == (8, 7)
        F.cross_entropy(outputs[:, 4:], torch.arange(8) % 3).backward()
        gradients[alone] = features.grad
        assert top.classifier.weight.grad.abs().sum() > 0
    assert gradients[False].abs().sum() > 0
    assert gradients[True] is None or not gradients[True].any()


def test_joint_loss_is_the_weighted_sum():
    outputs, labels = torch.randn(6, 2, 7), torch.tensor([0, 1, 2, 0, 1, 2])
    options = {"head_dim": 4, "supcon_weight": 0.3, "classifier_weight": 2.0, "label_smoothing": 0.1}
    found = build_criterion(settings("joint", **options))(outputs, labels)
    one = SupConLossOut(0.1)(outputs[..., :4].transpose(0, 1).flatten(0, 1), labels.repeat(2))
    other = sum(F.cross_entropy(outputs[b, v, 4:], labels[b], label_smoothing=0.1) for b in range(6) for v in range(2))
    assert float(found) == pytest.approx(float(0.3 * one + 2 * other / 12), rel=1e-5)


def test_cross_entropy_is_the_mean_over_all_views():
    outputs, labels = torch.randn(5, 3, 4), torch.tensor([0, 1, 2, 3, 1])
    found = build_criterion(settings("cross_entropy"))(outputs, labels)
    wanted = sum(-F.log_softmax(outputs[b, v], 0)[labels[b]] for b in range(5) for v in range(3)) / 15
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("margin", [None, 0.3])
def test_margin_losses_are_means_over_margin_violations(margin):
    rows, labels, n = F.normalize(torch.randn(8, 5)), torch.tensor([0, 0, 0, 1, 1, 1, 2, 2]), range(8)
    far = torch.cdist(rows, rows).tolist()
    positives = [(i, j) for i in n for j in n if i != j and labels[i] == labels[j]]
    negatives = [(i, j) for i in n for j in n if labels[i] != labels[j]]
    triplets = [far[a][p] - far[a][k] + (margin or 0.05) for a, p in positives for b, k in negatives if a == b]
    found = build_loss(settings("triplet", margin=margin))(rows, labels)
    assert float(found) == pytest.approx(mean(x for x in triplets if x > 0), rel=1e-4)
    pushed = [(margin or 1) - far[i][j] for i, j in negatives if far[i][j] < (margin or 1)]
    found = build_loss(settings("max_margin", margin=margin))(rows, labels)
    expected = mean(far[i][j] for i, j in positives) + (mean(pushed) if pushed else 0)
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_a_method_without_a_loss_is_refused():
    """A new method needs a branch of its own: without one it must not train with another loss."""
    with pytest.raises(ValueError, match="argument `method` to have a loss in `build_loss`, but got 'new'"):
        build_loss(SimpleNamespace(method="new"))


def test_npairs_is_cross_entropy_over_one_pair_of_each_class():
    rows, labels = torch.randn(6, 5), torch.tensor([0, 0, 1, 1, 2, 2])
    unit = rows / rows.norm(dim=1, keepdim=True)  # as in PML
    wanted = F.cross_entropy(unit[0::2] @ unit[1::2].T, torch.arange(3))
    assert float(build_loss(settings("npairs"))(rows, labels)) == pytest.approx(float(wanted), rel=1e-4)


def test_simclr_needs_no_labels():
    outputs = torch.randn(6, 2, 4)
    criterion = build_criterion(settings("simclr"))
    assert criterion(outputs, torch.zeros(6).long()) == criterion(outputs, torch.arange(6))
