"""Views with their geometry: marked points land where the maps say, and nothing else changes."""

import pytest
import torch
from helpers.pretend_gpu import GPU, pretend_gpu
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision.transforms.v2 import functional as VF

from pml_supcon._geometry import compose_maps, invert_maps
from pml_supcon.samplers import MultiViewBatchSampler
from pml_supcon.views import (
    AUGMENTATIONS,
    BatchMix,
    ImageTransform,
    MultiView,
    MultiViewDataset,
    MultiViewTensorDataset,
    SeededDataset,
    augmentation,
    contrastive_augmentation,
    digit_augmentation,
    evaluation_transform,
    image_transform,
    map_points,
)
from pml_supcon.views.policies import GEOMETRIC, Operation, RandomOperations, rand_augment
from pml_supcon.views.steps import Affine, ColourJitter, CropAndFlip, GaussianBlur, ResizeAndCrop, SmoothWarp

GREY, RGB = {"mean": [0.0], "std": [1.0]}, {"mean": [0.5] * 3, "std": [0.25] * 3}
AFFINE = Affine(24, rotation=40, shift=0.2, scale=(0.7, 1.4), shear=25)
KNOWN = [name for name in AUGMENTATIONS if name != "simaugment"]


def ramps(number, height, width):
    """Return images ``(N, 2, height, width)`` whose channels are x and y in pixels."""
    y, x = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    return torch.stack([x, y]).expand(number, 2, height, width).contiguous()


def distances(views, maps, height, width, margin=2.0):
    """Compare the place of the image that each pixel of the views shows with the place that the maps say, in pixels."""
    pixels = ramps(1, *views.shape[-2:])[0].flatten(1).T
    told = map_points(pixels.expand(len(views), -1, -1), maps, inverse=True)
    inside = ((told > margin) & (told < torch.tensor([width, height]) - 1 - margin)).all(-1)
    assert inside.float().mean() > 0.3
    return (views.flatten(2).mT - told).norm(dim=-1)[inside]


def blobs(points, height, width, sigma=1.5):
    """Return images ``(N, 1, height, width)`` with one smooth blob each, at points ``(N, 2)``."""
    squares = (ramps(len(points), height, width) - points[:, :, None, None]).square().sum(1, keepdim=True)
    return torch.exp(-squares / (2 * sigma**2))


def centroids(views):
    """Return the centres ``(N, 2)`` of what differs from the background."""
    weights = (views.mean(1) - views.mean(1).flatten(1).median(1).values[:, None, None]).abs().flatten(1)
    weights = torch.where(weights > 0.1 * weights.max(1, keepdim=True).values, weights, 0)
    places = ramps(1, *views.shape[-2:])[0].flatten(1).T
    return weights @ places / weights.sum(1, keepdim=True)


def assert_blobs_land(transform, height, width, *, within, one_by_one=False, number=60):
    """Draw images with a blob; its centre in the view is the mapped point, where all of it is inside."""
    points = torch.rand(number, 2) * torch.tensor([width - 1.0, height - 1.0])
    images = blobs(points, height, width)
    if one_by_one:
        pairs = [transform.with_geometry(image) for image in images]
        views, maps = (torch.stack(parts) for parts in zip(*pairs, strict=True))
    else:
        views, maps = transform.with_geometry(images)
    assert maps.shape == (number, 2, 3)
    assert maps.dtype == torch.float32
    landed = map_points(points[:, None], maps)[:, 0]
    reach = 5 * maps[..., :2].flatten(1).norm(dim=1, keepdim=True)  # of the blob, in the view
    inside = ((landed > reach) & (landed < views.shape[-1] - 1 - reach)).all(1)
    assert inside.sum() > number / 12
    assert (centroids(views)[inside] - landed[inside]).norm(dim=1).max() < within


STEPS = {
    "crop and flip": (CropAndFlip(24), 40, 31),
    "crop of large images": (CropAndFlip(24, scale=(0.5, 1)), 90, 70),  # resized before it samples
    "affine": (AFFINE, 24, 24),
    "affine, not square": (AFFINE, 40, 29),
    "resize and crop": (ResizeAndCrop(24), 30, 47),
    "resize up": (ResizeAndCrop(24), 17, 13),
    "only crop": (ResizeAndCrop(24), 24, 31),
    "nothing": (ResizeAndCrop(24), 24, 24),
}
TOLERANCE = {"crop of large images": 0.35, "resize and crop": 0.2}  # antialiasing moves ramps a little


