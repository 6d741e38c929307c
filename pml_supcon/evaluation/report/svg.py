"""Matplotlib figures as inline SVG: text stays text, colours come from the style sheet, ids are unique."""

import re
from collections.abc import Callable
from io import BytesIO
from typing import Any, NamedTuple
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"

# Placeholder colours, replaced by the variables of the style sheet, which differ between light and dark.
INK, RULE = "#0a0b0c", "#0a0b0d"
SERIES = ("#0a0b10", "#0a0b11", "#0a0b12")
PAGE_COLOURS = {INK: "currentColor", RULE: "var(--rule)"} | {
    colour: f"var(--series-{place})" for place, colour in enumerate(SERIES)
}


class Stroke(NamedTuple):
    """The colour, line style and marker of a series; series also differ without colour."""

    color: str
    linestyle: str
    marker: str


STROKES = tuple(Stroke(*each) for each in zip(SERIES, ("-", "--", ":"), ("o", "s", "^"), strict=True))

SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "pml_supcon",
    "text.parse_math": False,  # a name may contain dollars
    "font.size": 14.2,
    "axes.titlesize": 14.2,
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("axes.spines.right", "axes.spines.top"), False),
    **dict.fromkeys(("axes.linewidth", "grid.linewidth"), 0.8),
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.0,
}


def draw(name: str, label: str, plot: Callable[[Figure], None], *, width: float = 4.6, height: float = 3.1) -> Markup:
    """Draw a figure as an SVG element that fills the width of its parent.

    Args:
        name: The id of the figure, unique on the page; all ids in it begin with it.
        label: The text alternative.
        plot: A function that draws on the figure with the colours of this module.
        width: The width in inches of 72 units; at 4.6 on a phone, text of 14 units is about 14 pixels high.
        height: The height in the same units.
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
    """Convert an SVG file to an element of a page, without fixed size, style sheet, metadata and font, with own ids."""
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
    """Label the vertical axis and limit it to [0, ``top``]."""
    axes.set(ylabel=label, ylim=(0, top * 1.02))
