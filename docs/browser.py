"""A browser without a window, for scripts that take pictures of pages: Chromium with its driver, and selenium."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

from PIL import Image
from selenium import webdriver

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars")


@contextmanager
def open_browser() -> Iterator[webdriver.Chrome]:
    """Chromium with a profile of its own, for a while."""
    os.environ["SE_OFFLINE"] = "true"  # the driver's manager would look for one on the network
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    with tempfile.TemporaryDirectory() as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            yield driver
        finally:
            driver.quit()


def look(
    driver: webdriver.Chrome, address: str, *, width: int, height: int, scheme: str, section: str | None = None
) -> Image.Image:
    """What a window of a size shows of a page in a colour scheme, scrolled to a section."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    chosen = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", chosen)
    driver.get(address)
    if not address.startswith("file:"):
        driver.execute_script("localStorage.clear()")  # the site's theme keeps the colours of the first visit
        driver.refresh()
    if section is not None:
        driver.execute_script("document.getElementById(arguments[0]).scrollIntoView({behavior: 'instant'})", section)
    return Image.open(BytesIO(driver.get_screenshot_as_png())).convert("RGB")
