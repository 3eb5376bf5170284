"""The page in a real browser: its style is applied, light and dark, and it fits a phone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest

from deploycompress.config.schema import PipelineConfig
from deploycompress.report.build import build
from deploycompress.report.render import render

Make = Callable[..., tuple[PipelineConfig, Path]]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PAGE = {"light": (246, 247, 248), "dark": (16, 19, 22)}  # --page in report.css

pytestmark = pytest.mark.skipif(BROWSER is None, reason="chromium is not installed")


# In a copy of the page, which has no scripts itself: everything unfolded, then what does not fit.
FITS = """
<script>
document.querySelectorAll("details").forEach(d => d.open = true);
const wide = window.innerWidth, told = [];
document.querySelectorAll("main *").forEach(e => {
  const box = e.getBoundingClientRect();
  if (box.width && !e.closest(".wide-table") && (box.right > wide + 1 || box.left < -1)) told.push(e.outerHTML.slice(0, 200));
});
document.querySelectorAll("svg[role=img]").forEach(s => {
  const frame = s.viewBox.baseVal;
  s.querySelectorAll("*").forEach(e => {
    if (!e.getBBox || s.getBoundingClientRect().width === 0) return;
    const box = e.getBBox();
    const out = box.x < -2 || box.y < -2 || box.x + box.width > frame.width + 2 || box.y + box.height > frame.height + 2;
    if (out) told.push("in " + s.getAttribute("aria-label") + ": " + e.outerHTML.slice(0, 200));
  });
});
const cells = [...document.querySelectorAll(".bars .text")].filter(e => e.scrollWidth > e.clientWidth + 1);
cells.forEach(e => told.push("cut: " + e.textContent));
parent.document.title = JSON.stringify({wide, page: document.documentElement.scrollWidth, told});
</script>
"""


def browser(page: Path, theme: str, width: int, height: int, folder: Path, *what: str) -> tuple[str, str]:
    """What the browser wrote, and what it said of the page."""
    words = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    words += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    words += ["--hide-scrollbars", "--force-device-scale-factor=1", f"--user-data-dir={folder / 'profile'}"]
    words += [f"--blink-settings=preferredColorScheme={0 if theme == 'dark' else 1}"]
    words += ["--enable-logging=stderr", f"--window-size={width},{height}", *what]
    said = subprocess.run([*words, page.as_uri()], capture_output=True, text=True, timeout=60)
    return said.stdout, said.stderr


def shot(page: Path, theme: str, width: int, height: int, folder: Path) -> tuple[Path, str]:
    """A picture of the page, and what the browser said of it."""
    picture = folder / f"{theme}-{width}.png"
    _, said = browser(page, theme, width, height, folder, f"--screenshot={picture}")
    assert picture.exists(), said[-2000:]
    return picture, said


def fitting(page: Path, width: int, folder: Path) -> dict[str, Any]:
    """The width of the window and of the page, and all that reaches beyond the window or out of its plot."""
    html = page.read_text(encoding="utf-8")
    copy = folder / "scripted.html"
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    assert policy.search(html)
    scripted = policy.sub("", html).replace("</body>", FITS + "</body>")
    # A frame, since the browser's own window is never narrower than 500 pixels.
    frame = f'<title>none</title><iframe width="{width}" height="2000" style="border: 0" srcdoc="{escape(scripted)}"></iframe>'
    copy.write_text(f"<!doctype html><meta charset=utf-8>{frame}", encoding="utf-8")
    dom, said = browser(copy, "light", 1400, 2000, folder, "--dump-dom")
    found = re.search(r"<title>(.*?)</title>", dom, re.DOTALL)
    assert found is not None, said[-2000:]
    told: dict[str, Any] = json.loads(unescape(found[1]))
    return told


@pytest.mark.parametrize(("theme", "width"), [("light", 1180), ("dark", 390)])
def test_the_page_is_drawn(make_run: Make, tmp_path: Path, theme: str, width: int) -> None:
    from PIL import Image

    hostile = "<script>document.body.remove()</script>" + "W" * 90
    config, run_dir = make_run(hostile=hostile, competitor=0.9, earlier=3)
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


@pytest.mark.parametrize("width", [390, 1180])
@pytest.mark.parametrize("name", ["", "W" * 60])
def test_nothing_reaches_out_of_the_window_or_of_its_plot(
    make_run: Make, tmp_path: Path, width: int, name: str
) -> None:
    config, run_dir = make_run(competitor=0.9, earlier=12, hostile=name)
    render(build(config, run_dir), run_dir)
    told = fitting(run_dir / "report.html", width, tmp_path)
    assert told["told"] == []
    assert told["page"] == told["wide"] == width


def test_what_does_not_fit_is_found(make_run: Make, tmp_path: Path) -> None:
    """The check itself: a page with something too wide in it, and a plot with something outside."""
    config, run_dir = make_run()
    render(build(config, run_dir), run_dir)
    page = run_dir / "report.html"
    html = page.read_text(encoding="utf-8")
    wide = '<svg role="img" aria-label="a" viewBox="0 0 10 10" width="900"><rect x="8" width="9" height="2"/></svg>'
    page.write_text(html.replace("<footer>", f"{wide}<footer>"), encoding="utf-8")
    told = fitting(page, 390, tmp_path)
    assert told["page"] > 390 and any("in a: <rect" in part for part in told["told"])
