"""AutoAugment and RandAugment on batches against torchvision's transforms, which take one image at a time."""

from collections import Counter

import pytest
import torch
from torchvision.transforms import v2

from pml_supcon.views.policies import (
    AUTO_BINS,
    RAND_BINS,
    RAND_OPERATIONS,
    SIGNED,
    Operation,
    auto_augment,
    magnitude_of,
    rand_augment,
)

POLICIES = ("cifar10", "imagenet", "svhn")
#: torchvision's table of strengths and its dispatch, which are private.
THEIRS = v2.RandAugment._AUGMENTATION_SPACE | v2.AutoAugment._AUGMENTATION_SPACE


def torchvision_result(image, name, magnitude):
    transform = v2.AutoAugment()
    return transform._apply_image_or_video_transform(image, name, magnitude, transform.interpolation, transform._fill)


def images(number, channels, side=11):
    smooth = torch.nn.functional.interpolate(torch.rand(number, channels, 5, 5), size=(side, side), mode="bilinear")
    pictures = (smooth * 200 + 20).byte()
    pictures[0] = 77  # one colour: nothing to equalise or stretch
    return pictures


def test_strengths_equal_torchvisions():
    for bins in (AUTO_BINS, RAND_BINS):
        for side in (8, 32, 33, 224):
            for name, (strengths, signed) in THEIRS.items():
                assert (name in SIGNED) == signed
                expected = strengths(bins, side, side)
                for level in range(bins):
                    wanted = 0.0 if expected is None else float(expected[level])
                    assert magnitude_of(name, level, bins, side) == wanted, (name, level)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", list(THEIRS))
def test_operations_on_batches_equal_torchvision_on_single_images(name, channels):
    given = images(4, channels)
    for level in range(0, RAND_BINS, 3):
        for sign in (1, -1) if name in SIGNED else (1,):
            magnitude = sign * magnitude_of(name, level, RAND_BINS, 11)
            expected = torch.stack([torchvision_result(image, name, magnitude) for image in given])
            done = Operation(name, magnitude)(given)
            assert done.dtype == torch.uint8
            assert torch.equal(done, expected), (name, magnitude)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", POLICIES)
def test_each_image_gets_the_operations_that_it_drew(name, channels):
    augment, given = auto_augment(name, 11), images(60, channels)
    before = given.clone()
    torch.manual_seed(3)
    drawn = augment.draw(60)
    torch.manual_seed(3)
    done = augment(given)
    for i in range(60):
        expected = given[i]
        for turn in range(2):
            operation = augment.operations[drawn[turn, i]]
            expected = torchvision_result(expected, operation.name, operation.magnitude)
        assert torch.equal(done[i], expected)
    assert torch.equal(given, before)


@pytest.mark.parametrize("name", POLICIES)
def test_auto_augment_draws_as_the_policy_says(name):
    """The frequency of each pair of operations equals its probability in torchvision's table."""
    number, augment = 200_000, auto_augment(name, 331)
    policies = v2.AutoAugment(v2.AutoAugmentPolicy(name))._policies
    wanted = Counter()
    for pair in policies:
        outcomes = []
        for operation, probability, level in pair:
            strength = THEIRS[operation][0](10, 331, 331)
            magnitude = 0.0 if strength is None else float(strength[level])
            signs = (1, -1) if THEIRS[operation][1] and magnitude else (1,)
            drawn = [((operation, sign * magnitude), probability / len(signs)) for sign in signs]
            outcomes.append([(("Identity", 0.0), 1 - probability), *drawn])
        for first, p in outcomes[0]:
            for second, q in outcomes[1]:
                wanted[first, second] += p * q / 25
    kinds = [(operation.name, operation.magnitude or 0.0) for operation in augment.operations]  # -0.0 becomes 0.0
    pairs, counts = augment.draw(number).unique(dim=1, return_counts=True)
    found = Counter()
    for (first, second), count in zip(pairs.T.tolist(), counts.tolist(), strict=True):
        found[kinds[first], kinds[second]] += count
    assert set(found) <= {pair for pair, share in wanted.items() if share > 0}
    for pair, share in wanted.items():
        assert found[pair] / number == pytest.approx(share, abs=5 * (share / number) ** 0.5 + 1e-9), pair


def test_rand_augment_draws_all_operations_equally_often_and_separately_in_each_round():
    augment = rand_augment(2, 9, 32)
    drawn = augment.draw(100_000)
    names = [operation.name for operation in augment.operations]
    for in_round in drawn:
        share = Counter()
        for name, count in zip(names, in_round.bincount(minlength=len(names)).tolist(), strict=True):
            share[name] += count / 100_000
        assert set(share) == set(RAND_OPERATIONS)
        assert list(share.values()) == pytest.approx([1 / 14] * 14, abs=0.005)
    rotations = [number for number, name in enumerate(names) if name == "Rotate"]
    assert sorted(augment.operations[number].magnitude for number in rotations) == pytest.approx([-9, 9])
    both = ((drawn[0] == rotations[0]) & (drawn[1] == rotations[1])).double().mean().item()
    assert both == pytest.approx(1 / 28**2, rel=0.35)  # the signs are equally frequent, the rounds independent
