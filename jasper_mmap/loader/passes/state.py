"""The state of a loader: how far its pass is, in plain numbers and strings.

It is the same on every rank, whatever the number of ranks and workers and the batch size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Self

from ...dataset.dataset import JASPERSteeringDataset
from ...errors import JasperError, StoreChangedError, UsageError
from ...rules.arguments import integer
from ...store.pointer import MAX_GENERATION

_LIKE: Final = {
    "split": "split={!r}",
    "pairs": "a store whose split has {!r} pairs",
    "seed": "seed={!r}",
}
"""Key of a state -> how to describe the loader that matches it."""
_KEYS: Final = (*_LIKE, "epoch", "pass", "consumed")
"""The keys of a state of any version."""


@dataclass(frozen=True, kw_only=True)
class State:
    """A place in the passes of one loader, and what is served there."""

    split: str
    pairs: int
    seed: int
    store_id: str | None
    """None in a state of version 0.1.0."""
    epoch: int
    number: int
    """Number of the pass in its epoch."""
    consumed: int
    """How many samples of the pass all ranks together have returned."""
    following: int
    """Number of the pass after it."""
    generation: int | None
    sha256: str | None
    """Of the generation's file; None in a state of version 0.1.0."""

    @property
    def place(self) -> State:
        """The state without the generation."""
        return replace(self, generation=None, sha256=None)

    def to_dict(self) -> dict[str, Any]:
        """Return the state as users save it, less than 1 kB of integers and strings."""
        fields = asdict(self)
        names = {"number": "pass", "following": "next_pass", "sha256": "generation_sha256"}
        return {names.get(name, name): value for name, value in fields.items()}

    @classmethod
    def of(cls, given: Any, dataset: JASPERSteeringDataset, *, other_store: bool) -> Self:
        """Parse what `to_dict` returned, and check that it is of a loader like that of `dataset`.

        Raises `UsageError` if it is not a state, `JasperError` if split, pairs or seed differ, and
        `StoreChangedError` if the store differs, unless `other_store`.
        """
        if not isinstance(given, Mapping):
            raise UsageError(
                "not the state of a loader: it must be the dict that state_dict() returned, not a"
                f" {type(given).__name__}."
            )
        if missing := [key for key in _KEYS if key not in given]:
            raise UsageError(f"not the state of a loader: it has no {', '.join(missing)}.")
        own: dict[str, Any] = {"split": dataset.split, "pairs": len(dataset), "seed": dataset.seed}
        try:
            differs = {k: (given[k], v) for k, v in own.items() if given[k] != v}
            state = cls(
                **own,
                **_progress(given, len(dataset)),
                store_id=_text(given, "store_id"),
                generation=_generation(given),
                sha256=_text(given, "generation_sha256"),
            )
        except UsageError as error:
            raise UsageError(f"not the state of a loader: {error}.") from None
        if differs:
            wrong = "; ".join(f"{k} was {old!r}, is {new!r}" for k, (old, new) in differs.items())
            needed = ", ".join(_LIKE[k].format(old) for k, (old, _) in differs.items())
            raise JasperError(
                f"the state is of a different loader: {wrong}. Load it into one with {needed}."
            )
        if state.store_id not in (None, dataset.store_id) and not other_store:
            raise StoreChangedError(
                f"the state is of store {state.store_id!r:.50}, but this loader serves"
                f" {dataset.store_id!r} ({dataset.dataset_dir}). To continue with the same pairs in"
                " this store, pass other_store=True to load_state_dict, or, if a framework passes"
                " the state, delete 'store_id' from it."
            )
        return state


def _progress(given: Mapping[str, Any], n: int) -> dict[str, Any]:
    number = integer("pass", given["pass"])
    return {
        "epoch": integer("epoch", given["epoch"]),
        "number": number,
        "consumed": integer("consumed", given["consumed"], high=n),
        # Version 0.1.0 did not write it.
        "following": integer("next_pass", given.get("next_pass", number + 1)),
    }


def _generation(given: Mapping[str, Any]) -> int | None:
    number = given.get("generation")
    return None if number is None else integer("generation", number, 1, MAX_GENERATION)


def _text(given: Mapping[str, Any], key: str) -> str | None:
    """The string `given[key]`; None if it is missing or empty."""
    text = given.get(key)
    if not isinstance(text, str | None):
        raise UsageError(f"{key} must be a string, not {text!r:.50}")
    return text or None
