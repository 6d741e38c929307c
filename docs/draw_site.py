"""Take pictures of the site, to be looked at: three pages on a desk, the same on a phone.

    python docs/draw_site.py

Builds the site and writes `docs/figures/site-home-desktop.png`, `-phone.png` and so on. Needs the extras `docs` and
`dev`, and Chromium with its driver. No page shows the pictures.
"""

import argparse
import functools
import itertools
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from browser import look, open_browser

CHECKOUT = Path(__file__).resolve().parent.parent
FIGURES = CHECKOUT / "docs" / "figures"
PAGES = {"home": "", "quick-start": "quick_start/", "results": "results/"}
#: Width and height of the window, the colour scheme.
VIEWS = {"desktop": (1280, 900, "light"), "phone": (360, 900, "dark")}
COLOURS = 64  # of the file's palette: text and flat areas need no more


def main() -> None:
    """Build the site, open the pages in each view and keep what is seen."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, default=FIGURES, help="folder of the pictures")
    chosen = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        served(build(Path(folder) / "site")) as address,
        open_browser() as driver,
    ):
        for page, view in itertools.product(PAGES, VIEWS):
            width, height, scheme = VIEWS[view]
            picture = look(driver, f"{address}/{PAGES[page]}", width=width, height=height, scheme=scheme)
            file = chosen.output / f"site-{page}-{view}.png"
            picture.quantize(COLOURS).save(file, optimize=True)
            print(f"{file}: {file.stat().st_size // 1000} KB")


def build(site: Path) -> Path:
    """The site, in a folder."""
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)]
    subprocess.run(command, cwd=CHECKOUT, env=environment, check=True)
    return site


class Quiet(SimpleHTTPRequestHandler):
    """Files, without a line for each on the terminal."""

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address at which a folder is served."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


if __name__ == "__main__":
    main()
