"""The report of an evaluation: one HTML file without dependencies, for phones and desks, light or dark."""

from pml_supcon.evaluation.report.page import write_report

__all__ = ["write_report"]
