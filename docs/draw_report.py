"""Take the pictures of a report that the docs show: its top on a desktop, its map of embeddings on a phone.

    python docs/draw_report.py runs/mine/evaluation/report.html digits

Writes `docs/figures/report-digits-desktop.png` and `-phone.png`. Needs Chromium with its driver, and selenium.
"""

import argparse
import os
import shutil
import tempfile
from io import BytesIO
from pathlib import Path

from PIL import Image
from selenium import webdriver

FIGURES = Path(__file__).parent / "figures"
#: Width and height of the window, the section to scroll to, the colour scheme.
VIEWS = {"desktop": (1280, 1500, "", "light"), "phone": (390, 1500, "map", "dark")}
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars")
COLOURS = 128  # of the file's palette: a third of the size without a visible difference


def main() -> None:
    """Open the report in each view and save the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("report", type=Path)
    parser.add_argument("name")
    chosen = parser.parse_args()
    os.environ["SE_OFFLINE"] = "true"  # keeps the driver's manager off the network
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    with tempfile.TemporaryDirectory() as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        with webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver"))) as driver:
            for view, (width, height, section, scheme) in VIEWS.items():
                size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
                colours = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
                driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
                driver.execute_cdp_cmd("Emulation.setEmulatedMedia", colours)
                driver.get(chosen.report.resolve().as_uri())
                scroll = "document.getElementById(arguments[0])?.scrollIntoView({behavior: 'instant'})"
                driver.execute_script(scroll, section)
                picture = Image.open(BytesIO(driver.get_screenshot_as_png())).convert("RGB")
                picture.quantize(COLOURS).save(FIGURES / f"report-{chosen.name}-{view}.png", optimize=True)


if __name__ == "__main__":
    main()
