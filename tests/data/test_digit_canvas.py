"""Canvases of touching digits: classes where the ink is, digits that touch, draws by the seed."""

import pytest
import torch
from scipy.ndimage import label

from pml_supcon.data.digit_canvas import INK, digit_canvases
from pml_supcon.data.load import load_data

DATA = load_data("digits")


def canvases(number=20, **options):
    return digit_canvases(DATA.train.images, DATA.train_labels, number, **options)


def test_classes_are_where_the_ink_is():
    images, classes = canvases()
    assert images.shape == (20, 1, 32, 32)
    assert images.dtype == torch.uint8
    assert torch.equal(images[:, 0] >= INK, classes > 0)
    assert set(classes.unique().tolist()) == set(range(11))
    assert digit_canvases(DATA.train.images[:1], DATA.train_labels[:1], 3)[1].unique().tolist() == [
        0,
        int(DATA.train_labels[0]) + 1,
    ]


def test_digits_touch():
    _, classes = canvases(number=50)
    _, alone = canvases(number=50, digits=1)
    parts = [label(ids > 0)[1] for ids in classes.numpy()]  # a digit may itself have two strokes
    assert sum(parts) < 1.5 * len(parts)
    assert (classes > 0).float().mean() > 3 * (alone > 0).float().mean()


def test_the_seed_decides():
    assert all(map(torch.equal, canvases(), canvases()))
    assert not torch.equal(canvases()[0], canvases(seed=1)[0])


@pytest.mark.parametrize("option", [{"number": 0}, {"size": 13}, {"digits": 0}, {"seed": -1}])
def test_numbers_out_of_range(option):
    with pytest.raises(ValueError, match=f"`{next(iter(option))}` to be at least"):
        canvases(**option)
