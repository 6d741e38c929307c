"""Take the pictures of a report that the docs show: the top of it on a desk, its figures on a phone.

    python docs/draw_report.py runs/mine/evaluation/report.html digits

Writes `docs/figures/report-digits-desktop.png` and `-phone.png`. Needs Chromium with its driver, and selenium.
"""

import argparse
from pathlib import Path

from browser import look, open_browser

FIGURES = Path(__file__).parent / "figures"
#: Width and height of the window, the section to scroll to, the colour scheme.
VIEWS = {"desktop": (1280, 1500, None, "light"), "phone": (390, 1500, "map", "dark")}
COLOURS = 128  # of the file's palette: a third of the size, and no difference to be seen


def main() -> None:
    """Open the report in each view and keep what is seen."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("report", type=Path)
    parser.add_argument("name")
    chosen = parser.parse_args()
    address = chosen.report.resolve().as_uri()
    with open_browser() as driver:
        for view, (width, height, section, scheme) in VIEWS.items():
            picture = look(driver, address, width=width, height=height, scheme=scheme, section=section)
            picture.quantize(COLOURS).save(FIGURES / f"report-{chosen.name}-{view}.png", optimize=True)


if __name__ == "__main__":
    main()
