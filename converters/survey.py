"""All problems of a builder's folder that show without reading data, reported at once."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from jasper_mmap.errors import (
    ConfigError,
    ContentError,
    FormatError,
    IndexRangeError,
    JasperError,
    MissingFileError,
    NewerFormatError,
    together,
)
from jasper_mmap.files.jsonfile import parsed, read_small
from jasper_mmap.rules.config import CONFIG_FILE
from jasper_mmap.rules.schema import ARTIFACTS
from jasper_mmap.store.config_file import read_config
from jasper_mmap.store.manifest import MANIFEST_FILE
from jasper_mmap.store.table_checks import CONFIG_KEYS, check_form

from .plan import check_files
from .source import open_source

_OF_THE_FOLDER: Final = (
    ConfigError,
    ContentError,
    FormatError,
    IndexRangeError,
    MissingFileError,
)
_SOURCES: Final = frozenset(artifact.source for artifact in ARTIFACTS.values())
_LATER_FORMAT: Final = "dataset.h5"
_DEPTH: Final = 2
"""How deep below a folder the builder's files are searched for."""
_MOST_FOLDERS: Final = 200


@contextmanager
def telling_all(src: Path) -> Iterator[None]:
    """Replace an error of the block by one about all problems of the folder `src` found so."""
    try:
        yield
    except NewerFormatError:  # of the store, not of the folder
        raise
    except _OF_THE_FOLDER as error:
        nothing = _nothing_there(src)
        if nothing is not None:
            raise nothing from None
        problems = list(_problems(src))
        if not any(str(error) in str(problem) for problem in problems):
            problems.append(error)
        raise together(problems) from None


def _problems(src: Path) -> Iterator[JasperError]:
    looks: tuple[Callable[[Path], object], ...] = (check_files, read_config)
    for look in looks:
        try:
            look(src)
        except JasperError as error:
            yield error
    sizes = dict(stated := _stated_sizes(src))
    for artifact in ARTIFACTS.values():
        if artifact.kind == "ragged" or not (src / artifact.source).exists():
            continue
        try:
            source = open_source(artifact, src)
            check_form(artifact, source.checked.dtype, source.shape, sizes, source.where)
        except JasperError as error:
            yield error
        # D and N come from config.json alone: one wrong table must not make the others wrong.
        sizes = {letter: n for letter, n in sizes.items() if letter not in CONFIG_KEYS} | stated


def _stated_sizes(src: Path) -> dict[str, int]:
    """The valid sizes in `config.json`, even if the rest of it is invalid."""
    try:
        raw = parsed(read_small(src / CONFIG_FILE), _once)
        stated = {letter: raw.get(key) for letter, key in CONFIG_KEYS.items()}
    except (OSError, ValueError, AttributeError):
        return {}
    return {letter: n for letter, n in stated.items() if type(n) is int and n > 0}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Drop duplicate keys, since it is unknown which of their values is meant."""
    times = Counter(key for key, _ in pairs)
    return {key: value for key, value in pairs if times[key] == 1}


def _nothing_there(src: Path) -> MissingFileError | None:
    """The error of a folder with none of the builder's files; it suggests where they may be."""
    if _files_in(src) or not os.access(src, os.R_OK):
        return None
    first = next(iter(ARTIFACTS.values())).source
    what = f"{src}: holds none of the builder's files ({first}, ...)"
    below = max(_folders_below(src), key=_files_in, default=src)
    if _files_in(below):
        return MissingFileError(f"{what}, but {below} does; name that folder.")
    if (src / _LATER_FORMAT).exists():
        return MissingFileError(
            f"{what}, but {_LATER_FORMAT}, a later format of the builder that jasper-convert cannot"
            " read. Have the builder write .pt files, or make them with h5py: each table by"
            " torch.save(torch.from_numpy(file[name][:]), name + '.pt'), and pair_keyword_ids as a"
            " list of lists of ints."
        )
    if (src / MANIFEST_FILE).exists():
        return MissingFileError(
            f"{what}: it is a converted store without .pt files, so there is nothing to convert. To"
            f" restore them, run: jasper-convert {src} DST --to-pt"
        )
    return MissingFileError(f"{what}. Correct the path, or let the builder write them there.")


def _files_in(folder: Path) -> int:
    with suppress(OSError):
        return len(_SOURCES.intersection(path.name for path in folder.iterdir()))
    return 0


def _folders_below(folder: Path) -> list[Path]:
    folders, level = [], [folder]
    for _ in range(_DEPTH):
        level = [inner for outer in level for inner in _folders_in(outer)][:_MOST_FOLDERS]
        folders += level
    return folders


def _folders_in(folder: Path) -> list[Path]:
    with suppress(OSError):
        return sorted(p for p in folder.iterdir() if p.is_dir() and not p.is_symlink())
    return []
