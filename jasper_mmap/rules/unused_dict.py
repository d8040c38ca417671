"""Dicts whose entries are made when somebody uses them: some code looks at their type alone."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodDescriptorType, WrapperDescriptorType
from typing import Any, Final, TypeVar

_USES: Final = [
    *(
        name
        for name, method in vars(dict).items()
        if isinstance(method, MethodDescriptorType | WrapperDescriptorType)
        and name not in ("__getattribute__", "__init__")
    ),
    "__reduce_ex__",
]
"""Methods that use the entries of a dict."""
_Class = TypeVar("_Class", bound=type)


def filled_when_used(fill: Callable[[Any], None]) -> Callable[[_Class], _Class]:
    """Decorate a class of dicts whose entries are not made before somebody uses them.

    Each method then calls `fill`, which fills the dict and makes it an instance of a class with the
    methods of an ordinary dict. Until then it should have its keys, with None: some code written in
    C asks a dict for its size, and then leaves out its methods where that is 0.
    """

    def decorate(cls: _Class) -> _Class:
        for name in _USES:
            if name not in vars(cls):
                setattr(cls, name, _after(fill, name))
        return cls

    return decorate


def _after(fill: Callable[[Any], None], name: str) -> Callable[..., Any]:
    def use(self: Any, *args: Any, **kwargs: Any) -> Any:
        fill(self)
        return getattr(self, name)(*args, **kwargs)

    return use
