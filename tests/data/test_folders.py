"""Image folders as people have them: other part names, links, files of other kinds, classes two levels down."""

import inspect
import os
import sys

import pytest
from PIL import Image

from pml_supcon.data.load import load_data, open_data
from pml_supcon.data.sources import open_source


def fill(folder, count, suffix=".png"):
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.new("RGB", (8, 8), (40 * index, 90, 10)).save(folder / f"{index}{suffix}")


def fill_classes(root, *names, count=4):
    for name in names:
        fill(root / name, count)


def opened(root, query=""):
    source = open_source(f"imagefolder:{root}{query}")
    return source, source.train.labels.bincount().tolist()


@pytest.mark.parametrize(
    ("train", "test"),
    [("Train", "Test"), ("training", "testing"), ("TRAIN", "VAL"), ("train", "validation"), ("Training", "valid")],
)
def test_parts_have_several_names_in_any_case(tmp_path, train, test):
    fill_classes(tmp_path / train, "cat", "dog")
    fill_classes(tmp_path / test, "cat", "dog", count=2)
    source, counts = opened(tmp_path)
    assert source.class_names == ("cat", "dog")
    assert counts == [4, 4]
    assert source.test.labels.tolist() == [0, 0, 1, 1]
    assert source.parts == (f"{train}/", f"{test}/")


def test_test_goes_before_validation_which_is_named(tmp_path):
    for part, count in (("train", 4), ("val", 3), ("test", 2)):
        fill_classes(tmp_path / part, "cat", "dog", count=count)
    source, _ = opened(tmp_path)
    assert len(source.test) == 4
    assert source.left_out == ("val/",)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["train/cat", "Train/cat", "test/cat"], "one folder of each part"),
        (["train/cat", "test/cat", "TEST/cat"], "one folder of each part"),
        (["test/cat", "test/dog"], "a folder train or training"),
        (["train/cat", "train/dog", "dev/cat", "dev/dog"], "dev has class folders too"),
        (["train", "test"], "one folder per class"),
        (["flowers/rose", "flowers/tulip", "trees/oak", "trees/ash"], "`?depth=2` takes the inner folders"),
        (["cat", "dog", "fold1/cat", "fold1/dog"], "1 of 3 hold folders alone"),
        (["Greek/x/alpha", "Greek/x/beta", "Latin/x/alpha", "Latin/x/beta"], "2 of 2 hold folders alone"),
        (["train_set/cat", "train_set/dog", "test_set/cat", "test_set/dog"], "named train and test, but got test_set"),
        (
            ["training_set/x/cat", "training_set/x/dog", "test_set/x/cat", "test_set/x/dog"],
            "but got test_set, train",
        ),
        (["Train images/cat", "Val images/cat"], "named train and test, but got Train images, Val images"),
        (["images/train/cat", "images/train/dog", "images/val/cat"], "images holds train and val"),
        (["data/images/train/cat", "data/images/test/cat"], "data holds train and test"),
        (["cat/train", "cat/test", "dog/train", "dog/test"], "cat holds train and test"),
        (
            ["train/cat", "train/dog", "test/Cat", "test/dog"],
            "one spelling of a class .*'Cat' and 'cat'",
        ),
        (["train/cat", "train/dog", "test/dog "], "'dog ' and 'dog'"),
    ],
)
def test_doubt_is_an_error(tmp_path, folders, message):
    for folder in folders:
        fill(tmp_path / folder, 2)
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        opened(tmp_path)


def test_a_stray_image_leaves_the_doubt_about_parts(tmp_path):
    for part in ("train_set", "test_set"):
        fill_classes(tmp_path / part, "cat", "dog")
        fill(tmp_path / part, 1)
    with pytest.raises(ValueError, match="to be named train and test"):
        opened(tmp_path)
    assert opened(tmp_path, "?depth=1")[0].class_names == ("test_set", "train_set")


@pytest.mark.parametrize("depth", [2, 3])
def test_parts_are_no_classes_at_any_depth(tmp_path, depth):
    for part in ("train", "test"):
        fill_classes(tmp_path / "images" / part, "cat", "dog")
    with pytest.raises(ValueError, match="images holds train and test"):
        opened(tmp_path, f"?depth={depth}")
    assert opened(tmp_path / "images")[0].class_names == ("cat", "dog")


def test_two_spellings_in_one_part_are_two_classes(tmp_path):
    for part in ("train", "test"):
        fill_classes(tmp_path / part, "a", "A")
    source, _ = opened(tmp_path)
    assert source.class_names == ("A", "a")
    assert source.test.labels.tolist() == [0] * 4 + [1] * 4


def test_a_class_folder_may_have_more_levels_than_python_calls(tmp_path):
    fill_classes(tmp_path, "cat", "dog")
    deep = tmp_path / "cat" / "/".join("d" * 100)
    deep.mkdir(parents=True)
    (deep / "x.png").touch()
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 80)
    try:
        assert opened(tmp_path)[1] == [5, 4]
    finally:
        sys.setrecursionlimit(limit)


def test_class_folders_two_levels_down(tmp_path):
    for name in ("Greek/alpha", "Greek/beta", "Latin/alpha"):
        fill(tmp_path / name, 4)
    source, counts = opened(tmp_path, "?depth=2")
    assert source.class_names == ("Greek/alpha", "Greek/beta", "Latin/alpha")
    assert counts == [4, 4, 4]
    source, counts = opened(tmp_path, "?depth=1")
    assert source.class_names == ("Greek", "Latin")
    assert counts == [8, 4]


