"""Continuing where a state was taken, with the generation of hard negatives that it names."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

from ..dataset.adoption import Adoption
from ..dataset.dataset import JASPERSteeringDataset
from ..dataset.device.placed_store import PlacedGeneration
from ..errors import FormatError, JasperError, MissingFileError, UsageError
from ..rules.names import Again
from ..store.pointer import read_pointer
from .passes.local_pass import Pass
from .passes.order import PassCounter
from .passes.plan import PassPlan
from .passes.state import State
from .ranks import Loaded, rank_and_world, several_ranks

_log = logging.getLogger("jasper_mmap")


def resume(
    passes: PassCounter,
    dataset: JASPERSteeringDataset,
    given: Any,
    serve: Again,
    *,
    other_store: bool,
) -> None:
    """Move `passes` and `dataset` to the state `given`; see `JASPERDataLoader.load_state_dict`.

    It never communicates. One of several ranks keeps its refusal until all can raise it
    (`ranks.agree_on_place`), since the others would wait for a rank that has ended.
    """
    if serve not in get_args(Again):
        raise UsageError(f"generation must be 'auto', 'state' or 'current', not {serve!r}")
    adoption = dataset.adoption
    adoption.must_own()
    together = dataset.collective and several_ranks()
    try:
        state = State.of(given, dataset, other_store=other_store)
        again = None
        if serve == "state" or (serve == "auto" and not other_store):
            # One warning, not one of each rank.
            level = logging.WARNING if not together or rank_and_world()[0] == 0 else logging.DEBUG
            again = _again(adoption, state, serve, level)
        newest = adoption.newest() if again is None else None
    except JasperError as error:
        if not together:
            raise
        dataset.loaded = Loaded(refusal=error)
        return
    if again is not None:
        adoption.pin(again, dataset.split, state.epoch)
    else:
        adoption.unpin(adoption.pinned)
    passes.resume(state)
    if newest is not None:
        adoption.adopt(newest)
    if together:
        dataset.loaded = Loaded(state.place, pinned=again is not None)


def begin_pass(
    passes: PassCounter,
    dataset: JASPERSteeringDataset,
    begin: Callable[[PassPlan], Pass],
    another: Callable[[], Pass],
) -> Pass:
    """Count a pass and `begin` it; one that was resumed serves its generation until it is over.

    `another`, a method, does so with the next one.
    """
    resuming = passes.resuming
    begun = begin(passes.begin())
    if resuming:
        adoption = dataset.adoption
        begun.when_over(partial(adoption.unpin, adoption.pinned))
    begun.follow_epochs(another)
    return begun


def _again(adoption: Adoption, state: State, serve: Again, level: int) -> PlacedGeneration | None:
    """The generation of the state, checked in full; None for the newest. If both are not the same,
    it is logged with `level`."""
    number, sha256 = state.generation, state.sha256
    if serve == "state":
        if number is None or sha256 is None:
            raise UsageError(
                "generation='state': the state does not name a generation and its SHA-256 (version"
                " 0.1.0 did not). Pass generation='current' to serve the newest."
            )
        try:
            again = adoption.again(number, sha256)
        except (MissingFileError, FormatError) as error:
            raise type(error)(
                f"the state was taken with generation {number}, which cannot be served: {error}"
                " Put the file back, or pass generation='current' to serve the newest."
            ) from None
        return _said(adoption, number, again, level)
    if number is None or (state.store_id is None and sha256 is not None):
        return None
    pointer = read_pointer(adoption.path)
    if sha256 is None:
        reason = "the state does not name its SHA-256"
    elif pointer.reverted(number):
        reason = "it was rolled back from"
    else:
        try:
            return _said(adoption, number, adoption.again(number, sha256), level)
        except (MissingFileError, FormatError) as error:
            reason = str(error).rstrip(".")
    if number != pointer.generation or sha256 is not None:
        _log.log(
            level,
            "%s: the state was taken with generation %d, but the newest, %d, is served: %s.",
            adoption.path,
            number,
            pointer.generation,
            reason,
        )
    return None


def _said(adoption: Adoption, number: int, again: PlacedGeneration, level: int) -> PlacedGeneration:
    newest = read_pointer(adoption.path).generation
    if number != newest:
        _log.log(
            level,
            "%s: generation %d is served again, since the state was taken with it, although %d is"
            " the newest, until the resumed pass ends, another epoch begins, or"
            " reload_negatives(). Pass generation='current' to load_state_dict to serve the newest"
            " now.",
            adoption.path,
            number,
            newest,
        )
    return again
