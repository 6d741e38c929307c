"""The page of a report: the content of the template for one or two evaluations."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

from markupsafe import Markup

from pml_supcon.evaluation.report import figures, tables
from pml_supcon.evaluation.report.map import build_map
from pml_supcon.evaluation.report.pictures import encode_atlas, encode_each
from pml_supcon.evaluation.report.template import write_page
from pml_supcon.evaluation.results import Evaluation
from pml_supcon.evaluation.sections import Sections

Drawn = TypeVar("Drawn")
LETTERS = ("A", "B")
MAP_SIDE, GALLERY_SIDE = 64, 112  # pixels of a picture, at most
MAP_BYTES, GALLERY_BYTES = 2_900_000, 900_000  # of all pictures on the page
LOSS_NAMES = {"supcon_out": "SupCon, out", "supcon_in": "SupCon, in", "triplet": "triplet"}


def write_report(path: Path, evaluations: Sequence[Evaluation]) -> list[str]:
    """Write the report of one evaluation, or of two side by side.

    Args:
        path: The HTML file, which is replaced as a whole.
        evaluations: One or two evaluations with their pictures.

    Returns:
        A sentence for each figure that could not be drawn; the page says so in its place.

    Raises:
        ValueError: If there are none, or more than two.
    """
    if len(evaluations) not in (1, 2):
        raise ValueError(f"Expected argument `evaluations` to hold one or two, but got {len(evaluations)}")
    content = page_content(evaluations)
    write_page(path, "page.html.j2", content)
    missing: list[str] = content["figures"].missing
    return missing


def page_content(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Return the variables of the template."""
    sections = [each.sections for each in evaluations]
    letters = LETTERS if len(evaluations) == 2 else ("",)
    drawn = Figures(sections)
    classes = list(dict.fromkeys(name for each in evaluations for name in each.data.classes))
    present = {name for each in sections for name, section in vars(each).items() if section}
    maps, atlases = drawn.attempt("the map", lambda: _maps(evaluations)) or ([], [])
    galleries = drawn.attempt("the gallery", lambda: _galleries(evaluations))
    present -= {name for name, content in (("map", maps), ("gallery", galleries)) if not content}
    return {
        "letters": letters,
        "evaluations": evaluations,
        "notes": _notes(evaluations),
        "present": present,
        "summary": tables.summary(sections),
        "classes": tables.class_table(sections, classes, letters),
        "galleries": galleries,
        "maps": maps,
        "atlases": atlases,
        "map_data": {"maps": [each and each.data for each in maps]},
        "table": lambda section, part: tables.rows([tables.part_of(each, section, part) for each in sections]),
        "having": lambda section: [
            (place, letters[place], getattr(each, section))
            for place, each in enumerate(sections)
            if getattr(each, section)
        ],
        "has_part": lambda section, part: any(tables.part_of(each, section, part) for each in sections),
        "figures": drawn,
        "about": tables.about(evaluations),
        "loss_names": LOSS_NAMES,
    }


def _notes(evaluations: Sequence[Evaluation]) -> list[str]:
    """Return the notes of the evaluations; of two, each with the letters of its evaluations."""
    if len(evaluations) == 1:
        return list(evaluations[0].notes)
    notes = []
    for text in dict.fromkeys(text for each in evaluations for text in each.notes):
        owners = [letter for letter, each in zip(LETTERS, evaluations, strict=True) if text in each.notes]
        notes.append(f"{' and '.join(owners)}: {text}")
    if evaluations[0].data != evaluations[1].data:
        notes.insert(0, "A and B were evaluated on different data: differences are not due to the encoders alone.")
    return notes


