"""The figure of time and memory against the number of rows."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from records import Record
from tables import floor_seconds, megabytes, seconds

FLOOR = "floor"
LABELS = {"pml": "PML's SupConLoss", "pml_supcon/reference": "reference (dense)", FLOOR: "floor, fastest tile"}
COLOURS = {"pml": "#c44e52", "pml_supcon/reference": "#dd8452", FLOOR: "#8c8c8c"}
OUR_COLOUR = "#4c72b0"


def draw_scaling(records: Sequence[Record], ours: str, path: Path) -> None:
    """Draw seconds and MB of a step against N, log-log, as an SVG file that depends on the records alone."""
    both = [record for record in records if record.mode == "both"]
    names = [name for name in (ours, *LABELS) if name == FLOOR or any(record.name == name for record in both)]
    sizes = sorted({record.N for record in both})
    floor = next((record.name for record in both if record.provider == FLOOR and record.peak_extra_mb), FLOOR)
    with matplotlib.rc_context({"svg.hashsalt": "pml_supcon", "font.size": 9}):
        figure = Figure(figsize=(9, 4), layout="constrained", facecolor="white")
        time_axes, memory_axes = figure.subplots(ncols=2)
        for name in names:
            style = {"label": LABELS.get(name, name), "color": COLOURS.get(name, OUR_COLOUR), "marker": "o"}
            times = [(N, floor_seconds(both, N=N) if name == FLOOR else seconds(both, name, N=N)) for N in sizes]
            time_axes.plot(*_points(times), markersize=4, **style)
            peaks = [(N, megabytes(both, floor if name == FLOOR else name, N=N)) for N in sizes]
            memory_axes.plot(*_points(peaks), markersize=4, **style)
        time_axes.set(ylabel="seconds, forward plus backward")
        memory_axes.set(ylabel="peak memory above the inputs, MB")
        for axes in (time_axes, memory_axes):
            axes.set(xscale="log", yscale="log", xlabel="rows N")
            axes.set_xticks(sizes, [f"{N:,}" for N in sizes])
            axes.minorticks_off()
            axes.grid(alpha=0.3)
        time_axes.legend(frameon=False)
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def _points(pairs: Sequence[tuple[int, float | None]]) -> tuple[list[int], list[float]]:
    known = [(x, y) for x, y in pairs if y]
    return [x for x, _ in known], [y for _, y in known]
