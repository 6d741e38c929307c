"""`augmentation`: every name on every kind of input, by family and size."""

import pickle

import pytest
import torch
from torchvision.transforms.v2 import functional as VF

from pml_supcon.views import AUGMENTATIONS, MultiView, augmentation
from pml_supcon.views.steps import GaussianBlur

RANDOM = [name for name in AUGMENTATIONS if name != "none"]


def plain(channels):
    return {"mean": [0.0] * channels, "std": [1.0] * channels}


def pictures(number, channels, side):
    """Return smooth random uint8 images, which equalising or solarising does not erase."""
    coarse = torch.rand(number, channels, 4, 4)
    images = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    return (images * 255).byte()


@pytest.mark.parametrize("side", [8, 224])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_kind_of_input(name, channels, side):
    images = pictures(2, channels, side)
    floats = images.float() / 255
    before = images.clone()
    mean, std = [0.4, 0.5, 0.6][:channels], [0.25, 0.3, 0.2][:channels]
    low = (0 - torch.tensor(mean)) / torch.tensor(std) - 1e-4
    high = (1 - torch.tensor(mean)) / torch.tensor(std) + 1e-4
    for family in ("natural", "digits"):
        transform = augmentation(name, side, mean=mean, std=std, family=family)
        one = (images[0], floats[0], floats[0].double(), VF.to_pil_image(images[1]))
        for given in (images, floats, images[:0], *one):
            result = transform(given)
            batch = given.shape[:-3] if isinstance(given, torch.Tensor) else ()
            assert (result.dtype, result.shape) == (torch.float32, (*batch, channels, side, side))
            assert ((result.movedim(-3, -1) >= low) & (result.movedim(-3, -1) <= high)).all()  # finite and normalised
    assert torch.equal(images, before)
    assert torch.equal(floats, before.float() / 255)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_larger_smaller_and_oblong_images_become_squares(name):
    transform = augmentation(name, 16, **plain(3))
    for image in (pictures(1, 3, 60)[0, :, :, :41], pictures(1, 3, 12)[0, :, :9]):
        assert transform(image).shape == (3, 16, 16)
        assert transform(image.expand(3, *image.shape)).shape == (3, 3, 16, 16)
    assert MultiView(transform, 5)(VF.to_pil_image(image)).shape == (5, 3, 16, 16)


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("layout", ["one", "batch"])
def test_torch_seed_determines_the_draws_also_of_a_pickled_copy(name, layout):
    images, transform = pictures(300, 3, 16), augmentation(name, 16, **plain(3))
    images = images if layout == "batch" else images[0]
    torch.manual_seed(5)
    first, second = transform(images), transform(images)
    torch.manual_seed(5)
    assert torch.equal(pickle.loads(pickle.dumps(transform))(images), first)  # as in the workers of a loader
    assert torch.equal(first, second) == (name == "none")


@pytest.mark.parametrize("name", RANDOM)
def test_each_image_of_a_batch_draws_parameters(name):
    image = (torch.rand(1, 3, 16, 16) * 255).byte().expand(400, 3, 16, 16)
    result = augmentation(name, 16, **plain(3))(image).flatten(1)
    assert len(result.unique(dim=0)) > 390


@pytest.mark.parametrize("name", ["simclr", "simaugment", "autoaugment", "randaugment", "stacked_randaugment"])
def test_the_family_sets_flip_crop_and_hue(name):
    natural, digits = (augmentation(name, 32, **plain(3), family=family) for family in ("natural", "digits"))
    crops = [transform._all.steps[0] for transform in (natural, digits)]
    assert [crop.flip for crop in crops] == [True, False]
    assert [crop.scale[0] for crop in crops] == [0.2, 0.6]
    for transform, crop in zip((natural, digits), crops, strict=True):
        assert transform._crop_one.batch is crop
    hues = [[s.strengths[3] for s in t._all.steps if hasattr(s, "strengths")] for t in (natural, digits)]
    has_jitter = name in ("simclr", "simaugment", "stacked_randaugment")
    assert hues == ([[0.1], [0.0]] if has_jitter else [[], []])


def test_order_of_the_steps():
    kinds = [type(step).__name__ for step in augmentation("simaugment", 224, **plain(3))._all.steps]
    assert kinds == ["CropAndFlip", "ColourJitter", "SmoothWarp", "GaussianBlur", "Normalise"]
    stacked = augmentation("stacked_randaugment", 32, **plain(3))
    assert stacked._policy is not None  # before `_finish`
    assert [type(step).__name__ for step in stacked._finish.steps] == ["ColourJitter", "Normalise"]


def test_blur_scales_with_the_size():
    def blur(side):
        steps = augmentation("simaugment", side, **plain(3))._all.steps
        return [step for step in steps if isinstance(step, GaussianBlur)]

    assert blur(8) == blur(32) == []
    assert blur(224) == [GaussianBlur(0.5, (0.1, 2.0), radius=11)]
    (middle,) = blur(112)
    assert middle.sigma == pytest.approx((0.05, 1.0))
    assert middle.radius == 5


def test_policies_depend_on_the_size_and_the_family():
    def operations(name, side, family="natural"):
        return augmentation(name, side, **plain(3), family=family)._policy.operations

    def names(*arguments):
        return {operation.name for operation in operations("autoaugment", *arguments)}

    assert "ShearX" not in names(32)  # CIFAR-10's policy shears along y alone, ImageNet's along x alone
    assert "ShearY" in names(64)
    assert "ShearX" in names(224)
    assert "ShearY" not in names(224)
    assert {"ShearX", "ShearY"} <= names(8, "digits")  # SVHN's
    turns = [
        max(operation.magnitude for operation in operations("randaugment", side) if operation.name == "Rotate")
        for side in (32, 64, 65, 224)
    ]
    assert turns == pytest.approx([5, 5, 9, 9])


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"`name` to be one of .*'none', 'simclr', .*did you mean 'simclr'"):
        augmentation("simlcr", 8, **plain(3))
    with pytest.raises(ValueError, match=r"`family` to be one of \['natural', 'digits'\], but got 'letters'"):
        augmentation("simclr", 8, **plain(3), family="letters")
    for name in AUGMENTATIONS:
        with pytest.raises(ValueError, match="`image_size` to be at least 1, but got 0"):
            augmentation(name, 0, **plain(3))
        with pytest.raises(ValueError, match="one entry per channel, but got 3 and 1"):
            augmentation(name, 8, mean=[0.5] * 3, std=[1.0])
    for name in RANDOM:
        with pytest.raises(ValueError, match="1 or 3 entries, but got 2"):
            augmentation(name, 8, **plain(2))
