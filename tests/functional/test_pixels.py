"""Draws of pixels against their distribution, and the loss of mask prototypes against plain loops."""

import itertools

import pytest
import torch
from helpers.peak_memory import measured
from helpers.pixel_oracle import MISTAKES, prototype_loss
from scipy.stats import chisquare

from pml_supcon.functional import draw_pixels, mask_prototype_loss
from pml_supcon.functional.pixels import number_masks

ANGLES = torch.tensor([0.0, 0.3, 1.2, 2.5, 0.1, 0.5, 1.0, 2.2], dtype=torch.float64)
ROWS = torch.stack([ANGLES.cos(), ANGLES.sin()])
#: Two images of 3 x 4 pixels; ids mean nothing outside their image, 9 is ignored.
MASKS = torch.tensor([[[0, 0, 1, 9], [0, 0, 1, 5], [9, 9, 1, 5]], [[1, 1, 1, 1], [1, 0, 9, 1], [1, 1, 1, 1]]])
FEATURES = torch.randn(2, 3, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def step(loss, features=FEATURES):
    """Return a loss and its gradient."""
    leaf = features.clone().requires_grad_()
    value = loss(leaf)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def ours(features, masks=MASKS, **options):
    return mask_prototype_loss(features, masks, ignore_value=9, **options).mean()


# Mask prototypes.


def test_the_value_of_the_contract():
    masks = torch.tensor([0, 0, 1, 255, 0, 0, 1, 2])
    for shape in ((1, 8), (2, 4), (4, 2)):
        loss = mask_prototype_loss(ROWS.view(1, 2, *shape) * 3, masks.view(1, *shape), ignore_value=255)
        assert loss.mean().item() == pytest.approx(0.306935255, abs=1e-9)
        assert loss.losses.shape == loss.valid.shape == (1, *shape)
        assert torch.equal(loss.valid.flatten(), masks != 255)


@pytest.mark.parametrize("temperature", [0.3, 0.05, 2])
@pytest.mark.parametrize("ignore_value", [9, None, 77])
def test_equals_plain_loops(temperature, ignore_value):
    options = {"temperature": temperature, "ignore_value": ignore_value}
    value, gradient = step(lambda f: mask_prototype_loss(f, MASKS, **options).mean())
    expected, right = step(lambda f: prototype_loss(f, MASKS, **options))
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, right, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_version_differs(mistake):
    value, gradient = step(ours)
    other, wrong = step(lambda f: prototype_loss(f, MASKS, ignore_value=9, mistake=mistake))
    assert max((value - other).abs(), (gradient - wrong).abs().max()) > 1e-3


def test_gradients():
    small = FEATURES[:, :2, :2].clone().requires_grad_()
    masks = MASKS[:, :2]
    assert torch.autograd.gradcheck(lambda f: mask_prototype_loss(f, masks, ignore_value=9).losses, small)
    assert torch.autograd.gradgradcheck(lambda f: ours(f, masks), small)


def test_invariants():
    expected = mask_prototype_loss(FEATURES, MASKS, ignore_value=9)
    renamed = torch.where(MASKS == 9, 9, 1000 - MASKS + 500 * torch.arange(2)[:, None, None])
    turned = FEATURES.transpose(2, 3), MASKS.transpose(1, 2)
    for masks in (renamed, MASKS.int(), MASKS.to(torch.uint8), MASKS.to(torch.uint16)):
        torch.testing.assert_close(mask_prototype_loss(FEATURES, masks, ignore_value=9).losses, expected.losses)
    torch.testing.assert_close(mask_prototype_loss(*turned, ignore_value=9).losses.mT, expected.losses)
    scaled = FEATURES * (1 + torch.arange(24.0).view(2, 1, 3, 4))
    torch.testing.assert_close(mask_prototype_loss(scaled, MASKS, ignore_value=9).losses, expected.losses)
    one = mask_prototype_loss(FEATURES, torch.zeros_like(MASKS))  # nothing to tell apart
    torch.testing.assert_close(one.losses, torch.zeros_like(one.losses), rtol=0, atol=1e-12)
    alone = mask_prototype_loss(FEATURES[1:], MASKS[1:], ignore_value=9)
    torch.testing.assert_close(alone.losses, expected.losses[1:])


def test_ignored_pixels_have_no_part_whatever_they_are():
    expected, right = step(ours)
    wild = torch.where((MASKS == 9)[:, None], torch.tensor(float("nan"), dtype=torch.float64), FEATURES)
    value, gradient = step(ours, wild)
    assert value == expected
    assert torch.equal(gradient, right)
    assert not gradient[(MASKS == 9)[:, None].expand_as(gradient)].any()
    for masks in (torch.full_like(MASKS, 9), torch.stack([MASKS[0], torch.full_like(MASKS[1], 9)])):
        value, gradient = step(lambda f, m=masks: ours(f, m))
        assert gradient.isfinite().all()
        assert not gradient[1].any()
    assert step(lambda f: ours(f, torch.full_like(MASKS, 9)))[0] == 0


def test_pixels_without_a_direction_and_empty_batches():
    features = FEATURES.clone()
    features[0, :, 0] = 0
    value, gradient = step(ours, features)
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert not gradient[0, :, 0].any()
    for shape in ((0, 3, 4), (2, 0, 4)):
        empty = torch.zeros(shape[0], 3, *shape[1:], requires_grad=True)
        mask_prototype_loss(empty, torch.zeros(shape, dtype=torch.long)).mean().backward()
        assert empty.grad.shape == empty.shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_other_dtypes_and_autocast(dtype):
    features = FEATURES.to(dtype)
    expected = ours(features.double())
    value = mask_prototype_loss(features, MASKS, ignore_value=9).losses
    assert value.dtype == torch.float32
    torch.testing.assert_close(ours(features).double(), expected, rtol=1e-5, atol=0)
    gradient = step(ours, features)[1]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mask_prototype_loss(features, MASKS, ignore_value=9).losses, value)
        assert torch.equal(step(ours, features)[1], gradient)


