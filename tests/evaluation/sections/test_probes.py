"""The sections "linear_probe" and "calibration" of an evaluation, and the probe that is trained on augmented images."""

import json
import os
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from helpers.evaluation_contexts import StandInContext
from helpers.process_groups import free_port, run_processes
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from pml_supcon.data.load import load_data
from pml_supcon.evaluation.sections.augmented_probe import train_augmented_probe
from pml_supcon.evaluation.sections.calibration import calibration
from pml_supcon.evaluation.sections.linear_probe import linear_probe
from pml_supcon.evaluation.settings import EvaluateSettings
from pml_supcon.training.scoring import classifier_metrics
from pml_supcon.views import evaluation_transform


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Pixels(nn.Module):
    """Digits as their pixels, after BatchNorm and dropout, which training would change."""

    num_features = 64

    def __init__(self):
        super().__init__()
        self.norm, self.dropout = nn.BatchNorm2d(1), nn.Dropout(0.5)
        self.scale = nn.Parameter(torch.ones(64))

    def forward(self, images):
        return self.dropout(self.norm(images)).flatten(1) * self.scale


SETTINGS = {"shares": (0.05, 1.0), "shots": (1, 5), "draws": 10}
SETTINGS |= {"probe_epochs": 3, "probe_learning_rate": 0.2, "probe_batch_size": 128}


def make_context(*, data=None, is_main=True, **settings):
    data, encoder = data or load_data("digits", max_train=400, max_test=200), Pixels().eval()
    transform = evaluation_transform(8, mean=data.mean, std=data.std)
    return StandInContext(
        (data.train.images, data.train_labels),
        (data.test.images, data.test_labels),
        lambda images: encoder(transform(images)),
        settings=EvaluateSettings(**SETTINGS | settings),
        data=data,
        is_main=is_main,
        loaded=SimpleNamespace(model=encoder),
        accelerator=Accelerator(cpu=True),
    )


def probe_of_scikit_learn(train, learnt, test, penalty):
    scaler = StandardScaler().fit(train)
    return LogisticRegression(C=penalty, max_iter=1000).fit(scaler.transform(train), learnt), scaler.transform(test)


def test_linear_probe_section():
    context = make_context()
    section = json.loads(json.dumps(asdict(linear_probe(context))))
    train, test = context.features("train").numpy(), context.features("test").numpy()
    learnt, wanted = context.labels("train").numpy(), context.labels("test").numpy()
    probe, rows = probe_of_scikit_learn(train, learnt, test, section["inverse_l2"])
    found = probe.predict(rows)
    assert section["metrics"]["top1"] == pytest.approx((found == wanted).mean(), abs=0.006)
    assert section["metrics"]["top5"] > section["metrics"]["top1"] > 0.85
    assert section["per_class"] == {
        str(c): pytest.approx((found == c)[wanted == c].mean(), abs=0.06) for c in range(10)
    }
    assert section["tried"][f"{section['inverse_l2']:g}"] > max(section["tried"].values()) - 0.06
    assert len(section["tried"]) > 3
    assert [(point["share"], point["images"]) for point in section["learning_curve"]] == [(0.05, 20), (1.0, 400)]
    probe, rows = probe_of_scikit_learn(train, learnt, test, 1.0)  # the default penalty
    whole = (probe.predict(rows) == wanted).mean()
    assert section["learning_curve"][1]["top1"] == pytest.approx(whole, abs=0.006)
    assert [(result["shots"], result["draws"]) for result in section["few_shot"]] == [(1, 10), (5, 10)]
    assert all(result["low"] < result["accuracy"] < result["high"] for result in section["few_shot"])
    assert section["augmented"] is None
    assert not [text for text in context.notes if "edge" not in text]


def without(data, label, *, keep=0):
    """Return the data without the training images of a class except for `keep`."""
    rows = torch.cat([(data.train_labels != label).nonzero()[:, 0], (data.train_labels == label).nonzero()[:keep, 0]])
    return replace(data, train=data.train.select(rows, data.train_labels[rows]))


def test_a_class_that_train_lacks_is_noted():
    data = load_data("digits", max_train=400, max_test=200)
    context = make_context(data=without(data, 3), inverse_l2=0.01)
    count = int((data.test_labels == 3).sum())
    section = asdict(linear_probe(context))
    assert section["per_class"]["3"] == 0.0
    assert section["metrics"]["top5"] <= 1 - count / 200
    assert section["few_shot"][1]["accuracy"] <= 1 - count / 200
    start = f"No training image has a class of these test images: 3 ({count}); "
    assert context.notes == [start + "they count as errors of the linear probe and of few-shot accuracy."]
    found = asdict(calibration(context))
    assert context.notes[1:] == [start + "calibration leaves them out."]
    assert sum(part["count"] for part in found["reliability"]["before"]) == 200 - count


def test_more_shots_than_images_of_a_class_are_noted():
    data = without(load_data("digits", max_train=400, max_test=200), 3, keep=4)
    context = make_context(data=data, inverse_l2=0.01)
    section = asdict(linear_probe(context))
    assert [result["shots"] for result in section["few_shot"]] == [1]
    assert (section["inverse_l2"], section["tried"]) == (0.01, {})
    assert context.notes == ["Few-shot accuracy is left out for 5 shots: the class 3 has 4 training images."]


