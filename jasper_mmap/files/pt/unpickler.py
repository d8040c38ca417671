"""The pickles inside `.pt` files, read by a machine that calls nothing.

It knows numbers, text, containers, and the few names with which torch saves a tensor. A name stays
text, so a pickle can call nothing: torch's own `weights_only` allows, among others,
`torch.FloatTensor(5, 8)`, which is uninitialised memory. A tensor is a claim about bytes of the
file, which the reader checks.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final

from ...errors import ContentTypeError, FormatError, JasperError, UnsafeFileError
from .tensors import NOT_DENSE, LimitError, Name, Storage, is_known, rebuilt, storage

MOST_KEYS: Final = 1000
"""Limit of a dict: integer keys can be chosen so that each one collides with all the others."""


class Unpickler:
    """Reads consecutive pickles in `data`; `where` names the file in errors."""

    def __init__(self, data: bytes | bytearray, where: str) -> None:
        self.at = 0
        """Where in `data` the next pickle begins."""
        self.storages: dict[str, Storage] = {}
        """The storages described so far, by their keys."""
        self._data = data
        self._where = where
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        """The stacks set aside at each mark."""
        self._memo: dict[int, Any] = {}

    def load(self) -> Any:
        """Return the value of the next pickle: numbers, text, lists, tuples, dicts, `SavedTensor`.

        Raises `UnsafeFileError` if it names anything else, `ContentTypeError` for a tensor that is
        not dense, `FormatError` if it is damaged.
        """
        self._stack, self._below, self._memo = [], [], {}
        try:
            (value,) = self._run()
        except JasperError:
            raise
        except LimitError as error:
            raise FormatError(
                f"{self._where}: refused, since {error}. Save one dense tensor, or a plain list of"
                " lists of ints, with torch.save."
            ) from None
        except (LookupError, TypeError, ValueError, struct.error):
            value = _NOTHING
        if isinstance(value, Name | Storage):
            raise FormatError(
                f"{self._where}: damaged, truncated or not a torch file (its pickle cannot be"
                " read); copy or save it again."
            )
        return value

    def _run(self) -> list[Any]:
        while (code := self._data[self.at]) != _STOP:
            self.at += 1
            _OPERATIONS[code](self)
        self.at += 1
        return self.pop(1)

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self._stack.append(value)

    def take(self, size: int) -> bytes | bytearray:
        """The next bytes of the pickle."""
        begin, self.at = self.at, self.at + size
        if self.at > len(self._data):
            raise ValueError
        return self._data[begin : self.at]

    def byte(self) -> int:
        """The next byte as a number."""
        self.at += 1
        return self._data[self.at - 1]

    def number(self, layout: struct.Struct) -> Any:
        """The next number, in the format `layout`."""
        return layout.unpack(self.take(layout.size))[0]

    def text(self, size: int) -> str:
        """The next `size` bytes as text."""
        return self.take(size).decode("utf-8", "surrogatepass")

    def name(self) -> Name:
        """The next name that the pickle would import; an unknown one is an error."""
        lines = []
        for _ in range(2):
            lines.append(self.text(self._data.index(b"\n", self.at) - self.at))
            self.at += 1
        name = ".".join(lines)
        if name in NOT_DENSE:
            raise ContentTypeError(
                f"{self._where}: holds {NOT_DENSE[name]}; save one dense tensor with torch.save."
            )
        if not is_known(name):
            raise UnsafeFileError(
                f"{self._where}: refused, since its pickle needs {name!r:.100}; only plain tensors"
                " and lists are allowed (nothing was run). Save the bare tensor or list with"
                " torch.save."
            )
        return Name(name)

    def mark(self) -> None:
        """Begin a group of values, which `pop` without a size returns."""
        self._below.append(self._stack)
        self._stack = []

    def pop(self, size: int | None = None) -> list[Any]:
        """The last `size` values, or those since the mark."""
        if size is None:
            items, self._stack = self._stack, self._below.pop()
            return items
        if size > len(self._stack):
            raise ValueError
        items = self._stack[-size:]
        del self._stack[-size:]
        return items

    def extend(self, items: list[Any]) -> None:
        """Add `items` to the list on top of the stack."""
        if type(self._stack[-1]) is not list:
            raise TypeError
        self._stack[-1].extend(items)

    def update(self, items: list[Any]) -> None:
        """Add keys and values, in turn, to the dict on top of the stack."""
        # No nested keys: Python hashes them recursively, to any depth.
        if type(self._stack[-1]) is not dict or not {*map(type, items[::2])} <= {str, int}:
            raise TypeError
        if len(self._stack[-1]) + len(items) // 2 > MOST_KEYS:
            raise LimitError(f"a dict has more than {MOST_KEYS} keys")
        self._stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def build(self) -> None:
        """Drop the attributes of a container, which are not used."""
        self.pop(1)
        if type(self._stack[-1]) is not dict:
            raise TypeError

    def storage(self) -> Storage:
        """The storage that the tuple on top of the stack describes; one key has one storage."""
        described = storage(*self.pop(1))
        if self.storages.setdefault(described.key, described) != described:
            raise ValueError
        return described

    def remember(self, number: int) -> None:
        """Keep the value on top of the stack under `number`."""
        self._memo[number] = self._stack[-1]

    def recall(self, number: int) -> None:
        """Put the value kept under `number` on the stack."""
        self.push(self._memo[number])


_U16, _U32, _I32, _F64 = map(struct.Struct, ("<H", "<I", "<i", ">d"))
_STOP: Final = ord(".")
_NOTHING: Final = Name("")
# The opcodes of torch's own restricted unpickler, except those that create objects.
_BY_CODE: Final[dict[bytes, Callable[[Unpickler], object]]] = {
    b"\x80": Unpickler.byte,  # the protocol's number
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"K": lambda m: m.push(m.byte()),
    b"M": lambda m: m.push(m.number(_U16)),
    b"J": lambda m: m.push(m.number(_I32)),
    b"G": lambda m: m.push(m.number(_F64)),
    b"\x8a": lambda m: m.push(int.from_bytes(m.take(m.byte()), "little", signed=True)),
    b"X": lambda m: m.push(m.text(m.number(_U32))),
    b"U": lambda m: m.push(m.text(m.byte())),
    b"c": lambda m: m.push(m.name()),
    b"(": Unpickler.mark,
    b")": lambda m: m.push(()),
    b"t": lambda m: m.push(tuple(m.pop())),
    b"\x85": lambda m: m.push(tuple(m.pop(1))),
    b"\x86": lambda m: m.push(tuple(m.pop(2))),
    b"\x87": lambda m: m.push(tuple(m.pop(3))),
    b"]": lambda m: m.push([]),
    b"a": lambda m: m.extend(m.pop(1)),
    b"e": lambda m: m.extend(m.pop()),
    b"}": lambda m: m.push({}),
    b"s": lambda m: m.update(m.pop(2)),
    b"u": lambda m: m.update(m.pop()),
    b"b": Unpickler.build,
    b"q": lambda m: m.remember(m.byte()),
    b"r": lambda m: m.remember(m.number(_U32)),
    b"h": lambda m: m.recall(m.byte()),
    b"j": lambda m: m.recall(m.number(_U32)),
    b"Q": lambda m: m.push(m.storage()),
    b"R": lambda m: m.push(rebuilt(*m.pop(2))),
}
_OPERATIONS: Final = {ord(code): operation for code, operation in _BY_CODE.items()}
