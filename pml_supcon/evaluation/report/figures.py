"""The figures of a report, each of the results of one or two evaluations."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from pml_supcon.evaluation.report.svg import INK, RULE, STROKES, draw, share_axis

Points = Sequence[tuple[float, float]]
Bin = Mapping[str, Any]  # of `reliability_diagram` or `hard_mining_curve`


def reliability(name: str, diagrams: Sequence[Sequence[Bin]], when: str) -> Markup:
    """Draw accuracy against confidence, and below it the share of the images at that confidence."""

    def plot(figure: Figure) -> None:
        top, below = figure.subplots(2, sharex=True, height_ratios=(3, 1))
        top.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=(0, (1, 2)))
        for stroke, bins in zip(STROKES, diagrams, strict=False):
            full = [each for each in bins if each["count"]]
            edges = [*(each["low"] for each in bins), *(each["high"] for each in bins[-1:])]
            total = max(1, sum(each["count"] for each in bins))
            # bars only for a single evaluation: two would hide each other
            if len(diagrams) == 1:
                for each in full:
                    width = each["high"] - each["low"]
                    options = {"align": "edge", "color": stroke.color, "edgecolor": stroke.color}
                    top.bar(each["low"], each["accuracy"], width, alpha=0.35, linewidth=0.8, **options)
            top.plot(*_columns((each["confidence"], each["accuracy"]) for each in full), **stroke._asdict())
            heights = [each["count"] / total for each in bins]
            if bins:
                below.stairs(heights, edges, color=stroke.color, linestyle=stroke.linestyle, linewidth=1.5)
        share_axis(top, "accuracy")
        top.set(xlim=(0, 1))
        below.set(xlabel="confidence", ylabel="images", ylim=(0, 1), yticks=[0, 1])

    gaps = [_largest_gap(bins) for bins in diagrams]
    label = f"Reliability diagram {when}: accuracy against confidence. {_joined(gaps)}"
    return draw(name, label, plot, height=4.2)


def _largest_gap(bins: Sequence[Bin]) -> str:
    full = [each for each in bins if each["count"]]
    if not full:
        return "no images"
    worst = max(full, key=lambda each: abs(each["confidence"] - each["accuracy"]))
    return f"largest gap at confidence {worst['confidence']:.2f}, where accuracy is {worst['accuracy']:.2f}"


def curves(
    name: str,
    series: Sequence[Points],
    *,
    what: str,
    x: str,
    y: str = "accuracy",
    top: float = 1.0,
    close: bool = False,
    log: bool = False,
    bands: Sequence[Points] | None = None,
) -> Markup:
    """Draw a line for each evaluation, with the interval ``(low, high)`` of each point in ``bands``.

    With ``close`` the vertical axis is limited to the tenths around the values, so that small differences are visible.
    """

    def plot(figure: Figure) -> None:
        axes = figure.subplots()
        for place, (stroke, points) in enumerate(zip(STROKES, series, strict=False)):
            axes.plot(*_columns(points), **stroke._asdict())
            if bands:
                axes.vlines([x for x, _ in points], *_columns(bands[place]), color=stroke.color, linewidth=1.8)
        _ticks(axes, sorted({x for points in series for x, _ in points}), log)
        axes.set_xlabel(x)
        share_axis(axes, y, top=top)
        if close:
            axes.set_ylim(*_tenths([y for points in series for _, y in points], bands or ()))

    texts = [", ".join(f"{value:.3f} at {place:,g}" for place, value in points) for points in series]
    return draw(name, f"{what}: {y} against {x}. {_joined(texts)}", plot)


def small_curves(name: str, series: Sequence[Points], *, what: str) -> Markup:
    """Draw accuracy against severity at a third of the size."""

    def plot(figure: Figure) -> None:
        axes = figure.subplots()
        for stroke, points in zip(STROKES, series, strict=False):
            axes.plot(*_columns(points), **stroke._asdict())
        places = sorted({x for points in series for x, _ in points})
        axes.set(ylim=(0, 1.04), yticks=[0, 0.5, 1], xticks=places)
        axes.set_yticklabels(["0", "", "1"])

    texts = [", ".join(f"{value:.2f} at {place:g}" for place, value in points) for points in series]
    return draw(name, f"{what}: accuracy against severity. {_joined(texts)}", plot, width=2.2, height=1.7)


def head_tasks(name: str, tasks: Mapping[str, Mapping[str, Any]]) -> Markup:
    """Draw the accuracy of a probe of the encoder and of the head for each task, with the chance level."""
    names = list(tasks)

    def plot(figure: Figure) -> None:
        axes = figure.subplots()
        rows = np.arange(len(names))
        for row, task in zip(rows, tasks.values(), strict=True):
            # a bar from the lower to the higher accuracy, and a tick at the chance level
            known = [task[part] for part in ("encoder", "head") if task[part] is not None]
            axes.plot([min(known), max(known)], [row, row], color=RULE, linewidth=4, zorder=1)
            axes.plot([task["chance"]] * 2, [row - 0.3, row + 0.3], color=INK, linewidth=1.5, zorder=2)
        for stroke, part in zip(STROKES, ("encoder", "head"), strict=False):
            pairs = zip((task[part] for task in tasks.values()), rows, strict=True)
            known = [(accuracy, row) for accuracy, row in pairs if accuracy is not None]
            axes.plot(*_columns(known), color=stroke.color, marker=stroke.marker, markersize=8, linestyle="", zorder=3)
        axes.set(xlim=(-0.02, 1.04), xlabel="accuracy of a linear probe", ylim=(len(names) - 0.4, -0.6))
        axes.set_yticks(rows, names)
        axes.grid(visible=False, axis="y")

    texts = (
        f"{task}: encoder {scores['encoder']:.3f}, head "
        f"{'none' if scores['head'] is None else format(scores['head'], '.3f')}, chance {scores['chance']:.3f}"
        for task, scores in tasks.items()
    )
    label = f"Accuracy of a linear probe of the encoder and of the head. {'; '.join(texts)}."
    return draw(name, label, plot, height=1.0 + 0.42 * max(2, len(names)))


def hard_mining(name: str, losses: Mapping[str, Mapping[str, Sequence[Bin]]], sign: str) -> Markup:
    """Draw the share of the gradient of ``positives`` or ``negatives`` by hardness, over their share of the pairs."""

    def plot(figure: Figure) -> None:
        axes = figure.subplots()
        for place, (stroke, parts) in enumerate(zip(STROKES, losses.values(), strict=False)):
            bins = [each for each in parts[sign] if each["share"] is not None and each["count"]]
            # the share of the pairs is the same for all losses: filled once
            if not place:
                places, shares = _columns(_even(bins))
                axes.bar(places, shares, min(np.diff(places), default=0.1), color=RULE)
            axes.plot(*_columns((each["hardness"], each["share"]) for each in bins), **stroke._asdict())
        axes.set(xlabel="hardness (1 \N{MINUS SIGN} cosine)" if sign == "positives" else "hardness (cosine)")
        axes.set(ylabel="share", ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(5))

    texts = [f"{loss}: {_centre(parts[sign])}" for loss, parts in losses.items()]
    return draw(name, f"Share of the gradient of {sign} against their hardness. {_joined(texts)}", plot)


def _even(bins: Sequence[Bin]) -> Points:
    """Return each bin's share of the gradient under equal shares of an anchor's pairs, else its share of all pairs."""
    total = sum(each["count"] for each in bins)
    return [(each["hardness"], each.get("even_share", each["count"] / total)) for each in bins]


def _centre(bins: Sequence[Bin]) -> str:
    known = [(each["hardness"], each["share"]) for each in bins if each["share"] is not None]
    if not known:
        return "no pairs"
    mean = sum(hardness * share for hardness, share in known) / (sum(share for _, share in known) or 1)
    return f"mean hardness weighted by the gradient {mean:.2f}"


def _ticks(axes: Any, places: Sequence[float], log: bool) -> None:
    if log:
        axes.set_xscale("log")
    # on a logarithmic axis ticks may be too close for all labels
    shown = [
        place for i, place in enumerate(places) if not log or i in (0, len(places) - 1) or place >= 2 * places[i - 1]
    ]
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(shown, [f"{place:,g}" for place in shown])


def _tenths(values: Sequence[float], bands: Sequence[Points]) -> tuple[float, float]:
    """Return the tenths around values and their intervals, within [0, 1]."""
    known = [*values, *(edge for band in bands for pair in band for edge in pair)]
    low, high = math.floor(10 * min(known)) / 10, math.ceil(10 * max(known)) / 10
    return max(0.0, low), min(1.0, max(high, low + 0.1)) + 0.004  # room for a marker at the top


def _columns(points: Any) -> tuple[list[float], list[float]]:
    pairs = list(points)
    return [x for x, _ in pairs], [y for _, y in pairs]


def _joined(texts: Sequence[str]) -> str:
    """Join the texts of evaluations or series, with a letter each if there are several."""
    if len(texts) == 1:
        return f"{texts[0]}."
    prefixes = [f"{letter}: " if ": " not in text else "" for letter, text in zip("ABCDEFGH", texts, strict=False)]
    return " ".join(f"{prefix}{text}." for prefix, text in zip(prefixes, texts, strict=False))
