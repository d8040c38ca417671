"""Packages whose names are imported when they are first used: torch takes more than a second."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy(
    package: str, modules: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of `package`: each public name is found in its module there.

    A name may be that of its module: then it is the module. No other name may be one, or it would
    be the module too as soon as that was imported.
    """

    def load(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = import_module(f".{modules[name]}", package)
        if name != modules[name]:
            value = getattr(value, name)
        setattr(sys.modules[package], name, value)
        return value

    return load, lambda: [*modules]
