import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.utils.data import TensorDataset
from torchvision.transforms.v2.functional import to_pil_image

from pml_supcon.data.pool import evenly
from pml_supcon.evaluation.sections.projection_head import projection_head
from pml_supcon.metrics import linear_probe_metrics
from pml_supcon.metrics.head_probe import majority_share, transformation_probe_metrics
from pml_supcon.testers import HeadProbeTester
from pml_supcon.views import GaussianNoise, Rotation, Sobel, evaluation_transform, transformation_tasks


def variants(rows, *, seed, number=3, width=5, apart=0.6):
    """Features of the same images, moved by each change in a direction of its own."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(rows, width)) * 10.0 ** np.arange(-2, width - 2)
    directions = np.random.default_rng(9).normal(size=(number, width)) * 10.0 ** np.arange(-2, width - 2)
    return [base + apart * direction + 0.0 for direction in directions]


@pytest.mark.parametrize("number", [2, 3, 4])
def test_accuracy_is_that_of_scikit_learns_own_classifier(number):
    train, test = variants(80, seed=1, number=number), variants(50, seed=2, number=number)
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=1000))
    probe.fit(np.concatenate(train), [change for change in range(number) for _ in range(80)])
    right = sum((probe.predict(rows) == change).sum() for change, rows in enumerate(test))
    found = transformation_probe_metrics(train, tuple(test))
    assert found == pytest.approx({"accuracy": right / (50 * number), "chance": 1 / number})
    assert 1 / number < found["accuracy"] < 1
    assert transformation_probe_metrics([torch.from_numpy(rows) for rows in train], test) == found


def test_features_that_do_not_see_the_change_are_at_chance():
    same, other = variants(60, seed=1, number=1)[0], variants(40, seed=2, number=1)[0]
    assert transformation_probe_metrics([same] * 4, [other] * 4) == {"accuracy": 0.25, "chance": 0.25}


def test_options_reach_the_probe():
    train, test = variants(80, seed=1), variants(50, seed=2)
    base = transformation_probe_metrics(train, test)
    assert transformation_probe_metrics(train, test, inverse_l2=1e-4) != base
    with pytest.warns(ConvergenceWarning, match="max_iter=2"):
        transformation_probe_metrics(train, test, max_iter=2)
    with pytest.warns(ConvergenceWarning, match="set standardize=True"):
        transformation_probe_metrics(train, test, max_iter=2, standardize=False)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"train": np.ones((2, 4, 3))}, TypeError, "`train` to be a sequence of variants, but got ndarray"),
        ({"test": [np.ones((4, 3))]}, ValueError, "`test` to hold at least 2 variants, but got 1"),
        ({"test": [np.eye(3)] * 3}, ValueError, "same number of variants, but got 2 and 3"),
        ({"train": [np.eye(3), np.eye(3)[:2]]}, ValueError, r"same images, but got shapes \(3, 3\) and \(2, 3\)"),
        ({"test": [np.ones((3, 2))] * 2}, ValueError, r"the same width, but got shapes \(6, 3\) and \(6, 2\)"),
        ({"test": [np.eye(3), np.eye(3) * np.nan]}, ValueError, r"`test\[1\]` to be finite"),
        ({"train": [np.eye(3, dtype=int)] * 2}, TypeError, r"`train\[0\]` to be floating point"),
        ({"inverse_l2": "auto"}, TypeError, "`inverse_l2` to be a number, but got 'auto'"),
        ({"inverse_l2": 0}, ValueError, "`inverse_l2` to be above 0"),
    ],
)
def test_errors_say_what_was_expected_and_what_came(change, error, message):
    valid = {"train": [np.eye(3), -np.eye(3)], "test": [np.eye(3), -np.eye(3)]}
    with pytest.raises(error, match=message):
        transformation_probe_metrics(**(valid | change))


def test_majority_share():
    assert majority_share(torch.tensor([3, 3, 5, 9, 3])) == 0.6
    assert majority_share(np.arange(4)) == 0.25
    with pytest.raises(ValueError, match="`labels` to hold labels, but got none"):
        majority_share(np.zeros(0, int))
    with pytest.raises(TypeError, match="`labels` to be integers"):
        majority_share(np.zeros(3))


# The tester inside PML


class Summaries(torch.nn.Module):
    """An encoder that sees colour and direction: means and edges of each channel; dropout would show in training."""

    def __init__(self):
        super().__init__()
        self.drop, self.calls = torch.nn.Dropout(0.5), 0

    def forward(self, images):
        self.calls += len(images)
        edges = [images.diff(dim=axis).square().mean((2, 3)) for axis in (2, 3)]
        halves = [images[:, :, :4].mean((2, 3)), images[..., :4].mean((2, 3))]
        return self.drop(torch.cat([images.mean((2, 3)), *edges, *halves], dim=1))


def split(rows, seed):
    """Uint8 images brighter at the top and to the left, whose label is in their red."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (rows,), generator=generator)
    images = torch.rand(rows, 3, 8, 8, generator=generator) * 60
    images += torch.linspace(60, 0, 8)[:, None] + torch.linspace(40, 0, 8)
    images[:, 0] += 30 * labels[:, None, None]
    return TensorDataset(images.to(torch.uint8), torch.stack([labels, labels % 2], dim=1))


