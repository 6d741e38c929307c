"""`MultiViewTensorDataset`: batches of views made at once."""

import pytest
import torch
from torch.utils.data import DataLoader

from pml_supcon.views import MultiViewTensorDataset

IMAGES = torch.arange(10.0).view(10, 1, 1, 1).expand(10, 3, 4, 4)
LABELS = torch.arange(10) * 11


def noisy(images):
    return images + torch.rand(len(images), 1, 1, 1) / 2


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("num_views", [1, 2, 3])
def test_loader_gives_the_chosen_images_and_labels(num_views, workers):
    data = MultiViewTensorDataset(IMAGES, LABELS, noisy, num_views)
    batches = [[3, 1, 4], [9, 0]]
    loader = DataLoader(data, batch_sampler=batches, collate_fn=data.collate, num_workers=workers)
    for batch, (views, labels) in zip(batches, loader, strict=True):
        assert views.shape == (len(batch), num_views, 3, 4, 4)
        assert views.floor().flatten(1).unique(dim=1).flatten().tolist() == batch
        assert labels.tolist() == [11 * index for index in batch]
        assert views[:, :, 0, 0, 0].unique().numel() == len(batch) * num_views  # each view drawn on its own


def test_single_items():
    views, label = MultiViewTensorDataset(IMAGES, LABELS, noisy, 2)[7]
    assert views.shape == (2, 3, 4, 4)
    assert views.floor().unique() == 7
    assert label == 77


def test_bad_input():
    with pytest.raises(ValueError, match="one label for each of 10 images, but got 9 labels"):
        MultiViewTensorDataset(IMAGES, LABELS[:9], noisy)
    with pytest.raises(ValueError, match="`num_views` to be at least 1, but got 0"):
        MultiViewTensorDataset(IMAGES, LABELS, noisy, 0)
