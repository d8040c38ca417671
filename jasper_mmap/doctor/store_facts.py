"""The facts of a store: its files, and what the file system that it is on can do."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ..errors import JasperError
from ..files.atomic import storage_errors
from ..files.missing_paths import must_be_folder
from ..store.folder import not_renewable
from ..store.manifest import MANIFEST_FILE, read_manifest
from ..store.pointer import FOLDER, POINTER, read_pointer
from . import processes
from .facts import Sharing, StoreFacts
from .mounts import mount_of

_OTHERS_READ = stat.S_IRGRP | stat.S_IROTH
_OTHERS_ENTER = stat.S_IXGRP | stat.S_IXOTH


def store_facts(folder: Path, mountinfo: Path) -> StoreFacts:
    """Look at a store. Raises `MissingFileError` if there is no such folder."""
    must_be_folder(folder)
    files, problems = _files(folder)
    shared, sharing_error = _sharing([folder / name for name in files] if not problems else [])
    excludes, lock_error = _lock(folder)
    return StoreFacts(
        path=folder,
        mount=mount_of(folder, mountinfo),
        nbytes=sum(files.values()) if files else None,
        problems=tuple(problems),
        closed_to_others=tuple(_closed(folder, files)),
        group_writes=_group_writes(folder / FOLDER),
        sharing=shared,
        sharing_error=sharing_error,
        lock_excludes=excludes,
        lock_error=lock_error,
    )


def _files(folder: Path) -> tuple[dict[str, int], list[str]]:
    """Return the served files with the bytes that each should have, and what is wrong."""
    files: dict[str, int] = {}
    problems: list[str] = []
    try:
        files = {e.file: e.bytes for e in read_manifest(folder).artifacts.values()}
    except JasperError as error:
        problems.append(str(error))
    try:
        pointer = read_pointer(folder)
        files[f"{FOLDER}/{pointer.file}"] = pointer.bytes
    except JasperError as error:
        if not problems:
            problems.append(str(error))
    for name, size in files.items():
        path = folder / name
        try:
            with storage_errors(path, "read"), path.open("rb") as file:
                actual = os.fstat(file.fileno()).st_size
        except JasperError as error:
            problems.append(str(error))
            continue
        if actual != size:
            problems.append(f"{path}: has {actual:,} bytes, not {size:,}; copy or convert it again")
    return files, problems


def _closed(folder: Path, files: dict[str, int]) -> Iterator[str]:
    """Yield what neither the group nor others may read."""
    for name in ("", FOLDER, MANIFEST_FILE, "config.json", f"{FOLDER}/{POINTER}", *files):
        try:
            mode = (folder / name).stat().st_mode
        except OSError:
            continue  # said elsewhere
        needed = _OTHERS_ENTER if stat.S_ISDIR(mode) else _OTHERS_READ
        if not mode & needed:
            yield name or str(folder)


def _group_writes(folder: Path) -> bool:
    try:
        return bool(folder.stat().st_mode & stat.S_IWGRP)
    except OSError:
        return False


def _sharing(files: list[Path]) -> tuple[Sharing | None, str | None]:
    if not files:
        return None, None
    try:
        return processes.sharing(files), None
    except (JasperError, OSError) as error:
        return None, str(error)


def _lock(folder: Path) -> tuple[bool | None, str | None]:
    if (reason := not_renewable(folder)) is not None:
        return None, reason
    try:
        return processes.lock_excludes(folder / FOLDER), None
    except (JasperError, OSError) as error:
        return None, str(error)
