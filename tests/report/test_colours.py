"""The colours of the page: told apart by the colour-blind, and from the paper."""

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import jasper_mmap.report

CSS = Path(jasper_mmap.report.__file__).with_name("page") / "report.css"
SERIES = ("blue", "orange", "green", "purple")
Floats = NDArray[np.float64]

# Machado, Oliveira and Fernandes 2009, severity 1, of linear RGB.
SIGHT = {
    "normal": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
XYZ = [[0.41246, 0.35758, 0.18044], [0.21267, 0.71515, 0.07218], [0.01933, 0.11919, 0.95030]]


def colours(scheme: str) -> dict[str, Floats]:
    """Return the page's colours of a scheme as linear RGB."""
    block = re.findall(r":root \{(.*?)\}", CSS.read_text(), re.DOTALL)[scheme == "dark"]
    named = re.findall(r"--(\w+): #(\w{2})(\w{2})(\w{2});", block)
    values = {name: np.array([int(part, 16) / 255 for part in rgb]) for name, *rgb in named}
    return {
        name: np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
        for name, v in values.items()
    }


def lab(linear: Floats) -> Floats:
    """Return CIELAB, where a distance of 2 is just seen."""
    ratios = np.array(XYZ) @ linear.clip(0, 1) / [0.95047, 1.0, 1.08883]
    x, y, z = np.where(ratios > 0.008856, np.cbrt(ratios), 7.787 * ratios + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("sight", SIGHT)
def test_series_differ_in_every_sight(scheme: str, sight: str) -> None:
    """By five times what is just seen; forms, hatches and labels tell them apart too."""
    seen = {name: lab(np.array(SIGHT[sight]) @ colours(scheme)[name]) for name in SERIES}
    for a, b in combinations(SERIES, 2):
        assert np.linalg.norm(seen[a] - seen[b]) > 10, (a, b)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_stands_out_from_the_paper(scheme: str) -> None:
    """Texts by 4.5 and marks by 3, as WCAG asks."""
    light = {name: float(XYZ[1] @ value) for name, value in colours(scheme).items()}

    def contrast(name: str) -> float:
        low, high = sorted((light[name], light["paper"]))
        return (high + 0.05) / (low + 0.05)

    assert all(contrast(name) >= 4.5 for name in ("ink", "muted", "bad"))
    assert all(contrast(name) >= 3 for name in SERIES)