def test_masks_are_numbered_by_image():
    slots, areas = number_masks(MASKS, 9)
    assert areas.tolist() == [[4, 3, 2], [1, 10, 0]]
    assert slots[0].tolist() == [0, 0, 1, -1, 0, 0, 1, 2, -1, -1, 1, 2]
    assert slots[1].tolist() == [1, 1, 1, 1, 1, 0, -1, 1, 1, 1, 1, 1]


# Draws.

#: The masks of one image of 8 pixels; pixel 7 is ignored.
IDS = torch.tensor([0, 0, 0, 0, 1, 1, 2, 9])
AREAS = torch.tensor([4, 4, 4, 4, 2, 2, 1], dtype=torch.float64)


def many(number, ids=IDS):
    """Return an image repeated, each copy with other ids."""
    copies = ids.expand(number, 1, -1)
    return torch.where(copies == 9, 9, copies + 10 * (1 + torch.arange(number))[:, None, None])


def counts(drawn):
    """Return how often each of the 8 pixels was drawn, for the pixels that are not ignored."""
    found = torch.bincount(drawn % 8, minlength=8)
    assert found[7] == 0
    return found[:7].tolist()


@pytest.mark.parametrize("exponent", [-0.6, 0.0, -1.0, 0.5])
def test_the_first_pixel_has_a_share_by_area(exponent):
    drawn = draw_pixels(
        many(20_000), 1, ignore_value=9, area_exponent=exponent, generator=torch.Generator().manual_seed(1)
    )
    assert (drawn // 8).tolist() == list(range(20_000))
    weights = AREAS**exponent
    assert chisquare(counts(drawn), 20_000 * weights / weights.sum()).pvalue > 1e-4
    for wrong in {-exponent, -0.6, 0.0, -1.0, 0.5, -1.6} - {exponent}:
        weights = AREAS**wrong
        assert chisquare(counts(drawn), 20_000 * weights / weights.sum()).pvalue < 1e-9


def test_pairs_are_drawn_one_after_the_other():
    drawn = draw_pixels(many(200_000), 2, ignore_value=9, generator=torch.Generator().manual_seed(2))
    pairs = drawn.view(-1, 2) % 8
    assert (pairs[:, 0] < pairs[:, 1]).all()  # without replacement, ascending
    w = (AREAS**-0.6 / (AREAS**-0.6).sum()).tolist()
    expected = {
        (i, j): w[i] * w[j] / (1 - w[i]) + w[j] * w[i] / (1 - w[j]) for i, j in itertools.combinations(range(7), 2)
    }
    found = [int((pairs == torch.tensor(pair)).all(dim=1).sum()) for pair in expected]
    assert chisquare(found, 200_000 * torch.tensor(list(expected.values()), dtype=torch.float64)).pvalue > 1e-4
    rejective = torch.tensor([w[i] * w[j] for i, j in expected], dtype=torch.float64)  # both drawn at once
    assert chisquare(found, 200_000 * rejective / rejective.sum()).pvalue < 1e-9


def test_areas_are_of_each_image():
    """The second image has the ids of the first with other areas."""
    other = torch.tensor([0, 1, 1, 1, 1, 1, 2, 9])
    masks = torch.stack([IDS, other]).repeat(10_000, 1).view(-1, 1, 8)
    drawn = draw_pixels(masks, 1, ignore_value=9, generator=torch.Generator().manual_seed(3))
    for image, areas in ((0, AREAS), (1, torch.tensor([1, 5, 5, 5, 5, 5, 1], dtype=torch.float64))):
        weights = areas**-0.6
        assert chisquare(counts(drawn[image::2]), 10_000 * weights / weights.sum()).pvalue > 1e-4


def test_all_pixels_of_an_image_with_few():
    few = (MASKS != 9).flatten().nonzero()[:, 0]
    for number in (11, 12, 5000):
        assert torch.equal(draw_pixels(MASKS, number, ignore_value=9), few)
    assert draw_pixels(MASKS, 10, ignore_value=9).tolist()[:9] == few.tolist()[:9]  # of the first image, 9 of 9
    assert len(draw_pixels(MASKS, 10, ignore_value=9)) == 19
    assert len(draw_pixels(torch.full_like(MASKS, 9), 3, ignore_value=9)) == 0
    assert len(draw_pixels(MASKS[:0], 3)) == len(draw_pixels(MASKS[:, :0], 3)) == 0


def test_a_generator_decides():
    def draw(seed):
        return draw_pixels(many(50), 3, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
    torch.manual_seed(0)
    first, second = draw_pixels(many(50), 3), draw_pixels(many(50), 3)
    torch.manual_seed(0)
    assert torch.equal(draw_pixels(many(50), 3), first)
    assert not torch.equal(first, second)


# Errors.

GOOD = {"features": FEATURES, "masks": MASKS}
WRONG = {
    "rank of features": ({"features": FEATURES[0]}, ValueError, r"`features` to have shape \(B, D, h, w\), but got"),
    "no channel": ({"features": FEATURES[:, :0]}, ValueError, r"shape \(B, D, h, w\), but got \(2, 0, 3, 4\)"),
    "integers": ({"features": MASKS}, TypeError, r"`features` to be floating point, but got torch\.int64"),
    "rank of masks": ({"masks": MASKS[0]}, ValueError, r"`masks` to have shape \(B, h, w\), .*, but got \(3, 4\)"),
    "floating masks": ({"masks": MASKS.float()}, TypeError, r"`masks` to hold integers, but got torch\.float32"),
    "bool masks": ({"masks": MASKS > 0}, TypeError, r"`masks` to hold integers, but got torch\.bool"),
    "list": ({"masks": MASKS.tolist()}, TypeError, r"`masks` to be a torch\.Tensor, but got list"),
    "size": (
        {"masks": MASKS.repeat(1, 2, 2)},
        ValueError,
        r"size \(B, h, w\) of the features, \(2, 3, 4\), but got \(2, 6, 8\); resize masks by nearest neighbour",
    ),
    "batch": ({"masks": MASKS[:1]}, ValueError, r"\(2, 3, 4\), but got \(1, 3, 4\)"),
    "ignored": ({"ignore_value": "void"}, TypeError, "`ignore_value` to be an integer, but got 'void'"),
    "ignored number": ({"ignore_value": 255.0}, TypeError, r"`ignore_value` to be an integer, but got 255\.0"),
    "temperature": ({"temperature": 0}, ValueError, "`temperature` to be above 0, but got 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_of_the_loss(name):
    given, kind, message = WRONG[name]
    with pytest.raises(kind, match=message):
        mask_prototype_loss(**GOOD | given)


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"num_pixels": 0}, ValueError, "`num_pixels` to be at least 1, but got 0"),
        ({"num_pixels": 2.5}, TypeError, r"`num_pixels` to be an integer, but got 2\.5"),
        ({"masks": MASKS[0]}, ValueError, r"`masks` to have shape \(B, h, w\)"),
        ({"masks": MASKS.double()}, TypeError, "`masks` to hold integers"),
        ({"ignore_value": [9]}, TypeError, r"`ignore_value` to be an integer, but got \[9\]"),
        ({"area_exponent": float("nan")}, ValueError, "`area_exponent` to be a finite number, but got nan"),
        ({"generator": 3}, TypeError, r"`generator` to be a torch\.Generator or None, but got int"),
    ],
)
def test_wrong_arguments_of_the_draw(given, kind, message):
    with pytest.raises(kind, match=message):
        draw_pixels(**{"masks": MASKS, "num_pixels": 3} | given)


PROBE = """
import json, re, sys
from pathlib import Path
import torch
from pml_supcon.losses import MaskPrototypeLoss, PixelSupConLoss, SupConLossOut

def resident(what):
    return 1024 * int(re.search(what + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def peak(loss, side):
    features, masks = torch.randn(4, 16, side, side, requires_grad=True), torch.randint(8, (4, side, side))
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    loss(features, masks).backward()
    return resident("VmHWM") - before

losses = {
    "prototypes": MaskPrototypeLoss(),
    "pixels": PixelSupConLoss(SupConLossOut(), num_pixels=10_000, by="class"),
}
torch.set_num_threads(1)
peaks = {}
for name, loss in losses.items():
    peak(loss, 8)  # a first step loads modules
    peaks[name] = [peak(loss, side) for side in (32, 64)]
print(json.dumps(peaks))
"""


@pytest.mark.slow
def test_memory_is_linear_in_the_pixels():
    """Four images of 64 x 64 pixels are 16,384 rows: one float32 matrix of all pairs would take 1,074 MB."""
    for small, large in measured(PROBE).values():
        assert large < 60e6
        assert large - small < 8 * max(small, 4e6)
