"""MeasuredMiner: its report against loops, and the result of the wrapped miner, which it does not change."""

import math
from statistics import fmean
from types import SimpleNamespace

import pytest
import torch
from helpers import miner_oracle as oracle
from helpers.process_groups import run_processes
from pytorch_metric_learning import losses as pml
from pytorch_metric_learning import miners as pml_miners
from pytorch_metric_learning.utils.distributed import DistributedMinerWrapper
from torch.utils._python_dispatch import TorchDispatchMode

from pml_supcon.losses import GlobalBatchLoss, SupConLossOut
from pml_supcon.miners import CappedPositivesMiner, MeasuredMiner, OnlineHardExampleMiner, measured

MINERS = {
    "hard pairs": lambda: OnlineHardExampleMiner(0.3),
    "hard triplets": lambda: OnlineHardExampleMiner(0.3, kind="triplets"),
    "capped": lambda: CappedPositivesMiner(2, choose="hardest"),
    "semi-hard": lambda: pml_miners.TripletMarginMiner(type_of_triplets="semihard"),
}


class FixedMiner(pml_miners.BaseMiner):
    """A miner that returns the given results one by one, and calls ``wait`` before each."""

    def __init__(self, *results, wait=lambda: None):
        super().__init__()
        self.results, self.wait = list(results), wait

    def mine(self, *_):
        self.wait()
        return self.results.pop(0)


def indices(*lists):
    return tuple(torch.tensor(x, dtype=torch.int64) for x in lists)


def report_of_call(rows, chosen):
    """Return the expected report of one call, without the time, by loops."""
    near = oracle.far(rows[0], rows[2] if len(rows) == 4 else None, oracle.cosine)
    positive, negative = oracle.pairs(*rows[1::2])
    if len(chosen) == 3:
        a, p, n = chosen
        report, pairs = {"triplets": len(a)}, oracle.as_lists((a, p, a, n))
    else:
        pairs = oracle.as_lists(chosen)
        report = {"positive_pairs": len(pairs[0]), "negative_pairs": len(pairs[1])}
    lists = {
        "positive_similarity": pairs[0], "positive_similarity_all": positive,
        "negative_similarity": pairs[1], "negative_similarity_all": negative,
    }  # fmt: skip
    return report | {name: fmean([near[i][j] for i, j in listed]) for name, listed in lists.items() if listed}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("references", [None, 11])
@pytest.mark.parametrize("name", MINERS)
def test_the_report_equals_loops_over_the_pairs(name, references, dtype):
    miner, reports = MeasuredMiner(MINERS[name]()), []
    for number in (8, 13, 20):
        rows = oracle.batch(number, 16, 3, references, dtype=dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):  # measured in float32 all the same
            chosen, right = miner(*rows), MINERS[name]()(*rows)
        reports.append(report_of_call(rows, chosen))
        assert oracle.as_lists(chosen) == oracle.as_lists(right)
    report = miner.report()
    assert report.pop("seconds") > 0
    assert all(type(value) is float for value in report.values())
    assert set(report) == set().union(*reports)
    for key, value in report.items():
        assert value == pytest.approx(fmean([one[key] for one in reports if key in one]), abs=1e-5), key


def test_a_call_without_pairs_leaves_the_means_finite():
    rows = torch.randn(4, 3), torch.tensor([0, 0, 1, 1])
    some, none = indices([0, 2], [1, 3], [0], [2]), indices([], [], [], [])
    miner = MeasuredMiner(FixedMiner(none, some, none, none))
    assert miner.report() == {}
    empty = torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)
    singletons = torch.randn(3, 3), torch.arange(3)
    assert miner(*empty) is none
    assert set(miner.report()) == {"seconds", "positive_pairs", "negative_pairs"}
    for call in (rows, rows, singletons):
        miner(*call)
    report, right = miner.report(), report_of_call(rows, some)
    negatives = [report_of_call(x, none)["negative_similarity_all"] for x in (rows, rows, singletons)]
    right |= {"positive_pairs": 2 / 4, "negative_pairs": 1 / 4, "negative_similarity_all": fmean(negatives)}
    del report["seconds"]
    assert report == pytest.approx(right, abs=1e-5)
    miner.reset()
    assert miner.report() == {}


