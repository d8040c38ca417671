"""`config.json` on disk: read within limits, and checked by `rules.config`."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Final

from ..errors import ConfigError, MissingFileError, together
from ..files.atomic import storage_errors
from ..files.jsonfile import parsed, read_small
from ..rules.config import CONFIG_FILE, Config, check_config

_MOST_DIGITS: Final = 1000
"""More than usual, so that a huge number is reported as too large for its key."""
_NAMED: Final = 1000
"""Limit of the duplicate keys that are reported."""


def read_config(folder: Path) -> Config:
    """Read and check `folder/config.json`.

    Raises `MissingFileError` or `ConfigError`, each naming the file and the key.
    """
    path = folder / CONFIG_FILE
    try:
        with storage_errors(path, "read"):
            data = read_small(path)
        text = data.decode("utf-8")
    except MissingFileError:
        raise MissingFileError(
            f"Config file not found: {path}. Copy the builder's {CONFIG_FILE} there."
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    return parse_config(text, path, sha256=hashlib.sha256(data).hexdigest())


def parse_config(text: str, path: Path, *, sha256: str = "") -> Config:
    """Check the text of a `config.json`; `path` names it in errors.

    Raises one `ConfigError` with a line for each problem.
    """
    twice: dict[str, None] = {}

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen:
                twice[key] = None
            seen[key] = value
        return seen

    try:
        raw = parsed(text, unique, most_digits=_MOST_DIGITS)
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: must hold a JSON object, found {type(raw).__name__}.")
    if twice:  # it is unknown which of the values is meant, so none is checked
        raise together(
            [
                ConfigError(f"{path}: duplicate key {k!r:.80}; remove one of the two.")
                for k in list(twice)[:_NAMED]
            ]
        )
    return check_config(raw, path, sha256=sha256)
