"""AutoAugment and RandAugment on a whole batch, with separate draws for every image.

torchvision's transforms draw one operation per call, for all images of a batch. Here every image draws its operations;
all images with the same operation (name, strength and sign) share one call of torchvision's function. The result is
pixel-identical to torchvision's transform for the same draw: nearest neighbours, black outside.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import transforms
from torchvision.transforms.v2 import functional as VF

from pml_supcon._geometry import compose_maps
from pml_supcon._tensors import to_device
from pml_supcon.views.geometry import identity_maps

AUTO_BINS = 10  # strengths of AutoAugment are numbered 0 to 9
RAND_BINS = 31  # strengths of RandAugment in torchvision: 0 to 30
#: The signed operations with their largest strength. "Color" is saturation.
_STRONGEST = {
    "ShearX": 0.3,
    "ShearY": 0.3,
    "TranslateX": 150 / 331,  # of the side, in both directions: 150 pixels of 331 in the papers
    "TranslateY": 150 / 331,
    "Rotate": 30.0,
    "Brightness": 0.9,
    "Color": 0.9,
    "Contrast": 0.9,
    "Sharpness": 0.9,
}
SIGNED = frozenset(_STRONGEST)
GEOMETRIC = frozenset({"ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"})
RAND_OPERATIONS = ("Identity", *_STRONGEST, "Posterize", "Solarize", "AutoContrast", "Equalize")


def magnitude_of(name: str, level: int, bins: int, side: int) -> float:
    """Return the strength number ``level`` of ``bins`` of an operation, 0 if it has none (Cubuk et al. 2019).

    For signed operations it is positive: a slope, pixels, degrees, or a factor minus 1. Posterize keeps 8 to 4 bits;
    Solarize inverts above a threshold from 1 down to 0 (as a fraction of the largest value).
    """
    if name in SIGNED:
        most = _STRONGEST[name] * (side if name.startswith("Translate") else 1)
        return float(torch.linspace(0.0, most, bins)[level])  # in float32, as torchvision
    if name == "Posterize":
        return 8 - round(4 * level / (bins - 1))
    return float(torch.linspace(1.0, 0.0, bins)[level]) if name == "Solarize" else 0.0


@dataclass(frozen=True)
class Operation:
    """One operation at one signed strength; it maps uint8 images (N, C, H, W), C = 1 or 3, to the same."""

    name: str
    magnitude: float = 0.0

    def __call__(self, images: Tensor) -> Tensor:
        """Apply the operation."""
        if self.name not in GEOMETRIC:
            changed: Tensor = _OPERATIONS[self.name](images, self.magnitude)
            return changed
        places, inside = _sources(self, *images.shape[-2:], images.device)
        return images.flatten(2).index_select(2, places).mul_(inside).view_as(images)

    def map_of(self, height: int, width: int) -> Tensor:
        """Return the map (2, 3) of images of a size, on the CPU; pixels land within half a pixel of it."""
        a, b, x = (1.0, 0.0, 0.0)
        c, d, y = (0.0, 1.0, 0.0)
        if self.name == "TranslateX":
            x = int(self.magnitude)
        elif self.name == "TranslateY":
            y = int(self.magnitude)
        elif self.name == "ShearX":  # about the upper left corner, (-0.5, -0.5)
            b, x = -self.magnitude, -self.magnitude / 2
        elif self.name == "ShearY":
            c, y = -self.magnitude, -self.magnitude / 2
        elif self.name == "Rotate":  # counterclockwise about the centre, to which the shift moves it back
            angle, (middle_x, middle_y) = math.radians(self.magnitude), ((width - 1) / 2, (height - 1) / 2)
            a, b, c, d = math.cos(angle), math.sin(angle), -math.sin(angle), math.cos(angle)
            x, y = middle_x - a * middle_x - b * middle_y, middle_y - c * middle_x - d * middle_y
        return torch.tensor([[a, b, x], [c, d, y]], device="cpu")


@lru_cache(maxsize=256)
def _sources(operation: Operation, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the pixel that an operation moves to each place, (H * W,), and 1 where there is one, else 0.

    torchvision moves the numbers of rows and columns once; its own call would copy a matrix to the device each time,
    and wait.
    """
    rows, columns = (torch.arange(1.0, side + 1, device="cpu") for side in (height, width))
    numbers = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).unsqueeze(0)
    row, column = _OPERATIONS[operation.name](numbers, operation.magnitude)[0].long().flatten(1)  # 0 is black
    inside = row > 0
    places = ((row - 1) * width + column - 1) * inside
    with torch.inference_mode(mode=False):
        return to_device(places.clone(), device), to_device(inside.to(torch.uint8), device)


