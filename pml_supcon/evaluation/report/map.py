"""The embedding map of a report: an SVG for each method, a legend, and the data of its script."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape

from pml_supcon.evaluation.sections.embedding_map import MapSection

SIDE, MARGIN = 400, 10
METHOD_NAMES = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}
COLOURS = 7  # of the style sheet, --class-0 to --class-6
#: The corners of each marker, for a radius of 1 around the point; the first has none and is a circle.
SHAPES: tuple[tuple[tuple[float, float], ...], ...] = (
    (),
    ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    ((0, -1.3), (1.2, 0.9), (-1.2, 0.9)),
    ((0, -1.35), (1.35, 0), (0, 1.35), (-1.35, 0)),
    ((0, 1.3), (-1.2, -0.9), (1.2, -0.9)),
    (
        *((-0.4, -1.3), (0.4, -1.3), (0.4, -0.4), (1.3, -0.4), (1.3, 0.4), (0.4, 0.4)),
        *((0.4, 1.3), (-0.4, 1.3), (-0.4, 0.4), (-1.3, 0.4), (-1.3, -0.4), (-0.4, -0.4)),
    ),
)
DISTINCT = COLOURS * len(SHAPES)  # classes with a colour and a shape of their own


class Legend(NamedTuple):
    """A class of the map: its label, its name, its marker, and the number of its points."""

    label: int
    name: str
    mark: Markup
    points: int


class Map(NamedTuple):
    """A map of the page: ``plots`` as (method, title, SVG), and the ``data`` that the page's script reads."""

    plots: list[tuple[str, str, Markup]]
    legend: list[Legend]
    repeats: bool
    data: dict[str, Any]


def build_map(name: str, section: MapSection, classes: Sequence[str], owner: str = "") -> Map:
    """Draw the map of an evaluation, with the id ``name``; screen readers get the name of the ``owner``."""
    labels = np.array(section.labels, dtype=int)
    radius = 4.0 if len(labels) <= 300 else 3.0 if len(labels) <= 1000 else 2.4
    places = {method: scaled(np.array(points, dtype=float)) for method, points in section.methods.items()}
    plots = [
        (method, METHOD_NAMES[method], _plot(f"{name}-{method}", flat, labels, radius, METHOD_NAMES[method] + owner))
        for method, flat in places.items()
    ]
    present, counts = np.unique(labels, return_counts=True)
    legend = [
        Legend(int(index), classes[index], _key(int(index)), int(count))
        for index, count in zip(present, counts, strict=True)
    ]
    data = {
        "indices": list(section.indices),
        "labels": labels.tolist(),
        "classes": {int(index): classes[index] for index in present},
        "points": {method: flat.tolist() for method, flat in places.items()},
    }
    return Map(plots, legend, bool(len(present) and present[-1] >= DISTINCT), data)


def scaled(points: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Scale points ``(N, 2)`` to the square of the map, by the same factor in both directions, with y upwards.

    Examples:
        >>> scaled(np.array([[0.0, 0.0], [2.0, 1.0]])).tolist()
        [[10.0, 295.0], [390.0, 105.0]]
    """
    if not len(points):
        return points.reshape(0, 2)
    # the longer side fills the square between the margins; the centre of the points goes to its centre
    low, high = points.min(0), points.max(0)
    unit = (SIDE - 2 * MARGIN) / (max(high - low) or 1.0)
    flat: npt.NDArray[Any] = ((points - (low + high) / 2) * unit * (1, -1) + SIDE / 2).round(1)
    return flat


def mark(index: int, radius: float) -> str:
    """Return the SVG path of a class's marker, relative to the point; consecutive classes differ in shape and colour.

    Examples:
        >>> mark(1, 10)
        'm-9 -9l18 0l0 18l-18 0z'
    """
    corners = np.array(SHAPES[index % len(SHAPES)]) * radius
    if not len(corners):  # a circle of two arcs, from its left
        return "m-{0:g} 0a{0:g} {0:g} 0 1 0 {1:g} 0a{0:g} {0:g} 0 1 0 -{1:g} 0z".format(radius, 2 * radius)
    # move to the first corner, then lines relative to the corner before, and close
    steps = np.diff(corners, axis=0).round(1)
    x, y = corners[0].round(1)
    return f"m{x:g} {y:g}" + "".join(f"l{across:g} {down:g}" for across, down in steps) + "z"


def _plot(name: str, flat: npt.NDArray[Any], labels: npt.NDArray[Any], radius: float, title: str) -> Markup:
    paths = []
    for index in np.unique(labels):  # one path for each class: the file is small, and the script can dim it
        shape = mark(int(index), radius)
        path = "".join(f"M{x:g} {y:g}{shape}" for x, y in flat[labels == index])
        paths.append(f'<path class="class-{index % COLOURS}" data-class="{index}" d="{path}"/>')
    label = escape(f"Map of {len(labels)} test embeddings by {title}, coloured by class")
    return Markup(  # numbers and escaped text only
        f'<svg class="plane" id="{name}" viewBox="0 0 {SIDE} {SIDE}" role="img" aria-label="{label}" tabindex="0">'
        f'{"".join(paths)}<circle class="ring" r="{2.2 * radius:g}" cx="-99" cy="-99"/></svg>'
    )


def _key(index: int) -> Markup:
    path = f"M10 10{mark(index, 6)}"
    return Markup(  # numbers only
        '<svg class="key" viewBox="0 0 20 20" aria-hidden="true">'
        f'<path class="class-{index % COLOURS}" d="{path}"/></svg>'
    )
