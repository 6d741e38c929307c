"""Write the benchmarks' page and its figures from the records: `python benchmarks/make_page.py`.

The same records give the same files byte by byte, with the same version of matplotlib.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import expected_targets
import gpu
import matplotlib
import options
import scaling
from expected_targets import SHORT, targets_table
from matplotlib.figure import Figure
from records import RESULTS, Record, last_run, latest, read
from tables import floor_seconds, measurements, megabytes, seconds

DOCS = Path(__file__).resolve().parent.parent / "docs"
PLACES = {"cpu": "On the CPU", "cuda": "On a GPU"}
OURS = {"cpu": "pml_supcon/auto", "cuda": "pml_supcon/triton"}
WAITING = {
    "cpu": "No records yet: `python benchmarks/expected_targets.py` and the other scripts write them.",
    "cuda": "No records yet, as no GPU was available. `python benchmarks/gpu.py --device cuda` measures the kernels, "
    "the other scripts with `--device cuda` the rest.",
}

FLOOR = "floor"
LABELS = {"pml": "PML's SupConLoss", "pml_supcon/reference": "reference (dense)", FLOOR: "floor, fastest tile"}
COLOURS = {"pml": "#c44e52", "pml_supcon/reference": "#dd8452", FLOOR: "#8c8c8c"}
OUR_COLOUR = "#4c72b0"

HEAD = """\
# Benchmarks

<!-- Written by benchmarks/make_page.py from benchmarks/results.csv: change those. -->

A step is the forward and the backward pass of one loss on normal random embeddings, 100 classes of equal size, two
views, temperature 0.1. Providers take turns in one process, each round in another order; times are medians with the
20% and 80% quantiles. Memory is the peak of one step above its inputs in 10^6 bytes, measured in a separate process.

- `pml_supcon/auto`, `/tiled`, `/triton`, `/reference`: `SupConLossOut` by backend; `reference` is the dense definition.
- `pml`: `SupConLoss` of pytorch-metric-learning.
- `dense/compiled`: L_out as a dense cross entropy under `torch.compile`.
- `lightly`: `NTXentLoss` of lightly, without labels.
- `floor/512` and so on: only the operations that the method cannot avoid: one `Z Z^T`, one `exp` per pair and one
  `W Z`, in plain torch, in square tiles of that side, with preallocated buffers.

`make bench` runs all scripts on the CPU. Each of these takes `--quick`, which only tries it, and `--device cuda`.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the records, write the page and the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, default=DOCS)
    asked = parser.parse_args(arguments)
    records = read(asked.results)
    parts = [HEAD]
    for device in PLACES:
        parts += device_parts([record for record in records if record.device == device], device, asked.docs)
    (asked.docs / "benchmarks.md").write_text("\n".join(parts))


def device_parts(records: Sequence[Record], device: str, docs: Path) -> list[str]:
    """Return the Markdown sections of one device."""
    title = f"## {PLACES[device]}\n"
    if not records:
        return [title, f"{WAITING[device]}\n"]
    if device == "cuda":
        run = last_run(records, "gpu")
        parts = section(
            run, "gpu", device, "Targets of the kernels", lambda run: targets_table(gpu.targets(run, gpu.Sizes()))
        )
        parts += section(run, "gpu", device, "The measurements", measurements)
    else:
        run = last_run(records, "expected_targets")
        parts = section(run, "expected_targets", device, "Targets of the losses", target_table)
    found = latest(records)
    parts += section(found, "scaling", device, "Against the number of rows", lambda run: grown(run, device, docs))
    parts += section(found, "peers", device, "Against the peers", measurements)
    parts += section(found, "options", device, "What the options cost", optional)
    return [title, *parts, *section(found, "mined", device, "Mined pairs", measurements)]


def section(
    records: Sequence[Record], question: str, device: str, title: str, body: Callable[[list[Record]], str]
) -> list[str]:
    """Return the section of one script with its command and machine, or nothing where it has no records."""
    asked = [record for record in records if record.question == question]
    command = f"python benchmarks/{question}.py" + (" --device cuda" if device == "cuda" else "")
    return [f"### {title}\n", body(asked) + "\n", source(asked, command) + "\n"] if asked else []