def test_calibration_section():
    context = make_context(inverse_l2=100.0, bins=10)
    section = json.loads(json.dumps(asdict(calibration(context))))
    assert section["bins"] == 10
    wanted, accuracies = context.labels("test").numpy(), []
    for name in ("before", "after"):
        diagram = section["reliability"][name]
        assert [(part["low"], part["high"]) for part in diagram] == [(m / 10, (m + 1) / 10) for m in range(10)]
        filled = [part for part in diagram if part["count"]]
        assert sum(part["count"] for part in filled) == len(wanted)
        error = sum(part["count"] * abs(part["confidence"] - part["accuracy"]) for part in filled) / len(wanted)
        assert section[name]["ece"] == pytest.approx(error)
        assert section[name].keys() == {"ece", "classwise_ece", "nll", "brier"}
        accuracies.append(sum(part["count"] * part["accuracy"] for part in filled))
    assert section["after"]["nll"] < section["before"]["nll"]  # a probe with a weak penalty is overconfident
    assert accuracies[0] == pytest.approx(accuracies[1])  # a temperature changes no prediction


def test_other_processes_ask_for_the_same_features_and_return_nothing():
    for section in (linear_probe, calibration):
        main, other = make_context(inverse_l2=0.01), make_context(is_main=False)
        section(main)
        assert section(other) is None
        assert other.asked == main.asked == [("train", None, "encoder"), ("test", None, "encoder")]


# The probe that is trained on augmented images


def test_augmented_probe_learns_and_leaves_the_encoder_as_it_is():
    context = make_context(data=load_data("digits"))
    encoder = context.loaded.model.train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    scores = {}
    for optimizer, rate in (("lars", 20.0), ("rmsprop", 0.002), ("sgd", 0.05)):
        options = {"optimizer": optimizer, "epochs": 6, "learning_rate": rate, "batch_size": 128}
        classifier = train_augmented_probe(encoder, context.data, context.accelerator, **options)
        assert (classifier.in_features, classifier.out_features) == (64, 10)
        scores[optimizer] = classifier_metrics(classifier, context.features("test"), context.labels("test"))["top1"]
    assert min(scores.values()) > 0.8, scores
    assert not encoder.training
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())
    again = train_augmented_probe(encoder, context.data, context.accelerator, **options)
    assert torch.equal(again.weight, classifier.weight)
    plain = train_augmented_probe(encoder, context.data, context.accelerator, **options, augment="none")
    assert not torch.equal(plain.weight, classifier.weight)


def test_section_trains_the_augmented_probe_on_request():
    context = make_context(inverse_l2=0.01, probe_optimizer="sgd", probe_epochs=4)
    section = asdict(linear_probe(context))
    expected = train_augmented_probe(
        Pixels(), context.data, context.accelerator, optimizer="sgd", epochs=4, learning_rate=0.1, batch_size=128
    )
    scores = classifier_metrics(expected, context.features("test"), context.labels("test"))
    found = section["augmented"]
    assert (found["optimizer"], found["epochs"], found["metrics"]) == ("sgd", 4, scores)
    few, whole = found["learning_curve"]
    assert whole == {"share": 1.0, "images": 400, **scores}
    assert (few["share"], few["images"]) == (0.05, 20)
    assert few["top1"] < whole["top1"]


def on_processes(rank, port):
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    context = make_context(data=load_data("digits", max_train=256, max_test=100))
    assert context.accelerator.num_processes == 2
    # no augmentation, because processes draw it for their part of a batch
    options = {"optimizer": "sgd", "epochs": 3, "learning_rate": 0.2, "augment": "none"}
    classifier = train_augmented_probe(Pixels(), context.data, context.accelerator, batch_size=128, **options)
    with pytest.raises(ValueError, match="`batch_size` to be a multiple of the 2 processes, but got 127"):
        train_augmented_probe(Pixels(), context.data, context.accelerator, batch_size=127, **options)
    return classifier.weight.detach()


@pytest.mark.slow
def test_two_processes_train_the_weights_of_one(tmp_path):
    one, other = run_processes(on_processes, 2, tmp_path, free_port())
    context = make_context(data=load_data("digits", max_train=256, max_test=100))
    options = {"optimizer": "sgd", "epochs": 3, "learning_rate": 0.2, "batch_size": 128, "augment": "none"}
    alone = train_augmented_probe(Pixels(), context.data, context.accelerator, **options)
    assert torch.equal(one, other)
    torch.testing.assert_close(one, alone.weight.detach(), rtol=1e-4, atol=1e-5)


def test_augmented_probe_reports_a_diverged_loss():
    data = load_data("digits", max_train=64, max_test=20)
    options = {"optimizer": "sgd", "epochs": 2, "learning_rate": 1e38, "batch_size": 16}
    with pytest.raises(FloatingPointError, match="became"):
        train_augmented_probe(Pixels(), data, Accelerator(cpu=True), **options)
