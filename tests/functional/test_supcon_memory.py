"""Linear memory: the measured peak of a step above its inputs, in a separate process."""

import json

import pytest
from helpers.peak_memory import measured

MB = 10**6
WIDTH = 16

#: Options by name, and numbers of rows.
CASES = {
    "rows": ({}, [2048, 8192]),
    "logarithms": ({"temperature": 0.01, "summation": "in", "denominator": "one_positive"}, [2048, 4096]),
    "labels not on the host": ({"hidden": True}, [2048, 4096]),
    "references": ({"references": True, "denominator": "negatives"}, [2048, 4096]),
    "label sets": ({"sets": 8}, [2048, 8192]),
    "soft labels": ({"sets": 8, "soft": True}, [2048, 8192]),
    "label sets in logarithms": ({"sets": 8, "temperature": 0.01, "denominator": "one_positive"}, [3072, 6144]),
    "listed pairs": ({"listed": 4}, [2048, 8192]),
}

PROBE = """
import json, re, sys
from pathlib import Path
import torch
from pml_supcon.functional import supcon_loss
from pml_supcon.functional.supcon.tiled import layout
from pml_supcon.targets import LabelSets, SoftLabels

def resident(what):
    return 1024 * int(re.search(what + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def peak(number, width, classes=20, references=False, listed=0, sets=0, soft=False, hidden=False, **options):
    layout.on_host, layout.DEVICE_TILE = lambda labels: not hidden, layout.TILE
    rows = torch.randn(number, width, requires_grad=True)
    labels = torch.randint(0, classes, (number // 2,)).repeat(2)
    given = {"labels": labels, "num_views": 2}
    if references:
        given |= {"ref_emb": torch.randn(number, width, requires_grad=True), "ref_labels": labels.flip(0)}
    if sets:
        given = {"labels": torch.rand(number, sets) < 0.3, "target": LabelSets()}
    if soft:
        given = {"labels": torch.rand(number, sets), "target": SoftLabels()}
    if listed:
        given = {"indices_tuple": tuple(torch.randint(0, number, (listed * number,)) for _ in range(4))}
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    supcon_loss(rows, **given, **options, backend="tiled").mean().backward()
    return resident("VmHWM") - before

torch.set_num_threads(2)
width, cases = json.loads(sys.argv[1])
for options, _ in cases.values():
    peak(600, width, **options)  # a first step loads modules
print(json.dumps({name: [peak(size, width, **options) for size in sizes] for name, (options, sizes) in cases.items()}))
"""


@pytest.mark.slow
def test_memory_is_linear_in_the_rows():
    """A matrix of similarities would take 67 MB at 4,096 rows, and 4 times as much at twice as many."""
    for name, peaks in measured(PROBE, json.dumps([WIDTH, CASES])).items():
        assert max(peaks) < 24 * MB, f"{name}: {max(peaks) / MB} MB"
        assert peaks[-1] - peaks[0] < 10 * MB, f"{name}: from {peaks[0] / MB} to {peaks[-1] / MB} MB"
