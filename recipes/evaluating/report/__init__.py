"""An evaluation as one HTML file that opens by itself, on a phone or a desk, in light or dark."""

from pml_supcon.recipes.evaluating.report.content import check_content
from pml_supcon.recipes.evaluating.report.page import Evaluation, write_report

__all__ = ["Evaluation", "check_content", "write_report"]
