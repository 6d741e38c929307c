"""Write the benchmarks' page and its figures from the records: `python benchmarks/make_page.py`.

The same records give the same files byte by byte, with the same version of matplotlib.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import gpu
import matplotlib
import options
from harness import MODES
from matplotlib.figure import Figure
from providers import MEMORY_ROWS
from records import RESULTS, Record, last_run, latest, read
from tables import exponent, floor_seconds, markdown, measurements, megabytes, seconds, shown
from targets import OURS, SHORT, Sizes, crossover_table, sizes_table, stored_table, targets, targets_table

DOCS = Path(__file__).resolve().parent.parent / "docs"
PLACES = {"cpu": "On the CPU", "cuda": "On a GPU"}
WAITING = {
    "cpu": "No records yet: `python benchmarks/every_size.py` and the other scripts write them.",
    "cuda": "No records yet, as no GPU was available. `python benchmarks/gpu.py --device cuda` measures the kernels, "
    "the other scripts with `--device cuda` the rest.",
}

FLOOR = "floor"
LABELS = {OURS: OURS, "pml": "PML's SupConLoss", "dense/eager": "dense formula", FLOOR: "floor, fastest tile"}
COLOURS = {OURS: "#4c72b0", "pml": "#c44e52", "dense/eager": "#dd8452", FLOOR: "#8c8c8c"}

HEAD = """\
# Benchmarks

<!-- Written by benchmarks/make_page.py from benchmarks/results.csv: change those. -->

A step is the forward and the backward pass of one loss on normal random embeddings, 100 classes of equal size, two
views, temperature 0.1. Providers take turns in one process, each round in another order; times are medians with the
20% and 80% quantiles. Memory is the peak of one step above its inputs in 10^6 bytes, measured in a separate process.

- `pml_supcon/auto`, `/tiled`, `/triton`, `/reference`: `SupConLossOut` by backend; `reference` is the dense definition.
- `pml`: `SupConLoss` of pytorch-metric-learning.
- `dense/eager`, `dense/compiled`: L_out as a dense cross entropy over the `(N, N)` matrix with autograd, as it is
  written and under `torch.compile`.
- `lightly`: `NTXentLoss` of lightly, without labels.
- `siglip-kernel`, `memeff`: fused CUDA kernels of other losses, of as many similarities: a sigmoid for each pair with
  the labels as groups, and InfoNCE on N pairs without labels.
- `floor/512` and so on: only the operations that the method cannot avoid: one `Z Z^T`, one `exp` per pair and one
  `W Z`, in plain torch, in square tiles of that side, with preallocated buffers.
- The floor on a GPU is the matrix products alone at the rate of `torch.mm` (`mm/8192`: squares of that side, in the
  same dtype). A is `6 N^2 D` FLOP: similarities, the same again for the gradient, weights times rows. B is
  `5 N^2 D`: the forward pass computes one of each symmetric pair.

`make bench` runs all scripts on the CPU. Each of these takes `--quick`, which only tries it, and `--device cuda`.
"""

MACHINES = """\
### Why ratios differ between machines

Compare ratios of one table only: another machine has others.

- PML's loss and the dense formula pass a dozen times or more over `(N, N)` matrices. From some thousand rows on these
  are larger than the caches, and the time is that of the memory bus. Ours and the floor stay in the caches, and their
  time is that of products and exponentials. The ratio therefore grows with the units' speed (AVX-512 over AVX2, AMX
  in 16 bits) and with the number of cores on one memory bus, and falls with the bandwidth for each core.
- Where a matrix fits into the caches, up to some hundred rows, the ratio is that of the number of operators and of the
  Python between them. There the speed of a single core counts.
- The first touch of fresh memory costs PML's loss much: huge pages, the allocator and a virtual machine change it.
- Over the floor: `exp` in vectors of 16 (AVX-512) is twice as fast as in 8, and the product libraries differ by maker.
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
    kernels, run, found = last_run(records, "gpu"), last_run(records, "every_size"), latest(records)
    return [
        title,
        *section(kernels, "gpu", device, "Targets of the kernels", kernel_targets),
        *section(kernels, "gpu", device, "The kernels", measurements),
        *section(run, "every_size", device, "Every batch size", every_size_part),
        *section(run, "every_size", device, "Against the number of rows", lambda r: grown(r, device, docs)),
        *([f"{MACHINES}"] if run else []),
        *section(found, "peers", device, "Other libraries and forms", measurements),
        *section(found, "options", device, "What the options cost", optional),
    ]


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

    machine = each(lambda r: f"{r.hardware}, {r.cpus} CPU cores, {r.threads} thread{'' if r.threads == 1 else 's'}")
    versions = each(lambda r: f"torch {r.torch}, pytorch-metric-learning {r.pml}, Python {r.python}")
    return f"`{typed}`, {each(lambda r: f'{r.date[:10]} at commit {r.commit}')}; {machine}; {versions}."


