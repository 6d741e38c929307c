"""Compare time and memory with other libraries, and with the operations that no implementation can avoid.

    python benchmarks/peers.py [--quick] [--device cuda]

`SupConLossOut`, its dense definition, PML's `SupConLoss`, the dense cross-entropy form under `torch.compile`, and the
floor; without labels, `SupConLossOut` and lightly's NT-Xent. All compute the same loss except the floor,
which is not a loss.
"""

from collections.abc import Sequence

from harness import Entry, Run
from providers import LABEL_FREE
from records import Record
from tables import measurements

SIZES = (512, 2048, 8192)


def main(arguments: Sequence[str] | None = None) -> list[Record]:
    """Measure size by size, then print the table."""
    run = Run.of("peers", __doc__, arguments)
    made = []
    for N in SIZES[:1] if run.quick else SIZES:
        case = run.case(N)
        label_free = run.case(N, option=LABEL_FREE)
        entries = [Entry(name, case) for name in (*run.ours, "pml_supcon/reference", "pml", "dense/compiled")]
        entries += [Entry(name, case, memory=False) for name in run.floors]
        entries += [Entry(name, label_free) for name in (*run.ours, "lightly")]
        made += run.measure(entries, seconds=12, least=3)
    print(measurements(made))
    return made


if __name__ == "__main__":
    main()
