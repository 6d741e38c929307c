"""Exact and approximate nearest neighbours."""

from pml_supcon.search.indexes import INDEXES, index_recall

__all__ = ["INDEXES", "index_recall"]
