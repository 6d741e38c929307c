"""Measure the targets of the loss: forward plus backward, medians of one run, float32, 100 classes, two views.

    python benchmarks/expected_targets.py [--quick] [--device cuda]

Prints each target with the measured figure. The exit status is 0 also where a target is missed.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from harness import Entry, Run
from records import Record
from tables import exponent, find, floor_seconds, markdown, megabytes, ratio, seconds, shown

MET, SHORT = "pass", "**falls short**"


class Sizes(NamedTuple):
    """The sizes of the targets: numbers of rows; `wide` is a width of embeddings."""

    small: int = 512
    least: int = 2048
    main: int = 8192
    large: int = 65536
    wide: int = 2048


QUICK = Sizes(small=128, least=256, main=512, large=1024, wide=256)


class Target(NamedTuple):
    """A row of the table: the quantity, its target, the measured figure and the verdict."""

    what: str
    target: str
    figure: str
    verdict: str


def main(arguments: Sequence[str] | None = None) -> list[Record]:
    """Measure all that the targets need, then print the table."""
    run = Run.of("expected_targets", __doc__, arguments)
    sizes = QUICK if run.quick else Sizes()
    ours = run.ours[0]

    def case(N: int, **options: Any) -> Any:
        return run.case(N, quick_N=N, **options)

    entries = [Entry(ours, case(sizes.main)), Entry("pml", case(sizes.main))]
    entries += [Entry(name, case(sizes.main), memory=False) for name in run.floors]
    entries += [Entry(ours, case(sizes.main, option=option), memory=False) for option in ("L_in", "cap 4")]
    made = run.measure(entries, seconds=50, least=5)
    small, wide = case(sizes.small), case(sizes.main, D=sizes.wide)
    made += run.measure([Entry(name, small, memory=False) for name in (ours, "pml")], seconds=10)
    made += run.measure([Entry(name, wide, memory=False) for name in (ours, *run.floors)], seconds=45)
    made += run.measure([Entry(ours, case(sizes.least))], seconds=5)
    made += run.measure([Entry(ours, case(sizes.large))], seconds=5, least=1)
    print(targets_table(targets(made, sizes, ours)))
    return made


def targets_table(targets: Sequence[Target]) -> str:
    """Return the targets as a Markdown table."""
    return markdown(["", "at least", "measured", ""], targets, text_columns=2)


def targets(records: Sequence[Record], sizes: Sizes, ours: str) -> list[Target]:
    """Return each target with its figure from the records of one run."""
    main = {"N": sizes.main, "D": 128}
    plain = main | {"option": "L_out"}
    our_time = seconds(records, ours, **plain)
    faster = ratio(seconds(records, "pml", **plain), our_time)
    leaner = ratio(megabytes(records, "pml", **plain), megabytes(records, ours, **plain))
    over_floor = ratio(our_time, floor_seconds(records, **plain))
    options = [ratio(seconds(records, ours, **main, option=option), our_time) for option in ("L_in", "cap 4")]
    dearest = None if None in options else max(option or 0 for option in options)
    small = [seconds(records, name, N=sizes.small, D=128) for name in (ours, "pml")]
    wide = {"N": sizes.main, "D": sizes.wide}
    wide_ratio = ratio(seconds(records, ours, **wide), floor_seconds(records, **wide))
    growing = (sizes.least, sizes.main, sizes.large)
    time_grows = exponent((N, seconds(records, ours, N=N, D=128, option="L_out")) for N in growing)
    memory_grows = exponent((N, megabytes(records, ours, N=N, D=128, option="L_out")) for N in growing)
    N, slower = f"N = {sizes.main:,}", "at most 1.8 (aim: 1.3)"
    figures = f"{shown(options[0])}, {shown(options[1])}"
    growth = f"growth from N = {sizes.least:,} to {sizes.large:,}: the exponents of time and memory"
    grows = max(at_most(time_grows, 2.1), at_most(memory_grows, 1.1), key=lambda verdict: verdict == SHORT)
    quadratic, exponents = "at most 2.1 and 1.1 (quadratic and linear)", f"{shown(time_grows)}, {shown(memory_grows)}"
    overhead = f"N = {sizes.small:,}, where overhead rules: our time over PML's"
    return [
        Target(f"time of PML's `SupConLoss` over ours, {N}", "15 (aim: 20)", shown(faster), at_least(faster, 15, 20)),
        Target(f"extra peak memory of PML's over ours, {N}", "20", shown(leaner), at_least(leaner, 20)),
        Target(f"our time over the floor, {N}", slower, shown(over_floor), at_most(over_floor, 1.8, 1.3)),
        large_target(find(records, ours, N=sizes.large), sizes),
        Target(
            f"L_in, and cap 4, against L_out uncapped, {N}", "at most 1.4 x its time", figures, at_most(dearest, 1.4)
        ),
        Target(overhead, "at most 1 (not slower)", shown(ratio(*small)), at_most(ratio(*small), 1)),
        Target(
            f"our time over the floor, {N}, D = {sizes.wide:,}",
            slower,
            shown(wide_ratio),
            at_most(wide_ratio, 1.8, 1.3),
        ),
        Target(growth, quadratic, exponents, grows),
    ]


def large_target(record: Record | None, sizes: Sizes) -> Target:
    """Return the target of the largest size: it finishes, in little memory."""
    what, target = f"N = {sizes.large:,}", "finishes, at most 700 MB extra"
    if record is None or record.p50 is None:
        return Target(what, target, "not measured" if record is None else record.status, SHORT)
    figure = f"{shown(record.p50, 1, ' s')}, {shown(record.peak_extra_mb, 0, ' MB')}"
    return Target(what, target, figure, at_most(record.peak_extra_mb, 700))


def at_least(value: float | None, needed: float, aim: float | None = None) -> str:
    """Return the verdict on a figure that should be high."""
    return at_most(None if value is None else -value, -needed, None if aim is None else -aim)


def at_most(value: float | None, needed: float, aim: float | None = None) -> str:
    """Return the verdict on a figure that should be low; None, not measured, falls short."""
    if value is None or value > needed:
        return SHORT
    return f"{MET}, aim met" if aim is not None and value <= aim else MET


if __name__ == "__main__":
    main()