@pytest.mark.parametrize("name", STEPS)
def test_each_pixel_shows_the_place_that_the_map_of_a_step_says(name):
    step, height, width = STEPS[name]
    torch.manual_seed(0)
    views, maps = step.with_geometry(ramps(40, height, width))
    maps = maps.expand(40, 2, 3)
    assert distances(views, maps, height, width).max() < TOLERANCE.get(name, 2e-3)


#: The least share of pixels that a mistake places wrongly: of all images, or of the mirrored ones, about half.
MISTAKES = {"inverse": 0.9, "no map": 0.9, "corners": 0.2, "mirror about the side": 0.2}


@pytest.mark.parametrize("mistake", [None, *MISTAKES])
def test_a_wrong_map_is_seen(mistake):
    torch.manual_seed(0)
    views, maps = CropAndFlip(24).with_geometry(ramps(40, 40, 31))
    wrong = {
        "inverse": invert_maps(maps),
        "corners": maps + torch.cat([0 * maps[..., :2], 0.5 * (maps[..., :2].sum(-1, keepdim=True) - 1)], dim=-1),
        "no map": torch.eye(2, 3).expand(40, 2, 3),
        "mirror about the side": maps + torch.tensor([[0.0, 0, 1], [0, 0, 0]]) * (maps[:, :1, :1] < 0),
    }.get(mistake, maps)
    pixels = ramps(1, 24, 24)[0].flatten(1).T
    told = map_points(pixels.expand(40, -1, -1), wrong, inverse=True)
    share = ((views.flatten(2).mT - told).norm(dim=-1) > 0.25).float().mean()
    assert share > MISTAKES[mistake] if mistake else share < 0.01


@pytest.mark.parametrize("name", sorted(GEOMETRIC))
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 37)])
def test_operations_of_policies_move_pixels_to_the_nearest(name, sign, height, width):
    magnitude = {"Rotate": 25.0, "TranslateX": 5.7, "TranslateY": 3.2}.get(name, 0.27)
    operation = Operation(name, sign * magnitude)
    views = operation((ramps(1, height, width) * 6).byte()).float() / 6
    found = distances(views, operation.map_of(height, width)[None], height, width, margin=1)
    assert found.max() < 0.5 * 2**0.5 + 0.01
    assert found.mean() < 0.45  # rounding alone: 0.38
    assert operation.map_of(height, width).dtype == torch.float32


def test_drawn_operations_of_policies_compose():
    table = [[(name, 9, 1.0)] * 2 for name in sorted(GEOMETRIC)]
    policy, images = RandomOperations(table, bins=31, side=40, joint=False), (ramps(30, 40, 40) * 6).byte()
    torch.manual_seed(0)
    views, maps = policy.with_geometry(images)
    assert distances(views.float() / 6, maps, 40, 40, margin=8).mean() < 0.7
    torch.manual_seed(0)
    for index, pair in enumerate(policy.draw(30).T):
        first, second = (policy.operations[number].map_of(40, 40) for number in pair)
        torch.testing.assert_close(maps[index], compose_maps(second, first))


