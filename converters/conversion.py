"""From a builder's folder to a store."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from jasper_mmap.errors import ContentError, JasperError, UsageError
from jasper_mmap.files.atomic import storage_errors
from jasper_mmap.files.jsonfile import read_small
from jasper_mmap.files.locks import now
from jasper_mmap.files.missing_paths import must_be_folder
from jasper_mmap.files.regular_files import open_regular
from jasper_mmap.negatives.builder_pair import PAIRS, warn_of_half
from jasper_mmap.negatives.publish import shares, warn_of
from jasper_mmap.negatives.write import publisher_lock, write_staged
from jasper_mmap.progress import Progress, Show, errors_of_show_passed_on
from jasper_mmap.rules.arguments import folder
from jasper_mmap.rules.config import CONFIG_FILE, Config
from jasper_mmap.rules.names import NARROW_DTYPES, SOURCE
from jasper_mmap.rules.schema import ARTIFACTS, NEGATIVES
from jasper_mmap.store.config_file import read_config
from jasper_mmap.store.lint import lint_splits, remarks
from jasper_mmap.store.manifest import STAGING, Entry, Manifest
from jasper_mmap.store.pointer import Pointer, made_from_files, read_pointer
from jasper_mmap.version import __version__

from .conversion_report import ConversionReport, narrowing_notes
from .negatives import candidate_of, settle
from .plan import Plan, Settings, Task, make_plan, negatives_stamps, task_stamp
from .precheck import Precheck, check_room, open_task, precheck
from .source import read_table
from .staging import STAGED_NEGATIVES, Staging, commit, read_journal, staging
from .survey import telling_all
from .write import stored_dtype, write_artifact

_PUBLISHER_TIMEOUT_S = 60.0


def convert(
    src: str | Path,
    dst: str | Path | None = None,
    *,
    embeddings_dtype: str | None = None,
    allow_nonfinite: bool = False,
    allow_equal: bool = False,
    force: bool = False,
    progress: Show | None = None,
) -> ConversionReport:
    """Convert the builder's folder `src` into the store `dst`, or beside the `.pt` files.

    Every dtype is kept bit for bit, unless `embeddings_dtype` ("float16" or "bfloat16") narrows
    questions, sources and steering. None repeats the choice of an earlier conversion into the same
    store; "source" restores the dtypes of `src`. NaN, Inf and values that are infinite as float32
    are errors unless `allow_nonfinite`, negatives and tiers of equal values unless `allow_equal`.
    Only what changed since the last conversion is written; with `force`, everything. An existing
    store stays in service until all is written and checked. Raises a `JasperError` naming file,
    place and remedy, and leaves the disk as it was; after a kill, or an error while files were
    moved into place, run it again to complete it. With `DurabilityError` the new store is complete,
    but may not survive a power cut.
    """
    if embeddings_dtype not in (None, SOURCE, *NARROW_DTYPES):
        raise UsageError(
            f"embeddings_dtype must be {' or '.join(NARROW_DTYPES)}, or {SOURCE} (the dtypes of the"
            f" .pt files), or None (as in the last conversion), not {embeddings_dtype!r:.80}."
        )
    settings = Settings(
        embeddings_dtype=embeddings_dtype,
        allow_nonfinite=allow_nonfinite,
        allow_equal=allow_equal,
        force=force,
    )
    counted = Progress(progress)
    src = folder("src", src)
    dst = src if dst is None else folder("dst", dst)
    with errors_of_show_passed_on(), storage_errors(dst):
        return _Conversion(src, dst, settings, counted).run()


class _Conversion:
    """One call of `convert`."""

    def __init__(self, src: Path, dst: Path, settings: Settings, progress: Progress) -> None:
        self._started = time.perf_counter()
        self._src = src
        self._dst = dst
        self._settings = settings
        self._progress = progress
        self._made: dict[str, Any] | None = None
        """The history's entry of the generation last made from the builder's files."""
        self._beyond: dict[str, int] = {}
        """Artifact -> count of its values that are infinite as float32, as far as known."""

    def run(self) -> ConversionReport:
        must_be_folder(self._src)
        with telling_all(self._src):
            plan = self._plan()
        if plan.complete and plan.old and plan.pointer and not (self._dst / STAGING).exists():
            with telling_all(self._src):
                config = self._precheck(plan).config  # may have been edited: it has no stamp
            if self._new_config(config) is None and self._noted(plan, plan.old, config):
                return self._report(plan, config, plan.old, plan.pointer, ())
        self._made = _made_from_files(self._dst)
        stamps = PAIRS.settled(self._src, self._made["source"]) if self._made else None
        with staging(self._dst) as stage:
            with telling_all(self._src):
                plan = self._plan()  # again, with other conversions excluded
                checked = self._precheck(plan)
            if stamps is not None:
                _check_unchanged(self._src, stamps, plan.negatives_source)
            check_room(self._dst, checked.bytes)
            self._progress.total = sum(checked.bytes.values())
            return self._build(stage, plan, checked)

    def _noted(self, plan: Plan, old: Manifest, config: Config) -> bool:
        """Whether the manifest has all the new fields, or the store is read-only."""
        if old.config_sha256 is None and not os.access(self._dst, os.W_OK):
            return True  # version 0.1.0 did not write them
        noted = (old.config_sha256, old.embeddings_dtype)
        return noted == (config.sha256, plan.embeddings_dtype) and old.beyond_float32 is not None

    def _plan(self) -> Plan:
        return make_plan(self._src, self._dst, self._settings, read_journal(self._dst))

    def _precheck(self, plan: Plan) -> Precheck:
        return precheck(
            plan,
            self._src,
            self._dst,
            read_config(self._src),
            allow_nonfinite=self._settings.allow_nonfinite,
        )

    def _build(self, stage: Staging, plan: Plan, checked: Precheck) -> ConversionReport:
        sizes = checked.sizes
        self._beyond = dict(checked.beyond)
        entries = {
            t.artifact.name: t.entry or self._write(plan, t, stage, checked) for t in plan.tasks
        }
        pair_index = read_table(self._src / ARTIFACTS["pair_index"].source)
        candidate = staged = None
        if plan.new_negatives:
            candidate = candidate_of(
                self._src,
                plan.negatives_source,
                pair_index,
                sizes,
                allow_equal=self._settings.allow_equal,
            )
            staged = write_staged(stage.path(STAGED_NEGATIVES), candidate.tables)
            _check_unchanged(self._src, plan.negatives_source, negatives_stamps(self._src))
            for artifact in NEGATIVES:
                self._progress.advance(artifact.name, checked.bytes[artifact.name])
        manifest = self._manifest(plan, entries, checked)
        with publisher_lock(self._dst, _PUBLISHER_TIMEOUT_S):
            pointer, change = settle(
                stage,
                candidate,
                staged,
                force=plan.force,
                old=plan.old,
                store_id=manifest.store_id,
                pair_index=pair_index,
                sizes=sizes,
            )
            commit(
                stage,
                entries,
                staged=[t.artifact.name for t in plan.tasks if t.staged or t.entry is None],
                manifest=None if manifest is plan.old else manifest,
                change=change,
                config=self._new_config(checked.config),
            )
        published = NEGATIVES if change is not None and change.publishes else ()
        if published:
            warn_of(self._dst, pointer.generation, pointer.lint, sizes["N_p"])
            if self._made is not None:
                warn_of_half(pointer, self._made)
        written = [t.artifact.name for t in plan.tasks if t.entry is None]
        return self._report(
            plan,
            checked.config,
            manifest,
            pointer,
            (*written, *(a.name for a in published)),
        )

    def _write(self, plan: Plan, task: Task, stage: Staging, checked: Precheck) -> Entry:
        artifact = task.artifact
        source = checked.ragged.pop(artifact.name, None) or open_task(task, self._src)
        entry, self._beyond[artifact.name] = write_artifact(
            source,
            stage.path(artifact.file),
            task.source,
            checked.sizes,
            dtype=stored_dtype(source, plan.embeddings_dtype),
            allow_nonfinite=self._settings.allow_nonfinite,
            advance=lambda n: self._progress.advance(artifact.name, n),
        )
        _check_unchanged(self._src, task.source, task_stamp(artifact, task.derived, self._src))
        stage.record(artifact.name, entry)
        return entry

    def _manifest(self, plan: Plan, entries: dict[str, Entry], checked: Precheck) -> Manifest:
        """The new manifest, or the old one itself if it is the same."""
        splits = {
            a.name: read_table(self._src / a.source)
            for a in ARTIFACTS.values()
            if a.split is not None
        }
        counts = lint_splits(splits, checked.sizes["N_p"])
        counts["nonfinite_values"] = sum(entry.nonfinite for entry in entries.values())
        manifest = Manifest(
            artifacts=entries,
            warnings=counts,
            created=now(),
            converter=f"jasper-mmap {__version__}",
            config_sha256=checked.config.sha256,
            beyond_float32={name: n for name, n in self._beyond.items() if n},
            embeddings_dtype=plan.embeddings_dtype,
        )
        old = plan.old
        if old is None or old != replace(manifest, created=old.created, converter=old.converter):
            return manifest
        return old

    def _new_config(self, checked: Config) -> bytes | None:
        """The bytes of the builder's `config.json`, if the store's differs or is missing."""
        source, target = self._src / CONFIG_FILE, self._dst / CONFIG_FILE
        with storage_errors(source, "read"):
            content = read_small(source)
        if hashlib.sha256(content).hexdigest() != checked.sha256:
            raise ContentError(f"{source}: changed while being converted; run it again.")
        if not target.exists():
            return content
        with storage_errors(target, "read"), open_regular(target) as file:
            return None if file.read(len(content) + 1) == content else content

    def _report(
        self,
        plan: Plan,
        config: Config,
        manifest: Manifest,
        pointer: Pointer,
        written: tuple[str, ...],
    ) -> ConversionReport:
        entries = manifest.artifacts
        n_bytes = sum(entries[name].bytes for name in written if name in entries)
        if set(written) & {a.name for a in NEGATIVES}:
            n_bytes += pointer.bytes
        n_pairs = manifest.sizes["N_p"]
        return ConversionReport(
            store=self._dst,
            store_id=manifest.store_id,
            generation=pointer.generation,
            written=written,
            left_alone=tuple(name for name in ARTIFACTS if name not in written),
            derived=tuple(task.artifact.name for task in plan.tasks if task.derived),
            bytes_written=n_bytes,
            seconds=time.perf_counter() - self._started,
            warnings={**manifest.warnings, **pointer.lint},
            shares=shares(pointer.lint, n_pairs),
            notes=(
                *remarks(config, manifest),
                *narrowing_notes(self._settings.embeddings_dtype, plan.old, manifest),
            ),
            cosine_error={n: e.cosine_error for n, e in entries.items() if e.cosine_error},
        )


def _made_from_files(store: Path) -> dict[str, Any] | None:
    try:
        return made_from_files(read_pointer(store))
    except JasperError:
        return None


def _check_unchanged(folder: Path, before: dict[str, Any], after: dict[str, Any]) -> None:
    if before != after:
        raise ContentError(
            f"{folder}: {', '.join(sorted(_names(before)))} changed while being converted; run it"
            " again when the builder is done."
        )


def _names(stamps: dict[str, Any]) -> list[str]:
    """The `.pt` files of a stamp, or of several."""
    if "name" in stamps:
        return [stamps["name"]]
    parts = stamps.get("derived_from") or stamps.values()
    return [part["name"] for part in parts]
