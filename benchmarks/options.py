"""What does each option of the loss cost, against L_out without a cap?

    python benchmarks/options.py [--quick] [--device cuda]

N = 8,192. The first view alone as anchors has half the pairs. With `ref_emb` (8,192 further rows, without a gradient)
each pair is met once and not, as among the rows themselves, from both ends: twice the products.
"""

import sys
from collections.abc import Sequence

from harness import Entry, Run
from providers import OPTIONS
from records import Record
from tables import measurements

SIZE = 8192


def main(arguments: Sequence[str] | None = None) -> list[Record]:
    """Measure all options in turns, print the table."""
    run = Run.of("options", __doc__, arguments)
    entries = [Entry(name, run.case(SIZE, option=option)) for name in run.ours for option in OPTIONS]
    made = run.measure(entries, seconds=45, least=3)
    print(measurements(made, against="L_out"))
    return made


if __name__ == "__main__":
    main(sys.argv[1:])
