"""Drawing with matplotlib: SVG in the colours of the page, light or dark, with text as text.

matplotlib is imported when something is drawn. Only numbers and words of this package are drawn,
never a text of the store.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from xml.etree import ElementTree

from ..errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Each stands for a colour that the page's style defines; matplotlib knows no such names.
INK, MUTED, LINE, PAPER, BAD = "#010203", "#010204", "#010205", "#010206", "#010207"
BLUE, ORANGE, GREEN, PURPLE = "#010208", "#010209", "#01020a", "#01020b"
COLOURS: Final = {
    INK: "ink",
    MUTED: "muted",
    LINE: "line",
    PAPER: "paper",
    BAD: "bad",
    BLUE: "blue",
    ORANGE: "orange",
    GREEN: "green",
    PURPLE: "purple",
}
SERIES: Final = (BLUE, ORANGE, GREEN, PURPLE)

WIDTH: Final = 4.5
"""Of a picture in inches: its text is readable on a phone, where it is not made smaller."""
_SVG: Final = "http://www.w3.org/2000/svg"
_LINK: Final = "{http://www.w3.org/1999/xlink}href"
_STYLE: Final[dict[str, Any]] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "jasper-mmap",  # equal pictures are equal bytes
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 11,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": LINE,
    "legend.frameon": False,
    "patch.edgecolor": PAPER,
    "hatch.color": PAPER,
}


def check_libraries() -> None:
    """Raise `UsageError`, which names the extra, unless matplotlib and Jinja2 are installed."""
    try:
        import jinja2
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"the report needs matplotlib and Jinja2 ({error}): pip install 'jasper-mmap[report]'"
            " (from a checkout: pip install -e '.[report]'). --json alone works without them."
        ) from None
    del jinja2


class Canvas:
    """An empty picture; `svg` is there when the block of `canvas` has ended."""

    def __init__(self, figure: Figure) -> None:
        self.figure = figure
        self.svg = ""

    def axes(self, *heights: float) -> tuple[Axes, ...]:
        """Diagrams below each other, of these heights in proportion; without any, one diagram."""
        grid = self.figure.subplots(
            max(1, len(heights)), 1, squeeze=False, height_ratios=heights or None
        )
        return tuple(grid[:, 0])


@contextmanager
def canvas(name: str, height: float) -> Iterator[Canvas]:
    """Draw a picture of `height` inches. `name` begins the ids in it, which must differ from those
    of other pictures of a page."""
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", _STYLE]):
        one = Canvas(Figure(figsize=(WIDTH, height), layout="constrained"))
        yield one
        written = io.BytesIO()
        one.figure.savefig(written, format="svg", metadata={"Date": None})
    one.svg = _cleaned(written.getvalue(), name)


def _cleaned(written: bytes, name: str) -> str:
    """The SVG element alone, scaled by the page, in the page's colours, with ids of its own."""
    root = ElementTree.fromstring(written)
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    for key in ("width", "height"):
        root.attrib.pop(key)
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title")  # which the page has
    root.set("aria-describedby", f"{name}-see")
    used = set(re.findall(rb"[\"(]#([\w-]+)[\")]", written))
    for element in root.iter():
        if element.get("id", "").encode() not in used:
            element.attrib.pop("id", None)
        else:
            element.set("id", f"{name}-{element.get('id')}")
        if _LINK in element.attrib:
            element.set("href", f"#{name}-{element.attrib.pop(_LINK).removeprefix('#')}")
        for key, value in element.attrib.items():
            if key != "href":
                element.set(key, _coloured(re.sub(r"url\(#", f"url(#{name}-", value)))
        if element.tag == f"{{{_SVG}}}style":
            element.text = ""  # it holds for the whole page, which says the same
    ElementTree.register_namespace("", _SVG)
    return ElementTree.tostring(root, encoding="unicode")


def _coloured(value: str) -> str:
    for colour, variable in COLOURS.items():
        value = value.replace(colour, f"var(--{variable})")
    return value
