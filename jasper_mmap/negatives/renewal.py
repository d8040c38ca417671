"""Verifying a store and renewing its stamps: a copied file has the same content, another time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from ..errors import JasperError
from ..files import atomic
from ..files.safetensors import few
from ..progress import Show
from ..store.folder import not_renewable
from ..store.manifest import MANIFEST_FILE, Manifest, read_manifest
from ..store.pointer import FOLDER, Pointer, pointer_path, read_pointer
from ..store.verify import Verification, VerifyReport, verified
from .write import publisher_lock, write_pointer

_LOCK_TIMEOUT_S: Final = 10.0


def verify_store(
    path: str | Path, *, quick: bool = False, renew: bool = True, progress: Show | None = None
) -> VerifyReport:
    """Check a store as `verified` does and renew the stamps of its sound files.

    If a sound file was copied, its time differs from the stamp and each opening checks it again;
    `renew` updates the stamp. A store that is read-only or consists of links is left unchanged,
    with a note. With `quick` no stamp is renewed.
    """
    verification = verified(path, quick=quick, progress=progress)
    if renew and not quick:
        _renew(verification)
    return verification.report()


def _renew(verification: Verification) -> None:
    """Renew stamps under the lock of publishers, if manifest and pointer are still those that were
    checked."""
    if not verification.moved or verification.manifest is None:
        return
    reason = not_renewable(verification.folder)
    if reason is None:
        try:
            with publisher_lock(verification.folder, _LOCK_TIMEOUT_S):
                _renew_manifest(verification, verification.manifest)
                if verification.pointer is not None:
                    reason = _renew_pointer(verification, verification.pointer)
        except JasperError as error:
            reason = str(error)
    if reason is not None:
        left = [file for file in verification.moved if file not in verification.renewed]
        verification.notes.append(
            f"sound, but the times of these files differ from their stamps: {few(left)}. The stamps"
            f" could not be renewed: {reason.removesuffix('.')}. So each opening checks their index"
            ' ranges and the negatives again; open with validate="full" to check everything.'
        )


def _renew_manifest(verification: Verification, checked: Manifest) -> None:
    renewed = {
        name: replace(entry, mtime_ns=verification.moved[entry.file])
        for name, entry in checked.artifacts.items()
        if entry.file in verification.moved
    }
    if not renewed or read_manifest(verification.folder) != checked:
        return
    manifest = replace(checked, artifacts={**checked.artifacts, **renewed})
    atomic.write_json(verification.folder / MANIFEST_FILE, manifest.to_dict())
    verification.renewed += [entry.file for entry in renewed.values()]


def _renew_pointer(verification: Verification, checked: Pointer) -> str | None:
    """Renew the stamp of the current generation; return the reason if it cannot be renewed."""
    file, path = f"{FOLDER}/{checked.file}", pointer_path(verification.folder)
    if file not in verification.moved or read_pointer(verification.folder) != checked:
        return None
    if path.is_symlink():
        return f"{path} is a link"
    write_pointer(verification.folder, replace(checked, mtime_ns=verification.moved[file]))
    verification.renewed.append(file)
    return None
