"""The content of `config.json`, checked key by key; unknown keys are kept."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..errors import ConfigError, together
from .names import VARIANTS, Variant

CONFIG_FILE = "config.json"
# The earlier implementation's defaults for missing keys of `curriculum`.
_CURRICULUM: Final = {"zero_prob_start": 0.5, "zero_prob_end": 0.1, "epochs_total": 100}
_COMPARED: Final = 1000
"""Limit of the keys that are searched for a misspelling: comparing takes long."""
_LIKE: Final = 0.8
"""How similar a key must be to a missing one to count as its misspelling."""


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
    steering_probabilities: dict[Variant, float]
    """Probability of each variant, in the order of `names.VARIANTS`; sums to 1."""
    curriculum: Curriculum | None
    curriculum_by_default: bool = False
    """`curriculum` has none of the known keys: the earlier implementation's defaults apply."""
    sha256: str = ""
    """The checksum of the file."""
    raw: dict[str, Any] = field(repr=False)


def check_config(raw: dict[str, Any], path: Path, *, sha256: str = "") -> Config:
    """Check the content of a `config.json`; `path` is only named in errors.

    Raises one `ConfigError` with a line for each problem.
    """
    check = _Check(path)
    check.keys(raw, ("embedding_dim", "n_neg", "steering_probabilities"), optional=("curriculum",))
    dim, n_neg = (check.integer(raw, key) for key in ("embedding_dim", "n_neg"))
    probabilities = check.probabilities(raw)
    curriculum, by_default = check.curriculum(raw)
    if check.problems:
        raise together(check.problems)
    return Config(
        embedding_dim=dim,
        n_neg=n_neg,
        steering_probabilities=probabilities,
        curriculum=curriculum,
        curriculum_by_default=by_default,
        sha256=sha256,
        raw=raw,
    )


def default_curriculum(config: Config) -> str | None:
    """A note if the earlier implementation's curriculum applies, else None."""
    if not config.curriculum_by_default:
        return None
    values = ", ".join(f"{key} {value}" for key, value in _CURRICULUM.items())
    return (
        f"{CONFIG_FILE}: 'curriculum' has none of the keys {', '.join(_CURRICULUM)}, so the"
        f" defaults of the earlier implementation apply: {values}. Set them explicitly."
    )


class _Check:
    """Collects the problems of one configuration. An invalid value is replaced by 0."""

    def __init__(self, path: Path) -> None:
        self.problems: list[ConfigError] = []
        self._path = path

    def _refuse(self, message: str) -> None:
        self.problems.append(ConfigError(f"{self._path}: {message}"))

    def keys(
        self,
        section: dict[str, Any],
        required: tuple[str, ...],
        *,
        within: str = "",
        optional: tuple[str, ...] = (),
        defaults: dict[str, float] | None = None,
    ) -> None:
        """Report missing keys, and the misspelt name under which one may be present."""
        for key in required + optional:
            if key in section:
                continue
            unknown = [k for k in section if k not in required and k not in optional][:_COMPARED]
            was = f" (the earlier implementation used {defaults[key]})" if defaults else ""
            close = _misspelling(key, unknown)
            if close is not None:
                self._refuse(f"{_named(close, within)} looks misspelt: rename it to {key!r}{was}.")
            elif key in required:
                self._refuse(f"the key {_named(key, within)} is missing{was}; add it.")

    def integer(
        self, section: dict[str, Any], key: str, *, within: str = "", least: int = 1
    ) -> int:
        value = section.get(key, least)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            self._refuse(
                f"{_named(key, within)} must be an integer >= {least}, found {value!r:.80}."
            )
            return 0
        return value

    def probability(self, section: dict[str, Any], key: str, within: str) -> float:
        value = section.get(key, 0.0)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value <= 1:
            self._refuse(f"{_named(key, within)} must be between 0 and 1, found {value!r:.80}.")
            return 0.0
        return float(value)

    def _object(self, section: dict[str, Any], key: str) -> dict[str, Any] | None:
        """The object under `key`; None if it is missing or, with an error reported, no object."""
        value = section.get(key)
        if isinstance(value, dict):
            return value
        if key in section:
            self._refuse(f"{key!r} must be an object, found {value!r:.80}.")
        return None

    def probabilities(self, raw: dict[str, Any]) -> dict[Variant, float]:
        section = self._object(raw, "steering_probabilities")
        if section is None:
            return {}
        before, within = len(self.problems), "steering_probabilities"
        self.keys(section, VARIANTS, within=within)
        probabilities = {v: self.probability(section, v, within) for v in VARIANTS}
        total = math.fsum(probabilities.values())
        if len(self.problems) == before and not math.isclose(total, 1.0, abs_tol=1e-6):
            self._refuse(f"the four 'steering_probabilities' must sum to 1, found {total:.8g}.")
        return probabilities

    def curriculum(self, raw: dict[str, Any]) -> tuple[Curriculum | None, bool]:
        """The curriculum, if any, and whether it has the earlier implementation's defaults."""
        if raw.get("curriculum") in (None, {}):
            return None, False
        section = self._object(raw, "curriculum")
        if section is None:
            return None, False
        within, known = "curriculum", tuple(_CURRICULUM)
        by_default = not any(key in section for key in known)
        if by_default:  # a misspelt key is reported all the same
            self.keys(section, (), within=within, optional=known, defaults=_CURRICULUM)
            section = dict(_CURRICULUM)
        else:
            self.keys(section, known, within=within, defaults=_CURRICULUM)
        total = section.get("epochs_total")
        if isinstance(total, float) and total.is_integer():
            section = {**section, "epochs_total": int(total)}
        curriculum = Curriculum(
            zero_prob_start=self.probability(section, "zero_prob_start", within),
            zero_prob_end=self.probability(section, "zero_prob_end", within),
            epochs_total=max(1, self.integer(section, "epochs_total", within=within, least=0)),
        )
        return curriculum, by_default


def _named(key: str, within: str) -> str:
    return f"{key!r:.80} in {within!r}" if within else f"{key!r:.80}"


def _misspelling(key: str, unknown: list[str]) -> str | None:
    """The unknown key that is probably `key`, if any: a similar one, or the same words."""
    words = {k: sorted(k.lower().replace("-", "_").split("_")) for k in unknown}
    same = [k for k, parts in words.items() if parts == sorted(key.split("_"))]
    return next(iter(same or difflib.get_close_matches(key, unknown, n=1, cutoff=_LIKE)), None)
