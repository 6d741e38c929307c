"""What all tests share: one thread, so that parallel runs do not fight over the cores, and a fixed seed."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)
