"""Each method, miner, augmentation and optimizer trains on the digits and lowers its loss; options do what they say."""

import functools
import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import nn

from pml_supcon.losses import SupConLossOut
from pml_supcon.training import app as train
from pml_supcon.training.config import TrainSettings
from pml_supcon.training.methods import EncoderWithTop, build_criterion, build_loss, build_top

TINY = ["--max-train", 480, "--max-test", 60, "--batch-size", 24, "--epochs", 2, "--warmup-epochs", 0.25]
TINY += ["--encoder-args.channels", "[8, 8, 8, 8]", "--optimizer", "adamw", "--learning-rate", 0.01]
ONE_STEP = ["--max-train", 24, "--epochs", 1, "--warmup-epochs", 0, "--optimizer", "sgd", "--weight-decay", 0]
NO_STEP = ["--learning-rate", 1e-30]
SEEN = 8  # steps at either end that are compared, of 40
MINERS = ["batch_hard", "semi_hard", "distance_weighted", "ohem", "capped_positives"]


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
        """Weights in a checkpoint; statistics of BatchNorm as well."""
        saved = load_file(sorted((self.folder / "checkpoints").glob("step-*"))[at] / "weights.safetensors")
        return {key.removeprefix(f"{part}."): saved[key] for key in saved if key.startswith(f"{part}.")}

    def parameters(self):
        return {key: value for key, value in self.weights().items() if "running" not in key and "num_b" not in key}


def run(folder, *arguments):
    train.main([*map(str, TINY), *map(str, arguments), "--output", str(folder / "run")])
    rows = [json.loads(line) for line in (folder / "run" / "history.jsonl").read_text().splitlines()]
    return Ran(folder / "run", rows, json.loads((folder / "run" / "metrics.json").read_text()))


def lowered(losses):
    """Whether the mean loss of the last steps is clearly below that of the first."""
    return sum(losses[-SEEN:]) < 0.975 * sum(losses[:SEEN])


