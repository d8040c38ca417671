"""A miner's folder: which of its files hold the negatives, and which their tiers."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ..errors import MissingFileError, UsageError
from ..files.atomic import exists, storage_errors
from ..files.missing_paths import correction
from ..rules import arguments
from ..rules.schema import NEGATIVES

SUFFIXES: Final = (".pt", ".safetensors")
"""Of the files that negatives are read from."""


def files_in(folder: str | Path) -> tuple[Path, Path]:
    """Return the files of the hard negatives and of their tiers in a folder.

    They are named `hard_negatives` and `negative_tiers`, each `.pt` or `.safetensors`. Raises
    `MissingFileError` if the folder or a file is missing, `UsageError` if there are both kinds.
    """
    path = arguments.folder("folder", folder)
    with storage_errors(path, "read"):
        if not path.is_dir():
            if path.exists():
                raise UsageError(
                    f"{path}: is a file. Name the folder of the two files, or give each with"
                    " --negatives and --tiers."
                )
            raise MissingFileError(f"{path} not found{correction(path, folder=True)}")
    first, second = (_only(path, artifact.name) for artifact in NEGATIVES)
    return first, second


def _only(folder: Path, name: str) -> Path:
    candidates = [folder / f"{name}{suffix}" for suffix in SUFFIXES]
    there = [path for path in candidates if exists(path)]
    if len(there) == 1:
        return there[0]
    names = " and ".join(path.name for path in there)
    if there:
        raise UsageError(
            f"{folder}: holds {names}. Remove one of them, or give each file with --negatives and"
            " --tiers."
        )
    either = " or ".join(path.name for path in candidates)
    raise MissingFileError(
        f"{folder}: holds no {either}. Let the miner write it there, or give each file with"
        " --negatives and --tiers."
    )
