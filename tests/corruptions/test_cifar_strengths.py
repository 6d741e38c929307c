"""The strengths for 32 pixels against formulae written out, with the constants of CIFAR-10-C."""

import colorsys
import importlib.resources
import io
import itertools

import imagecorruptions
import numpy as np
import pytest
import torch
from helpers.pictures import colour_batch
from PIL import Image
from scipy.ndimage import correlate

from pml_supcon.corruptions import CORRUPTIONS, Corruption, cifar_c

SIZES = ((32, 32), (90, 700), (700, 90))

# From hendrycks/robustness at commit ca36008, ImageNet-C/create_c/make_cifar_c.py, the tuples `c`. Of zoom blur the
# ends of `np.arange(1, end, 0.01)`; of the elastic transform the factors of IMSIZE.
CONSTANTS = {
    "gaussian_noise": [(0.04,), (0.06,), (0.08,), (0.09,), (0.10,)],
    "shot_noise": [(500,), (250,), (100,), (75,), (50,)],
    "impulse_noise": [(0.01,), (0.02,), (0.03,), (0.05,), (0.07,)],
    "defocus_blur": [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
    "glass_blur": [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)],
    "motion_blur": [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],
    "zoom_blur": [(1.06,), (1.11,), (1.16,), (1.21,), (1.26,)],
    "snow": [
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ],
    "frost": [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)],
    "fog": [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)],
    "brightness": [(0.05,), (0.1,), (0.15,), (0.2,), (0.3,)],
    "contrast": [(0.75,), (0.5,), (0.4,), (0.3,), (0.15,)],
    "elastic_transform": [(0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)],
    "pixelate": [(0.95,), (0.9,), (0.85,), (0.75,), (0.65,)],
    "jpeg_compression": [(80,), (65,), (58,), (50,), (40,)],
}


def test_all_constants_are_those_of_cifar_10_c():
    assert {name: list(strengths) for name, (_, strengths) in cifar_c._TABLE.items()} == CONSTANTS
    assert tuple(CONSTANTS) == CORRUPTIONS
    for name, (function, _) in cifar_c._TABLE.items():
        assert function.__name__ == f"_{name}"


def corrupted(name, severity, images):
    return Corruption(name, severity, strengths="32")(images, range(len(images)))


def flat(value, count=8, channels=3, side=32):
    return torch.full((count, channels, side, side), value, dtype=torch.uint8)


@pytest.mark.parametrize(("severity", "deviation"), list(enumerate([0.04, 0.06, 0.08, 0.09, 0.10], 1)))
def test_gaussian_noise(severity, deviation):
    found = corrupted("gaussian_noise", severity, flat(128)).double()
    assert found.std() == pytest.approx(255 * deviation, rel=0.02)
    assert found.mean() == pytest.approx(127.5, abs=0.6)  # cut to whole numbers
    channels = found.permute(1, 0, 2, 3).flatten(1)
    assert (torch.corrcoef(channels) - torch.eye(3)).abs().max() < 0.05


@pytest.mark.parametrize(("severity", "photons"), list(enumerate([500, 250, 100, 75, 50], 1)))
@pytest.mark.parametrize("level", [51, 102])
def test_shot_noise(severity, photons, level):
    found = corrupted("shot_noise", severity, flat(level, 16)).double() / 255
    assert found.mean() == pytest.approx(level / 255, abs=3e-3)
    assert found.var() == pytest.approx(level / 255 / photons, rel=0.1)  # cut to whole numbers


@pytest.mark.parametrize(("severity", "share"), list(enumerate([0.01, 0.02, 0.03, 0.05, 0.07], 1)))
def test_impulse_noise(severity, share):
    found = corrupted("impulse_noise", severity, flat(100, 40))
    values = {
        int(value): int(count) / found.numel() for value, count in zip(*found.unique(return_counts=True), strict=True)
    }
    assert set(values) == {0, 100, 255}
    assert values[0] == pytest.approx(share / 2, rel=0.1)
    assert values[255] == pytest.approx(share / 2, rel=0.1)


def test_defocus_blur_is_the_mean_of_a_plus():
    """Radius 1 on whole pixels, with an anti-alias blur of deviation 0.2, whose neighbours weigh 4e-6."""
    plus = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]]) / 5
    images = colour_batch(4)
    expected = correlate(images.double().numpy(), plus[None, None], mode="mirror")
    assert np.abs(corrupted("defocus_blur", 4, images).numpy() - expected).max() <= 1 + 1e-9


