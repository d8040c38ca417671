"""A small store in which every batch tells what it holds.

The embedding of a pair's question is the pair's number, the tier of every negative the number of
its generation, and the curriculum is so steep that each epoch has other variants.
"""

import json
from pathlib import Path

import torch

from converters import convert
from tools.bench.inputs import make_folder

PAIRS = 300
CURRICULUM = {"zero_prob_start": 0.9, "zero_prob_end": 0.1, "epochs_total": 4}


def make_numbered_store(folder: Path) -> Path:
    """Write the store into `folder`, with its `.pt` files, and return it."""
    make_folder(folder, PAIRS, dim=8, n_neg=2)
    numbers = torch.arange(PAIRS)
    pair_index = torch.load(folder / "pair_index.pt", weights_only=True)
    pair_index[:, 0] = numbers
    tables = {
        "pair_index": pair_index,
        "question_embs": numbers.float()[:, None].repeat(1, 8),
        "negative_tiers": torch.ones(PAIRS, 2, dtype=torch.int64),
    }
    for name, table in tables.items():
        torch.save(table, folder / f"{name}.pt")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "curriculum": CURRICULUM}))
    convert(folder)
    return folder
