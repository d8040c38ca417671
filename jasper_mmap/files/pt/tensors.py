"""The names in a `.pt` file's pickle and the tensors they describe, as claims about its bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch

STORAGES: Final = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.ComplexDoubleStorage": torch.complex128,
    "torch.storage.UntypedStorage": torch.uint8,
}
_TENSOR: Final = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
_TENSOR_WITH_DTYPE: Final = "torch._utils._rebuild_tensor_v3"
_PARAMETER: Final = (
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
)
_WITH_ATTRIBUTES: Final = "torch._tensor._rebuild_from_type_v2"
_DICT: Final = "collections.OrderedDict"
MOST_DIMENSIONS: Final = 64
"""The limit of torch's own operations; a pickle could repeat one long shape any number of times."""
# Allowed only as arguments of `_WITH_ATTRIBUTES`: a call would make a tensor without saved bytes.
_TYPES: Final = ("torch.Tensor", "torch.nn.parameter.Parameter")
_KNOWN: Final = {
    *STORAGES,
    *_TENSOR,
    _TENSOR_WITH_DTYPE,
    *_PARAMETER,
    _WITH_ATTRIBUTES,
    _DICT,
    *_TYPES,
}
NOT_DENSE: Final = {
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_qtensor": "a quantized tensor",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor on the meta device, without data",
    "numpy.core.multiarray._reconstruct": "a NumPy array",
    "numpy._core.multiarray._reconstruct": "a NumPy array",
}
"""Name of another kind of tensor -> its description in a message."""


class LimitError(ValueError):
    """A pickle exceeds a limit; the text names it."""


@dataclass(frozen=True)
class Name:
    """A global that a pickle names: its text, never the object itself."""

    text: str


@dataclass(frozen=True)
class Storage:
    """A storage as a pickle describes it."""

    key: str
    dtype: torch.dtype
    bytes: int


@dataclass(frozen=True, kw_only=True)
class SavedTensor:
    """A tensor as a pickle describes it."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    """Place of its first element in the storage; in elements, like the strides."""
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    negated: bool
    """Its values are the stored ones times -1 (torch's lazy negative bit)."""

    @property
    def ordered(self) -> bool:
        """Whether its elements are stored contiguously, in row-major order."""
        step = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != step:
                return False
            step *= size
        return True

    @property
    def end(self) -> int:
        """The end of its last element in the storage, in bytes."""
        if 0 in self.shape:
            return 0
        last = sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        return (self.offset + last + 1) * self.dtype.itemsize


def is_known(name: str) -> bool:
    """Return whether torch uses this name to save dense tensors and containers."""
    return name in _KNOWN or _dtype(name) is not None


def storage(description: Any) -> Storage:
    """Return the storage that a persistent id of torch describes.

    In the format before zip it ends in a view, which torch has not written since version 0.4.
    Raises `ValueError` or `TypeError`.
    """
    kind, name, key, _, count, *views = description
    if kind != "storage" or type(key) is not str or views not in ([], [None]):
        raise ValueError
    dtype = STORAGES[_text(name)]
    return Storage(key, dtype, _count(count) * dtype.itemsize)


def rebuilt(name: Any, arguments: Any) -> Any:
    """Return what a call of a named function describes.

    Raises `LookupError`, `TypeError` or `ValueError`.
    """
    function = _text(name)
    if type(arguments) is not tuple:
        raise TypeError
    if function == _DICT and not arguments:
        return {}
    if function in _TENSOR:
        return _tensor(*arguments)
    if function == _TENSOR_WITH_DTYPE:
        return _tensor(*arguments[:6], *arguments[7:], dtype=_dtype(_text(arguments[6])))
    if function in _PARAMETER and isinstance(arguments[0], SavedTensor):
        return arguments[0]
    if function == _WITH_ATTRIBUTES:
        inner, kind, parts, _ = arguments
        if _text(kind) in _TYPES and _text(inner) != _WITH_ATTRIBUTES:
            return rebuilt(inner, parts)
    raise ValueError


def _tensor(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    _requires_grad: Any = None,
    _hooks: Any = None,
    metadata: Any = None,
    *,
    dtype: torch.dtype | None = None,
) -> SavedTensor:
    if not isinstance(storage, Storage) or type(shape) is not tuple or type(strides) is not tuple:
        raise TypeError
    if max(len(shape), len(strides)) > MOST_DIMENSIONS:
        raise LimitError(f"a tensor has more than {MOST_DIMENSIONS} dimensions")
    if len(shape) != len(strides):
        raise ValueError
    return SavedTensor(
        storage=storage,
        dtype=dtype or storage.dtype,
        offset=_count(offset),
        shape=tuple(map(_count, shape)),
        strides=tuple(map(_count, strides)),
        negated=isinstance(metadata, dict) and bool(metadata.get("neg")),
    )


def _dtype(name: str) -> torch.dtype | None:
    value = vars(torch).get(name.removeprefix("torch."))
    return value if isinstance(value, torch.dtype) else None


def _text(name: Any) -> str:
    if not isinstance(name, Name):
        raise TypeError
    return name.text


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError
    return value
