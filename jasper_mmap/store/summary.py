"""A summary of a store, for people and programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..files.safetensors import DTYPE_NAMES, chunks
from ..rules.config import Config
from ..rules.curriculum import steering_probabilities
from ..rules.integers import as_int64
from ..rules.names import SPLITS
from ..rules.schema import ARTIFACTS, NEGATIVES, TIERS
from .folder import Store
from .lint import remarks
from .manifest import FORMAT_VERSION
from .pointer import FOLDER, Pointer
from .tables import table_tensor


def summarise(path: str | Path) -> dict[str, Any]:
    """Summarise a store in values that JSON can hold.

    `artifacts` (with shapes, dtypes, sizes), `splits` (pairs), `steering_probabilities` of a few
    epochs, `clusters` and `tiers` (counts), `generation` (the current one), `warnings` (counts),
    `notes` (sentences). Raises what opening the store raises.
    """
    store = Store(path)
    pointer, generation = store.current_generation()
    sizes, manifest, tables = store.manifest.sizes, store.manifest, generation.tables
    artifacts = [
        {
            "name": name,
            "file": entry.file,
            "kind": ARTIFACTS[name].kind,
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "bytes": entry.bytes,
        }
        for name, entry in manifest.artifacts.items()
    ]
    return {
        "store": str(store.path),
        "store_id": store.store_id,
        "format_version": FORMAT_VERSION,
        "created": manifest.created,
        "converter": manifest.converter,
        "bytes": manifest.nbytes + pointer.bytes,
        "artifacts": artifacts,
        "splits": {split: len(_values(store, f"{split}_idx")) for split in SPLITS},
        "steering_probabilities": [
            {"epoch": epoch, **steering_probabilities(store.config, epoch)}
            for epoch in _epochs(store.config)
        ],
        "clusters": _counts(_values(store, "pair_cluster_id"), sizes["N_c"]),
        "tiers": dict(
            zip(
                map(str, TIERS),
                _counts(tables["negative_tiers"], TIERS[-1] + 1)[TIERS[0] :],
                strict=True,
            )
        ),
        "generation": _generation(pointer, tables),
        "warnings": {**manifest.warnings, **pointer.lint},
        "notes": remarks(store.config, manifest),
    }


def _values(store: Store, name: str) -> torch.Tensor:
    return table_tensor(store.tables[name])


def _epochs(config: Config) -> list[int]:
    """The first and last epoch of the curriculum and its quarters; [0] without a curriculum."""
    if config.curriculum is None:
        return [0]
    total = config.curriculum.epochs_total
    return sorted({total * quarter // 4 for quarter in range(5)})


def _counts(numbers: torch.Tensor, n: int) -> list[int]:
    """How often each of 0 to n - 1 occurs in an integer table."""
    counts = np.zeros(n, np.int64)
    for rows in chunks(numbers):
        counted = np.bincount(as_int64(rows).numpy().ravel(), minlength=n)
        counts += counted[:n]
    result: list[int] = counts.tolist()
    return result


def _generation(pointer: Pointer, tables: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {
        "number": pointer.generation,
        "file": f"{FOLDER}/{pointer.file}",
        "bytes": pointer.bytes,
        "when": pointer.when,
        "by": pointer.by,
        "note": pointer.note,
        "published": len(pointer.history),
        "tables": [
            {
                "name": a.name,
                "dtype": DTYPE_NAMES[tables[a.name].dtype],
                "shape": list(tables[a.name].shape),
            }
            for a in NEGATIVES
        ],
    }
