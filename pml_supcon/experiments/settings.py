"""The command line of `reproduce.py`."""

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pml_supcon.experiments.registry import EXPERIMENTS
from pml_supcon.experiments.scales import SCALES, Scale
from pml_supcon.training.config.parser import SWITCHES, normalised, parse_settings

RESERVED = ("output", "resume", "seed", "config", "scored", "method")  # flags of `train.py` that the experiments set
KNOWN = (*EXPERIMENTS, "all")


@dataclass(frozen=True)
class ReproduceSettings:
    """The options of `reproduce.py`.

    Attributes:
        experiments: Names of experiments, in the order of the registry.
        scale: The scale with the given settings.
        given: The given settings by flag, and seeds if they differ from the scale's.
        seeds: The seeds of the trainings.
        runs: The folder of all runs.
        results: The folder of records, tables and plots.
    """

    experiments: tuple[str, ...]
    scale: Scale
    given: dict[str, str]
    seeds: tuple[int, ...]
    runs: Path
    results: Path


def parse(arguments: Sequence[str] | None, *, prog: str, description: str) -> ReproduceSettings:
    """Parse the command line; unknown flags are parsed as settings of `train.py` for all trainings."""
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} [-h] EXPERIMENT ... [--scale SCALE] [--seeds N ...] [--runs DIR] [--results DIR] [SETTING]",
        description=description,
        epilog="SETTING: a flag of train.py for all trainings (--epochs 5). Other settings or seeds write into a "
        "separate folder of results.",
        allow_abbrev=False,
    )
    parser.add_argument("experiments", nargs="+", metavar="EXPERIMENT", help=", ".join(KNOWN))
    parser.add_argument("--scale", choices=list(SCALES), default="digits", help="data, encoder and budget")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: the scale's (digits: 0 to 4, others: 0 to 2)")
    parser.add_argument("--runs", type=Path, help="folder of the runs; default: runs/reproduce/SCALE")
    help_text = "folder of records, tables and plots; default: RUNS/results, or RUNS/results-DIGEST with settings"
    parser.add_argument("--results", type=Path, help=help_text)
    parsed, flags = parser.parse_known_args(arguments)
    unknown = [name for name in parsed.experiments if name not in KNOWN]
    if unknown:
        first = " (before the settings of trainings)" if flags else ""
        parser.error(f"Expected experiments among {', '.join(KNOWN)}{first}, but got {', '.join(unknown)}")
    if late := [word for word in flags if word in KNOWN]:
        parser.error(f"Expected all experiments before the settings of trainings, but got {', '.join(late)} after them")
    chosen = tuple(name for name in EXPERIMENTS if name in parsed.experiments or "all" in parsed.experiments)
    given = given_settings(flags, SCALES[parsed.scale], parser)
    scale = SCALES[parsed.scale].with_settings(given)
    own = tuple(range(scale.seeds))
    seeds = tuple(dict.fromkeys(parsed.seeds)) if parsed.seeds else own
    if min(seeds) < 0:
        parser.error(f"Expected --seeds to be at least 0, but got {min(seeds)}")
    runs = parsed.runs or Path("runs") / "reproduce" / scale.name
    flagged = as_flags(given) | ({} if seeds == own else {"--seeds": " ".join(map(str, seeds))})
    # given settings change the name of the results folder, so that a quick trial overwrites nothing
    digest = hashlib.sha256(json.dumps(flagged).encode()).hexdigest()[:8]
    results = parsed.results or runs / (f"results-{digest}" if flagged else "results")
    return ReproduceSettings(chosen, scale, flagged, seeds, runs, results)


def given_settings(flags: Sequence[str], scale: Scale, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Return the settings that flags name, checked together with the scale's settings."""
    words = normalised(flags, SWITCHES)
    names = [word[2:].partition("=")[0].partition(".")[0] for word in words if word.startswith("--")]
    if refused := [name for name in names if name in RESERVED]:
        parser.error(f"Expected settings that all trainings can share, but got --{', --'.join(refused)}")
    settings = parse_settings(words, prog=parser.prog, defaults=scale.settings)
    if "encoder" in names:  # the scale's arguments are for its own encoder
        names.append("encoder_args")
    return {name: getattr(settings, name) for name in names}


def as_flags(given: Mapping[str, Any]) -> dict[str, str]:
    """Return settings as flags of a command line."""
    return {
        f"--{name}": str(value) if isinstance(value, str | Path) else json.dumps(value) for name, value in given.items()
    }
