"""Checks of one table: its form (dtype and shape), and its values as they are streamed.

Used by the converter, by `verify`, at open and when publishing. Shape letters as in `schema`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import ContentError, ContentTypeError, FormatError, IndexRangeError, JasperError
from ..files.safetensors import chunks
from ..rules.schema import ARTIFACTS, FLOAT_DTYPES, INT_DTYPES, Artifact, concrete

Range = tuple[float, float]

_INFINITE: Final = float.fromhex("0x1.ffffffp+127")
"""The smallest float64 that becomes infinite as float32."""

_DTYPES: Final = {"float": FLOAT_DTYPES, "int": INT_DTYPES, "ragged": INT_DTYPES}
CONFIG_KEYS: Final = {"D": "embedding_dim", "N": "n_neg"}
"""Shape letter -> its key in `config.json`."""
_FIRST_WITH: Final[dict[str | int, str]] = {}
for _a in ARTIFACTS.values():
    if _a.split is None:  # the length of a split is its own
        _FIRST_WITH.setdefault(_a.shape[0], _a.name)


def check_form(
    artifact: Artifact,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    sizes: dict[str, int],
    where: str,
) -> None:
    """Raise unless a table of this dtype and shape can be `artifact`.

    `sizes` has the letters known so far (D and N from the start); this adds those that the table
    defines, so check the artifacts in the order of `ARTIFACTS`. The shape of a ragged list is
    (rows,). Raises `ContentTypeError` or `ContentError`.
    """
    letters = ", ".join(str(d) for d in artifact.shape)
    if dtype not in _DTYPES[artifact.kind]:
        kind = "floating-point numbers" if artifact.kind == "float" else "integers"
        remedy = "Save it again with such a dtype."
        if dtype == torch.bool and artifact.split:
            remedy = "Save the pair numbers of the mask: mask.nonzero().flatten()."
        raise ContentTypeError(
            f"{where}: {artifact.name} holds {_bare(dtype)}; it must hold {kind}. {remedy}"
        )
    if len(shape) != len(artifact.shape):
        raise ContentError(
            f"{where}: {artifact.name} has {len(shape)} dimensions, {list(shape)}; it must be"
            f" [{letters}]. Save it again in that shape."
        )
    for axis, (size, expected) in enumerate(
        zip(shape, concrete(artifact.shape, sizes), strict=True)
    ):
        if expected is not None and size != expected:
            raise ContentError(
                f"{where}: {artifact.name} [{letters}] has {size} {('rows', 'columns')[axis]},"
                f" but {_origin(artifact.shape[axis], expected)}. Correct whichever is wrong."
            )
    if artifact.split == "train" and shape[0] == 0:
        raise ContentError(
            f"{where}: {artifact.name} is empty; the train split needs at least one pair."
        )
    for letter, size in zip(artifact.shape, shape, strict=True):
        if isinstance(letter, str) and _FIRST_WITH.get(letter) == artifact.name:
            sizes[letter] = size


def _origin(letter: str | int, size: int) -> str:
    if isinstance(letter, int):
        return f"it must have {size}"
    if letter in CONFIG_KEYS:
        return f"{CONFIG_KEYS[letter]!r} in config.json is {size}"
    return f"{_FIRST_WITH[letter]} has {size} rows"


def _bare(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_offsets(offsets: torch.Tensor, n_values: int, where: str) -> None:
    """Raise `FormatError` unless `offsets` [rows + 1] divides `n_values` values into rows."""
    sound = len(offsets) > 0 and int(offsets[0]) == 0 and int(offsets[-1]) == n_values
    # Compares neighbours by slices: torch.diff would allocate a third array of this length.
    if not sound or not all(bool((c[:, 1] >= c[:, 0]).all()) for c in chunks(_pairs(offsets))):
        raise FormatError(
            f"{where}: its row offsets must rise from 0 to {n_values}; convert again."
        )


def _pairs(offsets: torch.Tensor) -> torch.Tensor:
    return offsets.unfold(0, 2, 1) if len(offsets) > 1 else offsets.new_empty((0, 2))


class TableCheck:
    """Checks the values of one table, fed in row order, and records their ranges and counts.

    Integers must be row numbers of the tables they refer to, or within fixed bounds. Floats must be
    finite unless `allow_nonfinite` (then nonfinite ones are counted and exempt from bounds). Tables
    without bounds must be finite as float32 too, the dtype of batches, unless `allow_beyond` (then
    those values are counted separately). `sizes` has the letters of the tables referred to. `where`
    names the file in errors. Of a ragged list, feed the values; with `offsets`, errors name row and
    element. Raises `IndexRangeError` or `ContentError` naming row, column and value.
    """

    def __init__(
        self,
        artifact: Artifact,
        sizes: Mapping[str, int],
        where: str,
        *,
        offsets: torch.Tensor | None = None,
        allow_nonfinite: bool = False,
        allow_beyond: bool = False,
    ) -> None:
        self.nonfinite = 0
        self.beyond_float32 = 0
        self._artifact = artifact
        self._where = where
        self._offsets = offsets
        self._allow_nonfinite = allow_nonfinite
        self._allow_beyond = allow_beyond
        self._limits = _limits(artifact, sizes)
        self._seen: list[Range] = []
        self._row = 0
        self._width = 1

    @property
    def ranges(self) -> tuple[Range, ...]:
        """The ranges of the finite values fed so far, as `Entry.ranges`."""
        return tuple(self._seen)

    def feed(self, rows: torch.Tensor) -> None:
        """Check the next rows [n,...], shaped like the artifact after the first dimension."""
        self._width = math.prod(rows.shape[1:])
        if rows.numel() and rows.dtype.is_floating_point:
            self._feed_floats(rows)
        elif rows.numel():
            self._feed_ints(rows.numpy())  # torch has no minimum of uint16, uint32 and uint64
        self._row += len(rows)

    def _feed_ints(self, values: NDArray[Any]) -> None:
        columns = values.T if len(self._limits) > 1 else [values]
        spans = [(int(c.min()), int(c.max())) for c in columns]
        if not _within(spans, self._limits):
            lows, highs = np.array(self._limits).T
            at = int(((values < lows) | (values > highs)).argmax())
            self._refuse(at, int(values.flat[at]))
        self._see(spans)

    def _feed_floats(self, rows: torch.Tensor) -> None:
        all_rows = rows
        low, high = (x.item() for x in torch.aminmax(rows))  # NaN propagates to both
        if not (math.isfinite(low) and math.isfinite(high)):
            finite = torch.isfinite(rows)
            if not self._allow_nonfinite:
                self._refuse_float(rows, ~finite)
            self.nonfinite += int((~finite).sum())
            rows = torch.where(finite, rows, rows[finite][:1] if finite.any() else torch.nan)
            low, high = (x.item() for x in torch.aminmax(rows))
        if math.isnan(low):
            return
        if not self._limits:
            if max(-low, high) >= _INFINITE:
                self._see_beyond(all_rows)
            return
        if not _within([(low, high)], self._limits):
            least, most = self._limits[0]
            at = _first((rows < least) | (rows > most))
            self._refuse(at, rows.reshape(-1)[at].item())
        self._see([(low, high)])

    def _see_beyond(self, rows: torch.Tensor) -> None:
        beyond = torch.isfinite(rows) & (rows.abs() >= _INFINITE)
        if not self._allow_beyond:
            self._refuse_float(rows, beyond, ", which is infinite as float32, the dtype of batches")
        self.beyond_float32 += int(beyond.sum())

    def _refuse_float(self, rows: torch.Tensor, bad: torch.Tensor, why: str = "") -> NoReturn:
        at = _first(bad)
        raise ContentError(
            f"{self._where}: {self._artifact.name} holds {rows.reshape(-1)[at].item()} in"
            f" {self._place(at)}{why}. Correct it, or convert with --allow-nonfinite"
            " (allow_nonfinite=True) to keep such values."
        )

    def _see(self, spans: Sequence[Range]) -> None:
        before = self._seen or spans
        self._seen = [
            (min(a[0], b[0]), max(a[1], b[1])) for a, b in zip(before, spans, strict=True)
        ]

    def _refuse(self, at: int, value: float) -> NoReturn:
        many = len(self._limits) > 1
        column = at % len(self._limits) if many else 0
        raise _outside(
            self._artifact, column, value, self._limits[column], self._place(at), self._where
        )

    def _place(self, at: int) -> str:
        """The place in the whole table of element `at` of the rows being fed."""
        if self._offsets is not None:
            value = self._row + at
            row = int(torch.searchsorted(self._offsets, value, right=True)) - 1
            return f"row {row}, element {value - int(self._offsets[row])}"
        row, column = divmod(at, self._width)
        place = f"row {self._row + row}"
        return place if len(self._artifact.shape) == 1 else f"{place}, column {column}"


def check_ranges(
    artifact: Artifact, ranges: Sequence[Range], sizes: Mapping[str, int], where: str
) -> None:
    """Check an unchanged table by its recorded value ranges, since the tables it refers to may have
    changed. Raises `IndexRangeError` naming column and value."""
    for column, (seen, limit) in enumerate(zip(ranges, _limits(artifact, sizes), strict=False)):
        if not _within([seen], [limit]):
            value = seen[0] if seen[0] < limit[0] else seen[1]
            place = f"column {column}" if len(ranges) > 1 else "some row"
            raise _outside(artifact, column, value, limit, place, where)


def _limits(artifact: Artifact, sizes: Mapping[str, int]) -> list[Range]:
    """Inclusive bounds: one for the whole table, or one for each column; [] if it has none."""
    if artifact.refers:
        return [(0, sizes[str(ARTIFACTS[table].shape[0])] - 1) for table in artifact.refers]
    if artifact.low is not None and artifact.high is not None:
        return [(artifact.low, artifact.high)]
    return []


def _within(spans: Sequence[Range], limits: Sequence[Range]) -> bool:
    return all(
        low >= least and high <= most
        for (low, high), (least, most) in zip(spans, limits, strict=True)
    )


def _first(bad: torch.Tensor) -> int:
    return int(bad.reshape(-1).to(torch.uint8).argmax())


def _outside(
    artifact: Artifact, column: int, value: float, limit: Range, place: str, where: str
) -> JasperError:
    if not artifact.refers:
        shown = str(value) if isinstance(value, int) else f"{value:.9g}"
        return ContentError(
            f"{where}: {artifact.name} holds {shown} in {place}; it must be {limit[0]:g} to"
            f" {limit[1]:g}. Correct the file and run it again."
        )
    table = artifact.refers[column]
    row_of = table.removesuffix("_embs").removesuffix("_index")
    who = (
        f"Split indices reference {row_of}"
        if artifact.split
        else (f"{artifact.name} references {row_of}")
    )
    remedy = "Correct whichever file is wrong and run it again."
    if value == -1 and artifact.kind == "ragged":
        remedy = "-1 is not padding: remove it, lists may be short or empty."
    elif value == -1 and "N" in artifact.shape:
        remedy = "-1 is not padding: give every row n_neg sources, or choose a smaller n_neg."
    elif value < 0:
        remedy = "Negative numbers do not count from the end: correct the file and run it again."
    return IndexRangeError(
        f"{where}: {who} {value} in {place}, but {table} has {limit[1] + 1} rows, so it must be 0"
        f" to {limit[1]}. {remedy}"
    )
