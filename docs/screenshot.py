"""Opens a running TensorBoard in headless Chromium and puts its dashboards side by side into docs/tensorboard.png.

    tensorboard --logdir logs/tb --port 6006 &
    python docs/screenshot.py http://localhost:6006

Needs `pip install selenium` and Chromium with its driver (`apt install chromium chromium-driver`).
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

from PIL import Image
from selenium import webdriver
from selenium.webdriver.remote.webelement import WebElement

FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --mute-audio --window-size=1150,1150"""
WIDTH = 2000  # pixels of the whole picture
CURVES = "train/(loss|learning_rate)|loss_by_noise/(pure|quarter_1)|dev/sdr_(best|median$)"
# For each dashboard: its address, what must be there, and the box that a click changes.
DASHBOARDS = (
    (f"scalars&tagFilter={quote(CURVES)}", "tf-line-chart-data-loader", "Ignore outliers in chart scaling"),
    ("images", "#main-image-container img", "Show actual image size"),
    ("audio", "audio", None),
)
# TensorBoard draws inside shadow roots: look through all of them. A selector cannot reach across the edge of one, so it
# names what stands within the innermost.
DEEP = """
const found = [], walk = (root) => { for (const e of root.querySelectorAll('*')) {
    if (e.matches(arguments[0])) found.push(e);
    if (e.shadowRoot) walk(e.shadowRoot); } };
walk(document);
"""


def find(browser: webdriver.Chrome, selector: str, seconds: float = 900) -> list[WebElement]:
    """What matches, as soon as something does, with time to load its contents."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := browser.execute_script(DEEP + "return found", selector):
            time.sleep(5)
            return found
        time.sleep(1)
    raise SystemExit(f"no {selector} appeared within {seconds:g} s")


def main(address: str) -> None:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for flag in [*FLAGS.split(), f"--user-data-dir={tempfile.mkdtemp()}"]:
        options.add_argument(flag)
    browser, pictures = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver"))), []
    try:
        for dashboard, selector, label in DASHBOARDS:
            browser.get(f"{address}/?darkMode=false#{dashboard}")
            browser.refresh()
            print(f"{dashboard}: {len(find(browser, selector))} elements")
            if label:
                (box,) = (b for b in find(browser, "paper-checkbox") if label in b.get_property("textContent"))
                browser.execute_script("arguments[0].click()", box)
                time.sleep(5)
            pictures.append(Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB"))
    finally:
        browser.quit()
    sheet = Image.new("RGB", (sum(p.width for p in pictures), max(p.height for p in pictures)), "white")
    for n, picture in enumerate(pictures):
        sheet.paste(picture, (sum(p.width for p in pictures[:n]), 0))
    sheet = sheet.resize((WIDTH, sheet.height * WIDTH // sheet.width), Image.Resampling.LANCZOS)
    target = Path(__file__).parent / "tensorboard.png"
    sheet.quantize(128).save(target, optimize=True)
    print(f"{target}: {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1])
