"""Check what pages and records say: `make lint` runs it. Prints one line for each fault.

- Generated tables and `docs/benchmarks.md` equal their records.
- Each result follows from its scores, its settings are the scale's, and its page shows it.
- Flags and paths in inline code exist.
- Recorded benchmarks keep the bounds that the pages promise.
- No docstring opens with a question word.
"""

import html
import json
import re
import statistics
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import make_tables
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser

from pml_supcon.evaluation.settings import EvaluateSettings
from pml_supcon.experiments.record import compared
from pml_supcon.experiments.registry import EXPERIMENTS
from pml_supcon.experiments.scales import SCALES
from pml_supcon.training.config import TrainSettings
from pml_supcon.training.continual.settings import ContinualSettings

ROOT = Path(__file__).resolve().parent.parent
DOCS, RECORDS = ROOT / "docs", ROOT / "docs/records"
SHOWN = {"digits": tuple(EXPERIMENTS), "cifar10-small": ("losses", "methods", "positives")}
FLAG = re.compile(r"(?<![\w-])--([A-Za-z][\w-]*\w)(?![\w-])")
PATH = re.compile(r"(?<![\w./{])(?:tests|benchmarks|recipes|docs)/[\w./-]*\w")
OTHER_PROJECTS = "docs/peers.md"  # cites files of other projects


def main() -> int:
    """Print all faults and return the exit status."""
    checks = (
        generated_pages,
        benchmark_page,
        results,
        digits_records,
        benchmark_records,
        inline_code,
        quick_start,
        docstrings,
    )
    faults = [fault for check in checks for fault in check()]
    print("\n".join(faults) or "docs: pages, records and results agree")
    return bool(faults)


def generated_pages() -> Iterator[str]:
    """Yield the pages whose tables differ from the records."""
    for page, text in make_tables.generated().items():
        if page.read_text() != text:
            yield f"{page.relative_to(ROOT)}: tables differ from the records; run `make tables`"


def benchmark_page() -> Iterator[str]:
    """Compare the text of `docs/benchmarks.md`; the plots depend on the version of matplotlib."""
    with tempfile.TemporaryDirectory() as folder:
        script = ROOT / "benchmarks/make_page.py"
        subprocess.run([sys.executable, str(script), "--docs", folder], check=True, capture_output=True)
        if (Path(folder) / "benchmarks.md").read_text() != (DOCS / "benchmarks.md").read_text():
            yield "docs/benchmarks.md: differs from benchmarks/results.csv; run `python benchmarks/make_page.py`"


def results() -> Iterator[str]:
    """Yield the results that do not follow from their scores, or that no page shows."""
    records = {(record["scale"], record["experiment"]): (path, record) for path, record in make_tables.results()}
    if missing := {(scale, name) for scale, names in SHOWN.items() for name in names} ^ records.keys():
        yield f"docs/results: missing or surplus results: {sorted(missing)}"
    for (scale_name, name), (path, record) in records.items():
        where, experiment, scale = path.relative_to(ROOT), EXPERIMENTS[name](SCALES[scale_name]), SCALES[scale_name]
        given = {flag.removeprefix("--"): value for flag, value in record["given"].items()}
        trained = {each.name: record["trainings"].get(each.name, {"scores": {}}) for each in experiment.trainings}
        seeds = [{row: each["scores"].get(str(seed), {}) for row, each in trained.items()} for seed in record["seeds"]]
        named = {"data"} if scale_name == "cifar10-small" else set()
        commits = [*record["origin"]["commit"], record["assembled"]["commit"]]
        page = (DOCS / "results" / f"{scale_name.replace('-', '_')}.md").read_text()
        drawn = html.unescape(path.with_suffix(".svg").read_text())
        texts = {line["panel"] for line in record["lines"]}
        texts |= {(line["label"] if line["x"] is None else line["series"]).replace("`", "") for line in record["lines"]}
        verdicts = [{**compared(each, seeds), "title": each.title} for each in experiment.comparisons]
        yield from (
            f"{where}: {fault}"
            for fault, holds in {
                "settings were given that the page does not name": given.keys() <= named,
                "settings differ from the scale's": record["settings"] == {**scale.settings, **given},
                "seeds differ from the scale's": record["seeds"] == list(range(scale.seeds)),
                "a training, seed or tuning is missing": record["trainings"].keys() == trained.keys()
                and all(len(about["scores"]) == scale.seeds and about["tried"] for about in trained.values()),
                "values differ from the scores": [line["values"] for line in record["lines"]]
                == [[line.quantity.of(each) for each in seeds] for line in experiment.lines],
                "the paper's numbers differ": [line["paper"] for line in record["lines"]]
                == [line.paper for line in experiment.lines],
                "verdicts differ from the scores": record["comparisons"] == verdicts,
                "a commit is not known": all(re.fullmatch("[0-9a-f]{12}", commit) for commit in commits),
                "the page lacks the table": f'--8<-- "docs/results/{scale_name}/{name}.md"' in page,
                "the page lacks the plot": f"({scale_name}/{name}.svg)" in page,
                "the plot lacks a row; run `make_tables.py --plots`": all(f">{text}<" in drawn for text in texts),
            }.items()
            if not holds
        )
    # Experiments share runs: each counts once.
    seconds = {run: took for (scale, _), (_, record) in records.items() if scale == "digits"
               for run, took in record["seconds"].items()}  # fmt: skip
    if sum(seconds.values()) > 2 * 3600:
        yield "docs/results/digits: took more than the two hours that docs/recipes/reproduce.md promises"


