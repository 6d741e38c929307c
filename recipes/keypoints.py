"""Key points from few labels: what the network finds in two views of an image must be the same places of the image.

    python recipes/keypoints.py                           # error 2.17 pixels (mean of seeds 0 to 2), half a minute
    python recipes/keypoints.py --consistency_weight 0    # without the view consistency loss: 2.46
    accelerate launch recipes/keypoints.py                # any number of processes

The images are drawn: bent arms of three bones whose four joints are the key points. Few images have labels, the others
have views alone. Prints the mean distance of a found joint from its place in test images, in pixels of 32.
"""

import argparse
import math
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler

from pml_supcon import losses, models, views

SIDE, JOINTS, NUM_VIEWS = 32, 4, 2
UNLABELLED, TEST, BATCH_SIZE = 512, 512, 32
STATS = {"mean": [0.25], "std": [0.25]}


def main() -> None:
    """Train on the seed given and print the error on test images."""
    options = parse()
    error = train(options.consistency_weight, options.labelled, options.epochs, options.seed)
    Accelerator().print(f"mean error on test images: {error:.3f} pixels")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of a command line; a value out of range is one line with exit status 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--consistency_weight", type=float, default=1.0, help="weight of the view consistency loss")
    parser.add_argument("--labelled", type=int, default=32, help="number of images with labels")
    parser.add_argument("--epochs", type=int, default=20, help="passes over the images without labels")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    for name, least in (("consistency_weight", 0), ("labelled", 1), ("epochs", 1), ("seed", 0)):
        value = getattr(options, name)
        if not least <= value < math.inf:
            parser.exit(2, f"keypoints.py: Expected --{name} to be finite and at least {least}, but got {value}\n")
    return options


def train(consistency_weight: float, labelled: int, epochs: int, seed: int) -> float:
    """Train a network and return its mean error on test images, in pixels."""
    accelerator = Accelerator()
    # Each process draws augmentations of its own; all take the initial weights of the first.
    set_seed(seed, device_specific=True)

    # 1. Images (N, 1, 32, 32) in [0, 1] with the places of their joints (N, K, 2), which the second set does not use.
    images, joints = draw_arms(labelled + UNLABELLED + TEST, seed)
    few, many, test = (slice(0, labelled), slice(labelled, -TEST), slice(-TEST, None))

    # 2. Views with their geometry: (B, V, 1, 32, 32), the maps from image to view (B, V, 2, 3), joints (B, K, 2).
    augment = views.digit_augmentation(SIDE, **STATS, rotation=45, shift=0.1, scale=(0.8, 1.2), shear=10)
    few_data, many_data = (
        views.MultiViewTensorDataset(images[part], joints[part], augment, NUM_VIEWS, with_geometry=True)
        for part in (few, many)
    )
    few_loader, many_loader = loaders_of(few_data, many_data)

    # 3. Model and loop: a small ResNet, Adam, one cycle of the learning rate.
    model = JointFinder()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    model, optimizer, few_loader, many_loader = accelerator.prepare(model, optimizer, few_loader, many_loader)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=3e-3, total_steps=epochs * len(many_loader) * accelerator.num_processes
    )
    schedule = accelerator.prepare(schedule)
    consistency = losses.ViewConsistencyLoss()
    for epoch in range(epochs):
        for (seen, seen_maps, truth), (unseen, unseen_maps, _) in zip(few_loader, many_loader, strict=True):
            # (B, V, K, 2): joints in pixels of each view, of labelled images first
            found = views.split_views(model(views.flatten_views(torch.cat([seen, unseen]))), NUM_VIEWS)
            # 4. With labels: the true joints, mapped into each view. Without: agreement, mapped back into the image.
            labelled_loss = (found[: len(seen)] - views.map_points(truth[:, None], seen_maps)).abs().mean()
            view_loss = consistency(found[len(seen) :], unseen_maps)
            loss = labelled_loss + consistency_weight * view_loss
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()
        accelerator.print(f"epoch {epoch + 1:2}: labelled {labelled_loss.item():.3f}, views {view_loss.item():.3f}")

    # 5. Score: images without augmentation, distances in pixels.
    model.eval()
    plain = views.evaluation_transform(SIDE, **STATS)
    with torch.no_grad():
        found = model(plain(images[test]).to(accelerator.device)).cpu()
    return (found - joints[test]).norm(dim=-1).mean().item()


def loaders_of(
    few_data: views.MultiViewTensorDataset, many_data: views.MultiViewTensorDataset
) -> tuple[DataLoader, DataLoader]:
    """Return loaders with equally many batches, also of each process: both drop what does not fill a batch of all."""
    many_loader = DataLoader(many_data, BATCH_SIZE, shuffle=True, drop_last=True, collate_fn=many_data.collate)
    draws = RandomSampler(few_data, replacement=True, num_samples=len(many_loader) * BATCH_SIZE // 2)
    few_loader = DataLoader(few_data, BATCH_SIZE // 2, sampler=draws, drop_last=True, collate_fn=few_data.collate)
    return few_loader, many_loader


class JointFinder(nn.Module):
    """A ResNet and a linear layer on its 4 x 4 feature map: images ``(N, 1, 32, 32)`` to joints ``(N, K, 2)``."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = models.create_encoder(
            "resnet10t", in_chans=1, image_size=SIDE, channels=[8, 16, 32, 64], stem_width=8
        )
        self.head = nn.Linear(models.feature_width(self.encoder) * (SIDE // 8) ** 2, 2 * JOINTS)

    def forward(self, images: Tensor) -> Tensor:
        """Return the joints ``(x, y)`` in pixels; an output of 0 is the centre of the image."""
        outputs = self.head(self.encoder.forward_features(images).flatten(1))
        return (SIDE - 1) / 2 + SIDE / 2 * outputs.unflatten(1, (JOINTS, 2))


def draw_arms(number: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw arms of three bones, from thick to thin, on noise: images ``(N, 1, 32, 32)``, joints ``(N, K, 2)``."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *size: int) -> Tensor:
        return low + (high - low) * torch.rand(number, *size, generator=generator)

    # The first bone points anywhere, each other one at most 110 degrees away from the one before; centred, then moved.
    turns = torch.cat([uniform(-180, 180, 1), uniform(-110, 110, JOINTS - 2)], dim=1)
    angles = turns.cumsum(dim=1).deg2rad()
    bones = uniform(5, 9, JOINTS - 1, 1) * torch.stack([angles.cos(), angles.sin()], dim=-1)
    joints = torch.cat([torch.zeros(number, 1, 2), bones.cumsum(dim=1)], dim=1)
    joints = joints - joints.mean(dim=1, keepdim=True) + (SIDE - 1) / 2 + uniform(-3, 3, 1, 2)
    # The distance of each pixel (x, y) from each bone a -> b: to the nearest point a + t (b - a), t in [0, 1].
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    pixels = torch.stack([x, y], dim=-1).float()  # (32, 32, 2)
    images = 0.15 * torch.rand(number, SIDE, SIDE, generator=generator)
    for bone, radius in enumerate((2.2, 1.4, 0.8)):
        start, step = joints[:, bone, None, None], bones[:, bone, None, None]
        t = ((pixels - start) * step).sum(-1, keepdim=True) / step.square().sum(-1, keepdim=True)
        distances = (pixels - start - t.clamp(0, 1) * step).norm(dim=-1)
        images = torch.maximum(images, (radius + 0.5 - distances).clamp(0, 1) * uniform(0.5, 1, 1, 1))
    return images.unsqueeze(1), joints


if __name__ == "__main__":
    main()
