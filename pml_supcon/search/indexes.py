"""FAISS indexes by name, approximate or on GPUs, and the share of true neighbours that an index finds."""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch

from pml_supcon._arrays import Array, Floats, Labels
from pml_supcon._checks import check_bool, check_int, did_you_mean, shown
from pml_supcon._extras import require_faiss
from pml_supcon.search.distances import well_conditioned
from pml_supcon.search.exact import FAISS_MAX_K, FaissSearcher, Searcher, StreamedSearcher, without_own
from pml_supcon.search.inputs import as_ranked, check_starts_with

logger = logging.getLogger(__name__)

#: Names beside `exact`, which searches all references in blocks; any string of FAISS's `index_factory` is one too.
INDEXES = ("exact", "ivf", "hnsw", "gpu_flat", "gpu_sharded", "gpu_ivf")
GPU_MAX_K = 2048  # FAISS finds no more neighbours than this on a GPU
POINTS_PER_LIST = 39  # FAISS recommends at least this many to train the centre of a list
SLOW_K = 1000  # with more neighbours an approximate index is hardly faster than the exact search
CHECKED_WIDTH = 64  # the width of an index that is built only to check its name


class IndexSearcher:
    """A FAISS index of the references; its ``name`` is one of `INDEXES` or a string of FAISS's ``index_factory``."""

    row_bytes = 0

    def __init__(self, faiss: ModuleType, queries: Floats, references: Floats, *, name: str, own: bool) -> None:
        self.faiss, self.queries, self.own, self.name = faiss, np.ascontiguousarray(queries), own, name
        self.index = build_index(faiss, references, name)

    def find(self, rows: Labels, k: int) -> tuple[Floats, Labels]:
        """Search as `Searcher.find`."""
        wanted = k + int(self.own)
        if self.name.startswith("gpu_") and wanted > GPU_MAX_K:
            raise ValueError(
                f"Expected at most {GPU_MAX_K} neighbours of an index on a GPU, but got {wanted}: leave out the "
                "metrics that rank all references of a class (`at_r=False`), or use index='exact'"
            )
        if hasattr(self.index, "hnsw"):
            self.index.hnsw.efSearch = max(64, 2 * wanted)
        with references_fit(self.name, self.index.ntotal):  # a GPU needs memory for the search too
            distances, neighbours = self.index.search(self.queries[rows], wanted)
        distances[neighbours < 0] = math.inf
        return without_own(distances, neighbours, rows) if self.own else (distances, neighbours)


