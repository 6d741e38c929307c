"""What a report is made of: its tables and pictures, and the content that is refused."""

import base64
import copy
import json
from io import BytesIO

import numpy as np
import pytest
from helpers.report_cases import ANIMALS, evaluation, photographs
from PIL import Image

from pml_supcon.evaluation.report import Evaluation
from pml_supcon.evaluation.report import tables as report_tables
from pml_supcon.evaluation.report.pictures import encode_atlas, encode_each
from pml_supcon.evaluation.report.tables import MINUS, NONE

PICTURES = photographs(400, 32)


def made(content, pictures=PICTURES):
    return Evaluation(content, {"test": pictures, "train": pictures})


@pytest.mark.parametrize(("first", "second", "lower", "said"), [
    (0.5, 0.6, False, ("+0.100", "better")),
    (0.5, 0.6, True, ("+0.100", "worse")),
    (0.6, 0.5, False, (f"{MINUS}0.100", "worse")),
    (0.6, 0.5, True, (f"{MINUS}0.100", "better")),
    (0.5, 0.50049, True, ("0.000", "same")),
    (0.5, None, True, (NONE, "")),
])  # fmt: skip
def test_difference(first, second, lower, said):
    assert report_tables.difference(first, second, lower=lower) == said


def test_classes_join_retrieval_and_probe_worst_first():
    sections = evaluation(seed=3)["sections"]
    table = report_tables.class_table([sections], ANIMALS, [""])
    assert table.columns == ["queries", "MAP@R", "Precision at 1", "Linear probe, top-1"]
    wanted = sorted(ANIMALS, key=lambda name: sections["retrieval"]["per_class"][name]["mean_average_precision_at_r"])
    assert [name for name, _ in table.rows] == wanted
    for name, cells in table.rows:
        assert cells[2].value == sections["retrieval"]["per_class"][name]["precision_at_1"]
        assert cells[3].text == f"{sections['linear_probe']['per_class'][name]:.3f}"


def decoded(uri):
    return np.asarray(Image.open(BytesIO(base64.b64decode(uri.split(",")[1]))))


def test_pictures_keep_their_place_and_their_pixels():
    pictures = [np.full((8, 8), 10 * place, dtype=np.uint8) for place in range(7)]
    pictures[3] = np.full((4, 8), 200, dtype=np.uint8)
    atlas = encode_atlas(pictures, 64, 10**6)
    sheet = decoded(atlas.uri)
    assert (atlas.columns, atlas.rows, atlas.pixelated) == (3, 3, True)
    assert sheet.shape == (24, 24)
    for place in (0, 1, 2, 4, 5, 6):
        row, column = divmod(place, 3)
        assert (sheet[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] == 10 * place).all()
    assert (sheet[8:16, 0:8][2:6] == 200).all()
    assert (sheet[8:16, 0:8][:2] == 0).all()


def test_large_pictures_are_made_smaller_and_small_ones_stay():
    pictures = [photographs(1, 300)[0][:, :150], photographs(1, 20)[0]]
    large, small = encode_each(pictures, 112, 10**6)
    assert decoded(large.uri).shape == (112, 56, 3)
    assert not large.pixelated
    assert small.pixelated
    np.testing.assert_array_equal(decoded(small.uri), pictures[1])
    within, _ = encode_each(pictures, 112, 9_000)
    assert decoded(within.uri).shape == (112, 56, 3)  # worse, before it is smaller
    assert not within.uri.startswith("data:image/png")
    assert sum(len(each.uri) for each in encode_each(pictures, 112, 1_500)) <= 1_500


def without(content, *path):
    return changed(content, *path, to=...)


def changed(content, *path, to):
    """A copy with one value changed, or taken away."""
    copied = copy.deepcopy(content)
    place = copied
    for key in path[:-1]:
        place = place[key]
    if to is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    return copied


BAD = [
    (("titel",), "x", ValueError, "unknown key 'titel'"),
    (("notes",), ..., ValueError, "no key 'notes'"),
    (("notes",), "text", TypeError, "`notes` to be a list, but got str"),
    (("sections", "retreival"), {}, ValueError, "`sections` to have the keys .* unknown key 'retreival'"),
    (("sections", "retrieval", "metrics", "precision_at_1"), float("nan"), ValueError, "precision_at_1` to be finite"),
    (("sections", "retrieval", "metrics", "precision_at_1"), 95.1, ValueError, r"within \[-1, 1\], but got 95.1"),
    (("sections", "retrieval", "per_class", "cow"), {"queries": 1}, ValueError, "names among .* but got 'cow'"),
    (("sections", "retrieval", "per_class", "cat"), {}, ValueError, "per_class.cat` to have the key 'queries'"),
    (("sections", "linear_probe", "inverse_l2"), "auto", TypeError, "inverse_l2` to be a number, but got 'auto'"),
    (("sections", "calibration", "after", "nll"), -1.0, ValueError, "after.nll` to be within"),
    (("sections", "calibration", "reliability", "before", 2, "low"), ..., ValueError, r"before\[2\]` .* no key 'low'"),
    (("sections", "calibration", "temperature"), float("inf"), ValueError, "temperature` to be finite"),
    (("sections", "corruption", "strengths"), 32, ValueError, "strengths` to be one of"),
    (("sections", "gallery", 0, "neighbours", 1, "right"), 1, TypeError, r"neighbours\[1\].right` to be true or false"),
    (("sections", "gallery", 0, "label"), "cow", ValueError, r"gallery\[0\].label` to be one of"),
    (("sections", "gallery", 0, "query"), 9999, ValueError, r"pictures\['test'\]\[9999\]` to be there"),
    (("sections", "gallery", 0, "query"), -1, ValueError, "query` to be 0 or more"),
    (("sections", "map", "labels"), [0], ValueError, "map.labels` to have one item per index, 400, but got 1"),
    (("sections", "map", "labels", 0), 10, ValueError, "labels` to be below 10"),
    (("sections", "map", "methods", "pca", 0), [1.0], ValueError, "2 items, but got 1"),
    (("sections", "map", "methods", "isomap"), [], ValueError, "names among .*'isomap'"),
    (("about", "x"), {"y": float("inf")}, ValueError, "about.x.y` to be finite"),
    (("about", "x"), object(), TypeError, "about.x` to be a JSON value"),
    (("data", "train"), True, TypeError, "data.train` to be an integer"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "error", "match"), BAD)
def test_bad_content_is_refused_with_its_place(path, value, error, match):
    with pytest.raises(error, match=match):
        made(changed(evaluation(), *path, to=value))


def test_content_survives_json():
    content = evaluation()
    assert made(json.loads(json.dumps(content))).content == content


@pytest.mark.parametrize(("picture", "error", "match"), [
    (np.zeros((4, 4)), TypeError, "uint8 array, but got float64"),
    ([[0]], TypeError, "uint8 array, but got list"),
    (np.zeros((3, 4, 4), np.uint8), ValueError, r"\(H, W, 3\), but got \(3, 4, 4\)"),
    (np.zeros((0, 4), np.uint8), ValueError, r"but got \(0, 4\)"),
])  # fmt: skip
def test_bad_pictures_are_refused(picture, error, match):
    with pytest.raises(error, match=match):
        made(evaluation(), PICTURES | {3: picture})
