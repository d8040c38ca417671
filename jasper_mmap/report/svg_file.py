"""A picture of the page as a file of its own, as light or dark as the reader's system is."""

from __future__ import annotations

from importlib import resources
from typing import Final
from xml.etree import ElementTree

from .picture import Picture

_SVG: Final = "http://www.w3.org/2000/svg"
_SCALE: Final = 1.5
"""Pixels of a file for a point of matplotlib."""
_EDGE: Final = 6
"""Points around a picture, whose ground may differ from that of the page that shows it."""


def svg_file(picture: Picture) -> str:
    """Return the text of an SVG file. Raises `ValueError` where there is nothing to draw."""
    if picture.svg is None:
        raise ValueError(picture.sentence)
    root = ElementTree.fromstring(picture.svg)
    width, height = (float(one) + 2 * _EDGE for one in root.attrib["viewBox"].split()[2:])
    root.set("viewBox", f"-{_EDGE} -{_EDGE} {width:g} {height:g}")
    root.set("width", f"{_SCALE * width:g}")
    root.set("height", f"{_SCALE * height:g}")
    for place, (tag, end, text) in enumerate(
        (("title", "title", picture.title), ("desc", "see", picture.sentence))
    ):
        element = ElementTree.Element(f"{{{_SVG}}}{tag}", {"id": f"{picture.id}-{end}"})
        element.text = text
        root.insert(place, element)
    (style,) = root.iter(f"{{{_SVG}}}style")
    style.text = _colours()
    ElementTree.register_namespace("", _SVG)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _colours() -> str:
    """The colours that the page defines, light and dark, at the beginning of its style."""
    css = (resources.files(__package__) / "page" / "report.css").read_text("utf-8")
    return css.partition("\n* {")[0] + "\n:root { background: var(--paper); }\n"
