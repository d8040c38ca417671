"""Run once a release: `python tests/golden/make.py tests/golden/VERSION.tar.gz [--narrow DTYPE]`.

Makes a small store with the version that is imported, and digests of all that it serves from it.
It uses public names alone, so an earlier version makes its own: with its checkout as the working
directory and as PYTHONPATH. A `--narrow`ed store has embeddings of one dtype, another one mixed
ones (which version 0.1.0 served wrong).

Shape letters: `N_q` questions, `N_s` sources, `N_k` keywords, `N_c` clusters, `N_p` pairs.
"""

import argparse
import hashlib
import json
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jasper_mmap import JASPERSteeringDataset, create_loader, publish_negatives, set_epoch

STORE, DIGESTS = "store", "digests.json"
SPLITS = ("train", "val", "test")
VARIANTS = ("zero", "centroid", "keyword", "residual")
EPOCHS = range(3)
BATCH_SIZE, TAKEN = 7, 3
"""Of the loader whose state is kept after so many batches of its second pass."""
N_Q, N_S, N_K, N_C, N_P, DIM, N_NEG = 23, 41, 9, 4, 61, 5, 3


def make_folder(folder: Path, *, mixed: bool) -> None:
    """Write a builder's folder without centroid distances, which the converter computes."""
    generator = torch.Generator().manual_seed(0)

    def below(n: int, *shape: int) -> Tensor:
        return torch.randint(n, shape, generator=generator)

    def floats(rows: int) -> Tensor:
        return torch.randn(rows, DIM, generator=generator)

    order = torch.randperm(N_P, generator=generator)
    tables: dict[str, Any] = {
        "question_embs": floats(N_Q),
        "source_embs": floats(N_S),
        "keyword_embs": floats(N_K),
        "centroid_embs": floats(N_C),
        "pair_index": torch.stack([below(N_Q, N_P), below(N_S, N_P)], 1).to(torch.uint16),
        "pair_cluster_id": below(N_C, N_P).to(torch.uint8),
        "pair_relevance": torch.rand(N_P, generator=generator).to(torch.float64),
        "pair_keyword_ids": [below(N_K, pair % 4).tolist() for pair in range(N_P)],
        "steering_centroid": floats(N_P),
        "steering_keyword_weighted": floats(N_P),
        "steering_residual": floats(N_P),
        "hard_negatives": below(N_S, N_P, N_NEG).to(torch.int32),
        "negative_tiers": below(4, N_P, N_NEG).to(torch.uint8) + 1,
        "train_idx": order[:40],
        "val_idx": order[40:51].to(torch.int16),
        "test_idx": order[51:].to(torch.uint32),
    }
    if mixed:
        tables["source_embs"] = tables["source_embs"].to(torch.bfloat16)
        tables["steering_residual"] = tables["steering_residual"].to(torch.float64)
    for name, value in tables.items():
        torch.save(value, folder / f"{name}.pt")
    shares = dict(zip(VARIANTS, (0.1, 0.3, 0.2, 0.4), strict=True))
    curriculum = {"zero_prob_start": 0.5, "zero_prob_end": 0.1, "epochs_total": 4}
    config = {
        "embedding_dim": DIM,
        "n_neg": N_NEG,
        "steering_probabilities": shares,
        "curriculum": curriculum,
    }
    (folder / "config.json").write_text(json.dumps(config))


def digest(batches: Iterable[Mapping[str, Tensor]]) -> dict[str, str]:
    """Return the SHA-256 of each column, of all batches one after the other."""
    hashes: dict[str, Any] = {}
    for batch in batches:
        for name, column in batch.items():
            known = hashes.setdefault(name, hashlib.sha256())
            known.update(f"{column.dtype}{list(column.shape)}".encode())
            known.update(column.contiguous().view(torch.uint8).numpy().tobytes())
    return {name: known.hexdigest() for name, known in sorted(hashes.items())}


def loader_of(store: Path, split: Any, **options: Any) -> Any:
    """Return a loader that drops nothing and pins nothing."""
    return create_loader(store, split, BATCH_SIZE, drop_last=False, pin_memory=False, **options)


def served(store: Path, **options: Any) -> dict[str, Any]:
    """Return the order and the digests of every split, epoch and forced variant."""
    found: dict[str, Any] = {}
    for split in SPLITS:
        loader = loader_of(store, split, **options)
        for epoch in EPOCHS:
            set_epoch(loader, epoch)
            for number in range(2):
                found[f"{split}, order of epoch {epoch}, pass {number}"] = list(loader.sampler_obj)
                found[f"{split}, epoch {epoch}, pass {number}"] = digest(loader)
        for variant in VARIANTS:
            set_epoch(loader, 1)
            loader.dataset_obj.force_steering(variant)
            found[f"{split}, forced to {variant}"] = digest(loader)
        del loader
    return found


def interrupted(store: Path) -> Any:
    """Return a loader of train that stands in the middle of the second pass of epoch 2."""
    loader = loader_of(store, "train", seed=7)
    set_epoch(loader, 2)
    digest(loader)
    batches = iter(loader)
    for _ in range(TAKEN):
        next(batches)
    return loader


def resumed(store: Path, state: dict[str, Any]) -> dict[str, Any]:
    """Return what a loader serves that goes on where a state was taken: the rest, the next pass."""
    loader = loader_of(store, "train", seed=7)
    loader.load_state_dict(state)
    return {
        "order of the rest": list(loader.sampler_obj),
        "the rest": digest(loader),
        "order of the next pass": list(loader.sampler_obj),
        "the next pass": digest(loader),
    }


def publish_another(store: Path) -> int:
    """Publish what follows from the current generation; its number."""
    with JASPERSteeringDataset(store, "train") as dataset:
        negatives = (dataset.hard_negatives.to(torch.int64) + 1) % N_S
        tiers = dataset.negative_tiers.to(torch.int64) % 4 + 1
    return publish_negatives(store, negatives, tiers, note="another")


def make(path: Path, embeddings_dtype: str | None) -> None:
    """Make the archive."""
    from converters import convert

    with tempfile.TemporaryDirectory() as root:
        source, store = Path(root, "source"), Path(root, STORE)
        source.mkdir()
        make_folder(source, mixed=embeddings_dtype is None)
        convert(source, store, embeddings_dtype=embeddings_dtype)
        publish_another(store)
        state = interrupted(store).state_dict()
        digests = {"served": served(store), "state": state, "resumed": resumed(store, state)}
        with tarfile.open(path, "w:gz") as archive:
            archive.add(store, STORE, filter=_nobodys)
            digests["published"] = {"generation": publish_another(store), "served": served(store)}
            Path(root, DIGESTS).write_text(json.dumps(digests))
            archive.add(Path(root, DIGESTS), DIGESTS, filter=_nobodys)


def _nobodys(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make a golden store.")
    parser.add_argument("tar", type=Path)
    parser.add_argument("--narrow", metavar="DTYPE", help="float16 or bfloat16")
    arguments = parser.parse_args()
    make(arguments.tar.absolute(), arguments.narrow)
