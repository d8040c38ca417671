"""Frozen dataclasses as JSON and back, strictly: a kept file is untrusted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

_T = TypeVar("_T")


def plain(value: Any) -> Any:
    """Return the JSON form of a dataclass; one with a `to_dict` in it has a say of its own."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _inner(getattr(value, field.name)) for field in fields(value)}
    return _inner(value)


def _inner(value: Any) -> Any:
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {key: _inner(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_inner(item) for item in value]
    return plain(value) if is_dataclass(value) else value


def parsed_as(kind: type[_T], value: Any) -> _T:
    """Return the object of the dataclass `kind` whose JSON form is `value`.

    Keys that `kind` lacks are ignored. Raises `ValueError` unless all of its fields are there and
    of their types; numbers are finite.
    """
    return _parsed(kind, value)  # type: ignore[no-any-return]


def _parsed(kind: Any, value: Any) -> Any:
    if isinstance(kind, UnionType):
        if value is None and NoneType in get_args(kind):
            return None
        (kind,) = (one for one in get_args(kind) if one is not NoneType)
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        if not isinstance(value, Mapping) or not hints.keys() <= value.keys():
            raise ValueError("a key is missing")
        return kind(**{name: _parsed(hint, value[name]) for name, hint in hints.items()})  # type: ignore[operator]
    origin, inner = get_origin(kind), get_args(kind)
    if origin is dict and isinstance(value, Mapping):
        return {str(key): _parsed(inner[1], item) for key, item in value.items()}
    if origin is tuple and isinstance(value, list):
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else [*inner]
        return tuple(_parsed(one, item) for one, item in zip(kinds, value, strict=True))
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if origin is None and type(value) is kind:
        return value
    raise ValueError("a value has another type")
