import pytest
import torch
from helpers.labelled_points import Untouchable
from helpers.summary_encoder import Summaries, labelled_images, to_float
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.utils.data import TensorDataset
from torchvision.transforms.v2.functional import to_pil_image

from pml_supcon.metrics.head_probe import transformation_probe_metrics
from pml_supcon.testers import HeadProbeTester
from pml_supcon.views import GaussianNoise, Rotation, Sobel, evaluation_transform, transformation_tasks


def make_tester(**options):
    return HeadProbeTester(dataloader_num_workers=0, data_device=torch.device("cpu"), batch_size=16, **options)


def blind_head():
    """Return a projection that keeps the means of red and green, which show the label, and no direction."""
    head = torch.nn.Linear(15, 2, bias=False)
    torch.nn.init.eye_(head.weight)
    return head


def test_tester_reports_what_the_head_loses_and_agrees_with_the_functions():
    data = {"train": labelled_images(90, 1), "more": labelled_images(40, 2), "test": labelled_images(60, 3)}
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
            features = trunk(to_float(changed))
            parts.append(head(features) if output == "head" else features)
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


def test_tester_takes_all_tasks_or_none_and_pictures_as_tensors():
    data = {"train": labelled_images(60, 1), "test": labelled_images(30, 2)}
    pictures = {name: [(to_pil_image(image), label) for image, label in dataset] for name, dataset in data.items()}
    arguments = (1, Summaries(), blind_head(), [("test", ["train"])])
    tasks, transform = transformation_tasks(in_chans=3), evaluation_transform(8, mean=[0.5] * 3, std=[0.5] * 3)
    found, same = (
        make_tester(tasks=tasks, transform=transform).test(splits, *arguments)["test"] for splits in (data, pictures)
    )
    assert found == same
    assert [name for name in found if name.endswith("encoder_level0")] == [
        f"{task}_encoder_level0" for task in ("label", "colour", "rotation", "corruption", "sobel")
    ]
    ready = {name: TensorDataset(transform(dataset.tensors[0]), dataset.tensors[1]) for name, dataset in data.items()}
    plain = make_tester().test(ready, *arguments)["test"]
    assert plain == {key: found[key] for key in ("epoch", "label_encoder_level0", "label_head_level0")}


def test_tester_raises_before_it_computes_embeddings():
    data = {"train": labelled_images(10, 1), "test": labelled_images(10, 2)}
    with pytest.raises(ValueError, match="`embedder_model` to be the projection head, but got none, or Identity"):
        make_tester().test(data, 1, Untouchable(), None, [("test", ["train"])])
    with pytest.raises(ValueError, match="a split it is not fitted on"):
        make_tester().test(data, 1, Untouchable(), blind_head())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tasks": {"sobel": (Sobel(),)}}, ValueError, "at least 2 variants of each task, .* got 'sobel' with 1"),
        ({"tasks": {"label": (None, Sobel())}}, ValueError, "none named 'label'"),
        ({"tasks": []}, TypeError, "`tasks` to be a mapping of names to changes, but got list"),
        ({"tasks": {"sobel": "sobel"}}, TypeError, r"`tasks\['sobel'\]` to be a sequence of changes, but got 'sobel'"),
        ({"tasks": {"turn": (None, 90)}}, TypeError, "callables or None for 'turn', but got 90"),
        ({"use_trunk_output": True}, TypeError, "Expected no argument `use_trunk_output`, but got True"),
        ({"inverse_l2": "auto"}, TypeError, "`inverse_l2` to be a number"),
        ({"standardize": "no"}, TypeError, "`standardize` to be True or False"),
    ],
)
def test_tester_checks_its_options_when_made(options, error, message):
    with pytest.raises(error, match=message):
        make_tester(**options)
