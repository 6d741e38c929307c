"""An evaluation as one HTML file that opens by itself, on a phone or a desk, in light or dark."""

from pml_supcon.evaluation.report.content import check_content
from pml_supcon.evaluation.report.page import Evaluation, write_report

__all__ = ["Evaluation", "check_content", "write_report"]
