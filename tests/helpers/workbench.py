"""A copy of the checkout with a folder of images, an encoder and two runs, in which the pages run."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from helpers.label_data import write_csv, write_nested
from helpers.walk_images import save_images
from pml_supcon.models import create_encoder, save_encoder

CHECKOUT = Path(__file__).parents[2]
COPIED = ("pml_supcon", "recipes", "benchmarks", "docs", "tests")
COPIED += ("Makefile", "pyproject.toml", "mkdocs.yml", "README.md", "CHANGELOG.md", "LICENSE")
OF_EACH_PAGE = ("my", "runs", "imagenet")  # a page may write there
#: Pages whose readers have two runs; the other pages train the runs that they use.
WITH_RUNS = ("docs/recipes/evaluate.md", "docs/guides/reading_the_report.md")
OFFLINE_ON_CPU = {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


class Workbench:
    """The folder that all pages share, and the server of their commands.

    Args:
        folder: An empty folder.
    """

    def __init__(self, folder):
        self.home, self.commands = folder / "home", folder / "commands"
        self.home.mkdir()
        self.commands.mkdir()
        path = f"{CHECKOUT / 'tests'}:{CHECKOUT}"
        self.env = {"PATH": f"{self.commands / 'bin'}:/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONPATH": path}
        self.env |= {"HOME": str(folder), **OFFLINE_ON_CPU}
        server = [sys.executable, "-m", "helpers.stand_ins", str(self.commands)]
        self.server = subprocess.Popen(server, env=os.environ | self.env, start_new_session=True)
        for name in COPIED:  # copies, so that nothing is written into the checkout
            copy = shutil.copytree if (CHECKOUT / name).is_dir() else shutil.copy
            copy(CHECKOUT / name, self.home / name)
        for place in ("my/images", "my/other", "imagenet/train", "imagenet/val"):
            save_images(self.home / place, per_class=20, sides=(32, 32))
        ages = {
            "age": range(80),
            "glasses": [row % 2 for row in range(80)],
            "smiling": [row % 3 // 2 for row in range(80)],
        }
        write_csv(self.home / "my" / "faces", **ages)
        write_nested(self.home / "my" / "animals", {"bird/owl": 20, "bird/duck": 20, "fish/cod": 20})
        encoder = create_encoder("resnet10t", in_chans=3, image_size=32, channels=(8, 8, 16, 16))
        save_encoder(encoder, self.home / "my" / "encoder")
        while not (self.commands / "socket").exists():
            assert self.server.poll() is None, "the server of the commands ended"
            time.sleep(0.1)

    def run(self, command, folder):
        """Run a command in a folder; return its status and output."""
        done = subprocess.run(
            command, cwd=folder, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=480
        )
        return done.returncode, done.stdout

    def run_page(self, file, page, folder):
        """Run the blocks of a page in an empty folder."""
        if page in WITH_RUNS and not (self.home / "runs").exists():
            for method, run in (("supcon_out", "runs/mine"), ("cross_entropy", "runs/other")):
                train = ["recipes/train.py", "--method", method, "--output", run]
                status, output = self.run([self.commands / "bin/python", *train], self.home)
                assert status == 0, output
        for place in self.home.iterdir():
            if place.name in OF_EACH_PAGE and (place.name != "runs" or page in WITH_RUNS):
                shutil.copytree(place, folder / place.name)
            elif place.name not in OF_EACH_PAGE:
                (folder / place.name).symlink_to(place)
        return self.run([sys.executable, "-m", "helpers.page_runner", file, page], folder)

    def close(self):
        """End the server and all that it still runs."""
        os.killpg(self.server.pid, signal.SIGKILL)
        self.server.wait()