@pytest.mark.parametrize(("severity", "factor"), list(enumerate([0.75, 0.5, 0.4, 0.3, 0.15], 1)))
def test_contrast(severity, factor):
    images = colour_batch(4)
    found = corrupted("contrast", severity, images)
    for image, made in zip(images.double(), found, strict=True):
        for channel, result in zip(image, made, strict=True):
            expected = channel.mean() + factor * (channel - channel.mean())
            cut = expected - result  # to whole numbers, not rounded
            assert cut.min() > -1e-9
            assert 0.3 < cut.max() < 1 + 1e-9


@pytest.mark.parametrize(("severity", "added"), list(enumerate([0.05, 0.1, 0.15, 0.2, 0.3], 1)))
def test_brightness(severity, added):
    images = colour_batch(2)
    images[0, :, :4, :4] = 0  # black has no hue
    images[1, 0, :8, :8] = 255
    found = corrupted("brightness", severity, images)
    for n, y, x in itertools.product(range(2), range(32), range(32)):
        hue, saturation, value = colorsys.rgb_to_hsv(*(images[n, :, y, x].double() / 255).tolist())
        expected = 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, min(value + added, 1)))
        assert np.abs(found[n, :, y, x].numpy() - expected).max() <= 1


@pytest.mark.parametrize(("severity", "small"), list(enumerate([30, 28, 27, 24, 20], 1)))
def test_pixelate_goes_by_areas_down_and_up(severity, small):
    images = colour_batch(3)
    found = corrupted("pixelate", severity, images).permute(0, 2, 3, 1).numpy()
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    boxed = [picture.resize((small, small), Image.BOX).resize((32, 32), Image.BOX) for picture in pictures]
    assert np.array_equal(found, np.stack(boxed))


@pytest.mark.parametrize(("severity", "quality"), list(enumerate([80, 65, 58, 50, 40], 1)))
def test_jpeg_compression(severity, quality):
    images = colour_batch(3)
    for image, made in zip(images, corrupted("jpeg_compression", severity, images), strict=True):
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality)
        assert np.array_equal(np.asarray(Image.open(file)), made.permute(1, 2, 0).numpy())


@pytest.mark.parametrize(("severity", "added"), list(enumerate([0.2, 0.5, 0.75, 1.0, 1.5], 1)))
def test_fog_on_a_flat_image_spans_what_its_formula_does(severity, added):
    """With x + a h scaled by x / (x + a), and heights h from 0 to 1, the values go from x^2 / (x + a) to x."""
    found = corrupted("fog", severity, flat(200, 2))
    level = 200 / 255
    assert int(found.max()) in (199, 200)
    assert int(found.min()) == int(255 * level * level / (level + added))


@pytest.mark.parametrize(("severity", "added"), list(enumerate([0.2, 0.3, 0.4, 0.4, 0.45], 1)))
def test_frost_adds_a_part_of_a_picture(severity, added):
    found = corrupted("frost", severity, flat(0, 32))
    assert int(found.max()) <= 255 * added
    assert found.double().mean() > 0.2 * 255 * added
    kept = [1, 1, 0.9, 0.85, 0.75][severity - 1]
    more = corrupted("frost", severity, flat(40, 32)).double() - found.double()
    assert (more - 40 * kept).abs().max() <= 1


@pytest.mark.parametrize("severity", [1, 5])
def test_fog_has_the_clouds_of_its_decay(severity):
    added, decay = CONSTANTS["fog"][severity - 1]
    image = colour_batch(1)
    np.random.seed(np.random.SeedSequence((0, CORRUPTIONS.index("fog"), severity, 0)).generate_state(4))
    heights = imagecorruptions.corruptions.plasma_fractal(mapsize=32, wibbledecay=decay)
    pixels = image[0].permute(1, 2, 0).numpy() / 255
    expected = 255 * ((pixels + added * heights[..., None]) * pixels.max() / (pixels.max() + added)).clip(0, 1)
    cut = expected - corrupted("fog", severity, image)[0].permute(1, 2, 0).numpy()
    assert cut.min() > -1e-3
    assert cut.max() < 1 + 1e-3


