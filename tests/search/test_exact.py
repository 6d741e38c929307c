import math

import numpy as np
import pytest
import torch
from helpers.float32_products import FULL, float32_products, lower_precision
from helpers.labelled_points import clustered, on_a_grid, rankings

from pml_supcon._extras import require_faiss
from pml_supcon.search import exact as neighbours_module
from pml_supcon.search.exact import (
    FaissSearcher,
    StreamedSearcher,
    first_rank,
    in_threads,
    nearest,
    nearest_on_device,
    split_rows,
    upper_bound,
)

CPU = torch.device("cpu")


def rows_of_values(size):
    """Return rows of distances with ties, signed zeros, infinities, subnormal numbers and uneven samples."""
    rng = np.random.default_rng(7)
    normal = rng.normal(size=size)
    holes = normal.copy()
    holes[:: max(1, size // 5)] = math.inf
    return {
        "of both signs": normal,
        "ties": rng.integers(-3, 4, size=size),
        "ties in pairs": np.repeat(normal, 2)[:size],
        "one value": np.zeros(size),
        "zeros of both signs": rng.choice([0.0, -0.0, 1.0, -1.0], size=size),
        "infinities": holes,
        "all infinite": np.full(size, math.inf),
        "tiny": normal * 1e-42,  # below the least normal float32
        "huge": normal * 1e37,
        "falling": -np.arange(size),
        # The sample of `upper_bound`, with a step, misrepresents these rows.
        "few near": np.where(np.arange(size) % 19 == 0, normal, normal + 100),
        "few far": np.where(np.arange(size) % 19 == 0, normal + 100, normal),
    }


@pytest.mark.parametrize("size", [1, 30, 1023, 20_000])
@pytest.mark.parametrize("name", rows_of_values(1))
def test_nearest_is_the_start_of_a_stable_sort(name, size):
    values = rows_of_values(size)[name].astype(np.float32)
    order = np.argsort(values, kind="stable")
    for k in sorted({1, min(2, size), min(100, size), math.ceil(size / 10), math.ceil(size / 2), size}):
        found, places = nearest(values, k)
        assert places.tolist() == order[:k].tolist(), k
        assert np.array_equal(found, values[order[:k]])
        found, places = nearest_on_device(torch.from_numpy(np.stack([values[::-1], values])), k)
        assert places[1].tolist() == order[:k].tolist(), k
        assert np.array_equal(found[1].numpy(), values[order[:k]])


def test_the_bound_lets_few_more_than_k_through():
    values = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    for k in (1, 100, 5000, 50_000):
        passed = int((values <= upper_bound(values, k)).sum())
        assert k <= passed <= 2 * k + 2000


@pytest.mark.parametrize("name", [name for name in rows_of_values(1) if "infin" not in name])
def test_first_rank_is_the_place_in_a_stable_sort(name):
    values = rows_of_values(500)[name].astype(np.float32)
    order = np.argsort(values, kind="stable").tolist()
    for seed in range(5):
        relevant = np.sort(np.random.default_rng(seed).choice(500, size=1 + 3 * seed, replace=False))
        assert first_rank(values, relevant) == 1 + min(order.index(place) for place in relevant)


def searchers(query, reference, *, own):
    return {
        "faiss": FaissSearcher(require_faiss(), query, reference, own=own),
        "streamed": StreamedSearcher(query, reference, own=own, device=CPU),
    }


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("k", [1, 128, 499])
def test_searchers_rank_by_distance_and_row_where_distances_tie(own, k):
    reference, _ = on_a_grid(500, seed=1, classes=5)
    query = reference[:200] if own else on_a_grid(200, seed=2, classes=5)[0]
    rows = np.random.default_rng(0).permutation(200)[:150]
    ranked = list(rankings(query, reference, ref_includes_query=own))
    ties = [len(distances) - len(set(distances.tolist())) for _, distances in ranked]
    assert min(ties) > 300  # nearly every distance occurs more than once
    for name, searcher in searchers(query, reference, own=own).items():
        distances, neighbours = searcher.find(rows, k)
        assert neighbours.tolist() == [ranked[row][0][:k].tolist() for row in rows], name
        assert distances.tolist() == [ranked[row][1][:k].tolist() for row in rows], name


def test_searchers_give_the_distances_of_float64():
    query, reference = clustered(100, seed=2)[0], clustered(300, seed=1)[0] * 5
    ranked = list(rankings(query, reference, ref_includes_query=False))
    for searcher in searchers(query, reference, own=False).values():
        distances, _ = searcher.find(np.arange(100), 60)
        assert distances.dtype == np.float32
        assert distances == pytest.approx(np.stack([d[:60] for _, d in ranked]), abs=1e-4)


@pytest.mark.parametrize("kind", ["faiss", "streamed"])
def test_a_query_is_left_out_among_more_duplicates_than_neighbours(kind):
    points = np.ones((50, 4), dtype=np.float32)
    own = np.arange(50)
    distances, neighbours = searchers(points, points, own=True)[kind].find(own, 3)
    assert distances.shape == neighbours.shape == (50, 3)
    assert not (neighbours == own[:, None]).any()
    assert neighbours.tolist() == [[row for row in range(4) if row != query][:3] for query in range(50)]


@pytest.mark.parametrize("count", [0, 2, 100])
@pytest.mark.parametrize("threads", [1, 3])
def test_threads_share_rows_and_raise_their_errors(count, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    parts = []
    in_threads(parts.append, count)
    assert sorted(row for part in parts for row in range(part.start, part.stop)) == list(range(count))
    assert len(parts) == max(1, min(threads, count))
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda part: 1 // part.start, count)


@pytest.mark.parametrize(("chunk_size", "sizes"), [(10, [9, 9, 8]), (26, [26]), (1000, [26]), (1, [1] * 26)])
def test_chunks_are_of_equal_size(chunk_size, sizes):
    rows = np.arange(100, 126)
    chunks = list(split_rows(rows, row_bytes=4, chunk_size=chunk_size))
    assert [len(chunk) for chunk in chunks] == sizes
    assert np.concatenate(chunks).tolist() == rows.tolist()
    # A chunk has one row where a row is larger than a block.
    assert [len(chunk) for chunk in split_rows(np.arange(3), row_bytes=2**40, chunk_size=None)] == [1, 1, 1]
    assert [len(chunk) for chunk in split_rows(np.arange(9), row_bytes=2**24, chunk_size=None)] == [3, 3, 3]


def test_blocks_are_products_of_float32_in_spite_of_the_users_settings(monkeypatch):
    points = clustered(2000, seed=1)[0]
    searcher = StreamedSearcher(points[:50], points, own=False, device=CPU)
    right = searcher.block(np.arange(50)).numpy()
    inside, addmm = [], torch.addmm

    def recorded(*arguments, **options):
        inside.append((torch.is_autocast_enabled("cpu"), float32_products("cpu")))
        return addmm(*arguments, **options)

    monkeypatch.setattr(torch, "addmm", recorded)
    with lower_precision(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = searcher.block(np.arange(50))
    assert inside == [(False, FULL)]
    assert found.dtype == torch.float32
    assert np.array_equal(found.numpy(), right)


def test_any_device_but_the_cpu_selects_for_itself(monkeypatch):
    """Use torch's meta device, which is neither the CPU nor CUDA."""
    points = clustered(60, seed=1)[0]
    searcher = StreamedSearcher(points, points, own=False, device=CPU)
    expected = searcher.find(np.arange(10), 5)
    block = searcher.block(np.arange(10))
    monkeypatch.setattr(searcher, "block", lambda rows: block.to("meta"))
    monkeypatch.setattr(neighbours_module, "nearest_on_device", lambda values, k: nearest_on_device(block, k))
    for found, right in zip(searcher.find(np.arange(10), 5), expected, strict=True):
        assert np.array_equal(found, right)
