"""A headless Chromium that opens pages at a width and in a colour scheme, without a network."""

import json
import os
import shutil

import pytest

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
)
INSTALL = "apt-get install chromium chromium-driver, and pip install selenium"


class Browser:
    """One Chromium for all pages.

    Args:
        profile: an empty folder.
    """

    def __init__(self, profile):
        program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        driver = shutil.which("chromedriver")
        if program is None or driver is None:
            pytest.skip(f"no Chromium with its driver here: {INSTALL}")
        webdriver = pytest.importorskip("selenium.webdriver", reason=INSTALL)
        os.environ["SE_OFFLINE"] = "true"  # keeps the driver's manager off the network
        options = webdriver.ChromeOptions()
        options.binary_location = program
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))

    def open(self, path, *, width=1280, scheme="light", script=True):
        """Open a file; the other methods refer to it."""
        chosen = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", chosen)
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not script})
        for kind in ("browser", "performance"):
            self.driver.get_log(kind)
        self.driver.get(path.as_uri())
        return self

    def run(self, script, *values):
        """Return the result of a script."""
        return self.driver.execute_script(script, *values)

    def complaints(self):
        """Return the messages of the console above the level of information."""
        return [entry for entry in self.driver.get_log("browser") if entry["level"] not in ("INFO", "DEBUG")]

    def requests(self):
        """Return the addresses that the page requested, without data URIs."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
        return [address for address in sent if not address.startswith("data:")]
