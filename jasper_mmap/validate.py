"""Everything there is to check in a store, recomputed: all problems at once, not the first."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import torch

from . import arguments, atomic, negatives
from .audit import form_errors
from .config import CONFIG_FILE, read_config
from .errors import FormatError, JasperError, StoreChangedError
from .generation import content_errors, history_errors, stamped_generation
from .lint import lint_negatives, lint_splits
from .manifest import MANIFEST_FILE, Entry, Manifest, read_manifest
from .missing import must_be_folder
from .negatives import FOLDER, generations_on_disk
from .remarks import remarks
from .schema import NEGATIVES, STORED, Artifact
from .store import beyond_problem, map_table, not_renewable, table_problems, table_tensor
from .tensorfile import few, file_sha256

_LOCK_TIMEOUT_S: Final = 10.0
_POINTER_FILE: Final = f"{FOLDER}/{negatives.POINTER}"

_NOT_DONE: Final = (
    "quick, so not checked: the SHA-256 of any file, the values of floating-point tables (NaN,"
    " infinity, bounds), and the counts shown as warnings; no stamp was renewed. Run it without"
    " --quick to check everything."
)

_T = TypeVar("_T")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong; the message says what, where and the remedy."""

    file: str
    error: str
    """Name of the error that opening or reading it would raise."""
    message: str


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What `verify_store` found."""

    store: str
    quick: bool
    generation: int | None
    """The one in force; None where the pointer cannot be read."""
    files: int
    """Files looked at."""
    bytes: int
    """Their size in all."""
    seconds: float
    problems: tuple[Problem, ...]
    renewed: tuple[str, ...]
    """Files whose stamp was brought up to date, since their content is sound."""
    notes: tuple[str, ...]
    warnings: dict[str, int]
    """Counts of `lint.MEANING`, of what could be counted."""

    @property
    def ok(self) -> bool:
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON can hold it."""
        return {"ok": self.ok, **asdict(self)}


def verify_store(path: str | Path, *, quick: bool = False, renew: bool = True) -> VerifyReport:
    """Check a store and its generations; all of it, or with `quick` without reading floats.

    In full: every checksum, form, index, bound, NaN and count of the artifacts and of the
    generation in force, and the checksums of the older generations that are still there. Quick:
    sizes, headers, forms and index ranges, with a note of what that leaves out. Where a file's
    content is sound but its stamp is not (it was copied), `renew` brings the stamp up to date, so
    that opening need not read it again; a store that is read-only or made of links is left as it
    is, with a note. Raises `MissingFileError` where there is no folder at all, and
    `StoreChangedError` where it was converted again meanwhile.
    """
    folder = arguments.folder("dataset_dir", path)
    must_be_folder(folder)
    started = time.perf_counter()
    verification = _Verification(folder, quick)
    verification.run()
    verification.must_be_unchanged()
    if renew and not quick:
        verification.renew()
    return verification.report(time.perf_counter() - started)


