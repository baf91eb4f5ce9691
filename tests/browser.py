"""Opens pages in headless Chromium."""

import shutil
import subprocess

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def browse(address, profile):
    """The document that the browser shows, and the lines of its console."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost",  # no network
        f"--user-data-dir={profile}",
        "--enable-logging=stderr",
        "--v=0",
        "--virtual-time-budget=60000",
        "--dump-dom",
    ]
    shown = subprocess.run([browser, *options, address], capture_output=True, text=True)
    return shown.stdout, [line for line in shown.stderr.splitlines() if "CONSOLE" in line]
