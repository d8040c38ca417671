"""The page in a browser: Debian's chromium, driven by playwright (extra `browser`).

Skipped, with the reason in pytest's summary, where one of them is missing.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.report.test_page import ORDER

CHROMIUM = shutil.which("chromium")
playwright = pytest.importorskip(
    "playwright.sync_api",
    reason="THE PAGE WAS NOT LOOKED AT: playwright is missing (pip install -e '.[browser]')",
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None,
    reason="THE PAGE WAS NOT LOOKED AT: chromium is missing (apt-get install chromium)",
)

LOOK = """() => {
  const overlaps = [], outside = [], small = [];
  for (const svg of document.querySelectorAll('svg')) {
    const frame = svg.getBoundingClientRect();
    const name = svg.getAttribute('aria-labelledby');
    if (frame.width < 250 || frame.height < 60 || frame.right > innerWidth + 1) small.push(name);
    const texts = [...svg.querySelectorAll('text')].filter(one => one.textContent.trim());
    const boxes = texts.map(one => one.getBoundingClientRect());
    boxes.forEach((a, i) => {
      if (a.left < frame.left - 2 || a.right > frame.right + 2 || a.top < frame.top - 2
          || a.bottom > frame.bottom + 2) outside.push([name, texts[i].textContent]);
      boxes.slice(i + 1).forEach((b, j) => {
        const width = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const height = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (width > 1 && height > 0.35 * Math.min(a.height, b.height))
          overlaps.push([name, texts[i].textContent, texts[i + 1 + j].textContent]);
      });
    });
  }
  const colour = (element, key) => getComputedStyle(element)[key].match(/\\d+/g).map(Number);
  const sum = numbers => numbers.slice(0, 3).reduce((a, b) => a + b) / 765;
  return {
    overlaps, outside, small,
    drawn: [...document.querySelectorAll('svg')].map(svg => svg.getAttribute('aria-labelledby')),
    paths: [...document.querySelectorAll('svg')].map(svg => svg.querySelectorAll('path').length),
    width: document.documentElement.scrollWidth,
    paper: sum(colour(document.body, 'backgroundColor')),
    words: sum(colour(document.body, 'color')),
    labels: sum(colour(document.querySelector('svg text'), 'fill')),
  };
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Return a running chromium."""
    with playwright.sync_playwright() as driver:
        options = {"executable_path": CHROMIUM, "args": ["--no-sandbox"]}
        running = driver.chromium.launch(**options)
        yield running
        running.close()


@pytest.mark.parametrize(
    ("scheme", "width"), [("light", 1200), ("dark", 1200), ("light", 360), ("dark", 360)]
)
def test_page_is_whole_in_a_browser(
    browser: Any, html: str, tmp_path: Path, scheme: str, width: int
) -> None:
    """No message in the console, no request, every picture there with its texts apart and in it;
    light and dark; nothing wider than a phone, with all tables unfolded too."""
    path = tmp_path / "report.html"
    path.write_text(html)
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800})
    opened = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(path.as_uri())
    seen = opened.evaluate(LOOK)
    assert seen["drawn"] == [f"{name}-title" for name in ORDER[2:]]
    assert min(seen["paths"]) > 3
    assert (seen["overlaps"], seen["outside"], seen["small"]) == ([], [], [])
    assert seen["width"] == width
    dark = scheme == "dark"
    assert (seen["paper"] < 0.2, seen["words"] > 0.7, seen["labels"] > 0.7) == (dark,) * 3
    opened.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert opened.evaluate("document.documentElement.scrollWidth") == width
    assert opened.locator("table").count() == opened.locator("table:visible").count() > 15
    context.close()
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