class RandomOperations:
    """Random operations, drawn separately for each image, in one or more rounds.

    Args:
        table: for each choice the operations of all rounds: tuples ``(name, level, probability)``.
        bins: the number of strengths.
        side: side of the images, in pixels.
        joint: True draws one choice for all rounds (AutoAugment's sub-policies), False one per round.

    The call maps uint8 images (N, C, H, W), C = 1 or 3, to new images of the same shape and dtype.
    """

    def __init__(
        self, table: Sequence[Sequence[tuple[str, int | None, float]]], *, bins: int, side: int, joint: bool
    ) -> None:
        self.operations = [Operation("Identity")]
        self._joint = joint
        self._probabilities = torch.tensor([[probability for *_, probability in row] for row in table], device="cpu")
        numbers = [[self._signs(name, level, bins, side) for name, level, _ in row] for row in table]
        self._numbers = torch.tensor(
            numbers, device="cpu"
        )  # (choices, rounds, 2): indices into `operations`, one per sign

    def _signs(self, name: str, level: int | None, bins: int, side: int) -> tuple[int, int]:
        strength = magnitude_of(name, level or 0, bins, side)
        signed = [Operation(name, strength), Operation(name, -strength if name in SIGNED else strength)]
        for operation in signed:
            if operation not in self.operations:
                self.operations.append(operation)
        return self.operations.index(signed[0]), self.operations.index(signed[1])

    def draw(self, number: int) -> Tensor:
        """Draw the operations of each image, on the CPU: indices into ``operations``, (rounds, number)."""
        (choices, rounds, _), cpu = self._numbers.shape, self._numbers.device
        choice = torch.randint(choices, (1 if self._joint else rounds, number), device=cpu).expand(rounds, number)
        signs = torch.randint(2, (rounds, number), device=cpu)
        turn = torch.arange(rounds, device=cpu).unsqueeze(1)
        happens = torch.rand(rounds, number, device=cpu) < self._probabilities[choice, turn]
        return self._numbers[choice, turn, signs] * happens  # 0 is the identity

    def __call__(self, images: Tensor) -> Tensor:
        """Draw the operations and apply them round by round."""
        return self._apply(images, self.draw(len(images)))

    def with_geometry(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Draw the operations and apply them round by round; return the maps too."""
        drawn, (height, width) = self.draw(len(images)), images.shape[-2:]
        own = torch.stack([operation.map_of(height, width) for operation in self.operations])
        maps = identity_maps(len(images), own.device)
        for turn in drawn:
            maps = compose_maps(own[turn], maps)
        return self._apply(images, drawn), to_device(maps, images.device)

    def _apply(self, images: Tensor, drawn: Tensor) -> Tensor:
        images = images.clone()
        for turn in drawn:
            # the rows of each operation, copied to the device at once; 0 is the identity
            numbers, counts = turn.unique(return_counts=True)
            rows_by_number = to_device(turn.argsort(stable=True), images.device).split(counts.tolist())
            for number, rows in zip(numbers.tolist(), rows_by_number, strict=True):
                if number != 0:
                    images[rows] = self.operations[number](images[rows])
        return images


def auto_augment(policy: str, side: int) -> RandomOperations:
    """Build AutoAugment with a learnt policy (Cubuk et al. 2019): "imagenet", "cifar10" or "svhn" (house numbers)."""
    # Only the first version of torchvision's transform has the policy as a public attribute.
    learnt = transforms.AutoAugment(transforms.AutoAugmentPolicy(policy)).policies
    table = [[(name, level, probability) for name, probability, level in pair] for pair in learnt]
    return RandomOperations(table, bins=AUTO_BINS, side=side, joint=True)


def rand_augment(rounds: int, level: int, side: int) -> RandomOperations:
    """Build RandAugment (Cubuk et al. 2020): ``rounds`` operations out of 14, all at one level in 0 to 30."""
    table = [[(name, level, 1.0)] * rounds for name in RAND_OPERATIONS]
    return RandomOperations(table, bins=RAND_BINS, side=side, joint=False)


def _affine(images: Tensor, *, x: float = 0.0, y: float = 0.0, shear: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    """Shift by whole pixels, or shear about the upper left corner by slopes."""
    slopes = [math.degrees(math.atan(slope)) for slope in shear]
    centre = [0, 0] if any(shear) else None
    moved: Tensor = VF.affine(images, angle=0.0, translate=[int(x), int(y)], scale=1.0, shear=slopes, center=centre)
    return moved


def _sharpen(images: Tensor, factor: float) -> Tensor:
    """Compute torchvision's ``adjust_sharpness``, which would copy its kernel to the device at each call."""
    channels, height, width = images.shape[1:]
    if min(height, width) <= 2:
        return images
    # y, blurred by ones with a five in the middle, over 13; f x + (1 - f) y inside, x at the borders
    kernel = torch.full((channels, 1, 3, 3), 1 / 13, device=images.device)
    kernel[:, :, 1, 1] = 5 / 13
    output = images.to(torch.float32, copy=True)
    inner = output[..., 1:-1, 1:-1]
    blurred = F.conv2d(output, kernel, groups=channels).round_()
    inner.add_(blurred.sub_(inner), alpha=1 - factor)
    return output.clamp_(0, 255).byte()


_OPERATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "Identity": lambda images, _: images,
    "ShearX": lambda images, slope: _affine(images, shear=(slope, 0.0)),
    "ShearY": lambda images, slope: _affine(images, shear=(0.0, slope)),
    "TranslateX": lambda images, pixels: _affine(images, x=pixels),
    "TranslateY": lambda images, pixels: _affine(images, y=pixels),
    "Rotate": lambda images, degrees: VF.rotate(images, degrees),
    "Brightness": lambda images, more: VF.adjust_brightness(images, 1 + more),
    "Color": lambda images, more: VF.adjust_saturation(images, 1 + more),
    "Contrast": lambda images, more: VF.adjust_contrast(images, 1 + more),
    "Sharpness": lambda images, more: _sharpen(images, 1 + more),
    "Posterize": lambda images, bits: VF.posterize(images, int(bits)),
    "Solarize": lambda images, part: VF.solarize(images, 255 * part),
    "AutoContrast": lambda images, _: VF.autocontrast(images),
    "Equalize": lambda images, _: VF.equalize(images),
    "Invert": lambda images, _: VF.invert(images),
}
