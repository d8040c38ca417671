"""`config.json`: what it must hold, checked key by key; unknown keys are kept."""

from __future__ import annotations

import difflib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import AccessError, ConfigError, MissingFileError
from .regular import open_regular
from .schema import VARIANTS

CONFIG_FILE = "config.json"
_CURRICULUM_KEYS = ("zero_prob_start", "zero_prob_end", "epochs_total")


@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """How the probability of zero steering falls (or rises) from epoch to epoch."""

    zero_prob_start: float
    zero_prob_end: float
    epochs_total: int


@dataclass(frozen=True, kw_only=True)
class Config:
    """The checked part of `config.json`, and the whole of it as `raw`."""

    embedding_dim: int
    n_neg: int
    steering_probabilities: dict[str, float]
    """Probability of each variant, in the order of `schema.VARIANTS`; sums to 1."""
    curriculum: Curriculum | None
    raw: dict[str, Any] = field(repr=False)


def read_config(folder: Path) -> Config:
    """Read and check `folder/config.json`.

    Raises `MissingFileError` or `ConfigError`, each naming the file and the key.
    """
    path = folder / CONFIG_FILE
    try:
        with open_regular(path) as file:
            text = file.read().decode()
    except FileNotFoundError:
        raise MissingFileError(
            f"Config file not found: {path}. Copy the builder's {CONFIG_FILE} there."
        ) from None
    except PermissionError:
        raise AccessError(f"{path}: no permission to read it.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    return parse_config(text, path)


def parse_config(text: str, path: Path) -> Config:
    """Check the text of a `config.json`; `path` is only named in errors."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen:
                raise ConfigError(f"{path}: the key {key!r} stands there twice; remove one.")
            seen[key] = value
        return seen

    try:
        raw = json.loads(text, object_pairs_hook=unique)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: must hold a JSON object, found {type(raw).__name__}.")

    required = ("embedding_dim", "n_neg", "steering_probabilities")
    _check_keys(raw, required, path, optional=("curriculum",))
    return Config(
        embedding_dim=_integer(raw, "embedding_dim", path),
        n_neg=_integer(raw, "n_neg", path),
        steering_probabilities=_probabilities(raw["steering_probabilities"], path),
        curriculum=_curriculum(raw["curriculum"], path) if "curriculum" in raw else None,
        raw=raw,
    )


def _check_keys(
    found: dict[str, Any],
    required: tuple[str, ...],
    path: Path,
    *,
    within: str = "",
    optional: tuple[str, ...] = (),
) -> None:
    unknown = [k for k in found if k not in required and k not in optional]
    for key in required + optional:
        if key in found:
            continue
        close = difflib.get_close_matches(key, unknown, n=1, cutoff=0.8)
        if close:
            raise ConfigError(f"{path}: {within}{close[0]!r} looks misspelt: rename it to {key!r}.")
        if key in required:
            raise ConfigError(f"{path}: the key {within}{key!r} is missing; add it.")


def _object(value: Any, name: str, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: {name!r} must be an object, found {value!r}.")
    return value


def _integer(found: dict[str, Any], key: str, path: Path, within: str = "") -> int:
    value = found[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(
            f"{path}: {within}{key!r} must be a whole number of at least 1, found {value!r}."
        )
    return value


def _probability(found: dict[str, Any], key: str, path: Path, within: str) -> float:
    value = found[key]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not 0 <= value <= 1:
        raise ConfigError(f"{path}: {within}{key!r} must be between 0 and 1, found {value!r}.")
    return float(value)


def _probabilities(value: Any, path: Path) -> dict[str, float]:
    found = _object(value, "steering_probabilities", path)
    within = "steering_probabilities."
    _check_keys(found, VARIANTS, path, within=within)
    probabilities = {v: _probability(found, v, path, within) for v in VARIANTS}
    total = math.fsum(probabilities.values())
    if not math.isclose(total, 1.0, abs_tol=1e-6):
        raise ConfigError(
            f"{path}: the four 'steering_probabilities' must sum to 1, found {total:.8g}."
        )
    return probabilities


def _curriculum(value: Any, path: Path) -> Curriculum:
    found = _object(value, "curriculum", path)
    within = "curriculum."
    _check_keys(found, _CURRICULUM_KEYS, path, within=within)
    return Curriculum(
        zero_prob_start=_probability(found, "zero_prob_start", path, within),
        zero_prob_end=_probability(found, "zero_prob_end", path, within),
        epochs_total=_integer(found, "epochs_total", path, within),
    )
