"""What a built site links to and what it loads, read from its HTML and CSS."""

import re
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

#: Attributes by which an element loads something when the page opens.
LOADING = {"script": ("src",), "img": ("src", "srcset"), "source": ("src", "srcset"), "iframe": ("src",)}
LOADING |= {"video": ("src", "poster"), "audio": ("src",), "embed": ("src",), "object": ("data",), "use": ("href",)}
LOADED_LINKS = {"stylesheet", "icon", "preload", "modulepreload", "preconnect", "dns-prefetch", "manifest"}
ELSEWHERE = re.compile(r"(?:https?:)?//", re.I)
CSS_LOADS = re.compile(r"""(?:url\(|@import)\s*['"]?((?:https?:)?//[^'")\s]+)""", re.I)


class Page(HTMLParser):
    """A page's anchors, links, and what it loads from other hosts.

    Args:
        file: an HTML file.

    Attributes:
        anchors: `id` of all elements and `name` of links.
        links: `href` of links.
        foreign: addresses on other hosts that are loaded with the page.
    """

    def __init__(self, file):
        super().__init__()
        self.anchors, self.links, self.foreign = set(), [], []
        self.feed(file.read_text())

    def handle_starttag(self, tag, attributes):
        given = {name: value or "" for name, value in attributes}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        self._css(given.get("style", ""))
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        loads = [given[name] for name in LOADING.get(tag, ()) if name in given]
        if tag == "link" and LOADED_LINKS & set(given.get("rel", "").split()):
            loads.append(given.get("href", ""))
        self.foreign += [address for address in loads if ELSEWHERE.match(address)]

    def handle_data(self, data):
        if self.lasttag == "style":
            self._css(data)

    def _css(self, text):
        self.foreign += CSS_LOADS.findall(text)


def pages_of(site):
    """All pages of a folder, by path."""
    return {file: Page(file) for file in sorted(site.rglob("*.html"))}


def broken_links(site):
    """`PAGE: LINK` for each link within the site whose page or anchor is not there."""
    pages, broken = pages_of(site), []
    for file, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            path = unquote(parts.path)
            start = site if path.startswith("/") else file.parent
            target = (start / path.lstrip("/")).resolve() if path else file
            target = target / "index.html" if target.is_dir() else target
            anchored = not parts.fragment or target not in pages or unquote(parts.fragment) in pages[target].anchors
            if not target.is_file() or not anchored:
                broken.append(f"{file.relative_to(site)}: {link}")
    return broken


def loaded_from_elsewhere(site):
    """`FILE: ADDRESS` for each thing that a page or a style sheet loads from another host."""
    found = [(file, address) for file, page in pages_of(site).items() for address in page.foreign]
    found += [(file, each) for file in sorted(site.rglob("*.css")) for each in CSS_LOADS.findall(file.read_text())]
    return [f"{file.relative_to(site)}: {address}" for file, address in found]