def build_index(faiss: ModuleType, references: Floats, name: str) -> Any:
    """Build a FAISS index of ``(M, D)`` references by squared L2 distance, from a name or a string of its factory."""
    rows, width = references.shape
    lists = max(1, min(round(4 * math.sqrt(rows)), rows // POINTS_PER_LIST))
    named = {"ivf": f"IVF{lists},Flat", "hnsw": "HNSW32,Flat", "gpu_flat": "Flat", "gpu_sharded": "Flat"}
    factory = (named | {"gpu_ivf": named["ivf"]}).get(name, name)
    if name.startswith("gpu_") and (not hasattr(faiss, "index_cpu_to_all_gpus") or faiss.get_num_gpus() == 0):
        raise ValueError(f"Expected a GPU, and FAISS built for it (faiss-gpu), for index={name!r}, but there is none")
    try:
        index = faiss.index_factory(width, factory)
    except RuntimeError as error:
        raise ValueError(expected_index(name, f" that fits a width of {width}")) from error
    lists_inside = faiss.try_extract_index_ivf(index)  # also behind a transform such as OPQ
    if lists_inside is not None:
        lists_inside.nprobe = max(8, lists_inside.nlist // 16)
        lists_inside.cp.min_points_per_centroid = 1
    for coded in (index, lists_inside):
        if hasattr(getattr(coded, "pq", None), "cp"):
            coded.pq.cp.min_points_per_centroid = 1  # no warnings on stderr: `index_recall` measures the misses
    rows_in_order = np.ascontiguousarray(references)
    with references_fit(name, rows):
        if name.startswith("gpu_"):
            options = faiss.GpuMultipleClonerOptions()
            options.shard = name == "gpu_sharded"
            index = faiss.index_cpu_to_all_gpus(index, co=options)
        index.train(rows_in_order)
        index.add(rows_in_order)
    return index


@contextmanager
def references_fit(name: str, rows: int) -> Iterator[None]:
    """Turn an error of FAISS into one that names the index, the number of references and the reason.

    Raises:
        ValueError: If FAISS raises a RuntimeError, such as for a GPU without the memory.
    """
    try:
        yield
    except RuntimeError as error:  # the last line of FAISS's message has the reason
        why = str(error).strip().splitlines()[-1]
        text = f"Expected references that index={name!r} can hold, but got {rows}: {why}"
        if name.startswith("gpu_"):
            text += "; 'gpu_sharded' divides them over all GPUs, and 'ivf' and 'exact' need no GPU"
        raise ValueError(text) from error


def check_index(name: str) -> None:
    """Raise unless ``name`` is one of `INDEXES` or FAISS can parse it; `build_index` checks that it fits the width."""
    if not isinstance(name, str):
        raise TypeError(f"Expected argument `index` to be a string, but got {shown(name)}")
    if name in INDEXES:
        return
    try:
        require_faiss().index_factory(CHECKED_WIDTH, name)
    except (RuntimeError, TypeError) as error:  # SWIG's TypeError: a string with lone surrogates
        # other errors, such as for PQ12, may not occur at another width
        if isinstance(error, TypeError) or "could not parse" in str(error):
            raise ValueError(expected_index(name)) from error


def expected_index(name: str, which: str = "") -> str:
    """Return the error text for an unknown name."""
    return (
        f"Expected argument `index` to be one of {', '.join(INDEXES)} or a string of FAISS's index_factory{which}, but "
        f"got {name!r}{did_you_mean(name, INDEXES)}"
    )


def make_searcher(
    queries: Floats, references: Floats, *, index: str, own: bool, k: int, device: torch.device
) -> Searcher:
    """Create the search for up to k neighbours by an index; the exact search uses FAISS for small k on the CPU."""
    faiss = require_faiss()
    if index != "exact":
        if k > SLOW_K:
            logger.warning(
                "index=%r searches %d neighbours of each query, which is slow: `at_r=False` leaves out the metrics "
                "that rank all references of a class.",
                index,
                k,
            )
        return IndexSearcher(faiss, queries, references, name=index, own=own)
    if device.type == "cpu" and k <= FAISS_MAX_K:
        return FaissSearcher(faiss, queries, references, own=own)
    return StreamedSearcher(queries, references, own=own, device=device)


def index_recall(
    query: Array,
    reference: Array,
    *,
    index: str,
    k: Sequence[int] = (1, 10, 100),
    queries: int = 1000,
    seed: int = 0,
    ref_includes_query: bool = False,
) -> dict[int, float]:
    r"""Measure the share of the k nearest references that an approximate index finds, against the exact search.

    .. math:: \frac{1}{|Q|} \sum_{q \in Q} \frac{|A_k(q) \cap E_k(q)|}{k}

    with :math:`A_k` the k rows that the index returns and :math:`E_k` the k nearest rows (ties at the k-th distance may
    be resolved differently). It is the "recall@k" of FAISS and ANN-benchmarks, not ``recall_at_k`` of
    `retrieval_metrics`, which compares labels.

    Args:
        query: ``(N, D)`` floats.
        reference: ``(M, D)`` floats.
        index: One of `INDEXES` or a string of FAISS's ``index_factory`` (``"IVF4096,PQ16"``).
        k: Numbers of neighbours, each from 1 to M (M - 1 with ``ref_includes_query``).
        queries: The number of queries searched, at most; drawn with ``seed``.
        seed: Seed of the draw, at least 0.
        ref_includes_query: The first N references are the queries, and no query is its own neighbour: such an easy
            hit would raise the recall.

    Returns:
        The recall in [0, 1] for each k.

    Raises:
        ImportError: If FAISS is not installed.
        TypeError: If embeddings are not floating point, the index is not a string, or ``k`` is not a sequence
            of integers.
        ValueError: If the index is unknown, its GPU is missing or it cannot hold these references, a k is larger than
            their number, all references are identical, or ``ref_includes_query`` is set and they do not start with the
            queries.

    Examples:
        >>> points = np.random.default_rng(0).normal(size=(2000, 8))
        >>> recall = index_recall(points[:100], points, index="hnsw", k=(1, 10))
        >>> recall[1] > 0.95
        True
    """
    check_int("queries", queries, low=1)
    check_int("seed", seed, low=0)
    check_index(index)
    if not isinstance(k, Sequence) or isinstance(k, str) or not k:
        raise TypeError(f"Expected argument `k` to be a sequence of integers, but got {shown(k)}")
    rows, references = as_ranked(query, reference)
    own = check_bool("ref_includes_query", ref_includes_query)
    if own:
        check_starts_with(references, rows)
    available = len(references) - int(own)
    for wanted in k:
        check_int("k", wanted, low=1)
        if wanted > available:
            raise ValueError(
                f"Expected argument `k` to be at most the {available} {'other ' * own}references, but got {wanted}"
            )
    rows, references, _ = well_conditioned(rows, references)
    drawn = np.sort(np.random.default_rng(seed).permutation(len(rows))[:queries])

    def search(name: str) -> Labels:
        searcher = make_searcher(rows, references, index=name, own=own, k=max(k), device=torch.device("cpu"))
        return searcher.find(drawn, max(k))[1]

    given, exact = search(index), search("exact")
    return {few: share_found(given[:, :few], exact[:, :few]) for few in k}


def share_found(given: Labels, exact: Labels) -> float:
    """Return the share of the neighbours ``exact`` ``(n, k)`` that are in the same row of ``given``."""
    return float(np.mean([np.isin(right, found).mean() for found, right in zip(given, exact, strict=True)]))
