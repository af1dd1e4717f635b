"""Opens a running TensorBoard in headless Chromium and puts its dashboards side by side into docs/tensorboard.png.

    tensorboard --logdir logs/tb --port 6006 &
    python docs/screenshot.py http://localhost:6006

Needs `pip install selenium` and Chromium with its driver (`apt install chromium chromium-driver`).
"""

from __future__ import annotations

import io
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from selenium import webdriver

DASHBOARDS = ("scalars", "images", "audio")
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --mute-audio --window-size=1000,1150"""
# TensorBoard draws inside shadow roots: look through all of them.
DEEP = """
const found = [], walk = (root) => { for (const e of root.querySelectorAll('*')) {
    if (e.matches(arguments[0])) found.push(e);
    if (e.shadowRoot) walk(e.shadowRoot); } };
walk(document);
"""


def wait_for(browser: webdriver.Chrome, selector: str, count: int, seconds: float = 300) -> int:
    """Wait until `count` elements are there, with their contents loaded."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = browser.execute_script(DEEP + "return found.length", selector)
        if found >= count:
            time.sleep(5)
            return found
        time.sleep(1)
    raise SystemExit(f"no {selector} appeared within {seconds:g} s")


def main(address: str) -> None:
    wanted = {"scalars": "tf-scalar-card, tf-line-chart-data-loader", "images": "tf-image-loader img", "audio": "audio"}
    options = webdriver.ChromeOptions()
    for flag in [*FLAGS.split(), f"--user-data-dir={tempfile.mkdtemp()}"]:
        options.add_argument(flag)
    browser, pictures = webdriver.Chrome(options=options), []
    try:
        for dashboard in DASHBOARDS:
            browser.get(f"{address}/?darkMode=false#{dashboard}")
            browser.refresh()
            found = wait_for(browser, wanted[dashboard], 1)
            print(f"{dashboard}: {found} elements")
            pictures.append(Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB"))
    finally:
        browser.quit()
    width, height = sum(p.width for p in pictures), max(p.height for p in pictures)
    sheet = Image.new("RGB", (width, height), "white")
    for n, picture in enumerate(pictures):
        sheet.paste(picture, (sum(p.width for p in pictures[:n]), 0))
    sheet = sheet.resize((width * 2 // 3, height * 2 // 3), Image.Resampling.LANCZOS)
    target = Path(__file__).parent / "tensorboard.png"
    sheet.quantize(128).save(target, optimize=True)
    print(f"{target}: {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1])
