"""Measure the fused kernels on a GPU beside their floor and the other libraries that have such kernels.

    python benchmarks/gpu.py [--quick] [--device cpu]

Forward plus backward in 16 bits, D = 128, N = 16,384 and 65,536; the widths 256 and 512, and float32, at 65,536; then
one step of 1,048,576 rows. Beside them PML's `SupConLoss`, siglip-kernel (multi-positive sigmoid loss) and memeff
(InfoNCE on pairs), where they are installed: other losses, of as many similarities. `--quick --device cpu` only tries
the script: the kernels then count as failed.
"""

import sys
from collections.abc import Sequence
from typing import NamedTuple

from harness import Entry, Run
from providers import LABEL_FREE
from records import Record
from tables import exponent, find, floor_seconds, measurements, megabytes, ratio, seconds, shown
from targets import SHORT, Target, at_least, at_most, targets_table

FUSED, PLAIN = "pml_supcon/triton", "pml_supcon/tiled"
HALVES = ("bfloat16", "float16")
#: FLOP in units of `N^2 D`: A computes every similarity in the forward pass, B one of each symmetric pair.
FLOORS = {"A": 6, "B": 5}


class Sizes(NamedTuple):
    """The numbers of rows of the targets, and the widths beside 128."""

    compared: tuple[int, int] = (16384, 65536)
    widths: tuple[int, ...] = (256, 512)
    large: int = 1048576


QUICK = Sizes(compared=(128, 256), widths=(64,), large=512)


def main(arguments: Sequence[str] | None = None) -> list[Record]:
    """Measure, then print the measurements and the targets."""
    run = Run.of("gpu", __doc__, ["--device", "cuda", *(sys.argv[1:] if arguments is None else arguments)])
    sizes = QUICK if run.quick else Sizes()
    rate = f"mm/{256 if run.quick else 8192}"
    made = []
    for N in sizes.compared:
        main_case, label_free = (run.case(N, quick_N=N, dtype=HALVES[0], option=o) for o in ("L_out", LABEL_FREE))
        entries = [Entry(name, main_case) for name in (FUSED, PLAIN, "siglip-kernel")] + [Entry("memeff", label_free)]
        others = [run.case(N, quick_N=N, dtype=HALVES[0], option=option) for option in ("L_in", "cap 4")]
        halves = [run.case(N, quick_N=N, dtype=HALVES[1])]
        if sizes.compared[0] == N:
            entries.append(Entry("pml", main_case))
        else:
            others.append(run.case(N, quick_N=N))
            halves += [run.case(N, quick_N=N, D=D, dtype=dtype) for D in sizes.widths for dtype in HALVES]
        entries += [Entry(FUSED, case, memory=False) for case in (*others, *halves)]
        entries += [Entry(rate, case, memory=False) for case in (main_case, *halves)]
        made += run.measure(entries, seconds=20)
    large = run.case(sizes.large, quick_N=sizes.large, dtype=HALVES[0])
    made += run.measure([Entry(FUSED, large)], seconds=1, least=1, most=1)
    print(measurements(made))
    print(targets_table(targets(made, sizes)))
    return made


def targets(records: Sequence[Record], sizes: Sizes) -> list[Target]:
    """Return each target with its figure from the records of one run."""
    made = []
    for N in sizes.compared:
        same = {"N": N, "D": 128, "option": "L_out", "dtype": HALVES[0]}
        faster = ratio(seconds(records, PLAIN, **same), seconds(records, FUSED, **same))
        made.append(
            Target(f"time of `tiled` over `triton`, N = {N:,}", "at least 3", shown(faster), at_least(faster, 3))
        )
    for dtype in HALVES:
        same = {"N": sizes.compared[1], "D": 128, "option": "L_out", "dtype": dtype}
        time = seconds(records, FUSED, **same)
        shares = [ratio(floor_seconds(records, products=products, **same), time) for products in FLOORS.values()]
        found = zip(FLOORS, shares, strict=True)
        figure = ", ".join(f"{'-' if share is None else f'{share:.0%}'} of {name}" for name, share in found)
        what = f"floor over the time of `triton`, N = {sizes.compared[1]:,}, {dtype}"
        made.append(Target(what, "at least 65% of B", figure, at_least(shares[1], 0.65)))
    large = find(records, FUSED, N=sizes.large)
    if large is None or large.p50 is None:
        figure, verdict = "not measured" if large is None else large.status, SHORT
    else:
        spanned = (sizes.compared[1], sizes.large)
        same = {"D": 128, "option": "L_out", "dtype": HALVES[0]}
        grows = exponent((N, megabytes(records, FUSED, N=N, **same)) for N in spanned)
        figure = f"{shown(large.p50, 1, ' s')}, {shown(large.peak_extra_mb, 0, ' MB')}, N to the {shown(grows)}"
        verdict = at_most(grows, 1.1)
    return [*made, Target(f"N = {sizes.large:,} in one step", "memory at most N to the 1.1", figure, verdict)]


if __name__ == "__main__":
    main()
