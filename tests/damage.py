"""Changing what lies in a store, as an accident or an adversary would."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


def edit_manifest(store: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrite `manifest.json` after `change` was done to it."""
    path = store / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def rewrite(
    path: Path, change: Callable[[dict[str, torch.Tensor]], object], *, touch: bool
) -> None:
    """Change tensors of a file in place, byte for byte of the same size; `touch` moves its time."""
    before = path.stat()
    tensors = load_file(path)
    offset = before.st_size - sum(t.nbytes for t in tensors.values())
    change(tensors)
    header = json.loads(path.read_bytes()[8:offset])
    with path.open("r+b") as file:
        for name, tensor in tensors.items():
            file.seek(offset + header[name]["data_offsets"][0])
            file.write(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    moved = 1_000_000_000 if touch else 0
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + moved))


def edit_pointer(store: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrite `CURRENT.json` after `change` was done to it."""
    path = store / "negatives" / "CURRENT.json"
    pointer = json.loads(path.read_text())
    change(pointer)
    path.write_text(json.dumps(pointer))


def forge_generation(
    store: Path, change: Callable[[dict[str, torch.Tensor]], object], *, touch: bool = True
) -> None:
    """Change tensors of the current generation, and have the pointer vouch for the new bytes."""

    def vouch(pointer: dict[str, Any]) -> None:
        path = store / "negatives" / pointer["file"]
        rewrite(path, change, touch=touch)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        for entry in (pointer, pointer["history"][-1]):
            entry["sha256"] = digest

    edit_pointer(store, vouch)
