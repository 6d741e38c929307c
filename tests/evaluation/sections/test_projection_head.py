"""The section "projection_head" of the evaluation."""

import json
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from helpers.summary_encoder import Summaries, labelled_images, to_float

from pml_supcon.data.images import evenly
from pml_supcon.evaluation.sections.projection_head import projection_head
from pml_supcon.metrics import linear_probe_metrics
from pml_supcon.metrics.head_probe import transformation_probe_metrics
from pml_supcon.views import Rotation, Sobel


class StandInContext:
    """Images in memory under the tester's encoder and head; counts the features that it is asked for."""

    def __init__(self, *, in_chans, has_head, is_main=True, probe_images=50):
        self.splits = {"train": labelled_images(90, 1), "test": labelled_images(40, 2)}
        self.data, self.has_head, self.is_main = SimpleNamespace(in_chans=in_chans), has_head, is_main
        self.settings = SimpleNamespace(seed=3, probe_images=probe_images)
        self.asked, self.notes = [], []
        self.note = self.notes.append

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
    context = StandInContext(in_chans=in_chans, has_head=has_head)
    found = asdict(projection_head(context))
    assert found == json.loads(json.dumps(found))
    names = ["label", "colour", "rotation", "corruption", "sobel"]
    assert list(found["tasks"]) == [name for name in names if in_chans == 3 or name != "colour"]
    assert len(context.notes) == (in_chans == 1)
    assert (found["images"], found["test_images"]) == (50, 40)
    chances = [scores["chance"] for scores in found["tasks"].values()]
    assert chances[1:] == [0.5] * (in_chans == 3) + [0.25, 0.5, 0.5]
    for scores in found["tasks"].values():
        assert (scores["head"] is not None) == has_head
    rows = [place * 90 // 50 for place in range(50)]

    def features(change, of="encoder"):
        return [context.features("train", change=change, of=of)[rows], context.features("test", change=change, of=of)]

    train, test = features(None)
    label = linear_probe_metrics(train, context.labels("train")[rows], test, context.labels("test"))
    assert found["tasks"]["label"]["encoder"] == label["top1"]
    turns = [features(None), *(features(Rotation(degrees)) for degrees in (90, 180, 270))]
    expected = transformation_probe_metrics(*zip(*turns, strict=True))
    assert found["tasks"]["rotation"]["encoder"] == expected["accuracy"] > 0.8
    if has_head:
        expected = transformation_probe_metrics(*zip(features(None, "head"), features(Sobel(), "head"), strict=True))
        assert found["tasks"]["sobel"]["head"] == expected["accuracy"]


def test_all_processes_ask_for_the_same_features_in_the_same_order():
    contexts = [StandInContext(in_chans=3, has_head=True, is_main=is_main) for is_main in (True, False)]
    assert projection_head(contexts[1]) is None
    assert projection_head(contexts[0]).tasks
    assert contexts[0].asked == contexts[1].asked
    assert len(set(contexts[0].asked)) == len(contexts[0].asked) == 2 * 2 * 7
