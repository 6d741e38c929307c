"""Checks of the files that each step of the walk must leave; they raise a `BrokenError`."""

import json
import math
import re
from pathlib import Path
from typing import Any

LEFT = ("config.yaml", "metrics.json", "history.jsonl", "encoder/model.safetensors", "checkpoints")
LEFT += ("loss_curve.png", "embedding_map.png", "gallery.png")
PARTS = ("summary", "classes", "retrieval", "gallery", "map", "linear-probe", "calibration", "about")
LOADED = re.compile(r'<(?:script|img|link|iframe|source)\b[^>]*\b(?:src|href)="(?!data:|#)([^"]+)"')


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


def check_report(folder: Path, *, classes: list[str], encoders: int) -> None:
    """Check that a report of one encoder or two has all its parts and finite scores, and loads nothing."""
    page, text = folder / "report.html", (folder / "report.html").read_text()
    missing = [name for name in PARTS if f'id="{name}"' not in text]
    expect(not missing, f"{page} lacks {', '.join(missing)}")
    expect(not LOADED.findall(text), f"{page} loads {', '.join(LOADED.findall(text))}")
    words = re.sub(r"<(script|style)\b.*?</\1>|<[^>]*>", " ", text, flags=re.S)
    unnamed = [name for name in classes if name not in words]
    expect(not unnamed, f"{page} does not name the classes {', '.join(unnamed)}")
    for name in ("evaluation.json", "evaluation-compared.json")[:encoders]:
        sections = json.loads((folder / name).read_text())["sections"]
        for section in ("retrieval", "linear_probe"):
            odd = {k: v for k, v in sections[section]["metrics"].items() if not math.isfinite(v)}
            expect(not odd, f"{section} of {folder / name} is {odd}")
