"""An evaluation as one HTML file that opens by itself: no network, no other files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pml_supcon._files import write_atomic
from pml_supcon.evaluation.report import figures, tables
from pml_supcon.evaluation.report.content import check_content
from pml_supcon.evaluation.report.map import build_map
from pml_supcon.evaluation.report.pictures import Pixels, check_pictures, encode_atlas, encode_each

LETTERS = ("A", "B")
MAP_SIDE, GALLERY_SIDE = 64, 112  # pixels of a picture, at most
MAP_BYTES, GALLERY_BYTES = 2_900_000, 900_000  # of all pictures on the page
LOSS_NAMES = {"supcon_out": "SupCon, out", "supcon_in": "SupCon, in", "triplet": "triplet"}


@dataclass(frozen=True)
class Evaluation:
    """What a report shows of an encoder.

    Args:
        content: what `evaluation.json` holds.
        pictures: `{"test": {index: pixels}, "train": {index: pixels}}`, uint8 `(H, W)` or `(H, W, 3)`: of the gallery's
            queries and of the map (test), and of the gallery's references (train).

    Raises:
        TypeError: a value or a picture has the wrong type.
        ValueError: a key is unknown or missing, a value not finite or out of its range, a picture is missing or has
            another shape.
    """

    content: Mapping[str, Any]
    pictures: Mapping[str, Mapping[int, Pixels]]

    def __post_init__(self) -> None:
        check_content(self.content)
        gallery = self.sections.get("gallery", [])
        references = {each["reference"] for query in gallery for each in query["neighbours"]}
        test = {query["query"] for query in gallery} | set(self.sections.get("map", {}).get("indices", []))
        check_pictures(self.pictures, {"test": sorted(test), "train": sorted(references)})

    @property
    def sections(self) -> Mapping[str, Any]:
        """The sections that there are."""
        sections: Mapping[str, Any] = self.content["sections"]
        return sections


def write_report(path: Path, evaluations: Sequence[Evaluation]) -> None:
    """Write the report of one evaluation, or of two beside each other.

    Args:
        path: the HTML file, which is replaced as a whole.
        evaluations: one or two.

    Raises:
        TypeError: one is no `Evaluation`.
        ValueError: there are none, or more than two.
    """
    for each in evaluations:
        if not isinstance(each, Evaluation):
            raise TypeError(f"Expected argument `evaluations` to hold `Evaluation`s, but got {type(each).__name__}.")
    if len(evaluations) not in (1, 2):
        raise ValueError(f"Expected argument `evaluations` to hold one or two, but got {len(evaluations)}.")
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": tables.figure, "named": tables.named}
    # A style sheet and a script of our own: nothing in them is to be escaped.
    own = {name: Markup((folder / f"report.{name}").read_text(encoding="utf-8")) for name in ("css", "js")}
    page = environment.get_template("page.html.j2").render(**own, **page_content(evaluations))
    write_atomic(path, page)


def page_content(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """All that the template shows."""
    contents, sections = [each.content for each in evaluations], [each.sections for each in evaluations]
    letters = LETTERS if len(evaluations) == 2 else ("",)
    classes = list(dict.fromkeys(name for each in contents for name in each["data"]["classes"]))
    maps, atlases = _maps(evaluations)
    return {
        "letters": letters,
        "evaluations": contents,
        "notes": _notes(contents),
        "present": {name for each in sections for name, section in each.items() if section},
        "summary": tables.summary(sections),
        "classes": tables.class_table(sections, classes, letters),
        "galleries": _galleries(evaluations),
        "maps": maps,
        "atlases": atlases,
        "map_data": {"maps": [found and found.data for found in maps]},
        "table": lambda section, part: tables.rows([each.get(section, {}).get(part, {}) for each in sections]),
        "having": lambda section: [
            (place, letters[place], each[section]) for place, each in enumerate(sections) if each.get(section)
        ],
        "has_part": lambda section, part: any(each.get(section, {}).get(part) for each in sections),
        "figures": Figures(sections),
        "about": tables.about(contents),
        "loss_names": LOSS_NAMES,
    }


def _notes(contents: Sequence[Mapping[str, Any]]) -> list[str]:
    if len(contents) == 1:
        return list(contents[0]["notes"])
    texts = dict.fromkeys(text for each in contents for text in each["notes"])
    whose = {
        text: [letter for letter, each in zip(LETTERS, contents, strict=True) if text in each["notes"]]
        for text in texts
    }
    notes = [f"{' and '.join(whose[text])}: {text}" for text in texts]
    if contents[0]["data"] != contents[1]["data"]:
        notes.insert(0, "A and B were evaluated on different data: their difference is not that of the encoders alone.")
    return notes


def _galleries(evaluations: Sequence[Evaluation]) -> list[list[dict[str, Any]]]:
    """The rows of each gallery, with their pictures."""
    galleries = []
    for each in evaluations:
        queries = each.sections.get("gallery", [])
        places = [("test", query["query"]) for query in queries]
        places += [("train", found["reference"]) for query in queries for found in query["neighbours"]]
        places = list(dict.fromkeys(places))
        chosen = [each.pictures[split][index] for split, index in places]
        encoded = encode_each(chosen, GALLERY_SIDE, GALLERY_BYTES // len(evaluations))
        pictures = dict(zip(places, encoded, strict=True))
        galleries.append(
            [
                {
                    **query,
                    "picture": pictures["test", query["query"]],
                    "pictures": [pictures["train", found["reference"]] for found in query["neighbours"]],
                }
                for query in queries
            ]
        )
    return galleries


def _maps(evaluations: Sequence[Evaluation]) -> tuple[list[Any], list[Any]]:
    """The map of each evaluation (None where there is none), and their pictures, once where they are the same."""
    maps: list[Any] = []
    atlases: list[Any] = []
    for place, each in enumerate(evaluations):
        section = each.sections.get("map")
        if not section or not section["methods"]:
            maps.append(None)
            continue
        whose = f" of {LETTERS[place]}" if len(evaluations) == 2 else ""
        found = build_map(f"map-{place}", section, each.content["data"]["classes"], whose)
        chosen = [each.pictures["test"][index] for index in section["indices"]]
        atlas = encode_atlas(chosen, MAP_SIDE, MAP_BYTES // len(evaluations))
        if atlas not in atlases:
            atlases.append(atlas)
        found.data.update(atlas=atlases.index(atlas), columns=atlas.columns, rows=atlas.rows)
        maps.append(found)
    return maps, atlases


class Figures:
    """The figures that the template asks for, over the evaluations that have their section."""

    def __init__(self, sections: Sequence[Mapping[str, Any]]) -> None:
        self.sections = sections

    def reliability(self, when: str) -> Markup:
        """The reliability diagram `before` or `after` temperature scaling."""
        found = self._of("calibration", lambda part: part["reliability"][when])
        return figures.reliability(f"reliability-{when}", found, f"{when} temperature scaling")

    def severity(self, metric: str) -> Markup:
        """Accuracy or ECE over severities, the clean images at 0."""
        series = self._of("corruption", lambda part: _severity(part["clean"], part["by_severity"], metric))
        most = max((value for points in series for _, value in points), default=1)
        top = 1.0 if metric == "accuracy" else min(1.0, max(0.1, 1.1 * most))
        y = "accuracy" if metric == "accuracy" else "ECE"
        name, x = f"severity-{metric}", "severity (0: clean)"
        return figures.curves(name, series, what="Corruption", x=x, y=y, top=top)

    def corruptions(self) -> list[tuple[str, Markup]]:
        """A small figure for each corruption."""
        names = dict.fromkeys(
            name for each in self.sections for name in each.get("corruption", {}).get("corruptions", {})
        )
        drawn = []
        for place, name in enumerate(names):
            series = self._of(
                "corruption",
                lambda part, name=name: _severity(None, part["corruptions"].get(name, []), "accuracy"),
            )
            title = tables.named(name)
            drawn.append((title, figures.small_curves(f"corruption-{place}", series, what=title)))
        return drawn

    def learning_curve(self) -> Markup:
        """Top-1 accuracy against the number of labelled images."""
        series = self._of(
            "linear_probe", lambda part: [(each["images"], each["top1"]) for each in part.get("learning_curve", [])]
        )
        x, y = "labelled images", "top-1 accuracy"
        return figures.curves("learning-curve", series, what="Learning curve", x=x, y=y, close=True, log=True)

    def few_shot(self) -> Markup:
        """Accuracy against shots, with its interval."""
        shots = self._of("linear_probe", lambda part: part.get("few_shot", []))
        series = [[(each["shots"], each["accuracy"]) for each in part] for part in shots]
        bands = [[(each["low"], each["high"]) for each in part] for part in shots]
        x = "images per class"
        return figures.curves("few-shot", series, what="Few-shot accuracy", x=x, close=True, bands=bands)

    def head_tasks(self, place: int) -> Markup:
        """The tasks of an evaluation."""
        return figures.head_tasks(f"head-{place}", self.sections[place]["projection_head"]["tasks"])

    def hard_mining(self, place: int, sign: str) -> Markup:
        """The gradient of an evaluation's losses by hardness."""
        losses = self.sections[place]["hard_mining"]["losses"]
        losses = {LOSS_NAMES.get(name, name): parts for name, parts in losses.items()}
        return figures.hard_mining(f"mining-{place}-{sign}", losses, sign)

    def _of(self, section: str, take: Any) -> list[Any]:
        """What an evaluation has of a section, nothing where it has no such section."""
        return [take(each[section]) if section in each else [] for each in self.sections]


def _severity(
    clean: Mapping[str, float] | None, cells: Sequence[Mapping[str, Any]], metric: str
) -> list[tuple[int, float]]:
    start = [(0, clean[metric])] if clean else []
    return start + [(each["severity"], each[metric]) for each in cells]