def test_frost_is_blue_and_a_fifth_of_its_pictures():
    """On black it is the picture alone, and no picture of frost has more red than blue."""
    blue_over_red = [(made[2] - made[0]).mean() for made in corrupted("frost", 5, flat(0, 64)).double()]
    assert min(blue_over_red) >= 0
    assert max(blue_over_red) > 5
    folder = importlib.resources.files("imagecorruptions") / "frost"
    names = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
    for name, picture in zip(names, cifar_c._frost_pictures(32, 32), strict=True):
        with Image.open(io.BytesIO((folder / name).read_bytes())) as opened:
            expected = np.asarray(opened.convert("RGB"))
        assert picture.shape[:2] == pytest.approx(np.array(expected.shape[:2]) / 5, abs=1)
        assert picture.mean((0, 1)) == pytest.approx(expected.mean((0, 1)), abs=2)


def roughness(images):
    """Mean square difference of neighbours, one above the other and side by side."""
    return [float(images.double().diff(dim=axis).square().mean()) for axis in (2, 3)]


@pytest.mark.parametrize("severity", [1, 5])
def test_snow_falls_and_motion_goes_sideways(severity):
    """Flakes fly at 45 to 135 degrees, and are smooth along their way; motion blur goes at most 45 off the level."""
    above, beside = roughness(corrupted("snow", severity, flat(60, 64)))
    assert above < 0.7 * beside
    noise = torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    above, beside = roughness(corrupted("motion_blur", severity, noise))
    assert beside < 0.7 * above


FLAT = ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "contrast"]
FLAT += ["elastic_transform", "pixelate", "jpeg_compression"]


@pytest.mark.parametrize("name", FLAT)
def test_a_flat_image_stays(name):
    for severity in (1, 5):
        for level in (0, 77, 255) if name in FLAT[:5] else (77,):
            assert (corrupted(name, severity, flat(level, 2)).int() - level).abs().max() <= 1


@pytest.mark.parametrize(("severity", "most"), [(1, 0.08), (5, 0.03)])
def test_elastic_transform_moves_by_a_few_pixels(severity, most):
    """A bright spot in the middle stays within what the constants allow: the affine map there, then the field."""
    images = flat(0, 64)
    images[:, :, 15:18, 15:18] = 255
    found = corrupted("elastic_transform", severity, images).double().sum(1)
    rows = torch.arange(32.0, dtype=torch.float64)
    centres = torch.stack([(found.sum(2) * rows).sum(1), (found.sum(1) * rows).sum(1)]) / found.sum((1, 2))
    moved = (centres - 16).abs()
    assert moved.max() < 32 * (most + 0.1 * (severity == 5))
    assert moved.mean() > 0.2


def test_glass_blur_only_moves_pixels_at_severity_1():
    """Its Gaussian has a deviation of 0.05 pixels: every value comes from a pixel nearby, with all its channels."""
    images = colour_batch(2)
    found = corrupted("glass_blur", 1, images).int()
    assert not torch.equal(found, images.int())
    for image, made in zip(images.int(), found, strict=True):
        source = image.flatten(1).T
        nearest = (made.flatten(1).T[:, None] - source[None]).abs().amax(2).amin(1)
        assert nearest.max() <= 2  # cut twice
        places = [
            (made[:, y, x, None, None] - image[:, y - 2 : y + 2, x - 2 : x + 2]).abs().amax(0).min()
            for y in range(3, 29)
            for x in range(3, 29)
        ]
        assert sum(int(place) <= 2 for place in places) > 0.9 * len(places)


@pytest.mark.parametrize("severity", [1, 5])
def test_snow_whitens_and_falls(severity):
    kept = [0.95, 0.9, 0.9, 0.85, 0.8][severity - 1]
    found = corrupted("snow", severity, flat(60, 16)).double()
    whitened = kept * 60 + (1 - kept) * (1.5 * 60 + 127.5)
    assert found.min() >= int(whitened) - 1
    assert found.min() <= whitened + 1.5  # somewhere no flake
    assert (found[:, 0] == found[:, 2]).all()
    flakes = found[:, 0] - whitened
    turned = flakes.flip((1, 2))  # the layer is added once more, turned by 180 degrees
    assert (flakes - turned).abs().max() <= 1


def test_frost_covers_images_that_its_pictures_do_not():
    images = torch.zeros(6, 3, 90, 700, dtype=torch.uint8)
    found = corrupted("frost", 1, images)
    assert found.shape == images.shape
    assert (found.double().mean((1, 2)).amin(1) > 0).all()
    widths = [cifar_c._frost_pictures(*size)[0].shape[1] / cifar_c._frost_pictures(*size)[0].shape[0] for size in SIZES]
    assert widths == pytest.approx([widths[0]] * 3, rel=0.02)  # none is stretched
