"""The built site: links hold, nothing comes from another host, the menu has all pages, a browser shows them whole."""

import functools
import os
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers.chromium import Browser
from helpers.process_groups import free_port
from helpers.site_pages import broken_links, loaded_from_elsewhere, pages_of
from mkdocs.config import load_config

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).parents[2]
#: Looked at in a browser: each kind of page, and those with the widest tables and longest lines.
SEEN = ("", "quick_start", "install", "guides/pml_user", "guides/own_images", "peers", "api", "losses/supcon")
SEEN += ("recipes/train", "recipes/reproduce", "results", "results/digits", "results/cifar10_small", "benchmarks")
SEEN += ("notebooks/digits",)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    return folder


def test_links_and_anchors_hold(site):
    assert broken_links(site) == []


def test_nothing_is_loaded_from_another_host(site):
    assert loaded_from_elsewhere(site) == []


def test_every_page_is_in_the_menu(site):
    config, docs = load_config(str(CHECKOUT / "mkdocs.yml")), CHECKOUT / "docs"
    pages = {str(page.relative_to(docs)) for kind in ("*.md", "*.ipynb") for page in docs.rglob(kind)}
    pages = {page for page in pages if not config.exclude_docs.match_file(page)}  # tables that other pages take in
    assert len(pages) > 20
    assert pages - set(leaves(config.nav)) == set()
    links = pages_of(site)[site / "index.html"].links
    assert [name for name in SEEN if name and f"{name}/" not in links] == []


def leaves(menu):
    """The pages of a menu."""
    if isinstance(menu, str):
        return [menu]
    return [leaf for entry in (menu.values() if isinstance(menu, dict) else menu) for leaf in leaves(entry)]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


class Address(str):
    """An address in the place of a file."""

    def as_uri(self):
        return str(self)


@pytest.fixture(scope="module")
def served(site):
    server = ThreadingHTTPServer(("127.0.0.1", free_port()), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.driver.quit()


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("name", SEEN)
def test_pages_in_a_browser(browser, served, name, width):
    page = browser.open(Address(f"{served}/{name}/" if name else f"{served}/"), width=width)
    assert page.run("return document.querySelector('h1').innerText.length") > 0
    assert page.complaints() == []
    assert [address for address in page.requests() if not address.startswith(served)] == []
    assert page.run("return document.scrollingElement.scrollWidth - innerWidth") <= 0


WRONG_LINKS = ("gone/", "other/#gone", "/gone.html")
FOREIGN = (
    '<script src="https://cdn.example/x.js"></script>',
    '<link rel="preload stylesheet" href="//cdn.example/x.css">',
    "<style>@import 'https://cdn.example/x.css';</style>",
    '<p style="background: url(https://cdn.example/x.png)">',
)


@pytest.mark.parametrize("link", WRONG_LINKS)
def test_broken_links_are_found(link, tmp_path):
    write_site(tmp_path, f'<a href="{link}">x</a>')
    assert broken_links(tmp_path) == [f"index.html: {link}"]


@pytest.mark.parametrize("markup", FOREIGN)
def test_foreign_loads_are_found(markup, tmp_path):
    write_site(tmp_path, markup)
    assert len(loaded_from_elsewhere(tmp_path)) == 1
    assert loaded_from_elsewhere(tmp_path)[0].startswith("index.html: ")


def test_a_foreign_font_in_a_style_sheet_is_found(tmp_path):
    write_site(tmp_path, "")
    (tmp_path / "style.css").write_text("@font-face { src: url('https://cdn.example/x.woff2') }")
    assert loaded_from_elsewhere(tmp_path) == ["style.css: https://cdn.example/x.woff2"]


def test_what_holds_is_not_told(tmp_path):
    write_site(
        tmp_path,
        '<h1 id="top">x</h1><a href="other/#a%C3%A4">x</a><a href="#top">x</a><a href="https://example.com/#x">x</a>'
        '<a href="mailto:a@example.com">x</a><a href="/other/index.html">x</a><script src="x.js"></script>',
    )
    assert broken_links(tmp_path) == []
    assert loaded_from_elsewhere(tmp_path) == []


def write_site(folder, markup):
    """A site of two pages."""
    (folder / "other").mkdir()
    (folder / "index.html").write_text(markup)
    (folder / "other" / "index.html").write_text('<h1 id="aä">x</h1>')