def test_a_nan_embedding_gives_a_nan_similarity():
    miner = MeasuredMiner(CappedPositivesMiner(1))
    embeddings = torch.randn(4, 2)
    embeddings[0] = float("nan")
    miner(embeddings, torch.tensor([0, 0, 1, 1]))
    assert math.isnan(miner.report()["positive_similarity"])


def test_only_the_wrapped_miner_is_timed(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    clock.perf_counter = lambda: clock.now

    def pass_time(seconds):
        clock.now += seconds

    monkeypatch.setattr(measured, "time", clock)
    similarities = measured._similarities
    monkeypatch.setattr(measured, "_similarities", lambda *x: (pass_time(100), similarities(*x))[1])
    waits = iter([1, 2, 6])
    chosen = indices([0], [1], [2])
    miner = MeasuredMiner(FixedMiner(chosen, chosen, chosen, wait=lambda: pass_time(next(waits))))
    for _ in range(3):
        miner(torch.randn(3, 2), torch.tensor([0, 0, 1]))
        pass_time(1000)
    assert miner.report()["seconds"] == 3


class FakeEvent:
    """A CUDA event on a clock of the test; ``finished`` holds if its work is done without waiting."""

    clock, finished, waits = 0.0, False, 0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = FakeEvent.clock

    def query(self):
        return FakeEvent.finished

    def synchronize(self):
        FakeEvent.waits += 1

    def elapsed_time(self, other):
        return other.at - self.at


def test_on_cuda_only_the_report_waits(monkeypatch):
    def call(milliseconds):
        FakeEvent.clock += milliseconds
        return "result"

    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "device", lambda _: torch.no_grad())
    timer = measured._Timer()
    assert [timer.time(torch.device("cuda"), call, 10 * i) for i in range(1, 4)] == ["result"] * 3
    assert (FakeEvent.waits, len(timer._running)) == (0, 3)
    assert timer.seconds() == pytest.approx(0.06)
    assert FakeEvent.waits == 3
    monkeypatch.setattr(FakeEvent, "finished", True)  # finished events are added at the next call and not kept
    timer.time(torch.device("cuda"), call, 940)
    assert (FakeEvent.waits, len(timer._running)) == (3, 0)
    assert timer.seconds() == pytest.approx(1)


