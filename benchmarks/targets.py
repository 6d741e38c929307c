"""The targets of the losses at every batch size, and the tables of a run of `every_size.py`."""

from collections.abc import Sequence
from typing import NamedTuple

from providers import MINERS, PAST_ROWS
from records import Record
from tables import exponent, find, floor_seconds, markdown, megabytes, milliseconds, ratio, seconds, shown

MET, SHORT = "pass", "**falls short**"
OURS, KERNELS, PML, DENSE = "pml_supcon/auto", "pml_supcon/triton", "pml", "dense/eager"
SMALL, LARGE = "pml_supcon/dense", "pml_supcon/tiled"  # the backends that "auto" takes on the CPU, by size
L_OUT, L_IN, CAP = "L_out", "L_in", "cap 4"
STORED = (*PAST_ROWS, *MINERS)

#: PML's time over ours, at least and as an aim, by the number of rows.
PML_OVER_OURS = dict.fromkeys((16, 32, 64, 128, 256), (1.3, 1.7)) | {512: (2,), 1024: (3,), 2048: (5,), 8192: (15, 20)}
#: The dense formula's time over ours.
DENSE_OVER_OURS = dict.fromkeys((16, 32, 64, 128), 0.9) | dict.fromkeys((256, 512, 1024, 2048, 4096, 8192), 1.2)
CHECKED_ANCHORS = 64  # with a loss and a gradient in float64


class Sizes(NamedTuple):
    """The numbers of rows; `wide` is a width of embeddings."""

    compared: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
    crossed: tuple[int, ...] = (256, 512, 1024, 2048)  # where both backends of the CPU are measured
    tiled: int = 2048  # from here on memory and the floor are measured too
    large: tuple[int, ...] = (16384, 32768, 65536)
    wide: int = 2048
    stored: tuple[int, ...] = (32, 128, 512)  # beside a memory, or with mined pairs
    first: tuple[int, ...] = (128, 4096)  # of the first call of a process


class Target(NamedTuple):
    """A row of a table of targets: the quantity, its target, the measured figure and the verdict."""

    what: str
    target: str
    figure: str
    verdict: str


def at_least(value: float | None, needed: float, aim: float | None = None) -> str:
    """Return the verdict on a figure that should be high."""
    return at_most(None if value is None else -value, -needed, None if aim is None else -aim)


def at_most(value: float | None, needed: float, aim: float | None = None) -> str:
    """Return the verdict on a figure that should be low; None, not measured, falls short."""
    if value is None or value > needed:
        return SHORT
    return f"{MET}, aim met" if aim is not None and value <= aim else MET


def all_at_most(values: Sequence[float | None], *needed: float) -> str:
    """Return the verdict on several figures that should be low."""
    verdicts = map(at_most, values, needed)
    return SHORT if SHORT in verdicts else MET


def targets_table(targets: Sequence[Target]) -> str:
    """Return the targets as a Markdown table."""
    return markdown(["", "target", "measured", ""], targets, text_columns=2)


def sizes_table(records: Sequence[Record], sizes: Sizes) -> str:
    """Return the times at each size, PML's and the dense formula's over ours, and the verdicts."""
    header = ["N", "PML's, ms", "dense, ms", "`SupConLossOut`, ms", "`SupConLossIn`, ms"]
    header += ["PML's / out", "PML's / in", "at least", "", "dense / out", "at least", ""]
    rows = []
    for N in sizes.compared:
        times = [
            seconds(records, name, N=N, D=128, option=option)
            for name, option in ((PML, L_OUT), (DENSE, L_OUT), (OURS, L_OUT), (OURS, L_IN))
        ]
        pml, dense, out, in_ = times
        ratios = [ratio(pml, out), ratio(pml, in_)]
        cells = [f"{N:,}", *map(milliseconds, times), *map(shown, ratios)]
        least, *aim = PML_OVER_OURS.get(N, (None,))
        known = [each for each in ratios if each is not None]
        cells += ["", ""] if least is None else [f"{least:g}", at_least(min(known, default=None), least, *aim)]
        dense_least = DENSE_OVER_OURS.get(N, 0.0)
        cells += [shown(ratio(dense, out)), f"{dense_least}", at_least(ratio(dense, out), dense_least)]
        rows.append(cells)
    return markdown(header, rows, text_columns=0)


def crossover_table(records: Sequence[Record], sizes: Sizes) -> str:
    """Return the times of the two backends among which "auto" chooses on the CPU, around the size where they cross."""
    rows = []
    for N in sizes.crossed:
        times = [seconds(records, name, N=N, D=128, option=L_OUT) for name in (SMALL, LARGE)]
        rows.append([f"{N:,}", *map(milliseconds, times), shown(ratio(times[1], times[0]))])
    return markdown(["N", "`dense`, ms", "`tiled`, ms", "`tiled` / `dense`"], rows, text_columns=0)


