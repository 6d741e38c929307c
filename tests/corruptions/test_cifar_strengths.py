"""The strengths for 32 pixels beside formulae written out, with the constants of CIFAR-10-C."""

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

# The tuples `c` of hendrycks/robustness at commit ca36008, ImageNet-C/create_c/make_cifar_c.py. For zoom blur: `end` of
# `np.arange(1, end, 0.01)`; for the elastic transform: the factors of IMSIZE.
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


def test_all_constants_equal_the_script_of_cifar_10_c():
    assert {name: list(strengths) for name, (_, strengths) in cifar_c._TABLE.items()} == CONSTANTS
    assert tuple(CONSTANTS) == CORRUPTIONS
    for name, (function, _) in cifar_c._TABLE.items():
        assert function.__name__ == f"_{name}"


def corrupted(name, severity, images):
    return Corruption(name, severity, strengths="32")(images, range(len(images)))


def flat(value, count=8, channels=3, side=32):
    return torch.full((count, channels, side, side), value, dtype=torch.uint8)


def levels_of(name):
    """Parametrise a test by the severities 1 and 5 and their constants."""
    return pytest.mark.parametrize(("severity", "constants"), [(1, CONSTANTS[name][0]), (5, CONSTANTS[name][4])])


@levels_of("gaussian_noise")
def test_gaussian_noise(severity, constants):
    (deviation,) = constants
    found = corrupted("gaussian_noise", severity, flat(128)).double()
    assert found.std() == pytest.approx(255 * deviation, rel=0.02)
    assert found.mean() == pytest.approx(127.5, abs=0.6)  # truncated
    channels = found.permute(1, 0, 2, 3).flatten(1)
    assert (torch.corrcoef(channels) - torch.eye(3)).abs().max() < 0.05


@levels_of("shot_noise")
def test_shot_noise(severity, constants):
    for level in (51, 102):
        found = corrupted("shot_noise", severity, flat(level, 16)).double() / 255
        assert found.mean() == pytest.approx(level / 255, abs=3e-3)
        assert found.var() == pytest.approx(level / 255 / constants[0], rel=0.1)


@levels_of("impulse_noise")
def test_impulse_noise(severity, constants):
    values, counts = corrupted("impulse_noise", severity, flat(100, 40)).unique(return_counts=True)
    assert values.tolist() == [0, 100, 255]
    assert (counts / counts.sum())[[0, 2]].tolist() == pytest.approx([constants[0] / 2] * 2, rel=0.1)


def test_defocus_blur_is_the_mean_of_a_plus():
    """The disk has radius 1 in whole pixels; its anti-aliasing, of deviation 0.2, gives neighbours a weight of 4e-6."""
    plus = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]]) / 5
    images = colour_batch(4)
    expected = correlate(images.double().numpy(), plus[None, None], mode="mirror")
    assert np.abs(corrupted("defocus_blur", 4, images).numpy() - expected).max() <= 1 + 1e-9


@levels_of("contrast")
def test_contrast(severity, constants):
    images = colour_batch(4).double()
    means = images.mean((2, 3), keepdim=True)
    cut = means + constants[0] * (images - means) - corrupted("contrast", severity, images.byte())
    assert cut.min() > -1e-9
    assert (cut.amax((2, 3)) > 0.3).all()  # truncated to whole numbers, not rounded
    assert cut.max() < 1 + 1e-9


@levels_of("brightness")
def test_brightness(severity, constants):
    images = colour_batch(2)
    images[0, :, :4, :4] = 0  # black has no hue
    images[1, 0, :8, :8] = 255
    found = corrupted("brightness", severity, images)
    for n, y, x in itertools.product(range(2), range(32), range(32)):
        hue, saturation, value = colorsys.rgb_to_hsv(*(images[n, :, y, x].double() / 255).tolist())
        expected = 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, min(value + constants[0], 1)))
        assert np.abs(found[n, :, y, x].numpy() - expected).max() <= 1


def test_pixelate_resizes_by_areas():
    image = colour_batch(1)
    picture = Image.fromarray(image[0].permute(1, 2, 0).numpy())
    for severity, small in enumerate([30, 28, 27, 24, 20], 1):
        found = corrupted("pixelate", severity, image)[0].permute(1, 2, 0).numpy()
        boxed = picture.resize((small, small), Image.BOX).resize((32, 32), Image.BOX)
        assert np.array_equal(found, np.asarray(boxed))


@levels_of("jpeg_compression")
def test_jpeg_compression(severity, constants):
    image, file = colour_batch(1), io.BytesIO()
    Image.fromarray(image[0].permute(1, 2, 0).numpy()).save(file, "JPEG", quality=constants[0])
    found = corrupted("jpeg_compression", severity, image)[0].permute(1, 2, 0).numpy()
    assert np.array_equal(np.asarray(Image.open(file)), found)


@levels_of("frost")
def test_frost_adds_a_part_of_a_picture(severity, constants):
    kept, added = constants
    found = corrupted("frost", severity, flat(0, 32))
    assert int(found.max()) <= 255 * added
    assert found.double().mean() > 0.2 * 255 * added
    more = corrupted("frost", severity, flat(40, 32)).double() - found.double()
    assert (more - 40 * kept).abs().max() <= 1


