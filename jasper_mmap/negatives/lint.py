"""The public lint: computed by `similarity`, and kept for the next call where that is possible."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from ..errors import JasperError, UsageError
from ..progress import Progress, Show, errors_of_show_passed_on
from ..rules import arguments
from ..rules.names import MARGIN, SEED
from ..similarity.flag_file import check_flags_target
from ..similarity.lint import Linting, LintOptions
from ..similarity.reports.kept import Key, forget_others, keep
from ..similarity.reports.report import GenerationLint, LintReport
from ..similarity.reports.summary import KEY, summary, summary_in
from ..store.folder import Store, not_renewable
from ..store.manifest import read_manifest
from ..store.pointer import Pointer, generations_on_disk, read_pointer
from .candidate import Candidate
from .write import publisher_lock, write_pointer

_LOCK_TIMEOUT_S: Final = 1.0

_log = logging.getLogger("jasper_mmap")


def lint_negatives(
    dataset_dir: str | Path,
    *,
    generation: int | None = None,
    margin: float = MARGIN,
    sample: int | None = None,
    seed: int = SEED,
    near_duplicates: bool = False,
    out: str | Path | None = None,
    progress: Show | None = None,
) -> LintReport:
    """Say what the similarities of questions, right sources and negatives show.

    `generation=None` is the current one. A negative of similarity s is too similar if
    s > p - margin * |p|, p being the lowest similarity among the right sources of the question.
    `sample` draws that many pairs by `seed` instead of taking all; the tables of questions and
    sources are read in full. `near_duplicates` compares every question with every other, and the
    sources: the time is quadratic. `out` is a new safetensors file with the tensors `similarities`
    (float32), `margin_false`, `margin_false_own` and `known_right` (uint8) [N_p,N]. `progress` is
    called as that of `convert`.

    The result is kept in two small files in `negatives/` for the next call, and a few of its
    numbers in the history if all pairs were taken with the default margin; where the store cannot
    be written, or a publisher is at work, it is not, and a note says so. Raises what opening the
    store raises, `MissingFileError` for a generation that is not there, and `UsageError`.
    """
    options = _options(margin, sample, seed, near_duplicates)
    if generation is not None:
        generation = arguments.integer("generation", generation, low=1)
    store = Store(dataset_dir)
    target = _target(store, out, options)
    pointer, opened = store.generation(generation)
    linting = Linting(store, options, Progress(progress))
    with errors_of_show_passed_on():
        linting.expect_store()
        of_generation, had_generation = linting.of_generation(
            opened.tables, sha256=pointer.sha256, out=target
        )
        of_store, had_store = linting.of_store()
    new: list[tuple[Key, object]] = []
    if not had_store:
        new.append((linting.store_key, of_store))
    if not had_generation:
        new.append((linting.generation_key(pointer.sha256), of_generation))
    numbers = summary_of(of_generation, linting.options)
    reason = None
    if new or _lacks(pointer, numbers):
        reason = _kept(store, pointer, new, numbers)
    return linting.report(
        of_store,
        of_generation,
        generation=pointer.generation,
        sha256=pointer.sha256,
        notes=() if reason is None else (f"not kept for the next call: {reason}",),
    )


def summary_of(lint: GenerationLint, options: LintOptions) -> dict[str, float]:
    """Return what the history keeps of a lint: nothing of a sample or another margin, so that its
    entries can be compared."""
    if options.sample is not None or options.margin != MARGIN:
        return {}
    return summary(lint, options.margin)


def with_similarity(store: Store, candidate: Candidate) -> Candidate:
    """Return the candidate with the lint of its similarities, by the default options."""
    linting = Linting(store, LintOptions(), Progress(None))
    lint, _ = linting.of_generation(candidate.tables)
    return replace(candidate, similarity=lint, numbers=summary_of(lint, linting.options))


def keep_published(store: Store, pointer: Pointer, lint: GenerationLint | None) -> None:
    """Keep the lint of the generation that was just published. Call with the lock held; a failure
    is logged, since the lint can be computed again."""
    if lint is None:
        return
    key = Linting(store, LintOptions(), Progress(None)).generation_key(pointer.sha256)
    try:
        keep_lint(store, pointer, [(key, lint)])
    except JasperError as error:
        _log.warning("the lint of generation %d is not kept: %s", pointer.generation, error)


def keep_lint(store: Store, pointer: Pointer, new: list[tuple[Key, object]]) -> None:
    """Write the lints, and remove those that nothing on disk belongs to. Call with the publishers'
    lock held; `pointer` is the one in its place."""
    for key, lint in new:
        keep(store.path, key, lint)
    there = generations_on_disk(store.path)
    known = (e.get("sha256") for e in pointer.history if e["generation"] in there)
    forget_others(store.path, store.store_id, [pointer.sha256, *filter(None, known)])


def _options(margin: float, sample: int | None, seed: int, near_duplicates: bool) -> LintOptions:
    return LintOptions(
        margin=arguments.number("margin", margin, 0.0, 1.0),
        sample=None if sample is None else arguments.integer("sample", sample, low=1),
        seed=arguments.seed(seed),
        near_duplicates=bool(near_duplicates),
    )


def _target(store: Store, out: str | Path | None, options: LintOptions) -> Path | None:
    if out is None:
        return None
    path = arguments.folder("out", out)
    if options.sample is not None:
        raise UsageError("out has every pair; leave out sample, or leave out out.")
    check_flags_target(path, store.path)
    return path


def _lacks(pointer: Pointer, numbers: dict[str, float]) -> bool:
    return bool(numbers) and any(_would_change(pointer, numbers)(e) for e in pointer.history)


def _would_change(pointer: Pointer, numbers: dict[str, float]) -> Callable[[dict[str, Any]], bool]:
    return lambda e: e.get("sha256") == pointer.sha256 and summary_in(e) != numbers


def _kept(
    store: Store,
    pointer: Pointer,
    new: list[tuple[Key, object]],
    numbers: dict[str, float],
) -> str | None:
    """Keep what is new and the numbers of the history; return the reason if that is impossible."""
    reason = not_renewable(store.path)
    if reason is not None:
        return reason
    try:
        with publisher_lock(store.path, _LOCK_TIMEOUT_S):
            if read_manifest(store.path).store_id != store.store_id:
                return f"{store.path} was converted again meanwhile"
            current = read_pointer(store.path)
            keep_lint(store, current, new)
            changes = _would_change(pointer, numbers)
            if numbers and any(map(changes, current.history)):
                history = ({**e, KEY: numbers} if changes(e) else e for e in current.history)
                write_pointer(store.path, replace(current, history=tuple(history)))
    except JasperError as error:
        return str(error).removesuffix(".")
    return None
