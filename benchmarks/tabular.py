"""A small network on rows of features: the training that `label_sets.py` and `numbers_as_labels.py` share.

Stage 1 trains an encoder with a contrastive loss over two views of each row. In a view, a third of the features have
the values of other, random rows (SCARF: Bahri et al., ICLR 2022). After training the projection head is dropped, and
the encoder is frozen.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pml_supcon.samplers import MultiViewBatchSampler
from pml_supcon.views import flatten_views, split_views

WIDTH, HEAD_WIDTH = 256, 64
REPLACED = 0.33
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 1e-4

Loss = Callable[[Tensor, Tensor], Tensor]


def build_encoder(features: int) -> nn.Sequential:
    """Return an encoder of two hidden layers, ``(N, features)`` to ``(N, WIDTH)``."""
    layers: list[nn.Module] = []
    for width in (features, WIDTH):
        layers += [nn.Linear(width, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU()]
    return nn.Sequential(*layers)


def build_head() -> nn.Sequential:
    """Return a projection head, ``(N, WIDTH)`` to ``(N, HEAD_WIDTH)``."""
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, HEAD_WIDTH))


def corrupted_views(rows: Tensor, pool: Tensor) -> Tensor:
    """Return two views ``(B, 2, F)`` of rows ``(B, F)``; replaced features come from random rows of the pool."""
    views = rows[:, None].repeat(1, 2, 1)
    others = pool[torch.randint(len(pool), views.shape), torch.arange(rows.shape[1])]
    return torch.where(torch.rand(views.shape) < REPLACED, others, views)


def train(
    rows: Tensor, labels: Tensor, loss: Loss, top: nn.Module | None, *, epochs: int, batch_size: int, seed: int
) -> nn.Sequential:
    """Train an encoder with a top on rows ``(N, F)`` and return it, frozen.

    Args:
        rows: standardised features.
        labels: a label for each row, as the loss reads them.
        loss: of ``(B, 2, D)`` outputs and the labels of the batch.
        top: a module on the encoder; None: a projection head.
        epochs: passes over the rows.
        batch_size: rows in a batch.
        seed: of weights, batches and views.
    """
    torch.manual_seed(seed)
    encoder = build_encoder(rows.shape[1])
    head = top or build_head()
    sampler = MultiViewBatchSampler(torch.zeros(len(rows), dtype=torch.long), batch_size, seed=seed)
    optimizer = torch.optim.AdamW(
        [*encoder.parameters(), *head.parameters()], lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=epochs * len(sampler))
    for _ in range(epochs):
        for batch in sampler:
            views = corrupted_views(rows[batch], rows)
            outputs = split_views(head(encoder(flatten_views(views))), 2)
            optimizer.zero_grad()
            loss(outputs, labels[batch]).backward()
            optimizer.step()
            schedule.step()
    return encoder.eval().requires_grad_(False)