@pytest.fixture(autouse=True, scope="module")
def no_pictures():
    """They cost more than the runs, and test_train.py looks at them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pml_supcon.training.train.draw", lambda *arguments: None)
        yield


@pytest.fixture(scope="module")
def of_method(tmp_path_factory):
    """A run of a method, made when it is first asked for."""

    @functools.cache
    def made(method):
        rate = ["--optimizer", "sgd", "--learning-rate", 0.02] if method == "max_margin" else []
        return run(tmp_path_factory.mktemp(method), "--method", method, *rate)

    return made


@pytest.fixture(scope="module")
def first_step(tmp_path_factory):
    """A run of one step that changes nothing: its weights are those at the start."""
    return run(tmp_path_factory.mktemp("still"), *ONE_STEP, *NO_STEP)


# methods and miners

METHODS = ["supcon_out", "supcon_in", "simclr", "npairs", "triplet", "max_margin", "cross_entropy", "joint"]


@pytest.mark.parametrize("method", METHODS)
def test_method_lowers_its_loss(method, of_method):
    assert len(of_method(method).losses()) == 40
    assert lowered(of_method(method).losses())


@pytest.mark.parametrize("method", ["supcon_out", "triplet", "cross_entropy"])
def test_without_steps_no_loss_falls(method, tmp_path):
    """The comparison can fail."""
    assert not lowered(run(tmp_path, "--method", method, *NO_STEP).losses())


@pytest.mark.parametrize("method", ["triplet", "supcon_out"])
@pytest.mark.parametrize("miner", MINERS)
def test_miner_lowers_the_loss_of_what_it_chooses(miner, method, of_method, tmp_path):
    ran, plain = run(tmp_path, "--method", method, "--miner", miner), of_method(method)
    if (method, miner) == ("triplet", "semi_hard"):  # by choice each loss is in (0, margin), whatever was learnt
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


@pytest.mark.parametrize("options", [["joint"], ["max_margin", "--miner-share", 0.5], ["npairs"]])
def test_miner_with_other_methods(options, of_method, tmp_path):
    method, *share = options
    ran = run(tmp_path, "--max-train", 48, "--method", method, "--miner", "ohem", *share)
    pairs = [row["miner/positive_pairs"] / row["miner/negative_pairs"] for row in ran.epochs()]
    assert all(0 < ratio < 1 for ratio in pairs)
    assert ran.metrics["miner"] == "ohem"


# augmentation

AUGMENTATIONS = ["none", "digits", "simclr", "simaugment", "autoaugment", "randaugment", "stacked_randaugment"]


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_augmentation_lets_the_loss_fall(augment, of_method, tmp_path):
    rate = ["--optimizer", "sgd", "--learning-rate", 0.1]
    ran, default = run(tmp_path, "--method", "supcon_in", "--augment", augment, *rate), of_method("supcon_in")
    assert lowered(ran.losses())
    assert (ran.losses()[0] == default.losses()[0]) == (augment == "digits")  # which is what auto chooses


# optimisation

RATES = {"sgd": 0.05, "lars": 1, "rmsprop": 0.001, "adamw": 0.01}
SCHEDULES = {
    "cosine": [],
    "steps": ["--decay-epochs", "[1, 1.5]"],
    "exponential": ["--decay-epochs", "[0.5]", "--decay-rate", 0.7],
    "constant": [],
}
LAST_SHARE = {"steps": 0.01, "exponential": 0.7**3, "constant": 1}  # of the peak, in the last step


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("optimizer", RATES)
def test_optimizer_and_schedule_lower_the_loss(optimizer, schedule, tmp_path):
    chosen = ["--optimizer", optimizer, "--learning-rate", RATES[optimizer], "--schedule", schedule]
    ran = run(tmp_path, "--method", "supcon_in", *chosen, *SCHEDULES[schedule])
    assert lowered(ran.losses())
    rates = [rate / RATES[optimizer] for rate in ran.rates()]
    assert rates[0] == pytest.approx(0.01)  # a quarter of an epoch of warm-up, 5 steps
    assert rates == sorted(rates[:6]) + sorted(rates[6:], reverse=True)
    if schedule in LAST_SHARE:
        assert rates[5] == pytest.approx(1)
        assert rates[-1] == pytest.approx(LAST_SHARE[schedule])


def test_scaled_learning_rate(tmp_path):
    ran = run(tmp_path, "--max-train", 48, "--scale-learning-rate", "--schedule", "constant", "--learning-rate", 0.5)
    assert ran.rates()[-1] == pytest.approx(0.5 * 24 / 256)


def test_clipped_gradients(first_step, tmp_path):
    ran = run(tmp_path, *ONE_STEP, "--learning-rate", 0.1, "--clip-gradient-norm", 0.03)
    change = [ran.parameters()[key] - start for key, start in first_step.parameters().items()]
    assert ran.rows[0]["gradient_norm"] == pytest.approx(first_step.rows[0]["gradient_norm"], rel=1e-4)
    assert ran.rows[0]["gradient_norm"] > 0.1  # before it is clipped
    moved = torch.cat([part.flatten() for part in change]).norm()
    assert float(moved) == pytest.approx(0.1 * 1.9 * 0.03, rel=1e-3)  # Nesterov: 1 + momentum times the gradient


@pytest.mark.parametrize("everything", [False, True])
def test_weight_decay_spares_biases_and_norms_unless_told(everything, first_step, tmp_path):
    plain = ["--learning-rate", 0.1]
    without = run(tmp_path / "without", *ONE_STEP, *plain).parameters()
    switch = ["--decay-all"] if everything else []
    decayed = run(tmp_path / "with", *ONE_STEP, *plain, "--weight-decay", 0.2, *switch).parameters()
    for key, start in first_step.parameters().items():
        expected = 0.1 * 1.9 * 0.2 * start if everything or start.ndim > 1 else torch.zeros_like(start)
        torch.testing.assert_close(without[key] - decayed[key], expected, atol=1e-6, rtol=1e-4)


def test_moving_average_is_what_is_scored(tmp_path):
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


def test_compiled_model_computes_the_same(of_method, tmp_path, monkeypatch):
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
    ran = run(tmp_path, "--channels-last", "--method", "supcon_in")
    assert lowered(ran.losses())
    assert ran.losses()[0] == pytest.approx(of_method("supcon_in").losses()[0], rel=1e-4)
    model = EncoderWithTop(nn.Conv2d(4, 8, 3), nn.Identity(), channels_last=True)
    assert model.encoder.weight.is_contiguous(memory_format=torch.channels_last)
    assert model.features(torch.randn(2, 4, 8, 8)).is_contiguous(memory_format=torch.channels_last)


@pytest.fixture
def fresh_accelerate():
    """The precision is a state of the process, which accelerate sets once."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_half_precision(fresh_accelerate, of_method, tmp_path):
    full = of_method("supcon_in").losses()[0]
    AcceleratorState._reset_state(reset_partial_state=True)
    ran = run(tmp_path, "--method", "supcon_in", "--mixed-precision", "bf16")
    assert lowered(ran.losses())
    assert ran.losses()[0] == pytest.approx(full, rel=0.02)
    assert ran.losses()[0] != full
    assert all(value.dtype == torch.float32 for value in ran.parameters().values())


# models


@pytest.mark.parametrize(("layers", "batch_norm"), [(1, False), (2, True), (3, False), (3, True)])
def test_head(layers, batch_norm, tmp_path):
    options = [] if layers == 1 else ["--head-width", 20, *(["--head-batch-norm"] if batch_norm else [])]
    ran = run(tmp_path, "--method", "supcon_in", "--head-layers", layers, "--head-dim", 16, *options)
    assert lowered(ran.losses())
    weights = {key: value for key, value in ran.weights().items() if key.startswith("top.")}
    shapes = [tuple(value.shape) for value in weights.values() if value.ndim == 2]
    assert shapes == {1: [(16, 8)], 2: [(20, 8), (16, 20)], 3: [(20, 8), (20, 20), (16, 20)]}[layers]
    assert sum("running_mean" in key for key in weights) == (layers - 1 if batch_norm else 0)


