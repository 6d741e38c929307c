"""Measure the growth of time and memory with the number of rows, and the cost of a wide embedding.

    python benchmarks/scaling.py [--quick] [--device cuda]

N = 2,048 to 65,536; the dense peers up to 8,192, where PML's `SupConLoss` takes 3 GB. Then D = 2,048 at N = 8,192.
"""

import math
from collections.abc import Sequence

from harness import Entry, Run
from records import Record
from tables import exponent, floor_seconds, markdown, measurements, megabytes, ratio, seconds, shown

SIZES = (2048, 4096, 8192, 16384, 32768, 65536)
QUICK_SIZES = (128, 256, 512)
DENSE = ("pml_supcon/reference", "pml")
DENSE_UP_TO = 8192
WIDE, WIDE_SIZE = 2048, 8192


def main(arguments: Sequence[str] | None = None) -> list[Record]:
    """Measure size by size, then print the table and the exponents."""
    run = Run.of("scaling", __doc__, arguments)
    made: list[Record] = []
    floors = run.floors
    for N in QUICK_SIZES if run.quick else SIZES:
        case = run.case(N, quick_N=N)
        if N > DENSE_UP_TO:
            floors = [fastest(made, floors)]
        entries = [Entry(name, case) for name in (*run.ours, *(DENSE if N <= DENSE_UP_TO else ()))]
        entries += [Entry(name, case, memory=N <= DENSE_UP_TO and name == floors[0]) for name in floors]
        made += run.measure(entries, seconds=10, least=1 if N > DENSE_UP_TO else 2)
    wide = run.case(WIDE_SIZE, D=WIDE)
    made += run.measure([Entry(name, wide, memory=False) for name in (*run.ours, *run.floors)], seconds=20, least=2)
    print(measurements(made))
    print(growth(made))
    for name in run.ours:
        share = ratio(seconds(made, name, D=WIDE), floor_seconds(made, D=WIDE))
        print(f"D = {WIDE}, N = {wide.N:,}: {name} takes {shown(share)} of the floor's time")
    return made


def fastest(records: Sequence[Record], names: Sequence[str]) -> str:
    """Return the provider with the least time at the last measured size."""
    last = records[-1].N if records else None
    return min(names, key=lambda name: seconds(records, name, N=last) or math.inf)


def growth(records: Sequence[Record]) -> str:
    """Return a table of the exponents of N in time and memory."""
    narrow = [record for record in records if record.mode == "both" and record.D != WIDE]
    rows = []
    for name in dict.fromkeys(record.name for record in narrow):
        sizes = sorted({record.N for record in narrow if record.name == name and record.p50 is not None})
        time = exponent((N, seconds(narrow, name, N=N)) for N in sizes)
        memory = exponent((N, megabytes(narrow, name, N=N)) for N in sizes)
        span = f"{sizes[0]:,} to {sizes[-1]:,}" if sizes else "-"
        rows.append([f"`{name}`", span, shown(time), shown(memory)])
    return markdown(["provider", "N", "time grows as N to the", "memory as N to the"], rows, text_columns=2)


if __name__ == "__main__":
    main()
