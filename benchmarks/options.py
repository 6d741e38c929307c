"""Measure the cost of each option of the loss relative to L_out without a cap.

    python benchmarks/options.py [--quick] [--device cuda]

N = 8,192, 100 classes. "first view" takes only the first views as anchors, half of the pairs. `ref_emb` adds 8,192
rows without a gradient; a pair of rows of the batch serves both of its rows, a pair with `ref_emb` only one: twice the
products. "soft labels" and "label sets" (Jaccard) have rows of 100 labels. "relation distillation" has 8,192 past rows
and no labels: six products of rows in place of four. These three also run at N = 65,536.
"""

from collections.abc import Sequence

from harness import Entry, Run
from providers import DISTILLATION, OPTIONS
from records import Record
from tables import measurements, megabytes, ratio, seconds, shown
from targets import Target, at_most, targets_table

SIZE, LARGE = 8192, 65536
#: The largest time of an option over the time of L_out.
OVER_L_OUT = {"soft labels": 1.3, "label sets": 1.8, DISTILLATION: 2.5}


def main(arguments: Sequence[str] | None = None) -> list[Record]:
    """Measure all options in turns, then print the table."""
    run = Run.of("options", __doc__, arguments)
    entries = [Entry("pml_supcon/auto", run.case(SIZE, option=option)) for option in OPTIONS]
    made = run.measure(entries, seconds=45, least=3)
    print(measurements(made, against="L_out"))
    large = [Entry("pml_supcon/auto", run.case(LARGE, quick_N=512, option=option)) for option in OVER_L_OUT]
    made += run.measure(large, seconds=1, least=1)
    print(targets_table([target for option in OVER_L_OUT for target in ceilings(made, option, run.quick)]))
    return made


def ceilings(made: Sequence[Record], option: str, quick: bool) -> list[Target]:
    """Return the targets of an option: time and memory over L_out, memory of a large batch."""
    sizes = (256, 512) if quick else (SIZE, LARGE)
    slower, larger = (
        ratio(*(measure(made, "pml_supcon/auto", N=sizes[0], option=each) for each in (option, "L_out")))
        for measure in (seconds, megabytes)
    )
    extra, most = megabytes(made, "pml_supcon/auto", N=sizes[1], option=option), OVER_L_OUT[option]
    return [
        Target(f"time of {option} over L_out", f"at most {most}", shown(slower), at_most(slower, most)),
        Target(f"memory of {option} over L_out", "at most 1.5", shown(larger), at_most(larger, 1.5)),
        Target(
            f"extra memory of {option}, N = {LARGE:,}", "at most 400 MB", shown(extra, 0, " MB"), at_most(extra, 400)
        ),
    ]


if __name__ == "__main__":
    main()