def kernel_targets(run: list[Record]) -> str:
    """Return the table of targets on a GPU."""
    return targets_table(gpu.targets(run, gpu.Sizes()))


def every_size_part(run: list[Record]) -> str:
    """Return the tables of the targets, and the number of missed ones."""
    sizes = Sizes()
    by_size, others = sizes_table(run, sizes), targets_table(targets(run, sizes))
    short = (by_size + others).count(SHORT)
    kept = "All targets are met." if not short else f"{short} target{'s fall' if short > 1 else ' falls'} short."
    stored = (
        f"Beside a memory of {MEMORY_ROWS:,} past rows (`queue`: `QueueLoss`, `memory`: `CrossBatchMemory`; PML's is "
        "`CrossBatchMemory(SupConLoss)`), and with a miner's pairs, without the time of mining:"
    )
    crossed = (
        'On the CPU "auto" takes `dense` for up to 2^22 pairs, 2,048 rows contrasted with each other, then `tiled`:'
    )
    return "\n\n".join(
        [
            f"Float32, D = 128 unless a row has another. {kept}",
            by_size,
            others,
            crossed,
            crossover_table(run, sizes),
            stored,
            stored_table(run, sizes),
        ]
    )


def grown(run: list[Record], device: str, docs: Path) -> str:
    """Draw time and memory against N; return the picture, the exponents and all measurements as Markdown."""
    path = Path("figures") / f"every-size-{device}.svg"
    (docs / path).parent.mkdir(parents=True, exist_ok=True)
    steps = [r for r in run if r.mode in MODES and r.option == "L_out"]
    narrow = [r for r in steps if r.D == 128 and r.mode == "both"]
    draw_growth(narrow, docs / path)
    picture = f"![Time and memory of a step against the number of rows, both axes logarithmic]({path.as_posix()})"
    return f"{picture}\n\n{growth(narrow)}\n\n{measurements(steps)}"


def growth(records: Sequence[Record]) -> str:
    """Return a table of the exponents of N in time and memory, from 2,048 rows on."""
    large = [record for record in records if Sizes().tiled <= record.N and record.p50 is not None]
    rows = []
    for name in dict.fromkeys(record.name for record in large):
        sizes = sorted({record.N for record in large if record.name == name})
        powers = [exponent((N, measure(large, name, N=N)) for N in sizes) for measure in (seconds, megabytes)]
        rows.append([f"`{name}`", f"{sizes[0]:,} to {sizes[-1]:,}", *map(shown, powers)])
    return markdown(["provider", "N", "time grows as N to the", "memory as N to the"], rows, text_columns=2)


def draw_growth(records: Sequence[Record], path: Path) -> None:
    """Draw seconds and MB of a step against N, log-log, as an SVG file that depends on the records alone."""
    sizes = sorted({record.N for record in records})
    with matplotlib.rc_context({"svg.hashsalt": "pml_supcon", "font.size": 9}):
        figure = Figure(figsize=(9, 4), layout="constrained", facecolor="white")
        time_axes, memory_axes = figure.subplots(ncols=2)
        for name, label in LABELS.items():
            style = {"label": label, "color": COLOURS[name], "marker": "o"}
            times = [(N, floor_seconds(records, N=N) if name == FLOOR else seconds(records, name, N=N)) for N in sizes]
            time_axes.plot(*_points(times), markersize=4, **style)
            memory_axes.plot(*_points([(N, megabytes(records, name, N=N)) for N in sizes]), markersize=4, **style)
        time_axes.set(ylabel="seconds, forward plus backward")
        memory_axes.set(ylabel="peak memory above the inputs, MB")
        for axes in (time_axes, memory_axes):
            axes.set(xscale="log", yscale="log", xlabel="rows N")
            axes.set_xticks(sizes[::2], [f"{N:,}" for N in sizes[::2]])
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