def to_float(image):
    return image.float() / 255


def make_tester(**options):
    return HeadProbeTester(dataloader_num_workers=0, data_device=torch.device("cpu"), batch_size=16, **options)


def blind_head():
    """A projection that keeps what the label needs, the mean of red over all others, and no direction."""
    head = torch.nn.Linear(15, 2, bias=False)
    with torch.no_grad():
        head.weight.zero_()
        head.weight[0, 0], head.weight[1, 1] = 1.0, 1.0
    return head


def test_tester_reports_what_the_head_loses_and_agrees_with_the_functions():
    data = {"train": split(90, 1), "more": split(40, 2), "test": split(60, 3)}
    tasks = {"rotation": (None, Rotation(90), Rotation(180), Rotation(270)), "noise": (None, GaussianNoise(0.2))}
    trunk, head = Summaries(), blind_head()
    tester = make_tester(tasks=tasks, transform=to_float, label_hierarchy_level="all")
    found = tester.test(data, 2, trunk, head, [("test", ["train", "more"])])["test"]
    assert trunk.calls == 190 * 5  # once for each distinct change
    assert not trunk.training

    metrics = tester.accuracy_calculator.get_curr_metrics()
    assert metrics == [f"{task}_{output}" for task in ("label", "rotation", "noise") for output in ("encoder", "head")]
    patterns = ("{}_level0", "{}_level1", "AVERAGE_{}")
    assert found.keys() == {"epoch"} | {pattern.format(name) for pattern in patterns for name in metrics}

    @torch.no_grad()
    def rows(names, change, output):
        parts = []
        for name in names:
            images = data[name].tensors[0]
            changed = images if change is None else change(images, torch.arange(len(images)))
            made = trunk(to_float(changed))
            parts.append(head(made) if output == "head" else made)
        return torch.cat(parts)

    for task, changes in tasks.items():
        for output in ("encoder", "head"):
            sides = [[rows(names, change, output) for change in changes] for names in (["train", "more"], ["test"])]
            expected = transformation_probe_metrics(*sides)["accuracy"]
            assert {found[f"{task}_{output}_level{level}"] for level in (0, 1)} == {expected}
    for level in (0, 1):
        learnt = torch.cat([data[name].tensors[1] for name in ("train", "more")])[:, level].numpy()
        for output in ("encoder", "head"):
            probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
            probe.fit(rows(["train", "more"], None, output).numpy(), learnt)
            expected = probe.score(rows(["test"], None, output).numpy(), data["test"].tensors[1][:, level].numpy())
            assert found[f"label_{output}_level{level}"] == pytest.approx(expected)
    assert found["rotation_encoder_level0"] > 0.9
    assert found["rotation_head_level0"] < 0.4
    assert found["label_head_level0"] > 0.9


def test_tester_takes_all_tasks_and_none():
    data = {"train": split(60, 1), "test": split(30, 2)}
    arguments = (data, 1, Summaries(), blind_head(), [("test", ["train"])])
    found = make_tester(tasks=transformation_tasks(in_chans=3), transform=to_float).test(*arguments)["test"]
    assert [name for name in found if name.endswith("encoder_level0")] == [
        f"{task}_encoder_level0" for task in ("label", "colour", "rotation", "corruption", "sobel")
    ]
    ready = {name: TensorDataset(to_float(dataset.tensors[0]), dataset.tensors[1]) for name, dataset in data.items()}
    plain = make_tester().test(ready, *arguments[1:4], [("test", ["train"])])["test"]
    assert plain == {key: found[key] for key in ("epoch", "label_encoder_level0", "label_head_level0")}


def test_tester_takes_pictures_and_the_tensors_they_are_alike():
    data = {"train": split(60, 1), "test": split(30, 2)}
    pictures = {name: [(to_pil_image(image), label) for image, label in dataset] for name, dataset in data.items()}
    transform = evaluation_transform(8, mean=[0.5] * 3, std=[0.5] * 3)
    tester = make_tester(tasks=transformation_tasks(in_chans=3), transform=transform)
    found = [
        tester.test(splits, 1, Summaries(), blind_head(), [("test", ["train"])])["test"] for splits in (data, pictures)
    ]
    assert found[0] == found[1]


class Untouchable(torch.nn.Module):
    def forward(self, rows):
        raise AssertionError("embeddings were computed")