class _Verification:
    """One call of `verify_store`: what was found so far."""

    def __init__(self, folder: Path, quick: bool) -> None:
        self._folder = folder
        self._quick = quick
        self._problems: list[Problem] = []
        self._notes: list[str] = [_NOT_DONE] if quick else []
        self._warnings: dict[str, int] = {}
        self._seen: dict[Path, int] = {}
        """File looked at -> its bytes."""
        self._moved: dict[str, int] = {}
        """Sound file whose stamp differs -> its `mtime_ns`."""
        self._renewed: list[str] = []
        self._manifest: Manifest | None = None
        self._pointer: negatives.Pointer | None = None

    def report(self, seconds: float) -> VerifyReport:
        return VerifyReport(
            store=str(self._folder),
            quick=self._quick,
            generation=self._pointer.generation if self._pointer else None,
            files=len(self._seen),
            bytes=sum(self._seen.values()),
            seconds=seconds,
            problems=tuple(self._problems),
            renewed=tuple(self._renewed),
            notes=tuple(self._notes),
            warnings=self._warnings,
        )

    def run(self) -> None:
        manifest = self._attempt(MANIFEST_FILE, lambda: read_manifest(self._folder))
        if manifest is None:
            return
        self._manifest = manifest
        config = self._attempt(CONFIG_FILE, lambda: read_config(self._folder))
        if config is None:
            return
        self._notes += remarks(config, manifest)
        if self._note_all(CONFIG_FILE, form_errors(self._folder, config, manifest)):
            return  # no table can be trusted to have the rows that another one refers to
        sound = {a.name: t for a in STORED if (t := self._table(a, manifest)) is not None}
        self._count_splits(sound, manifest)
        sizes = {**manifest.sizes, "N": config.n_neg}
        self._generations(manifest, sizes, sound.get("pair_index"))

    def _attempt(self, file: str, read: Callable[[], _T]) -> _T | None:
        """What `read` returns; None, with the problem noted, where it raises."""
        try:
            with atomic.storage_errors(self._folder / file, "read"):
                return read()
        except JasperError as error:
            self._note(file, error)
            return None

    def _note(self, file: str, error: JasperError) -> None:
        self._problems.append(Problem(file, type(error).__name__, str(error)))

    def _note_all(self, file: str, errors: Iterable[JasperError]) -> bool:
        """Note what is wrong with `file`; whether there was anything."""
        before = len(self._problems)
        left = iter(errors)
        while error := self._attempt(file, lambda: next(left, None)):
            self._note(file, error)
        return len(self._problems) > before

    def _table(self, artifact: Artifact, manifest: Manifest) -> torch.Tensor | None:
        """The values of one artifact, if there is nothing wrong with it."""
        entry = manifest.artifacts[artifact.name]
        mapped = self._attempt(entry.file, lambda: map_table(self._folder, artifact, entry))
        if mapped is None:
            return None
        table, mtime_ns = mapped
        self._seen[self._folder / entry.file] = entry.bytes
        errors = table_problems(self._folder, artifact, manifest, table, quick=self._quick)
        if self._note_all(entry.file, errors):
            return None
        beyond = None if self._quick else beyond_problem(self._folder, artifact, manifest, table)
        if beyond is not None:
            self._note(entry.file, beyond)
            return None
        self._stamped(entry.file, entry.mtime_ns, mtime_ns)
        return table_tensor(table)

    def _stamped(self, file: str, stamp_ns: int, mtime_ns: int) -> None:
        if mtime_ns != stamp_ns:
            self._moved[file] = mtime_ns

    def _count_splits(self, sound: dict[str, torch.Tensor], manifest: Manifest) -> None:
        splits = {a.split: sound[a.name] for a in STORED if a.split and a.name in sound}
        if not self._quick:
            self._warnings |= lint_splits(splits, manifest.sizes["N_p"])
            self._warnings["nonfinite_values"] = sum(
                entry.nonfinite for entry in manifest.artifacts.values()
            )

    def _generations(
        self, manifest: Manifest, sizes: dict[str, int], pair_index: torch.Tensor | None
    ) -> None:
        pointer = self._attempt(_POINTER_FILE, lambda: negatives.read_pointer(self._folder))
        if pointer is None:
            return
        self._pointer = pointer
        self._note_all(_POINTER_FILE, history_errors(self._folder, pointer))
        tables = self._in_force(pointer, manifest, sizes)
        if tables and pair_index is not None and not self._quick:
            hard_negatives = tables[NEGATIVES[0].name]
            self._warnings |= lint_negatives(pair_index, hard_negatives, sizes["N_s"])
        on_disk = self._attempt(FOLDER, lambda: generations_on_disk(self._folder)) or {}
        for entry in pointer.history:
            number = entry["generation"]
            if number != pointer.generation and number in on_disk:
                self._older(on_disk[number], entry)

    def _in_force(
        self, pointer: negatives.Pointer, manifest: Manifest, sizes: dict[str, int]
    ) -> dict[str, torch.Tensor] | None:
        """The tables of the generation in force, if there is nothing wrong with them."""
        file = f"{FOLDER}/{pointer.file}"
        folder, store_id = self._folder, manifest.store_id
        opened = self._attempt(file, lambda: stamped_generation(folder, pointer, store_id, sizes))
        if opened is None:
            return None
        self._seen[opened.path] = pointer.bytes
        if self._note_all(file, content_errors(opened, pointer, sizes, checksum=not self._quick)):
            return None
        self._stamped(file, pointer.mtime_ns, opened.mtime_ns)
        return opened.tables

    def _older(self, path: Path, entry: dict[str, Any]) -> None:
        """An older generation is only ever read whole, by a rollback: its checksum is enough."""
        file = f"{FOLDER}/{path.name}"

        def check() -> None:
            with atomic.storage_errors(path, "read"):
                self._seen[path] = path.stat().st_size
            same = self._seen[path] == entry.get("bytes")
            if same and not self._quick:
                same = file_sha256(path) == entry.get("sha256")
            if not same:
                raise FormatError(
                    f"{path}: was altered after publishing (its bytes are not those of the"
                    " history), so there is no rolling back to it. Copy it anew, or remove it."
                )

        self._attempt(file, check)

    def must_be_unchanged(self) -> None:
        """Raise `StoreChangedError` if what was checked is no longer one store."""
        if self._manifest is not None and read_manifest(self._folder) != self._manifest:
            raise StoreChangedError(
                f"{self._folder}: was converted again while being verified; run it again."
            )

    def renew(self) -> None:
        """Bring the stamps of sound files up to date, under the lock that writers of either file
        hold, and only where those still say what was checked."""
        if not self._moved or self._manifest is None:
            return
        reason = not_renewable(self._folder)
        if reason is None:
            try:
                with negatives.publisher_lock(self._folder, _LOCK_TIMEOUT_S):
                    self._renew_manifest(self._manifest)
                    if self._pointer is not None:
                        reason = self._renew_pointer(self._pointer)
            except JasperError as error:
                reason = str(error)
        if reason is not None:
            left = [file for file in self._moved if file not in self._renewed]
            self._notes.append(
                f"sound, but of another time than was stamped: {few(left)}. The stamps could not be"
                f" renewed: {reason.removesuffix('.')}. So each opening reads the index ranges and"
                ' the negatives again; open with validate="full" to have everything checked.'
            )

    def _renew_manifest(self, checked: Manifest) -> None:
        renewed = {
            name: replace(entry, mtime_ns=self._moved[entry.file])
            for name, entry in checked.artifacts.items()
            if entry.file in self._moved
        }
        if not renewed or read_manifest(self._folder) != checked:
            return
        artifacts: dict[str, Entry] = {**checked.artifacts, **renewed}
        manifest = replace(checked, artifacts=artifacts)
        atomic.write_json(self._folder / MANIFEST_FILE, manifest.to_dict())
        self._renewed += [entry.file for entry in renewed.values()]

    def _renew_pointer(self, checked: negatives.Pointer) -> str | None:
        """Renew the stamp of the generation in force; what keeps it from being renewed."""
        file, path = f"{FOLDER}/{checked.file}", negatives.pointer_path(self._folder)
        if file not in self._moved or negatives.read_pointer(self._folder) != checked:
            return None
        if path.is_symlink():
            return f"{path} is a link"
        negatives.write_pointer(self._folder, replace(checked, mtime_ns=self._moved[file]))
        self._renewed.append(file)
        return None
