"""What frozen embeddings are worth: retrieval, k-NN and linear-probe accuracy, and PML testers for them."""

from .linear_probe import LinearProbeTester, fit_linear_probe, linear_probe_metrics
from .retrieval import RetrievalTester, retrieval_metrics

__all__ = [  # noqa: RUF022 - flow order
    "retrieval_metrics",
    "RetrievalTester",
    "fit_linear_probe",
    "linear_probe_metrics",
    "LinearProbeTester",
]
