"""The plot of an experiment, drawn from its record."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from pml_supcon.experiments.statistics import interval_of

COLOURS = ("#1f6feb", "#d9622b", "#2a9d62", "#8957c9", "#b0892a")
WIDTH = 7.0  # inches


def plot(record: Mapping[str, Any], path: Path) -> None:
    """Write an SVG with one panel for each metric: curves where the rows have an x value, else a row of dots each.

    A dot is a seed, a bar the 95% interval of the mean. The record is the result of ``with_text``.
    """
    panels: dict[str, list[Mapping[str, Any]]] = {}
    for line in record["lines"]:
        if all(value is not None for value in line["values"]):
            panels.setdefault(line["panel"], []).append(line)
    if not panels:
        panels = {"all diverged": []}
    curves = {name: bool(lines) and all(line["x"] is not None for line in lines) for name, lines in panels.items()}
    heights = [3.2 if curves[name] else 0.8 + 0.3 * len(lines) for name, lines in panels.items()]
    with matplotlib.rc_context({"svg.hashsalt": "pml_supcon", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
        axes = figure.subplots(len(panels), 1, height_ratios=heights, squeeze=False)
        for axis, (name, lines) in zip(axes[:, 0], panels.items(), strict=True):
            if curves[name]:
                _curves(axis, lines, record)
            else:
                _dots(axis, lines)
            axis.spines[["top", "right"]].set_visible(False)
            (axis.set_ylabel if curves[name] else axis.set_xlabel)(name)
        figure.savefig(path, metadata={"Date": None}, transparent=False)


def _curves(axis: Any, lines: Sequence[Mapping[str, Any]], record: Mapping[str, Any]) -> None:
    for colour, name in zip(COLOURS * 3, dict.fromkeys(line["series"] for line in lines), strict=False):
        own = [line for line in lines if line["series"] == name]
        places = [line["x"] for line in own]
        values = [_scaled(line) for line in own]
        axis.plot(places, [statistics.mean(each) for each in values], color=colour, marker="o", label=name)
        for place, each in zip(places, values, strict=True):
            axis.plot([place] * len(each), each, ".", color=colour, alpha=0.45)
    if record["x_log"]:
        axis.set_xscale("log")
        places = sorted({line["x"] for line in lines})
        axis.set_xticks(places, [f"{place:g}" for place in places])
        axis.minorticks_off()
    axis.set_xlabel(record["x_title"])
    axis.grid(alpha=0.25)
    axis.legend(frameon=False)


def _dots(axis: Any, lines: Sequence[Mapping[str, Any]]) -> None:
    for row, line in enumerate(lines):
        values = _scaled(line)
        interval = interval_of(values)
        if interval.low is not None and interval.high is not None:
            axis.plot([interval.low, interval.high], [row, row], color=COLOURS[0], alpha=0.35, linewidth=5)
        axis.plot(values, [row] * len(values), "o", color=COLOURS[0], markersize=4)
    axis.set_yticks(range(len(lines)), [line["label"].replace("`", "") for line in lines])
    axis.set_ylim(max(len(lines), 1) - 0.5, -0.5)  # the first on top
    axis.grid(axis="x", alpha=0.25)


def _scaled(line: Mapping[str, Any]) -> list[float]:
    return [(100 if line["percent"] else 1) * value for value in line["values"]]
