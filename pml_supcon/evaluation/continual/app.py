"""The program `continual.py`: train on tasks that come one after another, and write a report.

Usage: `recipes/continual.py`.
"""

from collections.abc import Sequence

from pml_supcon.evaluation.report import write_continual_report
from pml_supcon.training.continual import app


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the settings, train on all tasks, score them after each, write the report and print the summary."""
    app.main(arguments, report=write_continual_report)


if __name__ == "__main__":
    main()
