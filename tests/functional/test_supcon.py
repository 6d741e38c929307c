"""`supcon_loss` against the specification's values and an oracle of plain loops, which rejects wrong losses."""

import itertools
import math

import pytest
import torch
from helpers import supcon_oracle, wrong_losses
from helpers.supcon_batches import (
    BACKENDS,
    OPTION_NAMES,
    OPTIONS,
    SPEC_CASES,
    SPEC_LABELS,
    SPEC_ROWS,
    SPEC_TEMPERATURE,
    assert_equals_oracle,
    label_kinds,
    random_rows,
)

from pml_supcon.functional import supcon_loss
from pml_supcon.functional.supcon import upper_triangle
from pml_supcon.functional.supcon.tiled import layout, listed


@pytest.fixture(params=[*BACKENDS, "dense in strips of 3", "tiled in tiles of 3"])
def backend(request, monkeypatch):
    if request.param.endswith("of 3"):
        monkeypatch.setattr(upper_triangle, "STRIP", 3)
        monkeypatch.setattr(layout, "TILE", 3)
    return request.param.split()[0]


@pytest.mark.parametrize("form", ["(N, D)", "(B, V, D)"])
@pytest.mark.parametrize(("summation", "denominator", "options", "with_labels", "value"), SPEC_CASES)
def test_table_of_the_specification(backend, form, summation, denominator, options, with_labels, value):
    embeddings, labels = SPEC_ROWS, SPEC_LABELS.repeat(2) if with_labels else None
    if form == "(B, V, D)":
        embeddings, labels = SPEC_ROWS.view(2, 4, 2).transpose(0, 1), SPEC_LABELS if with_labels else None
    terms = supcon_loss(
        embeddings,
        labels,
        num_views=2 if form == "(N, D)" else None,
        temperature=SPEC_TEMPERATURE,
        summation=summation,
        denominator=denominator,
        backend=backend,
        **options,
    )
    assert terms.mean().item() == pytest.approx(value, abs=1e-9)  # the table's ninth decimal is rounded


@pytest.mark.parametrize("num_views", [1, 2, 3])
@pytest.mark.parametrize("contrast_mode", ["all", "one"])
@pytest.mark.parametrize(OPTION_NAMES, OPTIONS)
def test_oracle_for_rows_contrasted_with_themselves(backend, summation, denominator, contrast_mode, num_views):
    options = {"summation": summation, "denominator": denominator, "contrast_mode": contrast_mode}
    for num_samples, width in ((1, 3), (2, 1), (5, 3)):
        rows = random_rows(num_samples * num_views, width)
        for (kind, samples), factor in itertools.product(label_kinds(num_samples).items(), (None, 0, 1, 2)):
            cap = None if factor is None else factor * num_views
            given = {"num_views": num_views, "temperature": 0.3, "positives_cap": cap, **options}
            labels = samples.repeat(num_views)
            expected = supcon_oracle.anchor_losses(rows, labels, **given)
            ours = supcon_loss(rows, labels, backend=backend, **given)
            assert_equals_oracle(ours, expected, f"B={num_samples}, D={width}, {kind}, cap={cap}")


@pytest.mark.parametrize(OPTION_NAMES, OPTIONS)
def test_oracle_for_equal_rows(backend, summation, denominator):
    """Duplicate rows within a class and across classes, and all rows equal."""
    labels = torch.tensor([0, 0, 1, 1, 2, 3])
    for rows in (torch.ones(6, 3), torch.eye(3).repeat(2, 1), random_rows(3, 3)[[0, 0, 0, 1, 1, 2]]):
        for temperature in (0.01, 0.3):
            given = {"summation": summation, "denominator": denominator, "temperature": temperature}
            expected = supcon_oracle.anchor_losses(rows.double(), labels, **given)
            assert_equals_oracle(supcon_loss(rows.double(), labels, backend=backend, **given), expected, f"{rows}")


