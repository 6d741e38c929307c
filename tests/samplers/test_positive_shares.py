"""The share of labelled samples that have a positive in their batch, as the page of the sampler says.

    python tests/samplers/test_positive_shares.py

prints the table of the page.
"""

import logging
import re
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path[:0] = [str(Path(__file__).parents[1])]

from helpers.rich_labels import long_tailed_sets, long_tailed_tree  # noqa: E402

from pml_supcon.samplers import MultiViewBatchSampler  # noqa: E402

PAGE = Path(__file__).parents[2] / "docs" / "samplers" / "multi_view_batch_sampler.md"
#: Beside the checkout, or beside the folder of its worktrees.
YEAST = [parent / "shared/data/yeast/yeast.npz" for parent in Path(__file__).parents[3:5]]
OPTIONS = {
    "plain shuffle": {},
    "`samples_per_class=4`": {"samples_per_class": 4},
    "`samples_per_class=2`": {"samples_per_class": 2},
    '`samples_per_class=2, draw="class_balanced"`': {"samples_per_class": 2, "draw": "class_balanced"},
}


def data(name):
    """Return labels and their meaning."""
    if name == "yeast":
        found = [file for file in YEAST if file.exists()]
        if not found:
            pytest.skip("the yeast set is absent")
        return np.load(found[0])["train_y"].astype(bool), "sets"
    return (long_tailed_sets(5000, 300), "sets") if name == "long tail" else (long_tailed_tree(5000, 20), "hierarchy")


def share_with_positives(name, batch_size, options):
    """Return the mean share of one epoch's samples with labels that share one with another sample of the batch."""
    labels, labels_are = data(name)
    shares = []
    for batch in MultiViewBatchSampler(labels, batch_size, labels_are=labels_are, drop_last=True, **options):
        rows = labels[batch]
        if labels_are == "sets":
            shared, labelled = (rows[:, None] & rows[None]).any(axis=2), rows.any(axis=1)
        else:
            shared, labelled = (rows[:, None] == rows[None]).any(axis=2), np.ones(len(rows), dtype=bool)
        np.fill_diagonal(shared, False)
        shares.append(shared.any(axis=1)[labelled].mean())
    return float(np.mean(shares))


DATA = ["yeast", "long tail", "tree"]


@pytest.mark.parametrize("name", DATA)
def test_the_page_has_the_shares(name):
    rows = re.findall(r"^\| (.+?) \| (16|64) \| (.+?)% \| (.+?)% \| (.+?)% \|$", PAGE.read_text(), re.M)
    assert [row[0] for row in rows] == [text for text in OPTIONS for _ in range(2)]
    for text, batch_size, *shares in rows:
        measured = 100 * share_with_positives(name, int(batch_size), OPTIONS[text])
        assert measured == pytest.approx(float(shares[DATA.index(name)]), abs=3)


@pytest.mark.parametrize("name", DATA)
def test_nearly_all_samples_have_a_positive(name):
    for options in list(OPTIONS.values())[1:]:
        assert share_with_positives(name, 16, options) > 0.96


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    for text, options in OPTIONS.items():
        for size in (16, 64):
            shares = " | ".join(f"{100 * share_with_positives(name, size, options):.1f}%" for name in DATA)
            print(f"| {text} | {size} | {shares} |")
