"""A dict that is filled when it is used is, in every use, the dict that it stands for."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from jasper_mmap.rules.unused_dict import filled_when_used

ENTRIES = {"a": 1, "b": 2}


class Full(dict[str, int]):
    """What one becomes."""


def fill(unused: Full) -> None:
    """Make it a `Full`."""
    dict.update(unused, ENTRIES)
    unused.__class__ = Full


@filled_when_used(fill)
class Unused(Full):
    """One that is not filled yet."""


def called(**entries: int) -> dict[str, int]:
    return entries


def changed(change: Callable[[Any], object]) -> Callable[[Any], object]:
    """Return a use that changes a dict, and shows the answer and what is left."""
    return lambda entries: (change(entries), entries)


USES: dict[str, Callable[[Any], object]] = {
    "dict": dict,
    "merged": lambda d: {**d},
    "called": lambda d: called(**d),
    "updated": lambda d: ENTRIES | {"c": 0} | d,
    "or": lambda d: d | {"c": 0},
    "list": list,
    "tuple": lambda d: (*d,),
    "reversed": lambda d: [*reversed(d)],
    "len": len,
    "bool": bool,
    "in": lambda d: ("a" in d, "c" in d),
    "item": lambda d: d["a"],
    "get": lambda d: d.get("b"),
    "keys": lambda d: [*d.keys()],
    "values": lambda d: [*d.values()],
    "items": lambda d: [*d.items()],
    "equal": lambda d: (d == ENTRIES, ENTRIES == d, d != ENTRIES, {} == d),  # noqa: SIM300
    "repr": repr,
    "copy": lambda d: d.copy(),
    "copy.copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda d: pickle.loads(pickle.dumps(d)),
    "match": lambda d: [v for v in (d,) if v.keys() >= {"a"}],
    "pop": changed(lambda d: d.pop("a")),
    "popitem": changed(lambda d: d.popitem()),
    "setdefault": changed(lambda d: d.setdefault("a", 7)),
    "set": changed(lambda d: d.__setitem__("a", 7)),
    "delete": changed(lambda d: d.__delitem__("a")),
    "update": changed(lambda d: d.update(a=7)),
    "ior": changed(lambda d: d.__ior__({"c": 7})),
    "clear": changed(lambda d: d.clear()),
}


@pytest.mark.parametrize("use", USES)
def test_use_of_an_unused_dict_is_that_of_the_full_one(use: str) -> None:
    """Whether Python or C code looks into it; afterwards it is an ordinary dict."""
    unused = Unused()
    answer, right = USES[use](unused), USES[use](Full(ENTRIES))
    assert type(unused) is Full
    assert answer == right
    assert type(answer) is type(right)
