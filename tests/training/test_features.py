"""The features of images on several processes."""

import os

import pytest
import torch
from accelerate import Accelerator
from helpers.process_groups import run_processes
from torch import nn

from pml_supcon.data.images import MemoryImages
from pml_supcon.training.features import ImagesToEmbed, compute_features


class Encoder(nn.Module):
    """A network whose BatchNorm statistics differ between processes, as after a training step."""

    num_features = 3

    def __init__(self, rank):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.norm.running_mean.fill_(rank)

    def forward(self, images):
        """Return the mean of each channel."""
        return self.norm(images).mean(dim=(2, 3))


def features_on(rank, number):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(number)}  # Accelerate reads them
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # required; the group exists already
    images = torch.randint(0, 256, (10, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    data = ImagesToEmbed(MemoryImages(images, torch.zeros(10)), image_size=4, mean=[0.5] * 3, std=[0.5] * 3)
    return compute_features(Encoder(rank), data, list(range(10)), Accelerator(cpu=True), batch_size=2)


@pytest.mark.slow
def test_all_processes_embed_with_the_statistics_of_the_main_one(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    (alone,) = run_processes(features_on, 1, tmp_path / "one", 1)
    together, nothing = run_processes(features_on, 2, tmp_path / "two", 2)
    assert nothing is None
    torch.testing.assert_close(together, alone)
