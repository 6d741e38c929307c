"""Matplotlib's drawings as a part of a page: text stays text, colours are the page's, names are unique."""

import re
from collections.abc import Callable
from io import BytesIO
from typing import Any, NamedTuple
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"

# Colours that nothing is drawn in: what stands for them is in the style sheet, once for light and once for dark.
INK, RULE = "#0a0b0c", "#0a0b0d"
SERIES = ("#0a0b10", "#0a0b11", "#0a0b12")
PAGE_COLOURS = {INK: "currentColor", RULE: "var(--rule)"} | {
    colour: f"var(--series-{place})" for place, colour in enumerate(SERIES)
}


class Stroke(NamedTuple):
    """How a series is drawn: told apart without its colour, too."""

    color: str
    linestyle: str
    marker: str


STROKES = tuple(Stroke(*each) for each in zip(SERIES, ("-", "--", ":"), ("o", "s", "^"), strict=True))

SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "pml_supcon",
    "text.parse_math": False,  # names are names, whatever dollars are in them
    "font.size": 14.2,
    "axes.titlesize": 14.2,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.0,
}


def draw(name: str, label: str, plot: Callable[[Figure], None], *, width: float = 4.6, height: float = 3.1) -> Markup:
    """Draw a figure for the page.

    Args:
        name: unique on the page; all ids within begin with it.
        label: the figure in words, for those who do not see it.
        plot: draws on the figure, with colours of this module alone.
        width: in inches of 72 units; 4.6 fill a phone, where text of 14 units is then about 14 pixels large.
        height: likewise.

    Returns:
        An `<svg>` element that is as wide as its place.
    """
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.patch.set_visible(False)
        plot(figure)
        for axes in figure.axes:
            axes.patch.set_visible(False)
        buffer = BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return inline(buffer.getvalue(), name, label)


def inline(drawing: bytes, name: str, label: str) -> Markup:
    """An SVG file as an element of a page: without fixed size, style sheet, metadata, own font or ids of others."""
    ElementTree.register_namespace("", SVG)
    root = ElementTree.fromstring(drawing)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)
    for element in root.iter():
        for key, value in list(element.attrib.items()):
            del element.attrib[key]
            element.set(key.replace(f"{{{XLINK}}}", ""), _adapted(key, value, name))
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib |= {"class": "chart", "role": "img", "aria-label": label, "id": f"{name}-chart"}
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # ElementTree has escaped all text


def _adapted(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == f"{{{XLINK}}}href":
        return f"#{name}-{value.removeprefix('#')}"
    value = value.replace("url(#", f"url(#{name}-")
    if key == "style":
        value = re.sub(r"font-family: [^;]*;?", "", value)
        value = re.sub(r"font: (?:[\w ]+ )?([\d.]+px) [^;]*", r"font-size: \1", value)
        for colour, place in PAGE_COLOURS.items():
            value = value.replace(colour, place)
    return value


def share_axis(axes: Any, label: str, *, top: float = 1.0) -> None:
    """A vertical axis of a share, from 0."""
    axes.set(ylabel=label, ylim=(0, top * 1.02))