TRANSFORMS = {
    "contrastive": (contrastive_augmentation(32, **GREY, crop_scale=(0.3, 1)), 48, 40),
    "digits": (digit_augmentation(32, **GREY, rotation=30), 32, 32),
    "evaluation": (evaluation_transform(32, **GREY), 37, 50),
    "steps in a row": (
        ImageTransform(
            32,
            **GREY,
            crop=CropAndFlip(40, scale=(0.6, 1)),
            steps=[
                ColourJitter(),
                Affine(36, 20, 0.1, (0.9, 1.1), 10),
                GaussianBlur(1.0, (0.5, 1), 2),
                ResizeAndCrop(32),
            ],
        ),
        48,
        40,
    ),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("one_by_one", [False, True])
def test_blobs_land_where_the_composed_maps_say(name, one_by_one):
    transform, height, width = TRANSFORMS[name]
    torch.manual_seed(1)
    assert_blobs_land(transform, height, width, within=0.15, one_by_one=one_by_one)


def test_parts_of_a_batch_have_their_own_maps(monkeypatch):
    monkeypatch.setattr(image_transform, "PART", 7 * 32 * 32)  # 7 images at a time
    torch.manual_seed(2)
    assert_blobs_land(TRANSFORMS["digits"][0], 32, 32, within=0.15)


def test_policies_are_part_of_the_composition():
    transform = augmentation("randaugment", 32, **RGB)
    images = torch.randint(0, 256, (20, 3, 40, 36), dtype=torch.uint8)
    torch.manual_seed(0)
    _, maps = transform.with_geometry(images)
    torch.manual_seed(0)
    cropped, first = CropAndFlip(32).with_geometry(images / 255)
    _, second = rand_augment(2, 5, 32).with_geometry((cropped * 255).round().byte())
    torch.testing.assert_close(maps, compose_maps(second, first))
    assert (maps - first).abs().max() > 1


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("kind", ["batch", "parts", "tensor", "PIL image"])
def test_views_and_draws_are_the_same_as_without(name, kind, monkeypatch):
    if kind == "parts":
        monkeypatch.setattr(image_transform, "PART", 5 * 3 * 32 * 32)
    transform = augmentation(name, 32, **RGB)
    images = torch.randint(0, 256, (12, 3, 41, 36), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    given = {"tensor": images[0], "PIL image": VF.to_pil_image(images[0])}.get(kind, images)
    torch.manual_seed(3)
    plain, state = transform(given), torch.get_rng_state()
    torch.manual_seed(3)
    views, maps = transform.with_geometry(given)
    assert torch.equal(views, plain)
    assert torch.equal(torch.get_rng_state(), state)
    assert maps.shape == ((12, 2, 3) if given is images else (2, 3))
    assert maps.isfinite().all()


def test_an_empty_batch():
    views, maps = digit_augmentation(8, **GREY).with_geometry(torch.zeros(0, 1, 8, 8))
    assert (views.shape, maps.shape) == ((0, 1, 8, 8), (0, 2, 3))


POINTS = torch.rand(22, 3, 2, generator=torch.Generator().manual_seed(1)) * 15 + 8
PICTURES = blobs(POINTS[:, 0], 32, 32)
AUGMENT = digit_augmentation(32, **GREY, brightness=0, contrast=0)
PAIRS = list(zip(PICTURES, POINTS, strict=True))
DATASETS = {
    "in memory": lambda told: MultiViewTensorDataset(PICTURES, POINTS, AUGMENT, num_views=3, with_geometry=told),
    "one by one": lambda told: MultiViewDataset(PAIRS, AUGMENT, num_views=3, with_geometry=told),
    "PIL images": lambda told: MultiViewDataset(
        [(VF.to_pil_image(image), points) for image, points in PAIRS], AUGMENT, num_views=3, with_geometry=told
    ),
}


def batches(kind, told, workers=0):
    data, sampler = SeededDataset(DATASETS[kind](told)), MultiViewBatchSampler([0] * 22, batch_size=6, seed=5)
    options = {"multiprocessing_context": "fork"} if workers else {}
    loader = DataLoader(data, batch_sampler=sampler, num_workers=workers, collate_fn=data.collate, **options)
    return [tuple(part.clone() for part in batch) for batch in loader]


@pytest.mark.parametrize("kind", DATASETS)
def test_datasets_return_views_geometry_and_labels(kind):
    plain, told, by_workers = batches(kind, False), batches(kind, True), batches(kind, True, workers=2)
    torch.testing.assert_close(by_workers, told, rtol=0, atol=0)
    for (views, labels), (same, geometry, points) in zip(plain, told, strict=True):
        assert torch.equal(views, same)
        assert torch.equal(labels, points)
        assert geometry.shape == (*views.shape[:2], 2, 3)
        landed = map_points(points[:, None], geometry)[:, :, 0].flatten(0, 1)
        inside = ((landed > 7) & (landed < 24)).all(1)
        assert inside.any()
        assert (centroids(views.flatten(0, 1)) - landed)[inside].norm(dim=1).max() < 0.3


def test_one_item_has_the_same_parts():
    for name in ("in memory", "one by one"):
        views, geometry, points = DATASETS[name](True)[3]
        assert (views.shape, geometry.shape) == ((3, 1, 32, 32), (3, 2, 3))
        assert torch.equal(points, POINTS[3])
    views, geometry = MultiView([AUGMENT, evaluation_transform(32, **GREY)], with_geometry=True)(PICTURES[0])
    torch.testing.assert_close(geometry[1], torch.eye(2, 3))
    assert views.shape == (2, 1, 32, 32)


def test_maps_start_from_each_image():
    sizes = [(32, 64), (64, 64), (48, 32)]
    data = [(Image.new("L", size), 0) for size in sizes]
    told = MultiViewDataset(data, evaluation_transform(32, **GREY), num_views=1, with_geometry=True)
    middles = [map_points(torch.tensor([[(w - 1) / 2, (h - 1) / 2]]), told[i][1][0]) for i, (w, h) in enumerate(sizes)]
    torch.testing.assert_close(torch.cat(middles), torch.full((3, 2), 15.5))


def own_colours(images):
    return images.sqrt()


def own_warp(images):
    return images.flip(-1)


@pytest.mark.parametrize("place", ["crop", "crop_one", "policy", "steps"])
@pytest.mark.parametrize("part", [own_warp, SmoothWarp(0.5, 0.1)])
def test_a_part_without_geometry_is_named_before_training(place, part):
    parts = {"crop": ResizeAndCrop(8)} | {place: [part] if place == "steps" else part}
    transform = ImageTransform(8, **GREY, **parts)
    images = torch.rand(4, 1, 8, 8)
    text = (
        "Expected every part of `transform` to have `with_geometry` or `keeps_positions = True`, but got "
        ".*(own_warp|SmoothWarp).*: geometry is missing"
    )
    builders = (
        lambda: MultiViewTensorDataset(images, torch.arange(4), transform, with_geometry=True),
        lambda: MultiViewDataset(list(zip(images, range(4), strict=True)), transform, with_geometry=True),
        lambda: MultiView([AUGMENT, transform], with_geometry=True),
        lambda: transform.with_geometry(images),
    )
    for build in builders:
        with pytest.raises(ValueError, match=text) as caught:
            build()
        assert "\n" not in str(caught.value)
    MultiViewTensorDataset(images, torch.arange(4), transform)  # nobody asked


def test_a_transform_of_another_kind_has_no_geometry():
    for transform in (own_warp, torch.nn.Identity()):
        with pytest.raises(ValueError, match="geometry is missing"):
            MultiView(transform, with_geometry=True)
    with pytest.raises(ValueError, match="geometry is missing"):
        augmentation("simaugment", 32, **RGB).with_geometry(torch.rand(2, 3, 32, 32))
    with pytest.raises(TypeError, match="`with_geometry` to be True or False, but got 1"):
        MultiView(AUGMENT, with_geometry=1)


def test_steps_of_a_user():
    own_colours.keeps_positions = True
    images = torch.rand(4, 1, 8, 8)
    _, maps = ImageTransform(8, **GREY, crop=ResizeAndCrop(8), steps=[own_colours]).with_geometry(images)
    torch.testing.assert_close(maps, torch.eye(2, 3).expand(4, 2, 3))

    class Mirror:
        def __init__(self, maps):
            self.maps = maps

        def __call__(self, images):
            return images.flip(-1)

        def with_geometry(self, images):
            return self(images), self.maps

    mirror = torch.tensor([[-1.0, 0, 7], [0, 1, 0]])
    _, maps = ImageTransform(8, **GREY, crop=ResizeAndCrop(8), steps=[Mirror(mirror)]).with_geometry(images)
    torch.testing.assert_close(maps, mirror.expand(4, 2, 3))
    for wrong in (mirror[:, :2], mirror.expand(3, 2, 3), None):
        transform = ImageTransform(8, **GREY, crop=ResizeAndCrop(8), steps=[Mirror(wrong)])
        with pytest.raises(ValueError, match=r"to return maps \(4, 2, 3\) or \(2, 3\), but got"):
            transform.with_geometry(images)


@pytest.mark.parametrize("kind", DATASETS)
def test_a_mixture_has_no_map(kind):
    mix = BatchMix("cutmix", num_classes=2)
    text = r"other than `BatchMix` .* `with_geometry=True`.*, but got BatchMix.* and (MultiView|Subset)"
    told = DATASETS[kind](True)
    for data in (told, Subset(told, [0, 1])):
        with pytest.raises(ValueError, match=text) as caught:
            SeededDataset(data, batch_transform=mix)
        assert "\n" not in str(caught.value)
    SeededDataset(DATASETS[kind](False), batch_transform=mix)
    SeededDataset(told, batch_transform=lambda views, geometry, labels: (views, labels))


@pytest.mark.parametrize("name", KNOWN)
def test_geometry_does_not_wait_for_a_gpu(monkeypatch, name):
    from pml_supcon.views.image_transform import offset_and_factor
    from pml_supcon.views.policies import _sources

    for cache in (offset_and_factor, _sources):
        cache.cache_clear()
    with pretend_gpu(monkeypatch):
        augment = augmentation(name, 64, **RGB)
        images = torch.empty(16, 3, 96, 80, dtype=torch.uint8, device=GPU)
        data = MultiViewTensorDataset(images, torch.empty(16, device=GPU), augment, with_geometry=True)
        views, geometry, _ = data.__getitems__(list(range(8)))
        assert geometry.shape == (8, 2, 2, 3)
        assert {views.device, geometry.device} == {GPU}
    for cache in (offset_and_factor, _sources):  # tensors without values
        cache.cache_clear()
