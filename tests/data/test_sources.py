"""`load_data` on folders of images and on Parquet files, and its errors."""

from pathlib import Path

import pytest
import torch
from helpers.image_folders import refuse, write_classes
from PIL import Image

from pml_supcon.data.images import MemoryImages
from pml_supcon.data.load import load_data, open_data
from pml_supcon.data.sources import open_source

CIFAR10 = Path(__file__).parents[2] / "../shared/data/cifar10"


# folders


@pytest.mark.parametrize("test_name", ["test", "val", "valid"])
def test_folder_with_train_and_test(tmp_path, test_name):
    write_classes(tmp_path / "train", red=4, green=3)
    write_classes(tmp_path / test_name, red=2, green=1)
    data = load_data(f"imagefolder:{tmp_path}")
    assert data.class_names == ("green", "red")
    assert data.train_labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert data.test_labels.tolist() == [0, 1, 1]
    assert (data.image_size, data.family) == (12, "natural")
    assert isinstance(data.train, MemoryImages)
    for i in range(3):  # every image at its place, with its label
        assert data.train.images[i, :, 5, 5].tolist() == [0, 200, 0]
        assert data.train.images[i, :, 0, 0].tolist() == [0, 200, i]
    assert data.train.images[6, :, 0, 0].tolist() == [200, 0, 3]
    assert data.test.images[1, :, 5, 5].tolist() == [200, 0, 0]
    pixels = data.train.images.double() / 255
    assert data.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist())
    assert data.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist())


def test_folder_of_class_folders_is_split(tmp_path):
    write_classes(tmp_path, red=10, green=20)
    (tmp_path / "red").rename(tmp_path / "train")  # a class may have this name
    (tmp_path / ".hidden").mkdir()
    data = load_data(f"imagefolder:{tmp_path}")
    assert data.class_names == ("green", "train")
    assert data.train_labels.bincount().tolist() == [14, 7]
    assert data.test_labels.bincount().tolist() == [6, 3]
    pixels = {tuple(image[:, 0, 0].tolist()) for part in (data.train, data.test) for image in part.images}
    assert len(pixels) == 30, "an image is in both parts or in none"


def test_folder_errors(tmp_path):
    refuse(f"imagefolder:{tmp_path}/nowhere", r"there is no folder .*nowhere")
    refuse(f"imagefolder:{tmp_path}", "one folder per class, but it is empty")
    (tmp_path / "a.png").write_bytes(b"")
    refuse(f"imagefolder:{tmp_path}", "one folder per class, but it holds no folder")
    refuse(f"imagefolder:{tmp_path}?label=x", "options of `imagefolder:` to be among: classes, depth; but got label")
    write_classes(tmp_path / "a", red=4)
    refuse(f"imagefolder:{tmp_path}/a", "at least 2 classes")
    write_classes(tmp_path / "a", green=1)
    refuse(f"imagefolder:{tmp_path}/a", r"at least 2 images of every class .* one of green")
    (tmp_path / "a" / "blue").mkdir()
    (tmp_path / "a" / "blue" / "readme.txt").write_text("none")
    refuse(f"imagefolder:{tmp_path}/a", "but there are none in blue")
    write_classes(tmp_path / "b", red=2, green=2, blue=2)
    refuse(f"imagefolder:{tmp_path}/b", r"30 % of the images .* cover its 3 classes, but it has 6")
    write_classes(tmp_path / "c" / "test", red=2, blue=2)
    refuse(f"imagefolder:{tmp_path}/c", "train or training with class folders beside")
    write_classes(tmp_path / "c" / "train", red=2, green=2)
    refuse(f"imagefolder:{tmp_path}/c", "to be a training class, but blue are not")


