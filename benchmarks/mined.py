"""Compare the loss of mined pairs with PML's `SupConLoss` on the same list.

    python benchmarks/mined.py [--quick] [--device cuda]

The lists: a hardest positive and negative for each anchor; the hardest 1% and 10% of all pairs. Mining is not timed: it
runs once, beforehand.
"""

from collections.abc import Sequence

from harness import Entry, Run
from providers import MINERS
from records import Record
from tables import measurements

SIZES = (512, 4096)


def main(arguments: Sequence[str] | None = None) -> list[Record]:
    """Measure size by size, then print the table."""
    run = Run.of("mined", __doc__, arguments)
    made = []
    for N in SIZES[:1] if run.quick else SIZES:
        cases = [run.case(N, option=option) for option in MINERS]
        # "auto" on any device: it selects the implementation for mined pairs
        made += run.measure([Entry(name, case) for case in cases for name in ("pml_supcon/auto", "pml")], seconds=10)
    print(measurements(made))
    return made


if __name__ == "__main__":
    main()
