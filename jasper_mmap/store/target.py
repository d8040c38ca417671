"""A file that a user names for an answer, checked before the work begins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..errors import ExistsError, MissingFileError, UsageError
from ..files import atomic


def check_target(path: Path, store: Path, kind: str, is_earlier: Callable[[Path], bool]) -> None:
    """Raise a `JasperError` unless a file of a `kind` can be written to `path`.

    It must be outside the `store`, whose files it could replace. A file that `is_earlier`, one of
    the same kind, is replaced; any other is not.
    """
    if store.resolve() in path.resolve().parents:
        raise UsageError(f"{path}: is inside the store {store}; name a file in another folder.")
    with atomic.storage_errors(path):
        atomic.refuse_link(path)
        if path.is_dir():
            raise UsageError(f"{path}: is a folder; name the file to write.")
        if not path.parent.is_dir():
            raise MissingFileError(f"{path.parent}: there is no such folder; make it first.")
        if path.exists() and not (path.is_file() and is_earlier(path)):
            raise ExistsError(
                f"{path}: exists and is no {kind} of jasper-mmap, so it is not replaced. Remove it,"
                " or name another file."
            )
        sibling = atomic.sibling_of(path)  # a folder that cannot be written is told now, not later
        atomic.create(sibling).close()
        atomic.remove(sibling)
