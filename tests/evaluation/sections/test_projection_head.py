"""The section "projection_head" of the evaluation."""

import json
from dataclasses import asdict

import pytest
from helpers.evaluation_contexts import StandInContext
from helpers.summary_encoder import Summaries, labelled_images, to_float

from pml_supcon.evaluation.sections.projection_head import projection_head
from pml_supcon.metrics import linear_probe_metrics
from pml_supcon.metrics.head_probe import transformation_probe_metrics
from pml_supcon.views import Rotation, Sobel


def make_context(*, in_chans, has_head, is_main=True):
    """Images of one or three channels under the tester's encoder; the head keeps its first two outputs."""
    splits = [split.tensors for split in (labelled_images(90, 1), labelled_images(40, 2))]
    return StandInContext(
        *((images[:, :in_chans], labels[:, 0]) for images, labels in splits),
        lambda images: Summaries().eval()(to_float(images)),
        head=(lambda features: features[:, :2]) if has_head else None,
        settings={"seed": 3, "probe_images": 50},
        data={"in_chans": in_chans},
        is_main=is_main,
    )


@pytest.mark.parametrize("has_head", [True, False])
@pytest.mark.parametrize("in_chans", [1, 3])
def test_section_probes_what_there_is(in_chans, has_head):
    context = make_context(in_chans=in_chans, has_head=has_head)
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
    contexts = [make_context(in_chans=3, has_head=True, is_main=is_main) for is_main in (True, False)]
    assert projection_head(contexts[1]) is None
    assert projection_head(contexts[0]).tasks
    assert contexts[0].asked == contexts[1].asked
    assert len(set(contexts[0].asked)) == len(contexts[0].asked) == 2 * 2 * 7
