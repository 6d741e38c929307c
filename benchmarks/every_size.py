"""Compare the losses with PML's, the dense formula and the floor at every batch size, and check the targets.

    python benchmarks/every_size.py [--quick] [--device cuda]

One run of about six minutes on two cores: N = 16 to 8,192 beside PML and the dense formula, to 65,536 alone; a memory
of past rows, and mined pairs; the error at 65,536 rows against float64; the first call of a process; the host's part of
a step on a GPU. The exit status is 0 also where a target is missed.
"""

import math
import statistics
from collections.abc import Sequence

import torch
from fresh_process import first_two_steps, host_time
from harness import Entry, Run
from providers import TEMPERATURE, Case
from records import Record
from tables import seconds
from targets import (
    CAP,
    CHECKED_ANCHORS,
    DENSE,
    KERNELS,
    L_IN,
    L_OUT,
    LARGE,
    OURS,
    PML,
    SMALL,
    STORED,
    Sizes,
    crossover_table,
    sizes_table,
    stored_table,
    targets,
    targets_table,
)

from pml_supcon.functional import supcon_loss

QUICK = Sizes(compared=(16, 256), crossed=(256,), tiled=256, large=(512,), wide=256, stored=(32,), first=(64,))
HOST_ROWS = 64
FRESH_PROCESSES = 3


def main(arguments: Sequence[str] | None = None) -> list[Record]:
    """Measure size by size, then print the tables."""
    run = Run.of("every_size", __doc__, arguments)
    sizes = QUICK if run.quick else Sizes()
    made = with_peers(run, sizes)
    made += alone(run, sizes, made)
    made += with_past_rows_or_pairs(run, sizes)
    made += errors_noted(run, sizes)
    if run.device == "cpu":
        made += first_calls(run, sizes)
        made += host(run)
    tables = sizes_table(made, sizes), targets_table(targets(made, sizes)), crossover_table(made, sizes)
    print(*tables, stored_table(made, sizes), sep="\n\n")
    return made


def with_peers(run: Run, sizes: Sizes) -> list[Record]:
    """Measure PML's loss, the dense formula and ours in turns at each size; the cap at the last one."""
    made = []
    for N in sizes.compared:
        last, tiled = sizes.compared[-1] == N, sizes.tiled <= N
        options = (L_IN, CAP) if last else (L_IN,)
        case = run.case(N, quick_N=N)
        entries = [Entry(name, case, memory=tiled) for name in (OURS, PML, DENSE)]
        entries += [Entry(OURS, run.case(N, quick_N=N, option=option), memory=False) for option in options]
        entries += [Entry(name, case, memory=False) for name in run.floors if tiled]
        entries += [Entry(name, case, memory=False) for name in (SMALL, LARGE) if N in sizes.crossed]
        made += run.measure(entries, seconds=30 if last else 8, most=1000)
    return made


def alone(run: Run, sizes: Sizes, before: Sequence[Record]) -> list[Record]:
    """Measure ours and the floor, in its best tile size, at sizes that PML's memory forbids, and with wide rows."""
    made = []
    last = sizes.compared[-1]
    floor = min(run.floors, key=lambda name: seconds(before, name, N=last) or math.inf)
    for N in sizes.large:
        case = run.case(N, quick_N=N)
        made += run.measure([Entry(OURS, case), Entry(floor, case, memory=False)], seconds=5, least=1)
    wide = run.case(last, quick_N=last, D=sizes.wide)
    return made + run.measure([Entry(name, wide, memory=False) for name in (OURS, floor)], seconds=12, least=2)


def with_past_rows_or_pairs(run: Run, sizes: Sizes) -> list[Record]:
    """Measure our memories of past rows, and mined pairs, beside PML's counterparts."""
    made = []
    for N in sizes.stored:
        cases = [run.case(N, quick_N=N, option=option) for option in STORED]
        entries = [Entry(name, case, memory=False) for case in cases for name in (OURS, PML)]
        made += run.measure(entries, seconds=6, most=300)
    return made


def errors_noted(run: Run, sizes: Sizes) -> list[Record]:
    """Record the errors at the largest size."""
    case = run.case(sizes.large[-1], quick_N=sizes.large[-1])
    names = ("error of the loss", "error of the gradient")
    return [run.note(OURS, case, name, value=error) for name, error in zip(names, errors(case), strict=True)]


def errors(case: Case) -> tuple[float, float]:
    """Return the errors of the losses of some anchors, and of the gradient of their sum, against float64.

    Of the losses the largest relative error; of the gradient the largest error of a row over the longest row.
    """
    # ours: all N anchors, of which the first few have an upstream gradient; the gradient (N, D) reaches all rows
    embeddings, labels = case.rows()
    embeddings.requires_grad_()
    losses = supcon_loss(embeddings, labels, temperature=TEMPERATURE).losses[:CHECKED_ANCHORS]
    (gradient,) = torch.autograd.grad(losses.sum(), [embeddings])
    # the definition in float64 for these anchors: CHECKED_ANCHORS x N similarities
    exact = embeddings.detach().double().requires_grad_()
    right = supcon_loss(
        exact[:CHECKED_ANCHORS],
        labels[:CHECKED_ANCHORS],
        ref_emb=exact,
        ref_labels=labels,
        ref_starts_with_batch=True,
        temperature=TEMPERATURE,
        backend="reference",
    ).losses
    (wanted,) = torch.autograd.grad(right.sum(), [exact])
    loss_error = ((losses - right).abs() / right.abs()).max()
    gradient_error = (gradient - wanted).norm(dim=1).max() / wanted.norm(dim=1).max()
    return loss_error.item(), gradient_error.item()


def first_calls(run: Run, sizes: Sizes) -> list[Record]:
    """Record the first two calls of fresh processes, ours and PML's: the median seconds, and the memory."""
    made = []
    for N in sizes.first:
        case = run.case(N, quick_N=N)
        for name, processes in ((OURS, 1 if run.quick else FRESH_PROCESSES), (PML, 1)):
            times, peaks = first_two_steps(name, case, processes)
            for call, calls, peak in zip(("first", "second"), zip(*times, strict=True), peaks, strict=True):
                made.append(
                    run.note(name, case, f"{call} call", p50=statistics.median(calls), mb=peak, repetitions=processes)
                )
    return made


def host(run: Run) -> list[Record]:
    """Record the host's part of a step on a GPU, on a tiny batch."""
    case = run.case(HOST_ROWS, quick_N=HOST_ROWS, option=L_OUT)
    times, launches = host_time(KERNELS, case)
    return [
        run.note(KERNELS, case, "host", p50=statistics.median(times), repetitions=len(times)),
        run.note(KERNELS, case, "launches", value=launches),
    ]


if __name__ == "__main__":
    main()
