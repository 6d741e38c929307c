"""Compare with other libraries and forms of the loss: times, and memory.

    python benchmarks/peers.py [--quick] [--device cuda]

`SupConLossOut`, its dense definition, PML's `SupConLoss`, the dense cross-entropy form under `torch.compile`; without
labels, `SupConLossOut` and lightly's NT-Xent; with a miner's pairs, ours and PML's. Mining is not timed.
"""

from collections.abc import Sequence

from harness import Entry, Run
from providers import LABEL_FREE, MINERS
from records import Record
from tables import measurements

SIZES = (512, 2048, 8192)
MINED = 4096


def main(arguments: Sequence[str] | None = None) -> list[Record]:
    """Measure size by size, then print the table."""
    run = Run.of("peers", __doc__, arguments)
    made = []
    for N in SIZES[:1] if run.quick else SIZES:
        case, label_free = run.case(N), run.case(N, option=LABEL_FREE)
        entries = [Entry(name, case) for name in ("pml_supcon/auto", "pml_supcon/reference", "pml", "dense/compiled")]
        entries += [Entry(name, label_free) for name in ("pml_supcon/auto", "lightly")]
        made += run.measure(entries, seconds=12)
    mined = [run.case(MINED, option=option) for option in MINERS]
    made += run.measure([Entry(name, case) for case in mined for name in ("pml_supcon/auto", "pml")], seconds=10)
    print(measurements(made))
    return made


if __name__ == "__main__":
    main()