class Operations(TorchDispatchMode):
    """A recorder of the names of all operations."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_a_call_reads_nothing_from_the_device():
    chosen = indices([0], [1], [2])
    miner, rows = MeasuredMiner(FixedMiner(chosen, chosen)), (torch.randn(3, 2), torch.tensor([0, 0, 1]))
    with Operations() as operations:
        miner(*rows)
        miner(*rows)
    assert "mm" in operations.names
    waiting = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2"}
    assert not operations.names & waiting


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_real_cuda_device():
    rows = oracle.batch(64, 8, 4, None, dtype=torch.float32)
    for make in (lambda: FixedMiner(*[indices([0], [1], [2])] * 3), *MINERS.values()):
        miner = MeasuredMiner(make())
        chosen = [x.cpu() for x in miner(*(x.cuda() for x in rows))]
        report, right = miner.report(), report_of_call(rows, chosen)
        assert 0 < report["seconds"] < 10
        assert {key: report[key] for key in right} == pytest.approx(right, abs=1e-5)
    chosen = tuple(x.cuda() for x in indices([0], [1], [2]))
    miner, rows = MeasuredMiner(FixedMiner(chosen, chosen)), [x.cuda() for x in rows]
    miner(*rows)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        miner(*rows)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "miner", [None, SupConLossOut(), OnlineHardExampleMiner, DistributedMinerWrapper(FixedMiner())]
)
def test_an_argument_that_is_no_pml_miner_raises(miner):
    with pytest.raises(TypeError, match=rf"`miner` to be a miner of .*, but got {type(miner).__name__}"):
        MeasuredMiner(miner)


ROWS = torch.randn(12, 2, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3


def mine_together(rank):
    measured_miner = MeasuredMiner(OnlineHardExampleMiner(0.2, kind="triplets"))
    embeddings, labels = (x[rank * 6 : rank * 6 + 6] for x in ROWS)
    loss = GlobalBatchLoss(pml.TripletMarginLoss(), miner=measured_miner)(embeddings, labels)
    return loss.item(), measured_miner.report()


def test_in_a_global_batch_rank_0_has_the_report(tmp_path):
    embeddings, labels = ROWS[0].transpose(0, 1).reshape(24, 4), ROWS[1].repeat(2)
    miner = MeasuredMiner(OnlineHardExampleMiner(0.2, kind="triplets"))
    right = pml.TripletMarginLoss()(embeddings, labels, miner(embeddings, labels)).item()
    alone = GlobalBatchLoss(pml.TripletMarginLoss(), miner=miner)(*ROWS).item()
    (first, report), (second, nothing) = run_processes(mine_together, 2, tmp_path)
    assert [alone, first, second] == pytest.approx([right] * 3)
    assert nothing == {}
    own = miner.report()
    del own["seconds"], report["seconds"]
    assert report == pytest.approx(own, abs=1e-6)  # means of cosines cancel


def test_the_report_continues_from_a_state_dict():
    batches = [(torch.randn(12, 4), torch.arange(12) % 3) for _ in range(5)]
    whole, before, after = (MeasuredMiner(OnlineHardExampleMiner()) for _ in range(3))
    for batch in batches:
        whole(*batch)
    for batch in batches[:2]:
        before(*batch)
    after(*batches[0])  # replaced by the loaded state
    after.load_state_dict(before.state_dict())
    assert after.report() == before.report()
    for batch in batches[2:]:
        after(*batch)
    expected, found = whole.report(), after.report()
    assert found.pop("seconds") > 0
    assert expected.pop("seconds") > 0
    assert found == expected


@pytest.mark.parametrize("inner", [pml_miners.BatchHardMiner(), OnlineHardExampleMiner(), CappedPositivesMiner(2)])
@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64])
def test_labels_of_rows_and_references_may_have_two_dtypes(inner, dtype):
    rows, references, labels, ref_labels = (
        torch.randn(6, 4),
        torch.randn(5, 4),
        torch.arange(6) % 3,
        torch.arange(5) % 3,
    )
    for miner in (MeasuredMiner(inner), inner):
        if isinstance(miner, pml_miners.BatchHardMiner):  # PML's own
            continue
        torch.manual_seed(0)
        right = miner(rows, labels, references, ref_labels)
        for given in ((labels.to(dtype), ref_labels), (labels.int(), ref_labels.to(dtype))):
            torch.manual_seed(0)
            found = miner(rows, given[0], references, given[1])
            assert all(torch.equal(one, other) for one, other in zip(found, right, strict=True))


def test_labels_that_would_become_equal_raise():
    high, negative = torch.tensor([2**64 - 1, 0], dtype=torch.uint64), torch.tensor([-1, 0])
    with pytest.raises(ValueError, match="`labels` and `ref_labels` that stay different as int64"):
        OnlineHardExampleMiner()(torch.randn(2, 3), high, torch.randn(2, 3), negative)


def test_the_same_object_as_references_has_no_pairs_with_itself():
    rows, labels = torch.randn(6, 4), (torch.arange(6) % 2).to(torch.uint8)
    alone, given = OnlineHardExampleMiner()(rows, labels), OnlineHardExampleMiner()(rows, labels, rows, labels)
    assert all(torch.equal(one, other) for one, other in zip(alone, given, strict=True))
