"""The tables and pictures of a report, and the results of an evaluation in JSON."""

import base64
import json
from dataclasses import replace
from io import BytesIO

import numpy as np
from helpers.report_cases import ANIMALS, evaluation, photographs
from PIL import Image

from pml_supcon.evaluation.report import tables as report_tables
from pml_supcon.evaluation.report.pictures import encode_atlas, encode_each
from pml_supcon.evaluation.sections import Sections


def test_classes_join_retrieval_and_probe_worst_first():
    sections = evaluation(seed=3).sections
    retrieval, probe = sections.retrieval.per_class, sections.linear_probe.per_class
    table = report_tables.class_table([sections], ANIMALS, [""])
    assert table.columns == ["queries", "MAP@R", "Precision at 1", "Linear probe, top-1"]
    wanted = sorted(ANIMALS, key=lambda name: retrieval[name]["mean_average_precision_at_r"])
    assert [name for name, _ in table.rows] == wanted
    for name, cells in table.rows:
        assert cells[2].value == retrieval[name]["precision_at_1"]
        assert cells[3].text == f"{probe[name]:.3f}"


def decoded(uri):
    return np.asarray(Image.open(BytesIO(base64.b64decode(uri.split(",")[1]))))


def test_an_atlas_keeps_the_order_and_the_pixels_of_its_pictures():
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


def test_large_pictures_are_shrunk_and_small_ones_are_unchanged():
    pictures = [photographs(1, 300)[0][:, :150], photographs(1, 20)[0]]
    large, small = encode_each(pictures, 112, 10**6)
    assert decoded(large.uri).shape == (112, 56, 3)
    assert not large.pixelated
    assert small.pixelated
    np.testing.assert_array_equal(decoded(small.uri), pictures[1])
    within, _ = encode_each(pictures, 112, 9_000)
    assert decoded(within.uri).shape == (112, 56, 3)  # compressed first, shrunk only if that is too large
    assert not within.uri.startswith("data:image/png")
    assert sum(len(each.uri) for each in encode_each(pictures, 112, 1_500)) <= 1_500


def test_results_have_their_fields_in_json():
    sections = evaluation().sections
    content = json.loads(json.dumps(evaluation().to_json()))
    assert list(content) == ["title", "encoder", "data", "about", "notes", "sections"]
    assert content["sections"]["gallery"][0]["neighbours"][0]["right"] is sections.gallery[0].neighbours[0].right
    assert content["sections"]["linear_probe"]["augmented"]["epochs"] == 100
    alone = Sections(linear_probe=replace(sections.linear_probe, augmented=None)).to_json()
    assert list(alone) == ["linear_probe"]
    assert "augmented" not in alone["linear_probe"]