def stored_table(records: Sequence[Record], sizes: Sizes) -> str:
    """Return the times beside a memory of past rows, and with mined pairs, of ours and of PML's counterpart."""
    rows = []
    for N in sizes.stored:
        for option in STORED:
            times = [seconds(records, name, N=N, option=option) for name in (PML, OURS)]
            rows.append([option, f"{N:,}", *map(milliseconds, times), shown(ratio(*times))])
    return markdown(["option", "N", "PML's, ms", "ours, ms", "PML's / ours"], rows)


def targets(records: Sequence[Record], sizes: Sizes) -> list[Target]:
    """Return the targets that are not for each size."""
    return [*main_targets(records, sizes), *large_targets(records, sizes), *host_targets(records, sizes)]


def main_targets(records: Sequence[Record], sizes: Sizes) -> list[Target]:
    """Return the targets at the largest size that has peers."""
    N = sizes.compared[-1]
    same = {"N": N, "D": 128, "option": L_OUT}
    ours = seconds(records, OURS, **same)
    leaner = ratio(megabytes(records, PML, **same), megabytes(records, OURS, **same))
    options = [ratio(seconds(records, OURS, **same | {"option": option}), ours) for option in (L_IN, CAP)]
    made = []
    for D in (128, sizes.wide):
        over = ratio(seconds(records, OURS, N=N, D=D, option=L_OUT), floor_seconds(records, N=N, D=D))
        what = f"our time over the floor, N = {N:,}, D = {D:,}"
        made.append(Target(what, "at most 1.4 (aim: 1.3)", shown(over), at_most(over, 1.4, 1.3)))
    what = f"time of L_in, and of cap 4, over L_out's, N = {N:,}"
    return [
        *made,
        Target(what, "at most 1.2", pair(options), all_at_most(options, 1.2, 1.2)),
        Target(f"extra memory of PML's over ours, N = {N:,}", "at least 20", shown(leaner), at_least(leaner, 20)),
    ]


def large_targets(records: Sequence[Record], sizes: Sizes) -> list[Target]:
    """Return the targets of the largest size, and of the growth up to it."""
    N = sizes.large[-1]
    large = find(records, OURS, N=N, D=128)
    if large is None or large.p50 is None:
        figure, extra = "not measured" if large is None else large.status, None
    else:
        extra = large.peak_extra_mb
        figure = f"{shown(large.p50, 1, ' s')}, {shown(extra, 0, ' MB')}"
    errors = [value(records, OURS, f"error of the {what}") for what in ("loss", "gradient")]
    shown_errors = ", ".join("-" if error is None else f"{error:.0e}" for error in errors)
    grows = [
        exponent((n, measure(records, OURS, N=n, D=128, option=L_OUT)) for n in (sizes.tiled, *sizes.large))
        for measure in (seconds, megabytes)
    ]
    exact = f"error of the losses, and of their gradient, of {CHECKED_ANCHORS} anchors, N = {N:,}"
    growth = f"growth from N = {sizes.tiled:,} to {N:,}: the exponents of time and memory"
    return [
        Target(f"time and extra memory, N = {N:,}", "at most 200 MB", figure, at_most(extra, 200)),
        Target(exact, "at most 1e-05", shown_errors, all_at_most(errors, 1e-5, 1e-5)),
        Target(growth, "at most 2.1 and 1.1", pair(grows), all_at_most(grows, 2.1, 1.1)),
    ]


def host_targets(records: Sequence[Record], sizes: Sizes) -> list[Target]:
    """Return the targets of the first call of a process, and of the host's part of a step on a GPU."""
    made = []
    for N in sizes.first:
        more = {name: first_call(records, name, N) for name in (OURS, PML)}
        ours, pml = (f"{shown(ms, 0, ' ms')}, {shown(mb, 0, ' MB')}" for ms, mb in more.values())
        what = f"first call of the loss in a process less the second, N = {N:,} (PML's: {pml})"
        made.append(Target(what, "at most 50 ms, 10 MB", ours, all_at_most(more[OURS], 50, 10)))
    host = find(records, KERNELS, mode="host")
    spent, launches = getattr(host, "p50", None), value(records, KERNELS, "launches")
    what = "host time and launches of a step with the CUDA kernels" + (f", N = {host.N}" if host else "")
    figure = f"{milliseconds(spent)} ms, {shown(launches, 0)}"
    return [*made, Target(what, "at most 0.4 ms, 12", figure, all_at_most((spent, launches), 0.4e-3, 12))]


def first_call(records: Sequence[Record], name: str, N: int) -> list[float | None]:
    """Return the milliseconds and MB of a process's first call above its second."""
    first, second = (find(records, name, mode=mode, N=N) for mode in ("first call", "second call"))
    if first is None or second is None or first.p50 is None or second.p50 is None:
        return [None, None]
    return [(first.p50 - second.p50) * 1e3, (first.peak_extra_mb or 0) - (second.peak_extra_mb or 0)]


def value(records: Sequence[Record], name: str, mode: str) -> float | None:
    """Return the figure of a check, None where it was not made."""
    return getattr(find(records, name, mode=mode), "value", None)


def pair(figures: Sequence[float | None]) -> str:
    """Format the figures of a row."""
    return ", ".join(map(shown, figures))