def digits_records() -> Iterator[str]:
    """Check the promises on the digits: accuracy, time, and two processes within noise of one."""
    records = [json.loads(path.read_text()) for path in RECORDS.glob("digits-seed*.json")]
    spread = [json.loads(path.read_text()) for path in RECORDS.glob("spread-*.json")]
    if sorted(record["seed"] for record in records) != [0, 1, 2]:
        yield "docs/records: expected digits-seed 0, 1 and 2"
    if sorted((record["processes"], record["chunk_size"]) for record in spread) != [(2, 0), (2, 64)]:
        yield "docs/records: expected spread-* for 2 processes, with and without chunks of 64"
    for score in ("linear_probe/top1", "retrieval/precision_at_1"):
        mean = statistics.mean(record[score] for record in records)
        if mean < 0.985:
            yield f"docs/records: mean {score} of the digits is below 0.985"
        if any(abs(record[score] - mean) > 0.01 for record in spread):
            yield f"docs/records: {score} on two processes differs from one process by more than 0.01"
    if any(record["seconds/total"] > 120 for record in records):
        yield "docs/records: a run on the digits took more than 120 s"


def benchmark_records() -> Iterator[str]:
    """Check the bounds that the pages promise of the recorded benchmarks."""
    loss = {(row["a process's"], row["processes"]): row for row in rows_of("processes")}
    ours = {W: loss["`GlobalBatchLoss(SupConLossOut)`", W] for W in (1, 2, 4)}
    cached = {row[""]: row for row in rows_of("cached")}
    chunked = [f"{where}: error of the gradient, float32" for where in ("one process", "two processes")]
    chunked.append("one process: error of the gradient, float64")
    memory = [cached[f"{where}: extra memory, MB"] for where in ("one process", "two processes")]
    steps = [cached[f"{where}: seconds of a step"] for where in ("one process", "two processes")]
    reductions = cached["two processes: reductions of the gradient in a step"]
    loader = {row[0]: row for row in json.loads((RECORDS / "benchmark-loader.json").read_text())["rows"]}
    retrieval = {row["queries x references"]: row for row in rows_of("retrieval")
                 if row["128 wide"].startswith("`retrieval_metrics`")}  # fmt: skip
    large = ("50,000 x 50,000", "10,000 x 1,000,000")
    indexes = {row["index"]: row for row in rows_of("indexes")}
    bounds = {
        "processes: products are shared": all(
            row["products, N^2 D"] <= 1.05 * ours[1]["products, N^2 D"] / W for W, row in ours.items()
        ),
        "processes: gradients are exact": all(row["gradient error"] <= 1e-5 for row in ours.values()),
        "processes: our loss does not grow": all(row["loss"] == 1 for row in ours.values()),
        "processes: PML's loss grows": all(loss["PML's `DistributedLossWrapper`", W]["loss"] == W for W in ours),
        "processes: memory falls": ours[1]["memory, MB"] > ours[2]["memory, MB"] > ours[4]["memory, MB"],
        "cached: gradients are exact": all(cached[name]["chunks of 64"] <= 1e-6 for name in chunked),
        "cached: a step takes at most 1.5 times as long": all(row["chunks over whole"] <= 1.5 for row in steps),
        "cached: chunks need less memory": all(row["chunks of 64"] < row["whole batch"] for row in memory),
        "cached: one reduction a step": reductions["chunks of 64"] == 1,
        "loader: twice as fast": all(float(loader[f"views a second, {n} workers"][3]) >= 2 for n in ("no", "2")),
        "loader: the loss is a small share": float(loader["the loss in a step of training, %"][1]) < 3,
        "retrieval: ten times as fast": retrieval["50,000 x 50,000"]["PML's ns over it"] >= 10,
        "retrieval: memory": all(retrieval[size]["extra memory, MB"] <= 1000 for size in large),
        "retrieval: equal to PML": retrieval["10,000 x 10,000"]["largest difference from PML's"] <= 1e-6,
        "indexes: exact, ivf and hnsw": {"`exact`", "`ivf`", "`hnsw`"} <= indexes.keys(),
        "indexes: recall": indexes["`exact`"]["recall@100"] == 1
        and all(0 < row["recall@1"] <= 1 for row in indexes.values()),
    }
    yield from (f"docs/records/benchmark-{bound}: not kept" for bound, holds in bounds.items() if not holds)