def test_tester_refuses_before_long_work():
    data = {"train": split(10, 1), "test": split(10, 2)}
    with pytest.raises(ValueError, match="`embedder_model` to be the projection head, but got none, or Identity"):
        make_tester().test(data, 1, Untouchable(), None, [("test", ["train"])])
    with pytest.raises(ValueError, match="a split it is not fitted on"):
        make_tester().test(data, 1, Untouchable(), blind_head())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tasks": {"sobel": (Sobel(),)}}, ValueError, "at least 2 variants of each task, .* got 'sobel' with 1"),
        ({"tasks": {"label": (None, Sobel())}}, ValueError, "none named 'label'"),
        (
            {"tasks": [("sobel", (None, Sobel()))]},
            TypeError,
            r"`tasks` to be a mapping of names to changes, but got \[",
        ),
        ({"tasks": []}, TypeError, r"`tasks` to be a mapping of names to changes, but got \[\]"),
        ({"tasks": {1: (None, Sobel())}}, TypeError, "`tasks` to have strings as names, but got 1"),
        ({"tasks": {"sobel": Sobel()}}, TypeError, "a sequence of changes for 'sobel', but got "),
        ({"tasks": {"sobel": "sobel"}}, TypeError, "a sequence of changes for 'sobel', but got 'sobel'"),
        ({"tasks": {"turn": (None, 90)}}, TypeError, "callables or None for 'turn', but got 90"),
        ({"use_trunk_output": True}, TypeError, "Expected no argument `use_trunk_output`, but got True"),
        ({"normalize_embeddings": True}, TypeError, "no argument `normalize_embeddings`"),
        ({"inverse_l2": "auto"}, TypeError, "`inverse_l2` to be a number"),
        ({"max_iter": 0}, ValueError, "`max_iter` to be at least 1"),
    ],
)
def test_tester_checks_its_options_when_made(options, error, message):
    with pytest.raises(error, match=message):
        make_tester(**options)


# The section of the evaluation recipe


class StandInSubject:
    """Images in memory under the tester's encoder and head; counts the features that it is asked for."""

    def __init__(self, *, in_chans, has_head, is_main=True, probe_images=50):
        self.splits = {"train": split(90, 1), "test": split(40, 2)}
        self.data, self.has_head, self.is_main = SimpleNamespace(in_chans=in_chans), has_head, is_main
        self.settings = SimpleNamespace(seed=3, probe_images=probe_images)
        self.asked, self.told = [], []
        self.tell = self.told.append

    def labels(self, split, *, most=None):
        labels = self.splits[split].tensors[1][:, 0]
        return labels[evenly(len(labels), most or len(labels))]

    @torch.no_grad()
    def features(self, split, *, change=None, of="encoder", most=None):
        self.asked.append((split, change and change.key, of))
        if not self.is_main:
            return torch.empty(0, 0)
        images = self.splits[split].tensors[0][:, : self.data.in_chans]
        places = torch.tensor(evenly(len(images), most or len(images)))
        images = images[places] if change is None else change(images[places], places)
        made = Summaries().eval()(to_float(images))
        return made[:, :2] if of == "head" else made


@pytest.mark.parametrize("has_head", [True, False])
@pytest.mark.parametrize("in_chans", [1, 3])
def test_section_probes_what_there_is(in_chans, has_head):
    subject = StandInSubject(in_chans=in_chans, has_head=has_head)
    found = projection_head(subject)
    assert found == json.loads(json.dumps(found))
    names = ["label", "colour", "rotation", "corruption", "sobel"]
    assert list(found["tasks"]) == [name for name in names if in_chans == 3 or name != "colour"]
    assert len(subject.told) == (in_chans == 1)
    assert (found["images"], found["test_images"]) == (50, 40)
    chances = [scores["chance"] for scores in found["tasks"].values()]
    assert chances[1:] == [0.5] * (in_chans == 3) + [0.25, 0.5, 0.5]
    for scores in found["tasks"].values():
        assert (scores["head"] is not None) == has_head
    rows = [place * 90 // 50 for place in range(50)]

    def features(change, of="encoder"):
        return [subject.features("train", change=change, of=of)[rows], subject.features("test", change=change, of=of)]

    train, test = features(None)
    label = linear_probe_metrics(train, subject.labels("train")[rows], test, subject.labels("test"))
    assert found["tasks"]["label"]["encoder"] == label["top1"]
    turns = [features(None), *(features(Rotation(degrees)) for degrees in (90, 180, 270))]
    expected = transformation_probe_metrics(*zip(*turns, strict=True))
    assert found["tasks"]["rotation"]["encoder"] == expected["accuracy"] > 0.8
    if has_head:
        expected = transformation_probe_metrics(*zip(features(None, "head"), features(Sobel(), "head"), strict=True))
        assert found["tasks"]["sobel"]["head"] == expected["accuracy"]


def test_all_processes_ask_for_the_same_features_in_the_same_order():
    subjects = [StandInSubject(in_chans=3, has_head=True, is_main=is_main) for is_main in (True, False)]
    assert projection_head(subjects[1]) is None
    assert projection_head(subjects[0])["tasks"]
    assert subjects[0].asked == subjects[1].asked
    assert len(set(subjects[0].asked)) == len(subjects[0].asked) == 2 * 2 * 7
