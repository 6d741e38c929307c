"""A folder as the pages expect it: a copy of the checkout, images in folders, an encoder; for some, two runs."""

import shutil
from pathlib import Path

import torch
from PIL import Image

from helpers.command_server import ON_THE_CPU, Server
from helpers.stand_ins import COMMANDS
from pml_supcon.models import create_encoder, save_encoder

CHECKOUT = Path(__file__).parents[2]
FOLDERS = ("pml_supcon", "recipes", "benchmarks", "docs", "tests")
FILES = ("Makefile", "pyproject.toml", "mkdocs.yml", "README.md", "CHANGELOG.md", "LICENSE")
OF_EACH_PAGE = ("my", "runs", "imagenet")  # a page may write there
#: Pages that say that the reader has two runs; all others make those that they use.
WITH_RUNS = ("docs/recipes/evaluate.md", "docs/guides/reading_the_report.md")
CLASSES, IMAGES, SIDE = ("beech", "birch", "larch", "oak"), 20, 32


class Workbench:
    """What all pages share, made once.

    Args:
        folder: an empty folder.
    """

    def __init__(self, folder):
        self.folder = folder
        self.home = folder / "home"
        self.server = Server(folder / "commands", "preloaded", COMMANDS)
        self.pages = Server(folder / "pages", "page_runner")
        self.home.mkdir()
        for name in FOLDERS:  # copies, so that nothing is written into the checkout
            shutil.copytree(CHECKOUT / name, self.home / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        for name in FILES:
            shutil.copy(CHECKOUT / name, self.home)
        for place in ("my/images", "my/other", "imagenet/train", "imagenet/val"):
            save_images(self.home / place)
        save_encoder(small_encoder(), self.home / "my" / "encoder")
        self.run(self.server, "python", ["--version"], self.home)  # pages need commands that answer: waits for it

    def make_runs(self):
        """Train the two runs, where they are not there."""
        for method, place in (("supcon_out", "runs/mine"), ("cross_entropy", "runs/other")):
            if (self.home / place).exists():
                continue
            arguments = ["recipes/train.py", "--method", method, "--output", place]
            status, said = self.run(self.server, "python", arguments, self.home)
            if status:
                raise RuntimeError(f"Expected {place} to be trained, but train.py ended with {status}:\n{said}")

    def run(self, server, name, arguments, folder):
        """Run a command of a server in a folder; its status, and what it said."""
        output = self.folder / "output.txt"
        environment = {"PATH": f"{self.server.bin}:/usr/bin:/bin", "HOME": str(folder), "LANG": "C.UTF-8"}
        environment |= ON_THE_CPU
        status = server.run(name, arguments, folder, environment=environment, output=output)
        return status, output.read_text(errors="replace")

    def run_page(self, file, page, folder):
        """Run the blocks of a page in a folder of its own."""
        if page in WITH_RUNS:
            self.make_runs()
        for place in self.home.iterdir():
            if place.name == "runs" and page not in WITH_RUNS:
                continue
            if place.name in OF_EACH_PAGE:
                shutil.copytree(place, folder / place.name)
            else:
                (folder / place.name).symlink_to(place)
        return self.run(self.pages, "page", [file, page], folder)

    def close(self):
        """End the servers."""
        self.server.close()
        self.pages.close()


def small_encoder():
    """An encoder for small colour images."""
    return create_encoder("resnet10t", in_chans=3, image_size=SIDE, channels=(8, 8, 16, 16))


def save_images(folder):
    """Noise of a colour of its own for each class."""
    draws = torch.Generator().manual_seed(0)
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for index in range(IMAGES):
            pixels = torch.randint(0, 120, (SIDE, SIDE, 3), generator=draws)
            pixels[..., label % 3] += 100 if label < 3 else 0
            Image.fromarray(pixels.to(torch.uint8).numpy()).save(folder / name / f"{index:02d}.png")