@levels_of("fog")
def test_fog_adds_the_fractal_of_its_decay(severity, constants):
    added, decay = constants
    image = colour_batch(1)
    np.random.seed(np.random.SeedSequence((0, CORRUPTIONS.index("fog"), severity, 0)).generate_state(4))
    heights = imagecorruptions.corruptions.plasma_fractal(mapsize=32, wibbledecay=decay)
    pixels = image[0].permute(1, 2, 0).numpy() / 255
    expected = 255 * ((pixels + added * heights[..., None]) * pixels.max() / (pixels.max() + added)).clip(0, 1)
    cut = expected - corrupted("fog", severity, image)[0].permute(1, 2, 0).numpy()
    assert cut.min() > -1e-3
    assert cut.max() < 1 + 1e-3


def test_the_pictures_of_frost_are_resized_to_a_fifth():
    folder = importlib.resources.files("imagecorruptions") / "frost"
    names = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
    for name, picture in zip(names, cifar_c._frost_pictures(32, 32), strict=True):
        with Image.open(io.BytesIO((folder / name).read_bytes())) as opened:
            expected = np.asarray(opened.convert("RGB"))
        assert picture.shape[:2] == pytest.approx(np.array(expected.shape[:2]) / 5, abs=1)
        assert picture.mean((0, 1)) == pytest.approx(expected.mean((0, 1)), abs=2)  # in RGB


def roughness(images):
    """Return the mean square difference of vertical and of horizontal neighbours."""
    return [float(images.double().diff(dim=axis).square().mean()) for axis in (2, 3)]


@pytest.mark.parametrize("severity", [1, 5])
def test_snow_falls_and_motion_goes_sideways(severity):
    """Flakes fly within 45 degrees of the vertical; motion blur is within 45 degrees of the horizontal."""
    above, beside = roughness(corrupted("snow", severity, flat(60, 64)))
    assert above < 0.7 * beside
    noise = torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    above, beside = roughness(corrupted("motion_blur", severity, noise))
    assert beside < 0.7 * above


FLAT = ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "contrast"]
FLAT += ["elastic_transform", "pixelate", "jpeg_compression"]


@pytest.mark.parametrize("name", FLAT)
def test_a_flat_image_does_not_change(name):
    for severity in (1, 5):
        for level in (0, 77, 255) if name in FLAT[:5] else (77,):
            assert (corrupted(name, severity, flat(level, 2)).int() - level).abs().max() <= 1


@pytest.mark.parametrize(("severity", "most"), [(1, 0.08), (5, 0.03)])
def test_elastic_transform_moves_by_a_few_pixels(severity, most):
    """The centre of a bright spot moves at most by the affine map and the field."""
    images = flat(0, 64)
    images[:, :, 15:18, 15:18] = 255
    found = corrupted("elastic_transform", severity, images).double().sum(1)
    rows = torch.arange(32.0, dtype=torch.float64)
    centres = torch.stack([(found.sum(2) * rows).sum(1), (found.sum(1) * rows).sum(1)]) / found.sum((1, 2))
    moved = (centres - 16).abs()
    assert moved.max() < 32 * (most + 0.1 * (severity == 5))
    assert moved.mean() > 0.2


def test_glass_blur_only_moves_pixels_at_severity_1():
    """Its Gaussian has a deviation of 0.05 pixels: each pixel has the three channels of another one nearby."""
    images = colour_batch(2)
    found = corrupted("glass_blur", 1, images).int()
    assert not torch.equal(found, images.int())
    for image, blurred in zip(images.int(), found, strict=True):
        errors = [
            (blurred[:, y, x, None, None] - image[:, y - 2 : y + 2, x - 2 : x + 2]).abs().amax(0).min()
            for y, x in itertools.product(range(3, 29), repeat=2)
        ]
        assert sum(int(error) <= 2 for error in errors) > 0.9 * len(errors)  # truncated twice


@levels_of("snow")
def test_snow_whitens_and_is_added_with_its_rotation(severity, constants):
    kept = constants[-1]
    found = corrupted("snow", severity, flat(60, 16)).double()
    whitened = kept * 60 + (1 - kept) * (1.5 * 60 + 127.5)
    assert found.min() >= int(whitened) - 1
    assert found.min() <= whitened + 1.5  # a pixel without a flake
    assert (found[:, 0] == found[:, 2]).all()
    flakes = found[:, 0] - whitened
    assert (flakes - flakes.flip((1, 2))).abs().max() <= 1  # the layer is added twice, once rotated by 180 degrees


def test_frost_enlarges_pictures_that_are_smaller_than_the_image():
    images = torch.zeros(6, 3, 90, 700, dtype=torch.uint8)
    found = corrupted("frost", 1, images)
    assert found.shape == images.shape
    assert (found.double().mean((1, 2)).amin(1) > 0).all()
    shapes = [cifar_c._frost_pictures(*size)[0].shape for size in ((32, 32), (90, 700), (700, 90))]
    ratios = [shape[1] / shape[0] for shape in shapes]
    assert ratios == pytest.approx([ratios[0]] * 3, rel=0.02)  # none is stretched
