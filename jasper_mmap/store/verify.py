"""Verifying a store: recompute every check and report all problems at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import torch

from ..errors import FormatError, JasperError, StoreChangedError
from ..files import atomic
from ..files.missing_paths import must_be_folder
from ..files.safetensors import file_sha256
from ..progress import Progress, Show, errors_of_show_passed_on
from ..rules import arguments
from ..rules.config import CONFIG_FILE
from ..rules.schema import NEGATIVES, STORED, Artifact
from .config_file import read_config
from .generations import content_errors, history_errors, stamped_generation
from .lint import count_unsuitable, lint_splits, remarks
from .manifest import MANIFEST_FILE, Entry, Manifest, read_manifest
from .pointer import FOLDER, POINTER, Pointer, generations_on_disk, read_pointer
from .soundness import form_errors, table_errors, uncounted_beyond
from .tables import map_table, table_tensor

_POINTER_FILE: Final = f"{FOLDER}/{POINTER}"

_NOT_DONE: Final = (
    "--quick did not check: the SHA-256 of any file, the values of floating-point tables (NaN,"
    " infinity, bounds), and the counts shown as warnings; it renewed no stamp. Run it without"
    " --quick to check everything."
)

_T = TypeVar("_T")


@dataclass(frozen=True)
class Problem:
    """One problem; the message names what, where and the remedy."""

    file: str
    error: str
    """Name of the error that opening or reading the file would raise."""
    message: str


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """The result of verifying a store."""

    store: str
    quick: bool
    generation: int | None
    """The current one; None if the pointer cannot be read."""
    files: int
    """Number of files checked."""
    bytes: int
    """Their total size."""
    seconds: float
    problems: tuple[Problem, ...]
    renewed: tuple[str, ...]
    """Sound files whose stamp was renewed."""
    notes: tuple[str, ...]
    warnings: dict[str, int]
    """Counts of `lint.MEANING`, as far as they could be computed."""

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {"ok": self.ok, **asdict(self)}


def verified(
    path: str | Path, *, quick: bool = False, progress: Show | None = None
) -> Verification:
    """Check a store and its generations, without writing anything.

    In full: every checksum, form, index, bound, NaN and count of the artifacts and of the current
    generation, and the checksums of older generations on disk. With `quick`: sizes, headers, forms
    and index ranges, with a note of what was left out. `progress` is called for each file. Raises
    `MissingFileError` if there is no folder, and `StoreChangedError` if the store was converted
    again meanwhile.
    """
    folder = arguments.folder("dataset_dir", path)
    must_be_folder(folder)
    verification = Verification(folder, quick, Progress(progress))
    with errors_of_show_passed_on():
        verification.run()
    verification.must_be_unchanged()
    return verification


class Verification:
    """The results so far, and the stamps that `negatives.renewal` may renew."""

    def __init__(self, folder: Path, quick: bool, progress: Progress) -> None:
        self._started = time.perf_counter()
        self.folder = folder
        self.quick = quick
        self._progress = progress
        self._problems: list[Problem] = []
        self.notes: list[str] = [_NOT_DONE] if quick else []
        self._warnings: dict[str, int] = {}
        self._seen: dict[Path, int] = {}
        """File checked -> its bytes."""
        self.moved: dict[str, int] = {}
        """Sound file whose stamp differs -> its `mtime_ns`."""
        self.renewed: list[str] = []
        """Files whose stamp was renewed."""
        self.manifest: Manifest | None = None
        self.pointer: Pointer | None = None

    def report(self) -> VerifyReport:
        """The results so far."""
        return VerifyReport(
            store=str(self.folder),
            quick=self.quick,
            generation=self.pointer.generation if self.pointer else None,
            files=len(self._seen),
            bytes=sum(self._seen.values()),
            seconds=time.perf_counter() - self._started,
            problems=tuple(self._problems),
            renewed=tuple(self.renewed),
            notes=tuple(self.notes),
            warnings=self._warnings,
        )

    def run(self) -> None:
        """Check everything; problems are collected, not raised."""
        manifest = self._attempt(MANIFEST_FILE, lambda: read_manifest(self.folder))
        if manifest is None:
            return
        self.manifest = manifest
        config = self._attempt(CONFIG_FILE, lambda: read_config(self.folder))
        if config is None:
            return
        self.notes += remarks(config, manifest)
        if self._note_all(CONFIG_FILE, form_errors(self.folder, config, manifest)):
            return  # row counts are uncertain, so references between tables cannot be checked
        self._progress.total = self._bytes_in_all(manifest)
        sound = {a.name: t for a in STORED if (t := self._table(a, manifest)) is not None}
        self._count_splits(sound, manifest)
        sizes = {**manifest.sizes, "N": config.n_neg}
        self._generations(manifest, sizes, sound.get("pair_index"))

    def _bytes_in_all(self, manifest: Manifest) -> int:
        """Bytes of the artifacts and of the generations on disk."""
        total = sum(entry.bytes for entry in manifest.artifacts.values())
        for path in (self.folder / FOLDER).glob("*.safetensors"):
            with suppress(OSError):  # reported when the file is checked
                total += path.stat().st_size
        return total

    def _attempt(self, file: str, read: Callable[[], _T]) -> _T | None:
        """Return what `read` returns; if it raises, note the problem and return None."""
        try:
            with atomic.storage_errors(self.folder / file, "read"):
                return read()
        except JasperError as error:
            self._note(file, error)
            return None

    def _note(self, file: str, error: JasperError) -> None:
        self._problems.append(Problem(file, type(error).__name__, str(error)))

    def _note_all(self, file: str, errors: Iterable[JasperError]) -> bool:
        """Note all `errors` of `file`; return whether there were any."""
        before = len(self._problems)
        left = iter(errors)
        while error := self._attempt(file, lambda: next(left, None)):
            self._note(file, error)
        return len(self._problems) > before

    def _table(self, artifact: Artifact, manifest: Manifest) -> torch.Tensor | None:
        """The values of one artifact, if it is sound."""
        entry = manifest.artifacts[artifact.name]
        with self._progress.through(entry.file, entry.bytes):
            return self._checked_table(artifact, entry, manifest)

    def _checked_table(
        self, artifact: Artifact, entry: Entry, manifest: Manifest
    ) -> torch.Tensor | None:
        mapped = self._attempt(entry.file, lambda: map_table(self.folder, artifact, entry))
        if mapped is None:
            return None
        table, mtime_ns = mapped
        self._seen[self.folder / entry.file] = entry.bytes
        errors = table_errors(self.folder, artifact, manifest, table, quick=self.quick)
        if self._note_all(entry.file, errors):
            return None
        beyond = None if self.quick else uncounted_beyond(self.folder, artifact, manifest, table)
        if beyond is not None:
            self._note(entry.file, beyond)
            return None
        self._stamped(entry.file, entry.mtime_ns, mtime_ns)
        return table_tensor(table)

    def _stamped(self, file: str, stamp_ns: int, mtime_ns: int) -> None:
        if mtime_ns != stamp_ns:
            self.moved[file] = mtime_ns

    def _count_splits(self, sound: dict[str, torch.Tensor], manifest: Manifest) -> None:
        splits: dict[str, torch.Tensor] = {
            a.split: sound[a.name] for a in STORED if a.split and a.name in sound
        }
        if not self.quick:
            self._warnings |= lint_splits(splits, manifest.sizes["N_p"])
            self._warnings["nonfinite_values"] = sum(
                entry.nonfinite for entry in manifest.artifacts.values()
            )

    def _generations(
        self, manifest: Manifest, sizes: dict[str, int], pair_index: torch.Tensor | None
    ) -> None:
        pointer = self._attempt(_POINTER_FILE, lambda: read_pointer(self.folder))
        if pointer is None:
            return
        self.pointer = pointer
        self._note_all(_POINTER_FILE, history_errors(self.folder, pointer))
        with self._progress.through(f"{FOLDER}/{pointer.file}", pointer.bytes):
            tables = self._current(pointer, manifest, sizes)
        if tables and pair_index is not None and not self.quick:
            hard_negatives = tables[NEGATIVES[0].name]
            self._warnings |= count_unsuitable(pair_index, hard_negatives, sizes["N_s"])
        on_disk = self._attempt(FOLDER, lambda: generations_on_disk(self.folder)) or {}
        for entry in pointer.history:
            number = entry["generation"]
            if number != pointer.generation and number in on_disk:
                self._older(on_disk[number], entry)

    def _current(
        self, pointer: Pointer, manifest: Manifest, sizes: dict[str, int]
    ) -> dict[str, torch.Tensor] | None:
        """The tables of the current generation, if they are sound."""
        file = f"{FOLDER}/{pointer.file}"
        folder, store_id = self.folder, manifest.store_id
        opened = self._attempt(file, lambda: stamped_generation(folder, pointer, store_id, sizes))
        if opened is None:
            return None
        self._seen[opened.path] = pointer.bytes
        if self._note_all(file, content_errors(opened, pointer, sizes, checksum=not self.quick)):
            return None
        self._stamped(file, pointer.mtime_ns, opened.mtime_ns)
        return opened.tables

    def _older(self, path: Path, entry: dict[str, Any]) -> None:
        """Check an older generation by its checksum; a rollback checks the rest."""
        file = f"{FOLDER}/{path.name}"

        def check() -> None:
            with atomic.storage_errors(path, "read"):
                self._seen[path] = path.stat().st_size
            same = self._seen[path] == entry.get("bytes")
            if same and not self.quick:
                same = file_sha256(path) == entry.get("sha256")
            if not same:
                raise FormatError(
                    f"{path}: was altered after publishing (it differs from the history), so you"
                    " cannot roll back to it. Copy it again, or remove it."
                )

        self._progress.advance(file, 0)
        self._attempt(file, check)
        self._progress.advance(file, self._seen.get(path, 0))

    def must_be_unchanged(self) -> None:
        """Raise `StoreChangedError` if the store was converted again meanwhile."""
        if self.manifest is not None and read_manifest(self.folder) != self.manifest:
            raise StoreChangedError(
                f"{self.folder}: was converted again while being verified; run it again."
            )
