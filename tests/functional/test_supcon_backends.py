"""The backends of `supcon_loss` beside each other on odd shapes and tile borders, and which one is taken."""

import pytest
import torch
from supcon_batches import BACKENDS, OPTION_NAMES, OPTIONS, label_kinds, loss_and_gradient, random_rows

from pml_supcon.functional import supcon_loss
from pml_supcon.functional.supcon import layout


def assert_backends_agree(rows, labels, *, rtol=1e-9, atol=1e-11, **options):
    upstream = torch.randn(len(rows), dtype=rows.dtype)
    tiles, dense = (loss_and_gradient(rows, labels, upstream, backend=backend, **options) for backend in BACKENDS)
    torch.testing.assert_close(tiles, dense, rtol=rtol, atol=atol)


@pytest.fixture(params=[False, True], ids=["labels on the host", "labels not on the host"])
def hidden_labels(request, monkeypatch):
    """The tiled backend reads labels that are in host memory; elsewhere it does without, which this makes it do."""
    if request.param:
        monkeypatch.setattr(layout, "on_host", lambda labels: False)


@pytest.mark.usefixtures("hidden_labels")
@pytest.mark.parametrize(("number", "tile"), [(1, 7), (2, 7), (3, 7), (65, 7), (65, 64), (257, 64), (257, 512)])
@pytest.mark.parametrize(OPTION_NAMES, OPTIONS)
def test_odd_shapes_and_tile_borders(monkeypatch, summation, denominator, number, tile):
    monkeypatch.setattr(layout, "TILE", tile)
    given = {"summation": summation, "denominator": denominator}
    for kind, labels in label_kinds(number).items():
        for width in (1, 3, 128) if kind == "mixed" else (3,):
            assert_backends_agree(random_rows(number, width), labels, **given)
            # exponentials with a shift: the bound on s is above what the exponent holds
            assert_backends_agree(random_rows(number, width), labels, temperature=0.0015, atol=1e-9, **given)


@pytest.mark.usefixtures("hidden_labels")
@pytest.mark.parametrize("tile", [7, 64])
@pytest.mark.parametrize(OPTION_NAMES, OPTIONS)
def test_tile_borders_with_samples_and_references(monkeypatch, summation, denominator, tile):
    monkeypatch.setattr(layout, "TILE", tile)
    given = {"summation": summation, "denominator": denominator}
    samples = torch.randint(0, 5, (35,))
    rows, refs, ref_labels = random_rows(70, 6), random_rows(41, 6), torch.randint(3, 8, (41,))
    for options in ({"positives_cap": 0}, {"positives_cap": 6}, {"ref_emb": refs, "ref_labels": ref_labels}):
        assert_backends_agree(rows, samples.repeat(2), num_views=2, **options, **given)
    terms = [
        loss_and_gradient(
            rows, samples.repeat(2), num_views=2, contrast_mode="one", positives_cap=2, backend=backend, **given
        )
        for backend in BACKENDS
    ]
    torch.testing.assert_close(terms[0], terms[1], rtol=1e-9, atol=1e-11)


def test_auto_takes_the_first_backend_that_can(monkeypatch):
    rows, labels = random_rows(6, 3), torch.arange(6) // 2
    used = []
    for name in BACKENDS:
        module = supcon_loss.__globals__["BACKENDS"][name]
        spy = lambda problem, name=name, solve=module.anchor_losses: (used.append(name), solve(problem))[1]  # noqa: E731
        monkeypatch.setattr(module, "anchor_losses", spy)
    supcon_loss(rows, labels)
    supcon_loss(rows, labels, similarity=lambda a, b: -torch.cdist(a, b))
    supcon_loss(rows, indices_tuple=(torch.tensor([0]), torch.tensor([1]), torch.tensor([0]), torch.tensor([2])))
    assert used == ["tiled", "reference", "tiled"]


@pytest.mark.parametrize(OPTION_NAMES, OPTIONS)
def test_a_similarity_of_ones_own(summation, denominator):
    rows, labels = random_rows(8, 3), torch.arange(8) // 3
    given = {"summation": summation, "denominator": denominator}
    cosine = lambda a, b: torch.nn.functional.cosine_similarity(a[:, None], b, dim=2)  # noqa: E731
    ours = supcon_loss(rows, labels, similarity=cosine, **given)
    torch.testing.assert_close(ours.losses, supcon_loss(rows, labels, **given).losses)
