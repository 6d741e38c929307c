"""Measure the cost of each option of the loss relative to L_out without a cap.

    python benchmarks/options.py [--quick] [--device cuda]

N = 8,192. "first view" takes only the first views as anchors, half of the pairs. `ref_emb` adds 8,192 rows without a
gradient; a pair of rows of the batch serves both of its rows, a pair with `ref_emb` only one: twice the products.
"""

from collections.abc import Sequence

from harness import Entry, Run
from providers import OPTIONS
from records import Record
from tables import measurements

SIZE = 8192


def main(arguments: Sequence[str] | None = None) -> list[Record]:
    """Measure all options in turns, then print the table."""
    run = Run.of("options", __doc__, arguments)
    entries = [Entry("pml_supcon/auto", run.case(SIZE, option=option)) for option in OPTIONS]
    made = run.measure(entries, seconds=45, least=3)
    print(measurements(made, against="L_out"))
    return made


if __name__ == "__main__":
    main()