def _galleries(evaluations: Sequence[Evaluation]) -> list[list[dict[str, Any]]]:
    """Return the rows of each gallery with their pictures."""
    galleries = []
    for each in evaluations:
        queries = each.sections.gallery or []
        places = [("test", query.query) for query in queries]
        places += [("train", neighbour.reference) for query in queries for neighbour in query.neighbours]
        places = list(dict.fromkeys(places))
        chosen = [each.pictures[split][row] for split, row in places]
        encoded = encode_each(chosen, GALLERY_SIDE, GALLERY_BYTES // len(evaluations))
        pictures = dict(zip(places, encoded, strict=True))
        galleries.append(
            [
                asdict(query)
                | {"picture": pictures["test", query.query]}
                | {"pictures": [pictures["train", neighbour.reference] for neighbour in query.neighbours]}
                for query in queries
            ]
        )
    return galleries


def _maps(evaluations: Sequence[Evaluation]) -> tuple[list[Any], list[Any]]:
    """Return the map of each evaluation (None without one), and their sheets of pictures; equal sheets are shared."""
    maps: list[Any] = []
    atlases: list[Any] = []
    for place, each in enumerate(evaluations):
        section = each.sections.map
        if section is None or not section.methods:
            maps.append(None)
            continue
        owner = f" of {LETTERS[place]}" if len(evaluations) == 2 else ""
        drawn = build_map(f"map-{place}", section, section.names or each.data.classes, owner)
        chosen = [each.pictures["test"][row] for row in section.indices]
        atlas = encode_atlas(chosen, MAP_SIDE, MAP_BYTES // len(evaluations))
        if atlas not in atlases:
            atlases.append(atlas)
        drawn.data.update(atlas=atlases.index(atlas), columns=atlas.columns, rows=atlas.rows)
        maps.append(drawn)
    return maps, atlases


def _drawn(method: Callable[..., Markup]) -> Callable[..., Markup]:
    """Return a method of ``Figures`` that returns a paragraph if the figure cannot be drawn."""

    @wraps(method)
    def draw(self: "Figures", *arguments: Any) -> Markup:
        what = " ".join(
            [f"the figure {method.__name__.strip('_')}", *(each for each in arguments if isinstance(each, str))]
        )
        figure = self.attempt(what, lambda: method(self, *arguments))
        return figure or Markup('<p class="note">This figure could not be drawn.</p>')

    return draw


class Figures:
    """The figures of the template, each over the evaluations that have its section.

    Attributes:
        missing: A sentence for each figure that could not be drawn.
    """

    def __init__(self, sections: Sequence[Sections]) -> None:
        self.sections = sections
        self.missing: list[str] = []

    def attempt(self, what: str, draw: Callable[[], Drawn]) -> Drawn | None:
        """Return the result of ``draw``, or None if it fails, which is noted."""
        try:
            return draw()
        except Exception as error:  # of any library: the scores are worth a page without a figure
            self.missing.append(f"The report lacks {what}: {error!r}")
            return None

    @_drawn
    def reliability(self, when: str) -> Markup:
        """Draw the reliability diagram ``before`` or ``after`` temperature scaling."""
        diagrams = self._each("calibration", lambda section: section.reliability[when])
        return figures.reliability(f"reliability-{when}", diagrams, f"{when} temperature scaling")

    @_drawn
    def severity(self, metric: str) -> Markup:
        """Draw accuracy or ECE against severity, with the clean images at 0."""
        series = self._each(
            "corruption", lambda section: [(0, section.clean[metric]), *_by_severity(section.by_severity, metric)]
        )
        most = max((value for points in series for _, value in points), default=1)
        top = 1.0 if metric == "accuracy" else min(1.0, max(0.1, 1.1 * most))
        y = "accuracy" if metric == "accuracy" else "ECE"
        name, x = f"severity-{metric}", "severity (0: clean)"
        return figures.curves(name, series, what="Corruption", x=x, y=y, top=top)

    def corruptions(self) -> list[tuple[str, Markup]]:
        """Draw a small figure for each corruption."""
        drawn = []
        corruptions = [tables.part_of(each, "corruption", "corruptions") for each in self.sections]
        for place, name in enumerate(dict.fromkeys(name for each in corruptions for name in each)):
            series = [_by_severity(each.get(name, []), "accuracy") for each in corruptions]
            title = tables.named(name)
            drawn.append((title, self._small_curves(place, series, title)))
        return drawn

    @_drawn
    def _small_curves(self, place: int, series: Sequence[figures.Points], title: str) -> Markup:
        return figures.small_curves(f"corruption-{place}", series, what=title)

    @_drawn
    def learning_curve(self) -> Markup:
        """Draw top-1 accuracy against the number of labelled images."""
        series = self._each(
            "linear_probe", lambda section: [(point["images"], point["top1"]) for point in section.learning_curve]
        )
        x, y = "labelled images", "top-1 accuracy"
        return figures.curves("learning-curve", series, what="Learning curve", x=x, y=y, close=True, log=True)

    @_drawn
    def few_shot(self) -> Markup:
        """Draw accuracy against shots, with its confidence interval."""
        results = self._each("linear_probe", lambda section: section.few_shot)
        series = [[(result["shots"], result["accuracy"]) for result in each] for each in results]
        bands = [[(result["low"], result["high"]) for result in each] for each in results]
        x = "images per class"
        return figures.curves("few-shot", series, what="Few-shot accuracy", x=x, close=True, bands=bands)

    @_drawn
    def head_tasks(self, place: int) -> Markup:
        """Draw the tasks of one evaluation."""
        return figures.head_tasks(f"head-{place}", tables.part_of(self.sections[place], "projection_head", "tasks"))

    @_drawn
    def hard_mining(self, place: int, sign: str) -> Markup:
        """Draw the gradient of the losses of one evaluation by hardness."""
        losses: Mapping[str, Any] = tables.part_of(self.sections[place], "hard_mining", "losses")
        losses = {LOSS_NAMES.get(name, name): parts for name, parts in losses.items()}
        return figures.hard_mining(f"mining-{place}-{sign}", losses, sign)

    def _each(self, name: str, take: Callable[[Any], Any]) -> list[Any]:
        """Return what ``take`` returns for a section of each evaluation, an empty list without the section."""
        sections = [getattr(each, name) for each in self.sections]
        return [[] if section is None else take(section) for section in sections]


def _by_severity(scores: Sequence[Mapping[str, Any]], metric: str) -> list[tuple[int, float]]:
    return [(each["severity"], each[metric]) for each in scores]
