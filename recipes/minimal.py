"""Supervised contrastive learning on scikit-learn's digits: the whole idea in one plain loop.

    python recipes/minimal.py        # linear probe top-1 0.996 (seeds 0 to 2), 20 s on two CPU cores

An encoder learns to place two augmented views of an image, and all other images of its class, close together. Then the
projection head is dropped, the encoder is frozen, and a linear probe classifies its features.
"""

import sys

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import DataLoader

from pml_supcon import losses, metrics, models, samplers, views

EPOCHS, BATCH_SIZE, NUM_VIEWS = 25, 128, 2
SEED = int(sys.argv[1]) if len(sys.argv) > 1 else 0
torch.manual_seed(SEED)

# 1. Images: (N, 1, 8, 8) uint8 with labels (N,). 70% are for training; the rest is scored once, at the end.
digits = load_digits()
images = torch.tensor(digits.images * 255 / 16).to(torch.uint8).unsqueeze(1)
labels = torch.tensor(digits.target)
train, test = map(torch.tensor, train_test_split(range(len(labels)), test_size=0.3, stratify=labels, random_state=SEED))
pixels = images[train] / 255
moments = {"mean": [pixels.mean().item()], "std": [pixels.std().item()]}

# 2. Views: the sampler draws B samples, the data set augments each of them V times. A batch is (B, V, 1, 8, 8).
augment = views.digit_augmentation(8, **moments)
data = views.MultiViewTensorDataset(images[train], labels[train], augment, num_views=NUM_VIEWS)
sampler = samplers.MultiViewBatchSampler(labels[train], BATCH_SIZE, seed=SEED)
loader = DataLoader(data, batch_sampler=sampler, collate_fn=data.collate)

# 3. Model: any timm encoder, here with a stem for 8 x 8 pixels, and the paper's projection head on its features.
encoder = models.create_encoder("resnet10t", in_chans=1, image_size=8, channels=[32, 64, 128, 256])
head = models.ProjectionHead(models.feature_width(encoder))
parameters = [*encoder.parameters(), *head.parameters()]

# 4. Loss: every other view of the same class is a positive, every view of another class a negative.
loss_func = losses.SupConLossOut(temperature=0.1)

# 5. Loop: SGD with momentum and one cycle of the learning rate.
optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-4)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=EPOCHS * len(loader))
for epoch in range(EPOCHS):
    sampler.set_epoch(epoch)  # a new order in every epoch
    for batch, batch_labels in loader:
        rows = head(encoder(views.flatten_views(batch)))  # (V * B, D): first all first views, then all second views
        loss = loss_func(views.split_views(rows, NUM_VIEWS), batch_labels)  # (B, V, D) and (B,)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    print(f"epoch {epoch + 1:2}: loss {loss.item():.3f}")

# 6. Scores: the head is dropped, the encoder is frozen, images are no longer augmented.
encoder.eval()
plain = views.evaluation_transform(8, **moments)


@torch.no_grad()
def features(rows: Tensor) -> Tensor:
    """Return the features (n, 256) of these images."""
    return encoder(plain(images[rows]))


probe = metrics.linear_probe_metrics(features(train), labels[train], features(test), labels[test])
print(f"linear probe, top-1: {probe['top1']:.4f}")
