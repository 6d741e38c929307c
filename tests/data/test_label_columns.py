"""Label sets, soft labels, hierarchies and numbers from columns and folders, and their errors."""

import pytest
import torch
from helpers.label_data import datasets, write_csv, write_nested, write_parquet  # noqa: F401 - a fixture

from pml_supcon.data.broken import replace_broken
from pml_supcon.data.load import load_data, open_data
from pml_supcon.data.sources import open_source

N = 20


def opened(spec, labels_are, **options):
    return open_data(spec, labels_are=labels_are, **options)


def of_train(spec, labels_are):
    """Return the labels and the class names of all rows of train."""
    source = open_source(spec, labels_are)
    assert source.labels_are == labels_are
    return source.train.labels, source.class_names


# what users have


def test_sets_of_names(tmp_path, datasets):  # noqa: F811
    tags = [["red", "round"], [], ["blue"], ["round", "round"]]
    labels, names = of_train(write_parquet(datasets, tmp_path / "set", train={"tags": tags}), "sets")
    assert names == ("blue", "red", "round")
    assert labels.dtype == torch.bool
    assert labels.int().tolist() == [[0, 1, 1], [0, 0, 0], [1, 0, 0], [0, 0, 1]]


def test_sets_of_ids_and_of_class_labels(tmp_path, datasets):  # noqa: F811
    ids = [[7], [7, 30], [30], [2, 7]]
    labels, names = of_train(write_parquet(datasets, tmp_path / "ids", train={"tags": ids}), "sets")
    assert names == ("2", "7", "30")
    assert labels.int().tolist() == [[0, 1, 0], [0, 1, 1], [0, 0, 1], [1, 1, 0]]
    feature = {"tags": datasets.Sequence(datasets.ClassLabel(names=["cat", "dog", "owl"]))}
    spec = write_parquet(datasets, tmp_path / "names", feature, train={"tags": [[0], [0, 1], [], [1]]})
    labels, names = of_train(spec, "sets")
    assert names == ("cat", "dog", "owl")  # also a name that no image has
    assert labels.int().tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize("kind", [int, bool, float])
def test_sets_of_zeros_and_ones(tmp_path, datasets, kind):  # noqa: F811
    rows = [[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]]
    listed = {"hot": [list(map(kind, row)) for row in rows]}
    labels, names = of_train(write_parquet(datasets, tmp_path / "one", train=listed), "sets")
    assert names == ("0", "1", "2")
    assert labels.int().tolist() == rows
    apart = {name: [kind(row[place]) for row in rows] for place, name in enumerate("abc")}
    spec = write_parquet(datasets, tmp_path / "several", train=apart)
    labels, names = of_train(f"{spec}?label=c,a", "sets")
    assert names == ("c", "a")
    assert labels.int().tolist() == [[row[2], row[0]] for row in rows]


def test_soft_labels_are_kept_as_they_are(tmp_path, datasets):  # noqa: F811
    rows = [[0.25, 0.5], [3.0, 0.0], [0.1, 0.0], [0.5, 0.5]]
    labels, names = of_train(write_parquet(datasets, tmp_path / "one", train={"shares": rows}), "soft")
    assert names == ("0", "1")
    assert torch.equal(labels, torch.tensor(rows))  # not divided by their sums
    columns = {"cat": [row[0] for row in rows], "dog": [row[1] for row in rows]}
    labels, names = of_train(write_csv(tmp_path / "csv", **columns) + "?label=cat,dog", "soft")
    assert names == ("cat", "dog")
    assert torch.equal(labels, torch.tensor(rows))


def test_numbers_of_a_csv_beside_the_images(tmp_path, datasets):  # noqa: F811
    ages, heights = [20.5, 31, 7, 64] * 5, list(range(N))
    spec = write_csv(tmp_path / "csv", age=ages, height=heights)
    labels, names = of_train(f"{spec}?label=age", "numbers")
    assert names == ()
    assert torch.equal(labels, torch.tensor(ages))  # in the unit of the column
    both, _ = of_train(f"{spec}?label=height,age", "numbers")
    assert torch.equal(both, torch.tensor([heights, ages]).T.float())
    data = load_data(f"{spec}?label=height", labels_are="numbers")  # each image with its own number
    for part in (data.train, data.test):
        assert torch.equal(part.images[:, 0, 0, 0].float(), part.labels)
    assert (data.labels_are, data.num_classes, len(data.test)) == ("numbers", 0, 6)
    assert torch.equal(data.train[3][1], data.train_labels[3])


def test_columns_of_a_hierarchy_have_one_branch_for_each_label(tmp_path, datasets):  # noqa: F811
    groups, kinds = ["tree", "bird", "bird", "tree"], ["young", "young", "old", "old"]
    levels, names = of_train(write_csv(tmp_path / "csv", group=groups, kind=kinds) + "?label=group,kind", "hierarchy")
    assert names == ("bird/old", "bird/young", "tree/old", "tree/young")
    assert levels.tolist() == [[1, 3], [0, 1], [0, 0], [1, 2]]


def test_folders_of_a_hierarchy(tmp_path):
    counts = {"birds/old": 4, "birds/young": 5, "trees/old": 6}
    levels, names = of_train(write_nested(tmp_path / "set", counts), "hierarchy")
    assert names == tuple(counts)
    assert levels.unique(dim=0).tolist() == [[0, 0], [0, 1], [1, 2]]
    assert levels[:, 1].bincount().tolist() == list(counts.values())


def test_folders_of_a_hierarchy_with_a_test_part(tmp_path):
    write_nested(tmp_path / "set" / "train", {"birds/a": 3, "trees/b": 3})
    write_nested(tmp_path / "set" / "test", {"trees/b": 2, "birds/a": 1})
    found = opened(f"imagefolder:{tmp_path}/set?depth=2", "hierarchy")
    assert found.train.labels.tolist() == [[0, 0]] * 3 + [[1, 1]] * 3
    assert found.test.labels.tolist() == [[0, 0], [1, 1], [1, 1]]


