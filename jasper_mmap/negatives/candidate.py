"""A candidate for the next generation: copied, checked and counted before anything is written.

Shape letters as in `schema`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from ..errors import (
    ContentError,
    ContentTypeError,
    FormatError,
    MissingFileError,
    StorageError,
)
from ..files.atomic import own_folder, storage_errors, write_all
from ..files.failures import TEMPORARY
from ..files.missing_paths import correction
from ..files.pt.reader import read_pt
from ..files.regular_files import open_regular
from ..files.safetensors import CHUNK_BYTES, chunks, few, map_tensors
from ..files.stamp import Stamp
from ..rules.arguments import number
from ..rules.schema import ARTIFACTS, NEGATIVES
from ..similarity.reports.report import GenerationLint
from ..store.folder import Store
from ..store.lint import MEANING, count_unsuitable, equal
from ..store.pointer import FOLDER
from ..store.table_checks import TableCheck, check_form
from ..store.tables import table_tensor

Given = torch.Tensor | str | Path
"""A tensor [N_p,N], or the path of a `.pt` or `.safetensors` file that holds one."""


_WIDEST_BYTES: Final = 8
_VIEWED: Final = 16
"""How many times larger than its table a file may be: the table may be a view of a larger one."""
_ROOM: Final = 16 << 20


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A generation's tables, checked for one store; it has no number yet."""

    tables: dict[str, torch.Tensor]
    lint: dict[str, int]
    source: dict[str, Any]
    """As `Pointer.source`: the stamps, if both are the builder's files."""
    files: tuple[str, ...] = ()
    """The paths that the tables were read from."""
    similarity: GenerationLint | None = None
    """The lint of the similarities, if it ran."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """The summary of that for the history."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Shares of rows (0 to 1) above which publishing is refused; None is no limit."""

    max_false_negatives: float | None = None
    max_own_source: float | None = None
    max_repeats: float | None = None
    max_changed: float | None = None
    max_margin_false_negatives: float | None = None
    max_eval_sources: float | None = None

    def __post_init__(self) -> None:
        for name, share in vars(self).items():
            if share is not None:
                number(f"{name} (a share of rows)", share, 0.0, 1.0)

    @property
    def need_similarity(self) -> bool:
        """Whether a limit concerns the similarities."""
        return (self.max_margin_false_negatives, self.max_eval_sources) != (None, None)

    def check_similarity(self, lint: GenerationLint) -> None:
        """Raise `ContentError` if the lint of the similarities exceeds a limit."""
        for meaning, rows, limit in (
            (
                "rows contain a negative that is too similar to the question, by the margin",
                lint.margin_false.rows,
                self.max_margin_false_negatives,
            ),
            (
                "rows of train contain a source that is right for val or test pairs only",
                lint.evaluation_sources.rows,
                self.max_eval_sources,
            ),
        ):
            _check_share(meaning, rows.count, rows.of, limit)

    def check(self, lint: Mapping[str, int], changed_rows: int | None, n_pairs: int) -> None:
        """Raise `ContentError` if a count exceeds its limit."""
        limits = {
            "false_negative_rows": self.max_false_negatives,
            "own_source_rows": self.max_own_source,
            "repeat_rows": self.max_repeats,
        }
        counts = [(MEANING[name], lint[name], limit) for name, limit in limits.items()]
        changed = "rows differ from the current generation"
        for meaning, count, limit in [*counts, (changed, changed_rows or 0, self.max_changed)]:
            _check_share(meaning, count, n_pairs, limit)


def _check_share(meaning: str, count: int, of: int, limit: float | None) -> None:
    if limit is not None and count > limit * of:
        raise ContentError(
            f"refused: {count} of {of} {meaning} ({count / of:.2%}); the limit is {limit:.2%}. Mine"
            " the negatives again, or raise the limit."
        )


def take_in(
    store: Store,
    hard_negatives: Given,
    negative_tiers: Given,
    *,
    builder: Path | None = None,
    allow_equal: bool = False,
    copies_in_store: bool = True,
) -> Candidate:
    """Read and check both tables; raises a `JasperError` naming file, row, column and value.

    `builder` is the folder of the builder's files, if that is not the store. Files are copied
    first: beside the generations, or, where nothing may be written into the store, among the
    system's temporary files.
    """
    tables, where, stamps = {}, {}, {}
    sizes = store.negatives_sizes
    frozen: list[tuple[Path, Stamp]] = []
    copies = store.path / FOLDER if copies_in_store else None
    for artifact, given in zip(NEGATIVES, (hard_negatives, negative_tiers), strict=True):
        name = artifact.name
        if not isinstance(given, str | Path):
            tables[name], where[name] = _plain(given, f"{name} (as given)"), f"{name} (as given)"
            continue
        path = Path(given).absolute()
        tables[name], stamp = _frozen(path, name, copies, sizes)
        where[name] = str(path)
        frozen.append((path, stamp))
        if path == (builder or store.path) / artifact.source:
            stamps[name] = stamp.to_dict()
    for path, stamp in frozen:
        _unchanged(path, stamp)  # else the first could be of the previous pair
    pair_index = table_tensor(store.tables["pair_index"])
    lint = examine(tables, where, pair_index, sizes, allow_equal=allow_equal)
    source = stamps if len(stamps) == len(tables) else {}
    files = tuple(str(path) for path, _ in frozen)
    return Candidate(tables=tables, lint=lint, source=source, files=files)


