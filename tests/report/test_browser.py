"""The page in a real browser: its style is applied, light and dark, and it fits a phone."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from deploycompress.config.schema import PipelineConfig
from deploycompress.report.build import build
from deploycompress.report.render import render

Make = Callable[..., tuple[PipelineConfig, Path]]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PAGE = {"light": (246, 247, 248), "dark": (16, 19, 22)}  # --page in report.css

pytestmark = pytest.mark.skipif(BROWSER is None, reason="chromium is not installed")


def shot(page: Path, theme: str, width: int, height: int, folder: Path) -> tuple[Path, str]:
    """A picture of the page, and what the browser said of it."""
    picture = folder / f"{theme}-{width}.png"
    words = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    words += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    words += ["--hide-scrollbars", "--force-device-scale-factor=1", f"--user-data-dir={folder / 'profile'}"]
    words += [f"--blink-settings=preferredColorScheme={0 if theme == 'dark' else 1}"]
    words += ["--enable-logging=stderr", f"--window-size={width},{height}", f"--screenshot={picture}"]
    said = subprocess.run([*words, page.as_uri()], capture_output=True, text=True, timeout=60)
    assert picture.exists(), said.stderr[-2000:]
    return picture, said.stderr


@pytest.mark.parametrize(("theme", "width"), [("light", 1180), ("dark", 390)])
def test_the_page_is_drawn(make_run: Make, tmp_path: Path, theme: str, width: int) -> None:
    from PIL import Image

    config, run_dir = make_run(hostile="<script>document.body.remove()</script>" + "W" * 90)
    render(build(config, run_dir), run_dir)
    picture, said = shot(run_dir / "report.html", theme, width, 2400, tmp_path)
    assert "Refused to" not in said and "violates the following" not in said
    with Image.open(picture) as opened:
        image = opened.convert("RGB")
    assert image.size == (width, 2400)
    assert image.getpixel((1, 1)) == PAGE[theme]
    edge = {image.getpixel((width - 2, y)) for y in range(image.height)}
    assert edge == {PAGE[theme]}, "something reaches over the right edge"
    assert len(image.getcolors(maxcolors=2**20) or []) > 100
