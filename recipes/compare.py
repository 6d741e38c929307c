"""Train every method, or every miner, under one recipe and keep the records that the tables in docs are made of.

    python recipes/compare.py methods                        # the digits, three seeds, about 20 minutes on two cores
    python recipes/compare.py miners --seeds 0
    python recipes/compare.py methods --data hf:cifar10 --epochs 100 --records my/records

Flags that are not listed by `--help` go to `train.py`, to every run alike. A run that is finished is not repeated, one
that was killed goes on: the same command continues after an end. `python docs/make_tables.py` writes the tables.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pml_supcon.recipes.run_folder import replace_text

HERE = Path(__file__).resolve().parent
RECORDS = HERE.parent / "docs" / "records"

#: What is compared: a name and the flags of each row.
COMPARISONS: dict[str, dict[str, list[str]]] = {
    "methods": {
        method: ["--method", method]
        for method in (
            "supcon_out",
            "supcon_in",
            "simclr",
            "npairs",
            "triplet",
            "max_margin",
            "cross_entropy",
            "joint",
        )
    },
    "miners": {
        "supcon_out": ["--method", "supcon_out"],
        "triplet": ["--method", "triplet"],
        **{
            f"triplet-{miner}": ["--method", "triplet", "--miner", miner]
            for miner in ("batch_hard", "semi_hard", "distance_weighted", "capped_positives")
        },
        "max_margin": ["--method", "max_margin"],
        "max_margin-ohem": ["--method", "max_margin", "--miner", "ohem"],  # of triplets: seconds a step
    },
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, then write the records."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    parser.add_argument("comparison", choices=sorted(COMPARISONS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/compare"), help="where the runs are")
    parser.add_argument("--records", type=Path, default=RECORDS, help="where the records go")
    chosen, flags = parser.parse_known_args(arguments)
    if flags and chosen.records == RECORDS:
        parser.error(f"Expected --records with flags of train.py, whose records are not those of docs, but got {flags}")
    chosen.records.mkdir(parents=True, exist_ok=True)
    for name, seed, own in runs_of(chosen.comparison, chosen.seeds):
        folder = chosen.runs / chosen.comparison / f"{name}-seed{seed}"
        command = [sys.executable, str(HERE / "train.py"), *own, *flags, "--seed", str(seed)]
        ended = subprocess.run([*command, "--output", str(folder), "--resume"])
        if ended.returncode:  # it has said why
            sys.exit(ended.returncode)
        record = {"comparison": chosen.comparison, "row": name, **json.loads((folder / "metrics.json").read_text())}
        replace_text(
            chosen.records / f"{chosen.comparison}-{name}-seed{seed}.json", json.dumps(record, indent=2) + "\n"
        )


def runs_of(comparison: str, seeds: Sequence[int]) -> Iterator[tuple[str, int, list[str]]]:
    """The rows of a comparison with each seed: name, seed, flags."""
    for seed in seeds:
        for name, flags in COMPARISONS[comparison].items():
            yield name, seed, flags


if __name__ == "__main__":
    main()
