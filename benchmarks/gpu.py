"""Measure the gain of the fused kernels on a GPU: bfloat16, D = 128, forward plus backward.

    python benchmarks/gpu.py [--quick] [--device cpu]

`triton` against `tiled` and the floor on the same device at N = 16,384 and 65,536, then one step of 1,048,576 rows.
`--quick --device cpu` only tries the script: the kernels then count as failed.
"""

import sys
from collections.abc import Sequence
from typing import NamedTuple

from expected_targets import SHORT, Target, at_least, at_most, targets_table
from harness import Entry, Run
from records import Record
from tables import exponent, find, floor_seconds, measurements, megabytes, ratio, seconds, shown

FUSED, PLAIN = "pml_supcon/triton", "pml_supcon/tiled"


class Sizes(NamedTuple):
    """The numbers of rows of the targets."""

    compared: tuple[int, int] = (16384, 65536)
    large: int = 1048576


QUICK = Sizes(compared=(256, 512), large=1024)


def main(arguments: Sequence[str] | None = None) -> list[Record]:
    """Measure, then print the measurements and the targets."""
    run = Run.of("gpu", __doc__, ["--device", "cuda", *(sys.argv[1:] if arguments is None else arguments)])
    sizes = QUICK if run.quick else Sizes()
    made = []
    for N in sizes.compared:
        case = run.case(N, quick_N=N, dtype="bfloat16")
        options = [run.case(N, quick_N=N, dtype="bfloat16", option=option) for option in ("L_in", "cap 4")]
        entries = [Entry(FUSED, case), Entry(PLAIN, case), *(Entry(name, case, False) for name in run.floors)]
        entries += [Entry(FUSED, option, memory=False) for option in options]
        made += run.measure(entries, seconds=30)
    large = run.case(sizes.large, quick_N=sizes.large, dtype="bfloat16")
    made += run.measure([Entry(FUSED, large)], seconds=1, least=1, most=1)
    print(measurements(made))
    print(targets_table(targets(made, sizes)))
    return made


def targets(records: Sequence[Record], sizes: Sizes) -> list[Target]:
    """Return each target with its figure from the records of one run."""
    made = []
    for N in sizes.compared:
        time = seconds(records, FUSED, N=N, option="L_out")
        faster = ratio(seconds(records, PLAIN, N=N, option="L_out"), time)
        share = ratio(floor_seconds(records, N=N), time)
        percent = "-" if share is None else f"{share:.0%}"
        made += [
            Target(f"time of `tiled` over `triton`, N = {N:,}", "3", shown(faster), at_least(faster, 3)),
            Target(f"time of the floor over `triton`, N = {N:,}", "40%", percent, at_least(share, 0.4)),
        ]
    large = find(records, FUSED, N=sizes.large)
    if large is None or large.p50 is None:
        figure, verdict = "not measured" if large is None else large.status, SHORT
    else:
        spanned = (sizes.compared[1], sizes.large)
        grows = exponent((N, megabytes(records, FUSED, N=N, option="L_out")) for N in spanned)
        figure = f"{shown(large.p50, 1, ' s')}, {shown(large.peak_extra_mb, 0, ' MB')}, N to the {shown(grows)}"
        verdict = at_most(grows, 1.1)
    return [*made, Target(f"N = {sizes.large:,} in one step", "finishes, in linear memory", figure, verdict)]


if __name__ == "__main__":
    main()
