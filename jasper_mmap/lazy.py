"""Lazy packages: a name is imported when it is first used, since torch takes over a second."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy(
    package: str, modules: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of `package`; `modules` maps a public name to its module.

    A name equal to its module stands for the module itself. No other name may equal that of a
    module: importing the module would replace it.
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
