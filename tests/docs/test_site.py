"""The built site: links hold, nothing comes from another host, a browser shows the pages whole."""

import functools
import os
import re
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.chromium import Browser

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).parents[2]
#: The pages that a browser opens: one of each kind, and those with the widest tables and longest lines.
SEEN = ("", "quick_start", "install", "guides/pml_user", "guides/own_images", "peers", "api", "losses/supcon")
SEEN += ("recipes/train", "recipes/reproduce", "results", "results/digits", "results/cifar10_small", "benchmarks")
SEEN += ("notebooks/digits",)
#: A tag that loads something from another host when the page opens; in style sheets a URL of another host.
TAG = r'<(?:script|img|source|iframe|video|audio|embed|object|use|link(?! rel="(?:canonical|next|prev|edit)"))\b[^>]*'
FOREIGN = re.compile(TAG + r"""\b(?:src|srcset|href|poster|data)=["']?(?:https?:)?//""", re.I)
FOREIGN_STYLE = re.compile(r"""(?:url\(|@import)\s*['"]?(?:https?:)?//""", re.I)


def loads_from_elsewhere(text):
    return bool(FOREIGN.search(text) or FOREIGN_STYLE.search(text))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the site; `--strict` fails on a broken link or anchor and on a page that the menu lacks."""
    folder = tmp_path_factory.mktemp("site") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    return folder


def test_the_first_page_has_the_code_of_minimal(site):
    assert "EPOCHS, BATCH_SIZE, NUM_VIEWS" in (site / "index.html").read_text()


def test_nothing_is_loaded_from_another_host(site):
    files = [path for kind in ("*.html", "*.css") for path in site.rglob(kind)]
    assert len(files) > 30
    assert [path for path in files if loads_from_elsewhere(path.read_text())] == []


@pytest.mark.parametrize(
    "markup",
    [
        '<script src="https://cdn.example/x.js"></script>',
        '<link rel="preload stylesheet" href="//cdn.example/x.css">',
        "<style>@import 'https://cdn.example/x.css';</style>",
        '<p style="background: url(https://cdn.example/x.png)">',
    ],
)
def test_foreign_loads_are_found(markup):
    assert loads_from_elsewhere(markup)
    assert not loads_from_elsewhere(markup.replace("https:", "").replace("//", "/"))
    assert not loads_from_elsewhere('<a href="https://example.com/#x">x</a>')


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def served(site):
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.driver.quit()


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("name", SEEN)
def test_pages_in_a_browser(browser, served, name, width):
    address = SimpleNamespace(as_uri=lambda: f"{served}/{name}/" if name else f"{served}/")
    page = browser.open(address, width=width)
    assert page.run("return document.querySelector('h1').innerText.length") > 0
    assert page.complaints() == []
    assert [address for address in page.requests() if not address.startswith(served)] == []
    assert page.run("return document.scrollingElement.scrollWidth - innerWidth") <= 0