def source(records: Sequence[Record], typed: str) -> str:
    """Return the source of records: the command, the dates, the machine, the versions."""

    def each(form: Callable[[Record], str]) -> str:
        return "; ".join(dict.fromkeys(map(form, records)))

    machine = each(lambda r: f"{r.hardware}, {r.cpus} CPU cores, {r.threads} threads")
    versions = each(lambda r: f"torch {r.torch}, pytorch-metric-learning {r.pml}, Python {r.python}")
    return f"`{typed}`, {each(lambda r: f'{r.date[:10]} at commit {r.commit}')}; {machine}; {versions}."


def target_table(run: list[Record]) -> str:
    """Return the table of targets and the number of missed ones."""
    lines = expected_targets.targets(run, expected_targets.Sizes(), OURS["cpu"])
    short = sum(line.verdict == SHORT for line in lines)
    kept = "All are met." if not short else f"{short} of {len(lines)} fall short."
    return f"{targets_table(lines)}\n\nFloat32; D = 128 unless the row has another. {kept}"


def grown(run: list[Record], device: str, docs: Path) -> str:
    """Draw time and memory against N; return the picture, the exponents and all measurements as Markdown."""
    path = Path("figures") / f"scaling-{device}.svg"
    (docs / path).parent.mkdir(parents=True, exist_ok=True)
    draw_scaling([record for record in run if record.D != scaling.WIDE], OURS[device], docs / path)
    picture = f"![Time and memory of a step against the number of rows, both axes logarithmic]({path.as_posix()})"
    return f"{picture}\n\n{scaling.growth(run)}\n\n{measurements(run)}"


def draw_scaling(records: Sequence[Record], ours: str, path: Path) -> None:
    """Draw seconds and MB of a step against N, log-log, as an SVG file that depends on the records alone."""
    both = [record for record in records if record.mode == "both"]
    names = [name for name in (ours, *LABELS) if name == FLOOR or any(record.name == name for record in both)]
    sizes = sorted({record.N for record in both})
    floor = next((record.name for record in both if record.provider == FLOOR and record.peak_extra_mb), FLOOR)
    with matplotlib.rc_context({"svg.hashsalt": "pml_supcon", "font.size": 9}):
        figure = Figure(figsize=(9, 4), layout="constrained", facecolor="white")
        time_axes, memory_axes = figure.subplots(ncols=2)
        for name in names:
            style = {"label": LABELS.get(name, name), "color": COLOURS.get(name, OUR_COLOUR), "marker": "o"}
            times = [(N, floor_seconds(both, N=N) if name == FLOOR else seconds(both, name, N=N)) for N in sizes]
            time_axes.plot(*_points(times), markersize=4, **style)
            peaks = [(N, megabytes(both, floor if name == FLOOR else name, N=N)) for N in sizes]
            memory_axes.plot(*_points(peaks), markersize=4, **style)
        time_axes.set(ylabel="seconds, forward plus backward")
        memory_axes.set(ylabel="peak memory above the inputs, MB")
        for axes in (time_axes, memory_axes):
            axes.set(xscale="log", yscale="log", xlabel="rows N")
            axes.set_xticks(sizes, [f"{N:,}" for N in sizes])
            axes.minorticks_off()
            axes.grid(alpha=0.3)
        time_axes.legend(frameon=False)
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def _points(pairs: Sequence[tuple[int, float | None]]) -> tuple[list[int], list[float]]:
    known = [(x, y) for x, y in pairs if y]
    return [x for x, _ in known], [y for _, y in known]


def optional(run: list[Record]) -> str:
    """Return the options with their time relative to L_out, and the last paragraph of the script's docstring."""
    paragraph = (options.__doc__ or "").strip().split("\n\n")[-1]
    return f"{measurements(run, against='L_out')}\n\n{paragraph}"


if __name__ == "__main__":
    main()
