"""Checks of the files that each step of the walk must leave; they raise a `BrokenError`."""

import json
import math
import sys
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

LEFT: tuple[str, ...] = (
    "config.yaml",
    "metrics.json",
    "history.jsonl",
    "encoder/model.safetensors",
    "checkpoints",
    "loss_curve.png",
)
LEFT += ("embedding_map.png", "gallery.png")
PARTS: tuple[str, ...] = ("summary", "classes", "retrieval", "gallery", "map", "linear-probe", "calibration", "about")
LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}


class BrokenError(Exception):
    """The error of a step whose result differs from the page."""


def expect(holds: bool, otherwise: str) -> None:
    """Raise a `BrokenError` with a text unless a condition holds."""
    if not holds:
        raise BrokenError(otherwise)


def check_run(run: Path, *, at_least: float) -> None:
    """Check that a finished run has all files, and that its retrieval and linear probe reach a value."""
    missing = [name for name in LEFT if not (run / name).exists()]
    expect(not missing, f"{run} lacks {', '.join(missing)}")
    metrics = json.loads((run / "metrics.json").read_text())
    for name in ("retrieval/precision_at_1", "linear_probe/top1"):
        expect(metrics[name] >= at_least, f"{name} of {run} is {metrics[name]}, expected at least {at_least}")


def history(run: Path) -> list[dict[str, Any]]:
    """Return the rows of the steps in a run's history."""
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]


def check_resumed(run: Path, before: list[dict[str, Any]], epochs: int) -> None:
    """Check that a resumed run has each step once, and the steps before the stop unchanged."""
    after = history(run)
    steps = [row["step"] for row in after]
    expect(steps == list(range(1, len(steps) + 1)), f"{run} has the steps {steps}")
    last = max(row["epoch"] for row in after)
    expect(last == epochs, f"{run} has {last} epochs, expected {epochs}")
    expect(0 < len(before) < len(after), f"{run} had {len(before)} of {len(after)} steps when it was stopped")
    expect(after[: len(before)] == before, f"{run} did not continue from its {len(before)} steps, but repeated them")


class _Page(HTMLParser):
    """A parser that collects the parts of a page, the addresses that it loads, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: set[str] = set()
        self.loaded: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.parts.add(found.get("id") or "")
        address = found.get(LOADED.get(tag, "")) or ""
        if address and not address.startswith(("data:", "#")):
            self.loaded.append(address)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def check_report(folder: Path, *, classes: list[str], encoders: int) -> str:
    """Check that a report of one encoder or two has all its parts, and return how it was displayed."""
    page = _Page()
    page.feed((folder / "report.html").read_text())
    missing = [name for name in PARTS if name not in page.parts]
    expect(not missing, f"{folder / 'report.html'} lacks {', '.join(missing)}")
    expect(not page.loaded, f"{folder / 'report.html'} loads {', '.join(page.loaded)}")
    text = " ".join(page.text)
    unnamed = [name for name in classes if name not in text]
    expect(not unnamed, f"{folder / 'report.html'} does not name the classes {', '.join(unnamed)}")
    files = ["evaluation.json", "evaluation-compared.json"][:encoders]
    for name in files:
        sections = json.loads((folder / name).read_text())["sections"]
        for section in ("retrieval", "linear_probe"):
            odd = {k: v for k, v in sections[section]["metrics"].items() if not math.isfinite(v)}
            expect(not odd, f"{section} of {folder / name} is {odd}")
    return _look_at(folder / "report.html")


def _look_at(report: Path) -> str:
    """Open a report in a headless Chromium, if one is installed, at two widths."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    try:
        import pytest

        from helpers.chromium import Browser
    except ImportError as error:
        return f"parsed only: no {error.name} in {sys.executable}"
    with tempfile.TemporaryDirectory() as profile:
        try:
            browser = Browser(profile)
        except pytest.skip.Exception as reason:
            return f"parsed only: {reason}"
        try:
            for width in (360, 1280):
                page = browser.open(report, width=width)
                expect(page.complaints() == [], f"{report} complains: {page.complaints()}")
                strange = [address for address in page.requests() if address != report.as_uri()]
                expect(not strange, f"{report} asks for {strange}")
                wide = page.run("return document.documentElement.scrollWidth")
                expect(wide <= width, f"{report} is {wide} pixels wide on a screen of {width}")
                charts = page.run("return document.querySelectorAll('svg.chart').length")
                expect(charts > 0, f"{report} shows no chart")
        finally:
            browser.driver.quit()
    return "opened in Chromium at 360 and 1280 pixels"