@pytest.mark.parametrize("contrast_mode", ["all", "one"])
@pytest.mark.parametrize(OPTION_NAMES, OPTIONS)
def test_oracle_for_reference_rows(backend, summation, denominator, contrast_mode):
    given = {"num_views": 2, "summation": summation, "denominator": denominator, "contrast_mode": contrast_mode}
    for num_samples, num_refs, width in ((1, 4, 3), (2, 1, 3), (3, 7, 1), (4, 4, 3)):
        rows, refs = random_rows(2 * num_samples, width), random_rows(num_refs, width)
        for (kind, samples), (ref_kind, ref_labels) in itertools.product(
            label_kinds(num_samples).items(), label_kinds(num_refs).items()
        ):
            references = {"ref_emb": refs, "ref_labels": ref_labels}
            expected = supcon_oracle.anchor_losses(rows, samples.repeat(2), **references, **given)
            ours = supcon_loss(rows, samples.repeat(2), backend=backend, **references, **given)
            assert_equals_oracle(ours, expected, f"B={num_samples}, M={num_refs}, {kind}, references {ref_kind}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("normalize", [True, False])
def test_embeddings_that_are_their_own_references(backend, normalize):
    rows, labels = random_rows(6, 3), torch.tensor([0, 1, 0, 1, 2, 2])
    for ref_labels in (labels.clone(), torch.tensor([2, 2, 1, 0, 0, 1])):
        given = {"ref_emb": rows, "ref_labels": ref_labels, "normalize": normalize, "temperature": 0.5}
        expected = supcon_oracle.anchor_losses(rows, labels, **given)
        assert_equals_oracle(supcon_loss(rows, labels, backend=backend, **given), expected, f"{ref_labels}")


def random_tuple(kind, number, num_refs):
    """Return index tuples that no labels give: some pairs are positive and negative at once, some are repeated."""
    a1, p = torch.nonzero(torch.rand(number, num_refs) < 0.4, as_tuple=True)
    a2, n = torch.nonzero(torch.rand(number, num_refs) < 0.4, as_tuple=True)
    if kind == "pairs":
        return a1, p, a2, n
    if kind == "pairs twice":
        return a1.repeat(2), p.repeat(2), torch.cat([a2, a2[:3]]), torch.cat([n, n[:3]])
    if kind == "no positives":
        return a1[:0], p[:0], a2, n
    if kind == "no negatives":
        return a1, p, a2[:0], n[:0]
    if kind == "nothing":
        return (a1[:0],) * 4
    i, j = torch.nonzero(a1[:, None] == a2, as_tuple=True)  # an anchor, with a positive and a negative of its own
    return a1[i], p[i], n[j]


@pytest.mark.parametrize("kind", ["pairs", "pairs twice", "no positives", "no negatives", "nothing", "triplets"])
@pytest.mark.parametrize(OPTION_NAMES, OPTIONS)
@pytest.mark.parametrize("way", ["listed", "dense"])
def test_oracle_for_listed_pairs(kind, summation, denominator, way, monkeypatch):
    monkeypatch.setattr(listed, "DENSE_SHARE", math.inf if way == "listed" else 0)
    given = {"summation": summation, "denominator": denominator, "temperature": 0.3}
    for number, width in itertools.product((1, 2, 5), (1, 3)):
        rows, refs = random_rows(number, width), random_rows(6, width)
        pairs = random_tuple(kind, number, number)
        expected = supcon_oracle.anchor_losses(rows, indices_tuple=pairs, **given)
        assert_equals_oracle(supcon_loss(rows, indices_tuple=pairs, **given), expected, f"N={number}")
        labels = torch.zeros(number, dtype=torch.int64)  # labels are ignored with listed pairs
        assert_equals_oracle(supcon_loss(rows, labels, indices_tuple=pairs, **given), expected, f"N={number}, labels")
        pairs = random_tuple(kind, number, 6)
        expected = supcon_oracle.anchor_losses(rows, ref_emb=refs, indices_tuple=pairs, **given)
        ours = supcon_loss(rows, ref_emb=refs, indices_tuple=pairs, **given)
        assert_equals_oracle(ours, expected, f"N={number}, references")


WRONG_BATCH = {"rows": [[1.0, 0.2, 0.1], [2.0, 1.0, -0.5], [-0.3, 1.0, 0.4], [0.8, -0.9, 0.3], [0.5, 0.5, 1.5],
                        [-1.0, 0.1, 0.7], [0.1, -0.4, -1.2]], "labels": [0, 0, 1, 0, 1, 2, 0]}  # fmt: skip


@pytest.mark.parametrize("summation", ["out", "in"])
@pytest.mark.parametrize("mistake", [None, *wrong_losses.MISTAKES])
def test_the_oracle_rejects_wrong_losses(summation, mistake):
    rows = torch.tensor(WRONG_BATCH["rows"], dtype=torch.float64)
    labels = torch.tensor(WRONG_BATCH["labels"])
    cap = 2 if mistake is not None and mistake.startswith("dropped") else None
    expected = supcon_oracle.mean(
        supcon_oracle.anchor_losses(rows, labels, temperature=0.5, summation=summation, positives_cap=cap)
    )
    wrong = wrong_losses.batch_loss(rows, labels, 0.5, summation=summation, cap=cap, mistake=mistake).item()
    if mistake is None:  # without a mistake the loss is right, with and without a cap
        assert wrong == pytest.approx(expected, abs=1e-12)
        capped = supcon_oracle.anchor_losses(rows, labels, temperature=0.5, summation=summation, positives_cap=2)
        wrong = wrong_losses.batch_loss(rows, labels, 0.5, summation=summation, cap=2).item()
        assert wrong == pytest.approx(supcon_oracle.mean(capped), abs=1e-12)
    else:
        assert abs(wrong - expected) > 0.02, "the oracle does not reject the mistake"
