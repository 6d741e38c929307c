"""A pytorch-metric-learning user's pipeline with everything of ours that plugs into it."""

import pytest
import record_keeper
import torch
from pytorch_metric_learning import miners, trainers
from pytorch_metric_learning.utils import logging_presets
from sklearn.datasets import load_digits

from pml_supcon import losses, samplers, testers


@pytest.mark.parametrize(
    "miner", [miners.MultiSimilarityMiner(), miners.BatchEasyHardMiner(pos_strategy="easy", neg_strategy="semihard")]
)
@pytest.mark.parametrize("kind", [losses.SupConLossOut, losses.SupConLossIn])
def test_one_epoch_of_the_metric_loss_trainer(kind, miner, tmp_path):
    torch.manual_seed(0)
    digits = load_digits()
    pixels, labels = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    train = torch.utils.data.TensorDataset(pixels[:1200], labels[:1200])
    val = torch.utils.data.TensorDataset(pixels[1200:], labels[1200:])
    trunk, embedder = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU()), torch.nn.Linear(64, 16)

    keeper, _, _ = logging_presets.get_record_keeper(str(tmp_path / "logs"), str(tmp_path / "board"))
    assert isinstance(keeper, record_keeper.RecordKeeper)
    hooks = logging_presets.HookContainer(keeper, primary_metric="precision_at_1", log_freq=1)
    tester = testers.RetrievalTester(dataloader_num_workers=0, end_of_testing_hook=hooks.end_of_testing_hook)
    history = []

    def end_of_iteration(trainer):
        history.append(float(trainer.losses["metric_loss"].detach()))
        hooks.end_of_iteration_hook(trainer)

    trainers.MetricLossOnly(
        models={"trunk": trunk, "embedder": embedder},
        optimizers={
            "trunk_optimizer": torch.optim.Adam(trunk.parameters(), lr=3e-3),
            "embedder_optimizer": torch.optim.Adam(embedder.parameters(), lr=3e-3),
        },
        batch_size=60,
        loss_funcs={"metric_loss": kind(temperature=0.1)},
        mining_funcs={"tuple_miner": miner},
        dataset=train,
        sampler=samplers.MultiViewBatchSampler(labels[:1200], batch_size=60, max_per_class=8),
        dataloader_num_workers=0,
        end_of_iteration_hook=end_of_iteration,
        end_of_epoch_hook=hooks.end_of_epoch_hook(
            tester, {"train": train, "val": val}, str(tmp_path / "models"), splits_to_eval=[("val", ["train"])]
        ),
    ).train(num_epochs=1)

    assert len(history) == 20
    assert sum(history[-5:]) < sum(history[:5])
    best_epoch, best = hooks.get_best_epoch_and_accuracy(tester, "val")
    assert best_epoch == 1
    assert best > 0.9
    assert {path.name for path in (tmp_path / "models").iterdir()} >= {"trunk_1.pth", "embedder_1.pth"}