def examine(
    tables: Mapping[str, torch.Tensor],
    where: Mapping[str, str],
    pair_index: torch.Tensor,
    sizes: Mapping[str, int],
    *,
    allow_equal: bool,
) -> dict[str, int]:
    """Check form and values of negatives and tiers [N_p,N]; return `count_unsuitable` of them.

    Equal tables are an error unless `allow_equal`. `where` has the name of each table for errors.
    """
    for artifact in NEGATIVES:
        table = tables[artifact.name]
        check_form(artifact, table.dtype, tuple(table.shape), dict(sizes), where[artifact.name])
    # Before the values, where negatives given as tiers would fail with a less helpful error.
    if not allow_equal and equal(*(tables[a.name] for a in NEGATIVES)):
        raise ContentError(
            f"{' and '.join(where[a.name] for a in NEGATIVES)} hold the same values, so one of them"
            " was probably given twice. Give the negatives and their own tiers, or allow it with"
            " --allow-equal (allow_equal=True)."
        )
    for artifact in NEGATIVES:
        check = TableCheck(artifact, sizes, where[artifact.name])
        for rows in chunks(tables[artifact.name]):
            check.feed(rows)
    return count_unsuitable(pair_index, tables["hard_negatives"], sizes["N_s"])


def _frozen(
    path: Path, name: str, copies: Path | None, sizes: Mapping[str, int]
) -> tuple[torch.Tensor, Stamp]:
    """Return the table `name` of a file and the stamp of the state that was read.

    Reads a nameless copy in the folder `copies`, or among temporary files: a miner that rewrites a
    mapped file would end this process (SIGBUS), or change values that were already checked.
    """
    try:
        before = Stamp.of(path)
    except MissingFileError:
        raise MissingFileError(f"{path} not found{correction(path)}") from None
    _check_size(path, before.bytes, name, sizes)
    if copies is None:
        folder = _temporary_folder()
    else:
        folder = copies
        own_folder(folder)
    # On a file system that needs a name after all, `atomic.sweep` recognises this one.
    temporary = {"prefix": ".incoming", "suffix": TEMPORARY}
    with (
        storage_errors(folder),
        tempfile.TemporaryFile(buffering=0, dir=folder, **temporary) as copy,
    ):
        with storage_errors(path, "read"), open_regular(path) as file:
            _copy(file, before.bytes, copy, folder)
        _unchanged(path, before)
        # The mapping keeps the copy alive when its descriptor is closed.
        return _read(path, name, Path(f"/dev/fd/{copy.fileno()}")), before


def _temporary_folder() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        raise StorageError(
            "there is no folder for temporary files, which copies of the given files need. Name a"
            " writable one in the environment variable TMPDIR."
        ) from None


def _copy(file: BufferedReader, left: int, copy: FileIO, folder: Path) -> None:
    """Copy the first `left` bytes, no more if the file grows meanwhile; errors of writing name
    `folder`."""
    while piece := file.read(min(left, CHUNK_BYTES)):
        left -= len(piece)
        with storage_errors(folder):
            write_all(copy, piece)


def _check_size(path: Path, n_bytes: int, name: str, sizes: Mapping[str, int]) -> None:
    """Raise `ContentError` if a file is far too large for a table of this store: its copy could
    fill the disk."""
    with storage_errors(path, "read"):
        open_regular(path).close()  # other kinds of files have no meaningful size
    table = sizes["N_p"] * sizes["N"] * _WIDEST_BYTES
    limit = _ROOM + _VIEWED * table
    if n_bytes > limit:
        raise ContentError(
            f"{path}: has {n_bytes} bytes, but {name} [{sizes['N_p']}, {sizes['N']}] needs at most"
            f" {table}, and the limit is {limit}. Give the file of {name}; if it is a view of a"
            " larger tensor, save a copy (torch.save(view.clone(), ...))."
        )


def _unchanged(path: Path, since: Stamp) -> None:
    if Stamp.of(path) != since:
        raise FormatError(f"{path}: changed while being read; publish it when the miner is done.")


def _read(path: Path, name: str, at: Path) -> torch.Tensor:
    if path.suffix != ".safetensors":
        return _plain(read_pt(path, at=at), str(path))
    tensors = map_tensors(path, at=at).tensors
    if name in tensors:
        return tensors[name]
    if len(tensors) != 1:
        raise ContentError(
            f"{path}: must hold a tensor named {name}, or a single tensor, found {few(tensors)}."
            " Save it under that name."
        )
    ((saved_as, table),) = tensors.items()
    if saved_as in ARTIFACTS:
        raise ContentError(
            f"{path}: must hold {name}, but its tensor is named {saved_as}. Give the file of"
            f" {name}, or save the tensor under its own name."
        )
    return table


def _plain(value: Any, where: str) -> torch.Tensor:
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
        kind = type(value)
        name = f"{kind.__module__}.{kind.__name__}".removeprefix("builtins.")
        remedy = "Give the tensor itself, or the path of a .pt or .safetensors file."
        if isinstance(value, np.ndarray):
            remedy = "Give torch.from_numpy(array)."
        elif isinstance(value, torch.Tensor):
            name, remedy = f"a tensor of layout {value.layout}", "Give tensor.to_dense()."
        elif isinstance(value, list | tuple):
            remedy = "Give torch.tensor(rows)."
        raise ContentTypeError(f"{where}: must be one dense tensor [N_p, N], not {name}. {remedy}")
    return value.detach().cpu().resolve_neg()