# splits, subsets and the summary


def test_splits_are_stratified_by_the_finest_level_and_plain_without_classes(tmp_path, datasets):  # noqa: F811
    found = opened(write_nested(tmp_path / "set", {"a/b": 10, "a/c": 20, "d/b": 30}), "hierarchy", max_train=21)
    assert found.train.labels[:, 1].bincount().tolist() == [4, 7, 10]
    assert found.test.labels[:, 1].bincount().tolist() == [3, 6, 9]
    assert found.summary()[0].endswith("a hierarchy of 2, 3 classes (a/b 4, a/c 7, d/b 10)")
    spec = write_csv(tmp_path / "csv", age=range(N)) + "?label=age"
    one, again = opened(spec, "numbers"), opened(spec, "numbers")
    assert sorted([*one.train.labels.tolist(), *one.test.labels.tolist()]) == list(range(N))
    assert torch.equal(one.test.labels, again.test.labels)
    assert len(one.test) == 6
    assert opened(spec, "numbers", max_train=5).train.labels.tolist() == one.train.labels[:5].tolist()
    assert len(one.with_train_fraction(0.5, seed=0).train) == 7
    assert one.summary()[0].startswith(f"data {spec}: numbers (")


def test_hidden_test_labels_leave_the_validation_split(tmp_path, datasets):  # noqa: F811
    spec = write_parquet(
        datasets,
        tmp_path / "set",
        {"tags": datasets.Sequence(datasets.Value("string"))},
        train={"tags": [["a"], ["b"], []]},
        validation={"tags": [["b"], ["a", "b"]]},
        test={"tags": [None, None]},
    )
    assert opened(spec, "sets").test.labels.int().tolist() == [[0, 1], [1, 1]]
    with pytest.raises(ValueError, match="2 of 2 rows of test have none"):
        opened(f"{spec}?test=test", "sets")


# errors


BAD = {
    "sets": {
        "text": "sets, but text is one column of .*string",
        "shares": "lists of float64; --labels soft takes shares",
        "age,flag": "zeros and ones in age, flag with --labels sets, but train has other values",
        "nowhere": "Expected a column 'nowhere'",
        "image": "columns of labels after `\\?label=`, but image holds the images",
        "tags,flag": "several columns, of which some hold lists: tags, flag",
        "uneven": "lists of one length of zeros and ones, or lists of ids .* in uneven .* got lengths \\[2, 3\\]",
        "tags&classes=0-1": "no `\\?classes=` with --labels sets",
    },
    "soft": {
        "tags": "but tags has the value 'a'",
        "flag": "one share a row",
        "flag,other": "share above 0 in every row of flag, other .* row 0 of train",
        "below,flag": "shares >= 0 in below, flag",
        "ragged": "lists of one length in ragged .* got \\[1, 2\\]",
    },
    "hierarchy": {"text": "text alone", "text,shares": "classes, integers or strings, but got a column of"},
    "numbers": {
        "text": "but text has the value 'x'",
        "yes": "but yes has the value True",
        "infinite": "all finite, but infinite has the value inf",
        "late": "float32 tells apart",
    },
    "classes": {"tags": "--labels says what labels are", "flag,other": "one column of labels, but got flag, other"},
}


@pytest.fixture
def columns(tmp_path, datasets):  # noqa: F811
    rows = {"tags": [["a"], ["b"]], "text": ["x", "y"], "shares": [[0.5, 0.2], [1.0, 0.0]], "flag": [0, 1]}
    rows |= {"other": [0.0, 0.5], "age": [30, 4], "below": [-1.0, 1.0], "ragged": [[1.0, 2.0], [1.0]]}
    rows |= {"yes": [True, False], "infinite": [1.0, float("inf")], "late": [1.7e9, 1.7e9 + 1]}
    rows |= {"uneven": [[1, 0, 1], [0, 1]]}
    return write_parquet(datasets, tmp_path / "set", train={name: values * 3 for name, values in rows.items()})


def test_columns_that_do_not_fit(columns):
    for kind, cases in BAD.items():
        for named, message in cases.items():
            with pytest.raises(ValueError, match=message) as raised:
                opened(f"{columns}?label={named}", kind)
            assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match=r"but 6 of the columns .* fit"):
        opened(columns, "numbers")
    with pytest.raises(ValueError, match="label=COARSE,FINE"):
        opened(columns, "hierarchy")


@pytest.mark.parametrize("spec", ["digits", "torchvision:CIFAR10", "imagefolder:somewhere"])
def test_data_without_columns(spec, tmp_path):
    with pytest.raises(ValueError, match="Expected `hf:PATH_OR_ID` with --labels sets, with a column of lists"):
        opened(spec, "sets")
    with pytest.raises(ValueError, match="depth=2"):
        opened(spec, "hierarchy")


def test_labels_that_are_all_equal_and_too_few_images(tmp_path, datasets):  # noqa: F811
    spec = write_csv(tmp_path / "same", age=[3] * N)
    with pytest.raises(ValueError, match="labels that differ"):
        opened(spec, "numbers")
    spec = write_csv(tmp_path / "few", age=[3, 4, 5])
    with pytest.raises(ValueError, match="at least 4 images"):
        opened(spec, "numbers")


def test_broken_images_have_no_class_to_be_replaced_by(tmp_path, datasets):  # noqa: F811
    found = opened(write_csv(tmp_path / "csv", age=range(N)), "numbers")
    with pytest.raises(ValueError, match="no --broken_images replace with --labels numbers"):
        replace_broken(found, tmp_path, write=True)
