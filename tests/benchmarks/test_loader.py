"""The benchmark of loaders: both give the same kind of batch, the loss's part is timed, a quick run, missing data."""

import time

import loader
import pytest
import tables
import torch
from PIL import Image

from pml_supcon.data.load import load_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small set in the layout of CIFAR-10's Parquet files."""
    datasets = pytest.importorskip("datasets")
    root = tmp_path_factory.mktemp("sets")
    patch = pytest.MonkeyPatch()
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", root / "cache")
    datasets.disable_progress_bars()
    (root / "cifar10").mkdir()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    for split, number in (("train", 64), ("test", 8)):
        noise = torch.randint(0, 256, (number, 32, 32, 3), dtype=torch.uint8).numpy()
        columns = {"image": [Image.fromarray(image) for image in noise], "label": [i % 2 for i in range(number)]}
        rows = datasets.Dataset.from_dict(columns, features=features)
        rows.to_parquet(root / "cifar10" / f"{split}-00000-of-00001.parquet")
    yield root / "cifar10"
    patch.undo()


def test_both_loaders_give_all_images_in_two_views(folder):
    data = load_data(f"hf:{folder}")
    images, labels = data.train.images, torch.arange(64)
    kinds = []
    for make in (loader.our_loader, loader.usual_loader):
        batches = list(make(data, images, labels, 32, 0))
        assert sorted(torch.cat([came for _, came in batches]).tolist()) == list(range(64))
        views = [part if isinstance(part, torch.Tensor) else torch.stack(part, 1) for part, _ in batches]
        assert [part.shape for part in views] == [(32, 2, 3, 32, 32)] * 2
        assert not torch.equal(views[0][:, 0], views[0][:, 1])
        kinds.append(torch.cat(views))
    ours, usual = kinds
    assert ours.dtype == usual.dtype == torch.float32
    assert ours.mean().item() == pytest.approx(usual.mean().item(), abs=0.1)  # of one distribution
    assert ours.std().item() == pytest.approx(usual.std().item(), abs=0.1)


def test_an_epoch_that_loses_images_is_refused(folder):
    data = load_data(f"hf:{folder}")
    made = loader.our_loader(data, data.train.images, data.train.labels, 32, 0)
    assert loader.epoch_seconds(made, 64) > 0
    with pytest.raises(RuntimeError, match="an epoch of 65 images, but got 64"):
        loader.epoch_seconds(made, 65)


def test_the_share_of_the_loss_is_its_own_time(folder):
    training = loader.Training(load_data(f"hf:{folder}"))
    views, labels = torch.randn(16, 2, 3, 32, 32), torch.arange(16) % 4
    stem, loss = next(training.model.parameters()), training.loss
    before = stem.clone()

    def slow(*arguments):
        time.sleep(1)
        return loss(*arguments)

    training.loss = slow
    step, part = training.step(views, labels)
    assert not torch.equal(before, stem)  # the gradient reaches the first layer
    assert 1 <= part < step
    training.loss = loss
    step, part = training.step(views, labels)
    assert 0 < part < step


def test_quick_run(folder, capsys, monkeypatch):
    monkeypatch.setattr(tables, "keep_table", lambda *_: pytest.fail("a quick run is no record"))
    monkeypatch.setattr(loader, "QUICK", loader.QUICK._replace(images=64))
    found = {line.what: line for line in loader.main(["--quick", "--data", str(folder)])}
    for title in ("views a second, no workers", "views a second, 2 workers"):
        assert found[title].ours > 0
        assert found[title].usual > 0
    assert 0 < found["the loss in a step of training, %"].ours < 100
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "| CIFAR-10, 32 x 32 | ours | PIL images | ours over PIL | aim |"
    assert all(f'`augmentation("{name}")`' in out for name in loader.AUGMENTATIONS)


def test_missing_data(tmp_path, capsys):
    with pytest.raises(SystemExit):
        loader.main(["--data", str(tmp_path / "nowhere")])
    assert "expected a folder with CIFAR-10's Parquet files, but" in capsys.readouterr().err
