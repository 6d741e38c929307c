"""`PixelSupConLoss` and `MaskPrototypeLoss` as modules: draws and their state, queues, processes, reducers, errors."""

import copy
import io
import itertools
import pickle

import pytest
import torch
from helpers import supcon_oracle
from helpers.process_groups import run_processes
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning import reducers

from pml_supcon.functional import mask_prototype_loss, supcon_loss
from pml_supcon.losses import (
    CrossModalLoss,
    GlobalBatchLoss,
    LearnableTemperature,
    MaskPrototypeLoss,
    PixelSupConLoss,
    QueueLoss,
    SupConLossIn,
    SupConLossOut,
)
from pml_supcon.targets import Kernel

FEATURES = torch.randn(3, 4, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
MASKS = torch.randint(4, (3, 5, 6), generator=torch.Generator().manual_seed(1)) + torch.arange(3)[:, None, None]
MASKS[:, 0] = 255
MASKS[0, 1, 0] = 88  # a mask of one pixel: an anchor without a positive


def rows_of(image):
    """Return the rows and ids of all pixels of an image that are not ignored."""
    used = MASKS[image].flatten() != 255
    return FEATURES[image].flatten(1).T[used], MASKS[image].flatten()[used]


def all_pixels(loss, **options):
    return PixelSupConLoss(loss, num_pixels=30, ignore_value=255, **options)


@pytest.mark.parametrize("name", ["out", "in"])
def test_by_mask_is_the_mean_over_the_anchors_of_all_images_each_contrasted_alone(name):
    loss = {"out": SupConLossOut, "in": SupConLossIn}[name](temperature=0.2)
    parts = [
        supcon_oracle.anchor_losses(*rows_of(image), temperature=0.2, summation=name) for image in range(len(MASKS))
    ]
    value = all_pixels(loss)(FEATURES, MASKS).item()
    assert value == pytest.approx(supcon_oracle.mean(itertools.chain(*parts)), rel=1e-12)
    wrong = {
        "over the batch": all_pixels(loss, by="class")(FEATURES, MASKS).item(),
        "mean of means": sum(map(supcon_oracle.mean, parts)) / len(parts),
        "ignored pixels counted": PixelSupConLoss(loss, num_pixels=30)(FEATURES, MASKS).item(),
    }
    for mistake, other in wrong.items():
        assert abs(value - other) > 1e-7, mistake


def test_by_class_is_the_loss_over_the_batch():
    rows, labels = map(torch.cat, zip(*map(rows_of, range(len(MASKS))), strict=True))
    value = all_pixels(SupConLossOut(temperature=0.2), by="class")(FEATURES, MASKS).item()
    expected = supcon_oracle.anchor_losses(rows, labels, temperature=0.2)
    assert value == pytest.approx(supcon_oracle.mean(expected), rel=1e-12)


@pytest.mark.parametrize("by", ["mask", "class"])
def test_gradients(by):
    def loss(features):
        return PixelSupConLoss(SupConLossOut(0.5), num_pixels=6, by=by, ignore_value=255)(features, MASKS[:2, :3])

    assert torch.autograd.gradcheck(loss, FEATURES[:2, :, :3].clone().requires_grad_())


@pytest.mark.parametrize("by", ["mask", "class"])
def test_only_drawn_pixels_have_a_gradient(by):
    leaf = FEATURES.clone().requires_grad_()
    PixelSupConLoss(SupConLossOut(), num_pixels=7, by=by, ignore_value=255, seed=3)(leaf, MASKS).backward()
    touched = leaf.grad.abs().sum(dim=1) > 0
    assert touched.flatten(1).sum(dim=1).tolist() == [7, 7, 7]
    assert not touched[MASKS == 255].any()


def test_small_masks_are_drawn_more_often():
    masks = torch.zeros(1, 40, 40, dtype=torch.long)
    masks[0, :4, :4] = 1  # 1% of the pixels; 1 of 1600 ** -0.6 x 16 pixels
    for exponent, low, high in ((-0.6, 8, 12), (0.0, 0.4, 1.6)):
        loss, found = PixelSupConLoss(SupConLossOut(), num_pixels=100, area_exponent=exponent), 0
        for _ in range(50):
            leaf = torch.randn(1, 3, 40, 40).requires_grad_()
            loss(leaf, masks).backward()
            found += int((leaf.grad.abs().sum(dim=1) > 0)[masks == 1].sum())
        assert low < found / 50 < high


def test_draws_continue_after_a_resume_and_evaluation_leaves_them_alone():
    def build(seed=5):
        return PixelSupConLoss(SupConLossOut(), num_pixels=4, ignore_value=255, seed=seed)

    loss = build()
    values = [loss(FEATURES, MASKS) for _ in range(4)]
    assert len({value.item() for value in values}) == 4
    resumed = build()
    resumed(FEATURES, MASKS)
    file = io.BytesIO()
    torch.save(resumed.state_dict(), file)
    file.seek(0)
    resumed = build()
    resumed.load_state_dict(torch.load(file))
    resumed.eval()
    first = resumed(FEATURES, MASKS)
    assert resumed(FEATURES, MASKS) == first == values[1]
    resumed.train()
    assert [resumed(FEATURES, MASKS) for _ in range(3)] == values[1:]
    assert build(seed=6)(FEATURES, MASKS) != values[0]
    torch.manual_seed(0)  # PyTorch's own generator is left alone
    before = torch.get_rng_state()
    for again in (copy.deepcopy(build()), pickle.loads(pickle.dumps(build())), torch.compile(build(), backend="eager")):
        assert again(FEATURES, MASKS) == values[0]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_queue_of_pixels():
    inner = SupConLossOut(temperature=0.2)
    loss = all_pixels(QueueLoss(inner, 4, 150, dtype=torch.float64), by="class")
    rows, labels = map(torch.cat, zip(*map(rows_of, range(len(MASKS))), strict=True))
    assert loss(FEATURES, MASKS) == inner(rows, labels)
    second = loss(2 - FEATURES, MASKS)
    both = {"ref_emb": torch.cat([2 - rows, rows]), "ref_labels": labels.repeat(2), "ref_starts_with_batch": True}
    torch.testing.assert_close(second, supcon_loss(2 - rows, labels, temperature=0.2, **both).mean())
    assert loss.loss.num_filled == 2 * len(rows)
    with pytest.raises(ValueError, match="`queue_size` to be at least the 72 rows of a batch"):
        all_pixels(QueueLoss(inner, 4, 60, dtype=torch.float64), by="class")(FEATURES, MASKS)


@pytest.mark.parametrize(
    "loss",
    [
        all_pixels(SupConLossOut()),
        all_pixels(SupConLossIn(), by="class"),
        all_pixels(QueueLoss(SupConLossOut(), 4, 99, dtype=torch.float64), by="class"),
        all_pixels(GlobalBatchLoss(SupConLossOut()), by="class"),
        all_pixels(SupConLossOut(reducer=reducers.ThresholdReducer(low=0.1))),
        MaskPrototypeLoss(ignore_value=255),
        MaskPrototypeLoss(ignore_value=255, reducer=reducers.ThresholdReducer(low=0.1)),
    ],
)
def test_all_pixels_ignored_is_zero_with_a_graph(loss):
    leaf = FEATURES.clone().requires_grad_()
    value = loss(leaf, torch.full_like(MASKS, 255))
    assert value == 0
    value.backward()
    assert torch.equal(leaf.grad, torch.zeros_like(leaf))
    value = loss(leaf, torch.cat([MASKS[:1], torch.full_like(MASKS[1:], 255)]))  # an image without pixels among others
    assert value > 0


def test_reducers_get_the_anchors_of_all_images():
    each = all_pixels(SupConLossOut(reducer=reducers.DoNothingReducer()))(FEATURES, MASKS)["loss"]["losses"]
    assert len(each) == 71  # one of 72 pixels has no positive
    torch.testing.assert_close(each.mean(), all_pixels(SupConLossOut())(FEATURES, MASKS))
    low = float(each.median())
    value = all_pixels(SupConLossOut(reducer=reducers.ThresholdReducer(low=low)))(FEATURES, MASKS)
    torch.testing.assert_close(value, each[each > low].mean())

    losses, valid = mask_prototype_loss(FEATURES, MASKS, ignore_value=255)
    each = MaskPrototypeLoss(ignore_value=255, reducer=reducers.DoNothingReducer())(FEATURES, MASKS)["loss"]
    torch.testing.assert_close(each["losses"], losses[valid])
    torch.testing.assert_close(MaskPrototypeLoss(ignore_value=255)(FEATURES, MASKS), losses[valid].mean())
    weights = torch.arange(1.0, 90)
    weighted = MaskPrototypeLoss(ignore_value=255, reducer=reducers.ClassWeightedReducer(weights))(FEATURES, MASKS)
    torch.testing.assert_close(weighted, (losses[valid] * weights[MASKS[valid]]).mean())


def test_a_learnt_temperature_has_a_gradient():
    for by in ("mask", "class"):
        inner = SupConLossOut(LearnableTemperature(0.2))
        all_pixels(inner, by=by)(FEATURES.float(), MASKS).backward()
        assert inner.learnt_temperature.logarithm.grad.abs() > 1e-3


def test_masks_may_have_any_integer_dtype_and_features_any_layout():
    loss = PixelSupConLoss(SupConLossOut(), num_pixels=6, ignore_value=255, seed=1).eval()
    for features in (FEATURES, FEATURES.contiguous(memory_format=torch.channels_last)):
        for dtype in (torch.uint8, torch.int16, torch.int64):
            assert loss(features, MASKS.to(dtype)) == loss(FEATURES, MASKS)
            assert MaskPrototypeLoss()(features, MASKS.to(dtype)) == pytest.approx(
                MaskPrototypeLoss()(FEATURES, MASKS).item()
            )


WRONG = {
    "loss": (lambda: PixelSupConLoss(pml_losses.ContrastiveLoss()), TypeError, "but got ContrastiveLoss"),
    "loss of two towers": (
        lambda: PixelSupConLoss(GlobalBatchLoss(CrossModalLoss(SupConLossOut())), by="class"),
        TypeError,
        "`loss` to be a SupConLossOut or SupConLossIn, or a QueueLoss .*, but got CrossModalLoss",
    ),
    "queue by mask": (
        lambda: PixelSupConLoss(QueueLoss(SupConLossOut(), 4, 9)),
        ValueError,
        "Expected by='class' with a QueueLoss: .*, but got by='mask'",
    ),
    "processes by mask": (
        lambda: PixelSupConLoss(GlobalBatchLoss(SupConLossOut())),
        ValueError,
        "Expected by='class' with a GlobalBatchLoss",
    ),
    "views": (
        lambda: PixelSupConLoss(SupConLossOut(num_views=2)),
        ValueError,
        "Expected a loss with num_views=None for pixels, which have .*, but got num_views=2",
    ),
    "target": (lambda: PixelSupConLoss(SupConLossOut(target=Kernel(1.0))), ValueError, "a loss with target=None"),
    "first view": (
        lambda: PixelSupConLoss(QueueLoss(SupConLossOut(contrast_mode="one"), 4, 9), by="class"),
        ValueError,
        "a loss with contrast_mode='all'",
    ),
    "by": (
        lambda: PixelSupConLoss(SupConLossOut(), by="clas"),
        ValueError,
        r"`by` to be one of \['mask', 'class'\], but got 'clas'; did you mean 'class'",
    ),
    "num_pixels": (lambda: PixelSupConLoss(SupConLossOut(), num_pixels=0), ValueError, "`num_pixels` to be at least 1"),
    "ignore_value": (
        lambda: PixelSupConLoss(SupConLossOut(), ignore_value=1.5),
        TypeError,
        r"`ignore_value` to be an integer, but got 1\.5",
    ),
    "seed": (lambda: PixelSupConLoss(SupConLossOut(), seed=-1), ValueError, "`seed` to be at least 0, but got -1"),
    "size": (
        lambda: PixelSupConLoss(SupConLossOut())(FEATURES, MASKS[:, ::2]),
        ValueError,
        r"size \(B, h, w\) of the features, \(3, 5, 6\), but got \(3, 3, 6\); resize masks by nearest neighbour",
    ),
    "prototype, ignore_value": (
        lambda: MaskPrototypeLoss(ignore_value="none"),
        TypeError,
        "`ignore_value` to be an integer, but got 'none'",
    ),
    "prototype, temperature": (lambda: MaskPrototypeLoss(0.0), ValueError, "`temperature` to be above 0"),
    "prototype, reducer": (lambda: MaskPrototypeLoss(reducer="mean"), TypeError, "`reducer` to be a BaseReducer"),
    "prototype, weights": (
        lambda: MaskPrototypeLoss(reducer=reducers.ClassWeightedReducer(torch.ones(3)))(FEATURES, MASKS),
        ValueError,
        "the classes with a weight in the ClassWeightedReducer",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name):
    call, kind, message = WRONG[name]
    with pytest.raises(kind, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_masks_resized_by_nearest_neighbour_fit():
    """The remedy in the error message works."""
    large = MASKS.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    resized = torch.nn.functional.interpolate(large[:, None].double(), size=MASKS.shape[1:], mode="nearest")[:, 0]
    assert torch.equal(resized.long(), MASKS)


def work(rank):
    """Return the loss of one of two processes and its gradient; the second has one image, the first two."""
    leaf = (FEATURES[2:] if rank else FEATURES[:2]).clone().requires_grad_()
    masks = MASKS[2:] if rank else MASKS[:2]
    value = all_pixels(GlobalBatchLoss(SupConLossOut()), by="class", seed=rank)(leaf, masks)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


@pytest.mark.slow
def test_two_processes_contrast_the_pixels_of_both(tmp_path):
    leaf = FEATURES.clone().requires_grad_()
    expected = all_pixels(SupConLossOut(), by="class")(leaf, MASKS)
    (one, first), (other, second) = run_processes(work, 2, tmp_path)
    torch.testing.assert_close(torch.stack([one, other]), expected.detach().expand(2), rtol=1e-10, atol=0)
    gradient = torch.autograd.grad(expected, leaf)[0]
    torch.testing.assert_close(torch.cat([first, second]) / 2, gradient, rtol=1e-9, atol=1e-12)
