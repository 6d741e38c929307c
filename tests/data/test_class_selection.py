"""`?classes=...`: some classes of a data set, numbered anew, in both splits."""

import pytest
import torch

from pml_supcon.data.load import load_data, open_data


def images_of(data, split, name):
    part = getattr(data, split)
    return part.images[part.labels == data.class_names.index(name)]


@pytest.mark.parametrize(
    ("wanted", "names"), [("5-9", "56789"), ("7,2-3", "237"), ("0,9", "09"), ("3-3,1", "13"), ("0-9", "0123456789")]
)
def test_classes_are_those_of_the_whole_set(wanted, names):
    some, whole = load_data(f"digits?classes={wanted}"), load_data("digits")
    assert some.class_names == tuple(names)
    assert some.train_labels.unique().tolist() == some.test_labels.unique().tolist() == list(range(len(names)))
    for name in names:
        both = [
            torch.cat([images_of(data, split, name) for split in ("train", "test")]).flatten(1).tolist()
            for data in (some, whole)
        ]
        assert sorted(both[0]) == sorted(both[1])


def test_names_of_folders_and_both_splits(tmp_path):
    from PIL import Image

    for split, count in (("train", 4), ("test", 2)):
        for place, name in enumerate(("cat", "dog", "1")):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (9, 9), (place * 50, number, 0)).save(folder / f"{number}.png")
    data = load_data(f"imagefolder:{tmp_path}?classes=dog,1")  # a name goes before a number
    assert data.class_names == ("1", "dog")
    assert (len(data.train), len(data.test)) == (8, 4)
    assert set(images_of(data, "train", "dog")[:, 0, 0, 0].tolist()) == {50}
    assert set(images_of(data, "test", "1")[:, 0, 0, 0].tolist()) == {100}


@pytest.mark.parametrize("wanted", ["3", "0-12", "7-2", "cat,1", "0,,1", "-1"])
def test_classes_that_there_are_not_are_told(wanted):
    with pytest.raises(ValueError, match=r"Expected .* after `classes=`"):
        open_data(f"digits?classes={wanted}")


def test_digits_have_no_other_option():
    with pytest.raises(ValueError, match="options of `digits:` to be among: classes; but got split"):
        open_data("digits?split=train")
