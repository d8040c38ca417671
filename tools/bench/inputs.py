"""The input of a benchmark: a builder's folder, its store, and each contender's own files.

Run `python -m tools.bench.inputs DIR` to make only the synthetic folder.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from converters import convert, export_pt
from jasper_mmap.console import PATH, Command, debug_option, run
from jasper_mmap.rules.names import SPLITS
from jasper_mmap.rules.schema import STEERING
from jasper_mmap.store.manifest import MANIFEST_FILE, read_manifest

PAIRS = 100_000
DIM = 768
N_NEG = 12
MADE_FROM = "made_from.json"


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """One dataset as a builder's folder of `.pt` files and as a store, and a folder for others."""

    pt: Path
    store: Path
    work: Path

    @property
    def store_id(self) -> str:
        """The id of the store's content."""
        return read_manifest(self.store).store_id


def make_folder(
    dst: Path, pairs: int, dim: int = DIM, n_neg: int = N_NEG, *, rows: int | None = None
) -> None:
    """Write a builder's folder of random numbers in realistic shapes.

    `rows` is the number of questions and of sources; None: half as many as pairs.
    """
    generator = torch.Generator().manual_seed(0)

    def floats(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def numbers(below: int, *shape: int) -> Tensor:
        return torch.randint(below, shape, generator=generator)

    questions = sources = pairs // 2 if rows is None else rows
    keywords, clusters = 1000, 50
    order = torch.randperm(pairs, generator=generator)
    cuts = [pairs * 9 // 10, pairs // 20, pairs - pairs * 9 // 10 - pairs // 20]
    keyword_ids = numbers(keywords, pairs, 2).tolist()
    tables: dict[str, Any] = {
        "question_embs": floats(questions, dim),
        "source_embs": floats(sources, dim),
        "keyword_embs": floats(keywords, dim),
        "centroid_embs": floats(clusters, dim),
        "pair_index": torch.stack([numbers(questions, pairs), numbers(sources, pairs)], 1),
        "pair_cluster_id": numbers(clusters, pairs),
        "pair_relevance": torch.rand(pairs, generator=generator),
        "pair_keyword_ids": keyword_ids,
        "centroid_distances": torch.rand(pairs, generator=generator),
        "hard_negatives": numbers(sources, pairs, n_neg),
        "negative_tiers": numbers(4, pairs, n_neg) + 1,
        **{name: floats(pairs, dim) for name in STEERING if name},
        **{
            f"{s}_idx": part.clone()
            for s, part in zip(SPLITS, torch.split(order, cuts), strict=True)
        },
    }
    # Little zero steering, whose single row would make a batch cheaper than the floor's.
    probabilities = {"zero": 0.01, "centroid": 0.33, "keyword": 0.33, "residual": 0.33}
    config = {"embedding_dim": dim, "n_neg": n_neg, "steering_probabilities": probabilities}
    dst.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        torch.save(table, dst / f"{name}.pt")
    (dst / "config.json").write_text(json.dumps(config, indent=2))


def inputs_of(folder: Path | None, cache: Path, pairs: int) -> Inputs:
    """Return the dataset of `folder` (a store or a builder's folder), or a random one of `pairs`.

    Generated files go into `cache`, for later runs.
    """
    if folder is None:
        work = cache / f"synthetic_{pairs}"
        make_once(work / "pt", str(pairs), lambda dst: make_folder(dst, pairs))
        convert(work / "pt", work / "store")
        return Inputs(pt=work / "pt", store=work / "store", work=work)
    folder = folder.resolve()
    work = cache / hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    if not (folder / MANIFEST_FILE).exists():
        convert(folder, work / "store")
        return Inputs(pt=folder, store=work / "store", work=work)
    pt = folder
    if not (folder / "question_embs.pt").exists():
        pt = work / "pt"
        make_once(pt, read_manifest(folder).store_id, lambda dst: export_pt(folder, dst))
    return Inputs(pt=pt, store=folder, work=work)


def make_once(dst: Path, made_from: str, make: Callable[[Path], object]) -> None:
    """Fill the new folder `dst` by `make`, unless it was made from the same data before."""
    note = dst.with_name(f"{dst.name}.{MADE_FROM}")
    if note.exists() and json.loads(note.read_text()) == made_from:
        return
    note.unlink(missing_ok=True)
    shutil.rmtree(dst, ignore_errors=True)
    dst.mkdir(parents=True)
    make(dst)
    note.write_text(json.dumps(made_from))


def drop_from_memory(folder: Path) -> None:
    """Write the files of `folder` to disk and drop them from the page cache.

    Pages that were read at random are small, and reading the file again does not enlarge them.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@click.command(cls=Command)
@click.argument("folder", metavar="DIR", type=PATH)
@click.option("--pairs", type=click.IntRange(1), default=PAIRS, show_default=True)
@click.option("--dim", type=click.IntRange(1), default=DIM, show_default=True)
@click.option("--neg", type=click.IntRange(1), default=N_NEG, show_default=True)
@debug_option
def command(folder: Path, *, pairs: int, dim: int, neg: int) -> None:
    """Write a large random builder's folder."""
    make_folder(folder, pairs, dim, neg)


if __name__ == "__main__":
    run(command)
