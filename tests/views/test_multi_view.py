"""MultiView, the datasets of views, and the two layouts of a batch of views."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from pml_supcon.views import MultiView, MultiViewDataset, MultiViewTensorDataset, flatten_views, split_views


def numbered():
    """Return a transform whose n-th call returns an image filled with n."""
    calls = iter(range(100))
    return lambda image: torch.full((3, 2, 2), float(next(calls)))


@pytest.mark.parametrize("num_views", [1, 2, 5])
def test_every_view_is_a_separate_call(num_views):
    view = MultiView(numbered(), num_views)
    assert view.num_views == num_views
    for start in (0, num_views):
        views = view(None)
        assert views.shape == (num_views, 3, 2, 2)
        assert views[:, 0, 0, 0].tolist() == list(range(start, start + num_views))


def test_a_sequence_has_one_transform_per_view():
    transforms = [lambda x, add=add: x + add for add in (1, 2, 3)]
    for view in (MultiView(transforms), MultiView(tuple(transforms), num_views=3)):
        assert view(torch.zeros(1, 1, 1)).flatten().tolist() == [1, 2, 3]
    assert MultiView(transforms[0]).num_views == 2


def test_images_of_every_kind():
    image = np.arange(64 * 3, dtype=np.uint8).reshape(8, 8, 3)
    views = MultiView(v2.Compose([v2.RandomCrop(4), v2.PILToTensor()]), 6)(Image.fromarray(image))
    assert (views.dtype, views.shape) == (torch.uint8, (6, 3, 4, 4))
    assert len(views.unique(dim=0)) > 1
    assert MultiView(lambda array: torch.from_numpy(array).permute(2, 0, 1))(image).shape == (2, 3, 8, 8)


@pytest.mark.parametrize(
    ("transform", "num_views", "error", "message"),
    [
        (str, 0, ValueError, "`num_views` to be at least 1, but got 0"),
        (3, 2, TypeError, "`transform` to be callable, but got 3"),
        ([str, None], 2, TypeError, "`transform` to be callable, but got None"),
        ([str, str], 3, ValueError, "`transform` to hold 3 transforms, one per view, but got 2"),
        ([], None, ValueError, "`transform` to hold at least 1 transforms, one per view, but got 0"),
    ],
)
def test_wrong_arguments(transform, num_views, error, message):
    with pytest.raises(error, match=message):
        MultiView(transform, num_views)


def test_views_of_different_shapes_or_types():
    image = torch.zeros(3, 4, 4)
    with pytest.raises(TypeError, match="view to be a tensor, but view 1 is Image"):
        MultiView([lambda x: x, v2.ToPILImage()])(image)
    with pytest.raises(ValueError, match=r"one shape, but view 2 has \(3, 4, 3\) and view 0 has \(3, 4, 4\)"):
        MultiView([lambda x: x, lambda x: x, lambda x: x[..., 1:]])(image)
    with pytest.raises(ValueError, match=r"one dtype, but view 1 is torch.uint8 and view 0 is torch.float32"):
        MultiView([lambda x: x, lambda x: x.byte()])(image)


def test_a_dataset_of_views_collates_to_a_batch():
    class Source(list):
        targets = (4, 5, 6)

    pairs = [(torch.full((3, 2, 2), float(index)), label) for index, label in enumerate(Source.targets)]
    data = MultiViewDataset(Source(pairs), [lambda x: x, lambda x: x + 10])
    assert len(data) == 3
    assert data.labels == (4, 5, 6)
    x, labels = next(iter(DataLoader(data, batch_size=3)))
    assert x.shape == (3, 2, 3, 2, 2)
    assert labels.tolist() == [4, 5, 6]
    assert x[:, :, 0, 0, 0].tolist() == [[0, 10], [1, 11], [2, 12]]


def test_a_dataset_of_other_items_is_rejected():
    data = MultiViewDataset([{"image": 1}], lambda x: x)
    with pytest.raises(TypeError, match=r"pairs \(image, label\), but got dict"):
        data[0]
    with pytest.raises(AttributeError, match="targets"):
        _ = data.labels


@pytest.mark.parametrize("shape", [(3, 2), (1, 4, 5), (4, 1, 5), (3, 2, 3, 4, 4), (0, 2, 3)])
def test_rows_are_all_first_views_then_all_second_views(shape):
    x = torch.randn(shape)
    rows = flatten_views(x)
    assert torch.equal(rows, torch.cat(list(x.unbind(1))))
    back = split_views(rows, shape[1])
    assert torch.equal(back, x)
    assert back.data_ptr() == rows.data_ptr()


def test_layouts_reject_other_shapes():
    with pytest.raises(ValueError, match=r"`x` to have shape \(B, V, ...\), but got \(4,\)"):
        flatten_views(torch.zeros(4))
    with pytest.raises(ValueError, match=r"shape \(V \* B, ...\) with V=3, but got \(4, 2\)"):
        split_views(torch.zeros(4, 2), 3)
    with pytest.raises(ValueError, match=r"with V=1, but got \(\)"):
        split_views(torch.tensor(1.0), 1)
    with pytest.raises(ValueError, match="`num_views` to be at least 1, but got 0"):
        split_views(torch.zeros(4), 0)


IMAGES = torch.arange(10.0).view(10, 1, 1, 1).expand(10, 3, 4, 4)
LABELS = torch.arange(10) * 11


def noisy(images):
    return images + torch.rand(len(images), 1, 1, 1) / 2


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("num_views", [1, 2, 3])
def test_the_loader_returns_the_chosen_images_and_labels(num_views, workers):
    data = MultiViewTensorDataset(IMAGES, LABELS, noisy, num_views)
    batches = [[3, 1, 4], [9, 0]]
    loader = DataLoader(data, batch_sampler=batches, collate_fn=data.collate, num_workers=workers)
    for batch, (views, labels) in zip(batches, loader, strict=True):
        assert views.shape == (len(batch), num_views, 3, 4, 4)
        assert views.floor().flatten(1).unique(dim=1).flatten().tolist() == batch
        assert labels.tolist() == [11 * index for index in batch]
        assert views[:, :, 0, 0, 0].unique().numel() == len(batch) * num_views  # separate draws
    views, label = data[7]
    assert views.shape == (num_views, 3, 4, 4)
    assert (views.floor().unique(), label) == (7, 77)


def test_labels_may_be_rows():
    sets = torch.eye(10)[:, :4] > 0
    data = MultiViewTensorDataset(IMAGES, sets, noisy)
    _, labels = next(iter(DataLoader(data, batch_sampler=[[3, 1]], collate_fn=data.collate)))
    assert torch.equal(labels, sets[[3, 1]])
    assert torch.equal(data[1][1], sets[1])


def test_bad_input_in_memory():
    with pytest.raises(ValueError, match=r"shapes \(N, C, H, W\) and \(N, \.\.\.\), but got .* and \(\)"):
        MultiViewTensorDataset(IMAGES, torch.tensor(3), noisy)
    with pytest.raises(ValueError, match="`labels` to hold one for each of 10 images, but got 9 labels"):
        MultiViewTensorDataset(IMAGES, LABELS[:9], noisy)
    with pytest.raises(ValueError, match="`num_views` to be at least 1, but got 0"):
        MultiViewTensorDataset(IMAGES, LABELS, noisy, 0)
