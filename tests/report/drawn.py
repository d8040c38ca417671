"""A picture read back: its words, and the marks in the units of its axes."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

SVG = "{http://www.w3.org/2000/svg}"
LINE = re.compile(r"M ([\d.-]+) ([\d.-]+) +L ([\d.-]+) ([\d.-]+) *")
BOX = re.compile(r"M ([\d.-]+) [\d.-]+ +L ([\d.-]+) [\d.-]+ +L [\d. L-]+z *")
COLOUR = re.compile(r"(?:fill|stroke): var\(--(\w+)\)")


@dataclass
class Axes:
    """One diagram: its marks from left to right, each with its colour and its place on x."""

    boxes: list[tuple[str, float, float]] = field(default_factory=list)
    lines: list[tuple[str, float, float]] = field(default_factory=list)
    points: list[tuple[str, float]] = field(default_factory=list)


@dataclass
class Drawing:
    """A whole picture."""

    words: list[str]
    """All text but that of the scales."""
    axes: list[Axes]


def drawing(svg: str) -> Drawing:
    """Read a picture."""
    root = ElementTree.fromstring(svg)
    scales = {id(text) for group in root.iter(f"{SVG}g") for _, text in ticks_of(group)}
    words = [
        (one.text or "").replace("\u2212", "-")
        for one in root.iter(f"{SVG}text")
        if id(one) not in scales
    ]
    (figure,) = root.findall(f"{SVG}g")
    return Drawing(words, [axes_of(group) for group in figure if [*scale_of(group)]])


def ticks_of(group: Element) -> Iterator[tuple[Element, Element]]:
    """Yield the mark and the text of the tick that a group is."""
    if len(group) in (2, 3):  # a line of a grid stands before both
        mark, text = group[-2].find(f".//{SVG}use"), group[-1].find(f"{SVG}text")
        if mark is not None and text is not None and group[-2].find(f".//{SVG}text") is None:
            yield mark, text


def scale_of(axes: Element) -> Iterator[tuple[float, float]]:
    """Yield the place and the value of the ticks of x."""
    for group in axes.iter(f"{SVG}g"):
        for mark, text in ticks_of(group):
            if "text-anchor: middle" in text.get("style", ""):
                label = (text.text or "").replace("\u2212", "-").replace(",", "")
                value = float(label.removesuffix("%")) / (100 if label.endswith("%") else 1)
                yield float(mark.get("x", "")), value


def axes_of(group: Element) -> Axes:
    """Read the marks of a diagram."""
    ticks = [*scale_of(group)]
    (x0, v0), (x1, v1) = ticks[0], ticks[-1]

    def at(x: str) -> float:
        return v0 + (float(x) - x0) * (v1 - v0) / (x1 - x0)

    assert all(abs(at(str(x)) - value) < 1e-4 * abs(v1 - v0) for x, value in ticks)
    read = Axes()
    for one in group.iter():
        colour = COLOUR.search(one.get("style", ""))
        if colour is None or colour[1] == "line":
            continue
        if one.tag == f"{SVG}use" and colour[1] != "muted":
            read.points.append((colour[1], at(one.get("x", ""))))
        elif one.tag == f"{SVG}path" and "clip-path" in one.attrib:
            if box := BOX.fullmatch(one.get("d", "")):
                read.boxes.append((colour[1], at(box[1]), at(box[2])))
            elif line := LINE.fullmatch(one.get("d", "")):
                read.lines.append((colour[1], at(line[1]), at(line[3])))
    return read