@pytest.mark.parametrize("name", ["encoder", "encoder/model.safetensors"])
def test_encoder_starts_from_saved_weights(name, of_method, first_step, tmp_path):
    given = of_method("supcon_out").folder / name
    ran = run(tmp_path, *ONE_STEP, *NO_STEP, "--encoder-weights", given)
    saved = load_file(of_method("supcon_out").folder / "encoder" / "model.safetensors")
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


def test_rows_of_epochs_tell_of_speed_and_spread(of_method):
    for row in of_method("supcon_out").epochs():
        assert row["images_per_second"] > 0
        assert 0 <= row["data_wait"] < 1
        assert 0 <= row["alignment"] <= 4
        assert -8 <= row["uniformity"] <= 0
    assert [(row["epoch"], row["step"]) for row in of_method("supcon_out").epochs()] == [(1, 20), (2, 40)]
    assert not any("alignment" in row for row in of_method("cross_entropy").epochs())


def test_tracker_is_told_what_history_tells(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    ran = run(tmp_path, "--max-train", 48, "--tracker", "tensorboard")
    files = list(ran.folder.rglob("events.out.tfevents.*"))
    seen = {}
    for file in files:
        told = events.EventAccumulator(str(file)).Reload()
        seen |= {tag: told.Scalars(tag) for tag in told.Tags()["scalars"]}
    assert [event.value for event in seen["stage1/loss"]] == pytest.approx(ran.losses())
    assert [event.step for event in seen["stage1/loss"]] == [1, 2, 3, 4]
    assert [event.value for event in seen["stage1/learning_rate"]] == pytest.approx(ran.rates())
    assert seen["retrieval/precision_at_1"][-1].value == pytest.approx(ran.metrics["retrieval/precision_at_1"])


# stage 2

STAGE2 = {"sgd": 0.2, "lars": 1, "rmsprop": 0.01}


@pytest.mark.parametrize("optimizer", STAGE2)
def test_stage2_leaves_the_encoder_as_it_is(optimizer, tmp_path):
    options = ["--stage2-optimizer", optimizer, "--stage2-learning-rate", STAGE2[optimizer], "--stage2-epochs", 3]
    options += ["--stage2-augment", "none", "--method", "supcon_in"]
    average = optimizer == "rmsprop"  # then stage 2 stands on the moving average
    options += ["--ema", 0.5] if average else []
    options += ["--stage2-optimizer-args.trust_coeff", 0.05] if optimizer == "lars" else []
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


def settings(method, **options):
    return TrainSettings(method=method, **options)


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
def test_margin_losses_are_the_means_of_what_violates_the_margin(margin):
    rows, labels = F.normalize(torch.randn(8, 5)), torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
    far = torch.cdist(rows, rows).tolist()
    same = [[i != j and bool(labels[i] == labels[j]) for j in range(8)] for i in range(8)]
    other = [[bool(labels[i] != labels[j]) for j in range(8)] for i in range(8)]
    m = 0.05 if margin is None else margin
    triplets = [
        far[a][p] - far[a][n] + m for a in range(8) for p in range(8) for n in range(8) if same[a][p] and other[a][n]
    ]
    found = build_loss(settings("triplet", margin=margin))(rows, labels)
    assert float(found) == pytest.approx(mean([x for x in triplets if x > 0]), rel=1e-4)
    m = 1 if margin is None else margin
    pulled = [far[i][j] for i in range(8) for j in range(8) if same[i][j]]
    pushed = [m - far[i][j] for i in range(8) for j in range(8) if other[i][j] and far[i][j] < m]
    found = build_loss(settings("max_margin", margin=margin))(rows, labels)
    assert float(found) == pytest.approx(mean(pulled) + (mean(pushed) if pushed else 0), rel=1e-4)


def mean(values):
    return sum(values) / len(values)


def test_npairs_tells_one_pair_of_each_class_from_the_others():
    rows, labels = torch.randn(6, 5), torch.tensor([0, 0, 1, 1, 2, 2])
    unit = rows / rows.norm(dim=1, keepdim=True)  # as PML has it
    wanted = F.cross_entropy(unit[0::2] @ unit[1::2].T, torch.arange(3))
    assert float(build_loss(settings("npairs"))(rows, labels)) == pytest.approx(float(wanted), rel=1e-4)


def test_simclr_needs_no_labels():
    outputs = torch.randn(6, 2, 4)
    criterion = build_criterion(settings("simclr"))
    assert criterion(outputs, torch.zeros(6).long()) == criterion(outputs, torch.arange(6))
