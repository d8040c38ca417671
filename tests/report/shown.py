"""The numbers in a text of the page, and the values of the JSON that may be written so.

The rounding is done in decimals, by no function of the package.
"""

import re
from collections.abc import Iterable, Iterator
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

SHARE = re.compile(r"([\d,]+)(?: of ([\d,]+))? \(([<>]?[\d.]+%)\)")
TOKEN = re.compile(
    r"(?<![\w.,-])(?P<bound>[<>]?)(?P<number>[+-]?\d+(?:,\d{3})*(?:\.\d+)?)"
    r"(?P<unit>%| KiB| MiB| GiB)?(?![\w-])"
)
UNITS: dict[str | None, int | Decimal] = {
    None: 1,
    "%": Decimal("0.01"),
    " KiB": 1 << 10,
    " MiB": 1 << 20,
    " GiB": 1 << 30,
}


def leaves(node: Any) -> Iterator[int | float]:
    """Yield every number of a part of the JSON."""
    if isinstance(node, dict):
        node = list(node.values())
    if isinstance(node, list | tuple):
        for one in node:
            yield from leaves(one)
    elif isinstance(node, int | float) and not isinstance(node, bool):
        yield node


def shares(node: Any) -> Iterator[tuple[int, int, float]]:
    """Yield the three numbers of each share."""
    if isinstance(node, dict) and {"count", "of", "share"} <= node.keys():
        yield node["count"], node["of"], node["share"]
    elif isinstance(node, dict | list | tuple):
        for one in node.values() if isinstance(node, dict) else node:
            yield from shares(one)


def is_shown_as(value: float, token: re.Match[str]) -> bool:
    """Whether a value, rounded to the places of a token, is that token."""
    number, scale = token["number"].replace(",", ""), UNITS[token["unit"]]
    if "," in token["number"] and token["number"].lstrip("+-") != f"{abs(Decimal(number)):,}":
        return False
    exact = Decimal(value) / scale
    if token["bound"]:
        less = token["bound"] == "<"
        return 0 < exact < Decimal("0.05") if less else Decimal("99.95") <= exact < 100
    if token["unit"] is None and "." not in number:
        return abs(exact - Decimal(number)) < Decimal("1e-9")  # a count is not rounded
    places = Decimal(number).as_tuple().exponent
    assert isinstance(places, int)
    rounded = exact.quantize(Decimal(1).scaleb(places), ROUND_HALF_EVEN)
    hidden = token["unit"] == "%" and places == -1 and not rounded % 100 and exact % 100
    return rounded == Decimal(number) and not hidden


def wrong_numbers(text: str, pool: Any, literal: Iterable[str] = ()) -> list[str]:
    """Return the numbers of a text that nothing in `pool`, a part of the JSON, is shown as.

    `literal` are words of the text whose numbers are no measurements.
    """
    for words in literal:
        text = text.replace(words, "")
    values, known = [*leaves(pool)], [*shares(pool)]
    wrong = []
    for match in SHARE.finditer(text):
        tokens = [TOKEN.fullmatch(text or "") for text in match.groups()]
        if not any(
            all(t is None or is_shown_as(v, t) for v, t in zip(share, tokens, strict=True))
            for share in known
        ):
            wrong.append(match[0])
    for token in TOKEN.finditer(text):
        if not any(is_shown_as(value, token) for value in values):
            wrong.append(token[0])
    return wrong