def rows_of(name: str) -> list[dict[str, Any]]:
    """Read the rows of a recorded table, with numbers as floats."""
    record = json.loads((RECORDS / f"benchmark-{name}.json").read_text())

    def number(cell: str) -> float | str:
        try:
            return float(cell.replace(",", ""))
        except ValueError:
            return cell

    return [dict(zip(record["header"], map(number, row), strict=True)) for row in record["rows"]]


def inline_code() -> Iterator[str]:
    """Yield the flags and paths in inline code that do not exist."""
    recipes = {
        field.name for settings in (TrainSettings, EvaluateSettings, ContinualSettings) for field in fields(settings)
    }
    recipes |= {"config", "print_config", "help", "version"} | flags_in("pml_supcon/experiments/settings.py")
    known = recipes | flags_of(launch_command_parser()) | flags_of(get_args_parser())
    tools = {  # flags by a word of the code before them
        "pip ": {"yes", "no_deps", "force_reinstall", "editable", "upgrade"},
        "make ": flags_in("tests/helpers/*.py"),
        "pytest ": {"collect_only"},
        "benchmarks/": flags_in("benchmarks/*.py"),
        "docs/": flags_in("docs/*.py") | {"plots"},
    }
    for path in (ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))):
        page, codes = str(path.relative_to(ROOT)), inline_codes(path.read_text())
        more = {"benchmarks/": tools["benchmarks/"]} if page == "docs/benchmarks.md" else {}
        yield from (f"{page}: {fault}" for fault in unknown_flags(codes, known.union(*more.values()), tools))
        if page != OTHER_PROJECTS:
            yield from (f"{page}: there is no {path}" for path in missing_paths(codes))


def inline_codes(text: str) -> list[str]:
    """Return the inline code of a page, without code blocks."""
    prose = re.sub(r"^ *(`{3,}|~{3,}).*?^ *\1 *$", "", text, flags=re.M | re.S)
    return [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose)]


def unknown_flags(codes: Sequence[str], known: set[str], tools: dict[str, set[str]]) -> list[str]:
    """Return the flags that neither a recipe, nor a launcher, nor the tool in the code has."""
    return [
        f"unknown flag --{name} in `{code}`"
        for code in codes
        for name in FLAG.findall(code)
        if name.replace("-", "_") not in known.union(*(names for tool, names in tools.items() if tool in code))
    ]


def missing_paths(codes: Sequence[str]) -> list[str]:
    """Return the paths of this repository that do not exist."""
    return [path for code in codes for path in PATH.findall(code) if not (ROOT / path).exists()]


def flags_of(parser: ArgumentParser) -> set[str]:
    """Return the names of a parser's flags."""
    return {option.lstrip("-").replace("-", "_") for action in parser._actions for option in action.option_strings}


def flags_in(pattern: str) -> set[str]:
    """Return the names of the flags that scripts define."""
    files = ROOT.glob(pattern)
    return {name.replace("-", "_") for file in files for name in re.findall(r'"--([\w-]+)"', file.read_text())}


def quick_start() -> Iterator[str]:
    """Compare the scores that the quick start prints with the record."""
    record = json.loads((RECORDS / "digits-seed0.json").read_text())
    printed = re.findall(r"^(\w+/\w+) +([\d.]+)$", (DOCS / "quick_start.md").read_text(), re.M)
    if len(printed) != 3 or any(value != f"{record[name]:.4f}" for name, value in printed):
        yield "docs/quick_start.md: printed scores differ from docs/records/digits-seed0.json"


def docstrings() -> Iterator[str]:
    """Yield the docstrings that open with a question word: a reader must guess what they describe."""
    opening = re.compile(r'"""(What|Whether|Which|Those|That|Where|How|Why|Who)\b')
    for file in sorted(ROOT.glob("*/**/*.py")):
        if file.relative_to(ROOT).parts[0] in ("pml_supcon", "recipes", "benchmarks", "docs", "tests"):
            yield from (
                f"{file.relative_to(ROOT)}:{number}: opens with a question word"
                for number, line in enumerate(file.read_text().splitlines(), 1)
                if opening.search(line)
            )


if __name__ == "__main__":
    sys.exit(main())