@pytest.mark.parametrize("query", ["?depth=0", "?depth=x", "?deep=2"])
def test_a_wrong_depth_is_named(tmp_path, query):
    fill_classes(tmp_path, "cat", "dog")
    with pytest.raises(ValueError, match="depth"):
        opened(tmp_path, query)


def test_one_inner_folder_of_images_leaves_no_doubt(tmp_path):
    """Tiny ImageNet has `train/CLASS/images/*`."""
    for name in ("cat", "dog"):
        fill(tmp_path / "train" / name / "images", 3)
    source, counts = opened(tmp_path)
    assert source.class_names == ("cat", "dog")
    assert counts == [3, 3]


def test_links_that_lead_back_add_no_image(tmp_path):
    fill_classes(tmp_path, "cat", "dog")
    (tmp_path / "cat/itself").symlink_to(tmp_path / "cat")
    (tmp_path / "cat/again").symlink_to(tmp_path / "cat")
    (tmp_path / "cat/root").symlink_to(tmp_path)
    (tmp_path / "cat/other").symlink_to(tmp_path / "dog")
    (tmp_path / "dog/loop").symlink_to(tmp_path / "dog/loop")
    source, counts = opened(tmp_path)
    assert counts == [4, 4]
    assert source.left_out == ("links to folders that are read anyway (4)", "entries that are not files (1)")


def test_links_to_folders_elsewhere_are_followed_once(tmp_path):
    fill(tmp_path / "store/more", 3)
    fill_classes(tmp_path / "data", "cat", "dog")
    (tmp_path / "data/cat/more").symlink_to(tmp_path / "store/more")
    (tmp_path / "data/dog/more").symlink_to(tmp_path / "store/more")
    (tmp_path / "store/more/back").symlink_to(tmp_path / "store")
    fill(tmp_path / "store/fox", 2)
    (tmp_path / "data/fox").symlink_to(tmp_path / "store/fox")
    source, counts = opened(tmp_path / "data")
    assert source.class_names == ("cat", "dog", "fox")
    assert counts == [7, 4, 2]


@pytest.mark.parametrize("link", ["train/again", "test/cat"])
def test_one_folder_is_not_two_classes_nor_train_and_test(tmp_path, link):
    fill_classes(tmp_path / "train", "cat", "dog")
    fill_classes(tmp_path / "test", "dog")
    (tmp_path / link).symlink_to(tmp_path / "train/cat")
    with pytest.raises(ValueError, match="links to one folder"):
        opened(tmp_path)


@pytest.mark.parametrize("suffix", [".gif", ".jfif", ".jpe", ".JPG", ".webp", ".bmp", ".tiff", ".ppm"])
def test_images_of_every_usual_kind_are_read(tmp_path, suffix):
    fill_classes(tmp_path, "cat", "dog")
    fill(tmp_path / "cat", 3, suffix if suffix != ".jfif" else ".jpg")
    if suffix == ".jfif":
        for path in (tmp_path / "cat").glob("*.jpg"):
            path.rename(path.with_suffix(".jfif"))
    _, counts = opened(tmp_path)
    assert counts == [7, 4]


def test_files_that_are_left_out_are_counted(tmp_path):
    fill_classes(tmp_path, "cat", "dog")
    fill(tmp_path, 1)
    for name in ("cat/list.txt", "cat/more.txt", "dog/photo.heic", "dog/README", "cat/.hidden.png"):
        (tmp_path / name).write_bytes(b"?")
    os.mkfifo(tmp_path / "dog/pipe.png")
    source, counts = opened(tmp_path)
    assert counts == [4, 4]
    assert sorted(source.left_out) == [
        ".heic files (1)",
        ".txt files (2)",
        "entries that are not files (1)",
        "files beside the class folders (1)",
        "files without an extension (1)",
    ]


def test_what_was_read_is_said_in_three_lines(tmp_path):
    fill_classes(tmp_path / "train", "cat", "dog", count=6)
    fill_classes(tmp_path / "val", "cat", "dog", count=2)
    (tmp_path / "train/cat/list.txt").write_text("")
    assert open_data(f"imagefolder:{tmp_path}", max_train=8).summary() == [
        f"data imagefolder:{tmp_path}: 2 classes (cat 4, dog 4)",
        "train: 8 images of train/; test: 4 images of val/",
        "left out: .txt files (1), training images beyond the subset (4)",
    ]
    assert open_data("digits").summary()[1:] == [
        "train: 1257 images; test: 540 images, 30 % of each class",
        "left out: nothing",
    ]


def test_names_that_are_no_unicode_are_printed_with_escapes(tmp_path):
    root = os.fsencode(tmp_path)
    fill_classes(tmp_path, "dog")
    os.mkdir(root + b"/caf\xe9")
    for index in range(4):
        Image.new("RGB", (8, 8), (index, 3, 200)).save(tmp_path / "dog/x.png")
        os.rename(root + b"/dog/x.png", root + b"/caf\xe9/" + str(index).encode() + b"\xe9.png")
    data = load_data(f"imagefolder:{tmp_path}")
    assert data.class_names == (r"caf\xe9", "dog")
    assert len(data.train) + len(data.test) == 8
    (tmp_path / "dog/0.png").write_bytes(b"broken")
    os.rename(tmp_path / "dog/0.png", root + b"/dog/\xe9.png")
    with pytest.raises(ValueError, match=r"\\xe9.png is not a readable image"):
        load_data(f"imagefolder:{tmp_path}")
