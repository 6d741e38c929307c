"""Take the pictures of a report that the docs show: the top of it on a desk, its figures on a phone.

    python docs/draw_report.py runs/mine/evaluation/report.html digits

Writes `docs/figures/report-digits-desktop.png` and `-phone.png`. Needs Chromium with its driver, and selenium.
"""

import argparse
import os
import shutil
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from selenium import webdriver

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
    os.environ["SE_OFFLINE"] = "true"
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    with tempfile.TemporaryDirectory() as profile:
        for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"):
            options.add_argument(flag)
        options.add_argument(f"--user-data-dir={profile}")
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            for view, (width, height, section, scheme) in VIEWS.items():
                picture = look(driver, chosen.report, width, height, section, scheme)
                picture.quantize(COLOURS).save(FIGURES / f"report-{chosen.name}-{view}.png", optimize=True)
        finally:
            driver.quit()


def look(driver: Any, report: Path, width: int, height: int, section: str | None, scheme: str) -> Image.Image:
    """What a window of a size shows of a report."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    driver.get(report.resolve().as_uri())
    if section is not None:
        driver.execute_script("document.getElementById(arguments[0]).scrollIntoView({behavior: 'instant'})", section)
    return Image.open(BytesIO(driver.get_screenshot_as_png())).convert("RGB")


if __name__ == "__main__":
    main()
