"""Views of images on a GPU: no step makes the host wait, checked without one."""

import pytest
import torch
from helpers.pretend_gpu import GPU, pretend_gpu

from pml_supcon.views import MultiViewTensorDataset, augmentation
from pml_supcon.views.augmentations import AUGMENTATIONS
from pml_supcon.views.image_transform import offset_and_factor
from pml_supcon.views.policies import _sources


@pytest.fixture
def on_gpu(monkeypatch):
    kept = offset_and_factor, _sources
    for cache in kept:
        cache.cache_clear()
    with pretend_gpu(monkeypatch):
        yield
    for cache in kept:  # tensors without values
        cache.cache_clear()


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("family", ["natural", "digits"])
def test_no_wait(on_gpu, name, family):
    augment = augmentation(name, 64, mean=[0.5] * 3, std=[0.5] * 3, family=family)
    images = torch.empty(64, 3, 96, 80, dtype=torch.uint8, device=GPU)
    labels = torch.empty(64, dtype=torch.int64, device=GPU)
    data = MultiViewTensorDataset(images, labels, augment)
    for _ in range(3):
        views, ids = data.__getitems__(list(range(8)))
        assert views.shape == (8, 2, 3, 64, 64)
        assert {views.device, ids.device} == {GPU}
