"""The reports, one HTML file each without dependencies, for phones and desks, light or dark."""

from pml_supcon.evaluation.report.continual import write_continual_report
from pml_supcon.evaluation.report.page import write_report

__all__ = ["write_continual_report", "write_report"]
