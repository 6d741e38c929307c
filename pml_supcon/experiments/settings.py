"""The command line of `reproduce.py`."""

import argparse
import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pml_supcon.experiments.registry import EXPERIMENTS
from pml_supcon.experiments.scales import SCALES, Scale
from pml_supcon.training.config.command_line import normalised
from pml_supcon.training.config.parser import SWITCHES, parse_settings

OWN = ("output", "resume", "seed", "config", "scored", "method")  # flags of `train.py` that are not the user's here
KNOWN = (*EXPERIMENTS, "all")


@dataclass(frozen=True)
class ReproduceSettings:
    """What is reproduced, at which scale, and where it goes.

    Attributes:
        experiments: names, in the order of the page.
        scale: with the settings that were given beside it.
        given: those by their flag, and seeds other than the scale's.
        seeds: of the trainings.
        runs: folder of all runs.
        results: folder of records, tables and drawings.
    """

    experiments: tuple[str, ...]
    scale: Scale
    given: dict[str, str]
    seeds: tuple[int, ...]
    runs: Path
    results: Path


def parse(arguments: Sequence[str] | None, *, prog: str, description: str) -> ReproduceSettings:
    """Settings from the command line; other flags are settings of all trainings, as `train.py` takes them."""
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} [-h] EXPERIMENT ... [--scale SCALE] [--seeds N ...] [--runs DIR] [--results DIR] [SETTING]",
        description=description,
        epilog="SETTING: any other flag is one of all trainings, as train.py takes it (--epochs 5). Results under "
        "other settings or seeds go into a folder of their own.",
        allow_abbrev=False,
    )
    parser.add_argument("experiments", nargs="+", metavar="EXPERIMENT", help=f"{', '.join(KNOWN)}")
    parser.add_argument("--scale", choices=list(SCALES), default="digits", help="data, encoder and budget")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: the scale's (digits: 0 to 4, others: 0 to 2)")
    parser.add_argument("--runs", type=Path, help="folder of the runs; default: runs/reproduce/SCALE")
    parser.add_argument(
        "--results",
        type=Path,
        help="folder of records, tables and drawings; default: RUNS/results, with the settings given",
    )
    parsed, flags = parser.parse_known_args(arguments)
    unknown = [name for name in parsed.experiments if name not in KNOWN]
    if unknown:
        first = " (they stand before the settings of trainings)" if flags else ""
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
    return ReproduceSettings(chosen, scale, flagged, seeds, runs, parsed.results or runs / results_of(flagged))


def given_settings(flags: Sequence[str], scale: Scale, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """The settings of `train.py` that flags name, checked beside those of the scale."""
    made = normalised(flags, SWITCHES)
    names = [flag[2:].partition("=")[0].partition(".")[0] for flag in made if flag.startswith("--")]
    if refused := [name for name in names if name in OWN]:
        parser.error(f"Expected settings that all trainings can share, but got --{', --'.join(refused)}")
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump({**scale.settings}, file)
        file.flush()
        settings = parse_settings(["--config", file.name, *made], prog=parser.prog)
    if "encoder" in names:  # the scale's arguments are those of its own encoder
        names.append("encoder_args")
    return {name: getattr(settings, name) for name in names}


def results_of(given: Mapping[str, str]) -> str:
    """The folder of results: another one where settings are given, so that a quick look replaces nothing."""
    if not given:
        return "results"
    return f"results-{hashlib.sha256(json.dumps(given).encode()).hexdigest()[:8]}"


def as_flags(given: Mapping[str, Any]) -> dict[str, str]:
    """Settings by the flag of each, as a command line has them."""
    return {
        f"--{name}": str(value) if isinstance(value, str | Path) else json.dumps(value) for name, value in given.items()
    }