# Parquet


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    module = pytest.importorskip("datasets")
    monkeypatch.setattr(module.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    module.disable_progress_bars()
    return module


def write_parquet(datasets, folder, *, label="label", feature=None, **splits):
    """Write flat 6 x 6 images with the given labels, one Parquet file per split."""
    folder.mkdir()
    for split, labels in splits.items():
        images = [Image.new("RGB", (6, 6), (i % 256, 0, 100)) for i in range(len(labels))]
        features = {"image": datasets.Image()}
        columns = {"image": images}
        if label is not None:
            features[label] = feature or datasets.ClassLabel(names=["cat", "dog", "owl"])
            columns[label] = labels
        rows = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return f"hf:{folder}"


def test_parquet_folder(tmp_path, datasets):
    spec = write_parquet(datasets, tmp_path / "set", train=[0, 1, 2, 0, 1, 2, 0], test=[2, 1])
    data = load_data(spec)
    assert data.class_names == ("cat", "dog", "owl")
    assert data.train_labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert data.test_labels.tolist() == [2, 1]
    assert data.train.images[:, 0, 3, 3].tolist() == list(range(7)), "rows out of order"
    assert data.image_size == 6


def test_parquet_subsets_are_the_first_rows_or_stratified(tmp_path, datasets):
    spec = write_parquet(datasets, tmp_path / "mixed", train=[0, 1, 2] * 4, test=[0, 1, 2])
    assert load_data(spec, max_train=5).train.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    spec = write_parquet(datasets, tmp_path / "sorted", train=[0] * 6 + [1] * 6 + [2] * 6, test=[0, 1, 2])
    assert load_data(spec, max_train=6).train_labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_parquet_without_test_uses_validation_or_splits(tmp_path, datasets):
    spec = write_parquet(datasets, tmp_path / "a", train=[0, 1, 2], validation=[1, 1])
    assert load_data(spec).test_labels.tolist() == [1, 1]
    spec = write_parquet(datasets, tmp_path / "b", train=[0, 1, 2] * 10)
    assert load_data(spec).test_labels.bincount().tolist() == [3, 3, 3]


def test_parquet_integer_labels_are_numbered(tmp_path, datasets):
    options = {"label": "target", "feature": datasets.Value("int64")}
    data = load_data(write_parquet(datasets, tmp_path / "a", train=[7, 3, 7, 3], test=[3], **options))
    assert data.class_names == ("3", "7")
    assert data.train_labels.tolist() == [1, 0, 1, 0]
    assert data.test_labels.tolist() == [0]


def test_parquet_text_labels_can_be_named(tmp_path, datasets):
    options = {"label": "word", "feature": datasets.Value("string")}
    spec = write_parquet(datasets, tmp_path / "a", train=["b", "a", "b"], test=["a"], **options)
    refuse(spec, r"column of labels .*, but the columns are image, word")
    assert load_data(f"{spec}?label=word").class_names == ("a", "b")


def test_parquet_errors(tmp_path, datasets, monkeypatch):
    spec = write_parquet(datasets, tmp_path / "a", train=[0, 1, 2, 0], test=[0, 1])
    refuse(f"{spec}?label=fine", r"a column 'fine' in .*, but its columns are image, label")
    refuse(f"{spec}?lable=fine", "options of `hf:` to be among: classes, image, label, name, train, test; but")
    refuse(f"{spec}?fine", r"Expected `\?NAME=VALUE`")
    spec = write_parquet(datasets, tmp_path / "c", train=[0, 1, 0], test=[-1, 1])
    refuse(spec, r"label in every row .*, but 1 of 2 rows of test have none")
    spec = write_parquet(datasets, tmp_path / "d", label=None, train=[0, 1], test=[0])
    refuse(spec, r"column of labels .*, but the columns are image")
    spec = write_parquet(datasets, tmp_path / "e", test=[0, 1])
    refuse(spec, r"split named train .* but its splits are test")
    (tmp_path / "empty").mkdir()
    refuse(f"hf:{tmp_path}/empty", "to hold data files .*, but it holds none")
    refuse(f"hf:{tmp_path}/nowhere", r"there is no folder .*nowhere")

    def offline(*args):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    absent = r"`datasets` could not load 'someone/something' \(nor is there a folder of that name\): no network"
    refuse("hf:someone/something", absent)


def test_parquet_with_several_label_columns(tmp_path, datasets):
    classes = datasets.ClassLabel(names=["a", "b"])
    features = datasets.Features({"img": datasets.Image(), "fine": classes, "coarse": classes})
    images = [Image.new("L", (6, 6), 9 * i) for i in range(10)]
    rows = datasets.Dataset.from_dict({"img": images, "fine": [0, 1] * 5, "coarse": [1, 0] * 5}, features=features)
    (tmp_path / "a").mkdir()
    rows.to_parquet(tmp_path / "a/train-00000-of-00001.parquet")
    refuse(f"hf:{tmp_path}/a", "one column of labels, but got fine, coarse")
    data = load_data(f"hf:{tmp_path}/a?label=coarse")
    assert torch.equal(data.train.labels, (data.train.images[:, 0, 0, 0] // 9 + 1) % 2)


def test_corrupt_row_is_named(tmp_path, datasets):
    rows = {"image": [{"bytes": b"nothing", "path": None}] * 2, "label": [0, 1]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    (tmp_path / "a").mkdir()
    for split in ("train", "test"):
        path = tmp_path / f"a/{split}-00000-of-00001.parquet"
        datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    refuse(f"hf:{tmp_path}/a", "row 0 of train is not a readable image")


@pytest.mark.skipif(not CIFAR10.is_dir(), reason="CIFAR-10 is not beside the repository")
def test_cifar10(datasets):
    data = load_data(f"hf:{CIFAR10}", max_train=200, max_test=100)
    assert data.class_names[:2] == ("airplane", "automobile")
    assert data.train.images.shape == (200, 3, 32, 32)
    assert (len(data.test), data.num_classes, data.family) == (100, 10, "natural")
    assert data.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=0.03)
    assert data.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=0.03)


def test_a_test_split_without_labels_gives_way_to_validation(tmp_path, datasets):
    """As in imagenet-1k."""
    spec = write_parquet(datasets, tmp_path / "a", train=[0, 1, 2], validation=[1, 1], test=[-1, -1, -1])
    assert load_data(spec).test_labels.tolist() == [1, 1]
    source = open_source(spec)
    assert source.parts == ("the split train", "the split validation")
    assert source.left_out == ("the split test (3 rows, no labels)",)
    spec = write_parquet(datasets, tmp_path / "b", train=[0, 1, 2], validation=[1, 1], test=[0, 2, 1])
    assert load_data(spec).test_labels.tolist() == [0, 2, 1]
    assert open_source(spec).left_out == ("the split validation (2 rows)",)
    assert load_data(f"{spec}?test=validation").test_labels.tolist() == [1, 1]
    assert load_data(f"{spec}?train=test&test=train").train_labels.tolist() == [0, 2, 1]
    refuse(f"{spec}?test=dev", r"a split named dev .* but its splits are .*test=SPLIT")
    spec = write_parquet(datasets, tmp_path / "c", train=[0, 1, 2], test=[-1, -1])
    refuse(spec, "2 of 2 rows of test have none")


def test_hidden_labels_of_integers(tmp_path, datasets):
    """A label of -1 is hidden, unless training images have it."""
    whole = {"feature": datasets.Value("int64")}
    spec = write_parquet(datasets, tmp_path / "a", train=[3, 5, 5], validation=[5, 3], test=[-1, -1], **whole)
    source = open_source(spec)
    assert source.class_names == ("3", "5")
    assert source.test.labels.tolist() == [1, 0]
    assert source.left_out == ("the split test (2 rows, no labels)",)
    spec = write_parquet(datasets, tmp_path / "b", train=[3, 5, 5], test=[-1, -1], **whole)
    with pytest.raises(ValueError, match="2 of 2 rows of test have none"):
        open_data(spec, new_classes="all")
    spec = write_parquet(datasets, tmp_path / "c", train=[-1, 1, 1], test=[-1, 1], **whole)
    assert open_source(spec).class_names == ("-1", "1")


def test_one_split_is_not_train_and_test(tmp_path, datasets):
    spec = write_parquet(datasets, tmp_path / "a", train=[0, 1, 2], test=[2, 1])
    refuse(f"{spec}?test=train", "two splits .* to train and to test on, but got train for both")


@pytest.mark.parametrize("labels", [[[0], [1], [0]], [0.5, 1.5, 0.5]])
def test_labels_that_are_no_classes_are_refused(tmp_path, datasets, labels):
    feature = datasets.Sequence(datasets.Value("int64")) if isinstance(labels[0], list) else datasets.Value("float64")
    spec = write_parquet(datasets, tmp_path / "a", feature=feature, train=labels)
    refuse(f"{spec}?label=label", "labels that are classes, integers or strings, but got a column of")


@pytest.mark.parametrize("scheme", ["imagefolder", "hf"])
@pytest.mark.parametrize("query", ["", "?classes=0-1"])
def test_the_home_of_nobody_is_no_folder(scheme, query):
    refuse(f"{scheme}:~no-such-user/images{query}", "there is no folder ~no-such-user/images")


@pytest.mark.parametrize(
    ("kind", "labels", "names"),
    [("string", ["b", "a", "b"], ("a", "b")), ("bool", [True, False, True], ("False", "True"))],
)
def test_parquet_label_of_text_or_bool(tmp_path, datasets, kind, labels, names):
    spec = write_parquet(datasets, tmp_path / "a", feature=datasets.Value(kind), train=labels, test=labels[:2])
    data = load_data(spec)
    assert data.class_names == names
    assert data.train_labels.tolist() == [1, 0, 1]


def test_a_path_may_have_a_question_mark(tmp_path, datasets):
    write_classes(tmp_path / "which?", red=4, green=4)
    assert load_data(f"imagefolder:{tmp_path}/which?").num_classes == 2
    assert load_data(f"imagefolder:{tmp_path}/which??classes=red,green").num_classes == 2
    spec = write_parquet(datasets, tmp_path / "a?b=c", train=[0, 1, 2], test=[0, 1])
    assert load_data(f"{spec}?label=label").test_labels.tolist() == [0, 1]


@pytest.mark.parametrize(("wanted", "names"), [("1-3", "1 2 3"), ("10,12", "10 12"), ("1-2,11", "1 11 2")])
def test_numbers_are_names_where_all_names_are_numbers(tmp_path, wanted, names):
    for name in range(1, 13):
        (tmp_path / str(name)).mkdir()
        for index in range(4):
            Image.new("L", (6, 6), 15 * name + index).save(tmp_path / f"{name}/{index}.png")
    assert load_data(f"imagefolder:{tmp_path}?classes={wanted}").class_names == tuple(names.split())
    refuse(f"imagefolder:{tmp_path}?classes=0-3", "names of classes or numbers")


def test_a_number_that_may_be_a_name_or_a_position_is_refused(tmp_path):
    for name in ("1", "2", "cat", "dog"):
        (tmp_path / name).mkdir()
        for index in range(4):
            Image.new("L", (6, 6), index).save(tmp_path / f"{name}/{index}.png")
    refuse(f"imagefolder:{tmp_path}?classes=0-1", "to be unambiguous")
    assert load_data(f"imagefolder:{tmp_path}?classes=1,cat").class_names == ("1", "cat")
