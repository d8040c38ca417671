"""Pair numbers -> batch: every column read by rows straight into its place. Pure.

Shape letters as in `schema`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from .schema import COLUMNS, STEERING
from .stack import Stack

# torch has no index_select for these: read as the signed dtype of that width, then masked.
_SIGNED = {
    torch.uint16: (torch.int16, 0xFFFF),
    torch.uint32: (torch.int32, 0xFFFFFFFF),
    torch.uint64: (torch.int64, -1),  # checked to be below 2**63 when it was converted
}


def empty_batch(
    size: int, embedding_dim: int, n_neg: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """Uninitialised columns of a batch of `size` rows."""
    sizes = {"B": size, "D": embedding_dim, "N": n_neg}
    return {
        c.name: torch.empty([sizes[d] for d in c.shape], dtype=c.dtype, device=device)
        for c in COLUMNS.values()
    }


def rows_of(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """`table[index]` for a 1-D int64 `index`; unsigned tables come as int64."""
    if table.dtype in _SIGNED:
        signed, mask = _SIGNED[table.dtype]
        return table.view(signed).index_select(0, index).to(torch.int64) & mask
    return table.index_select(0, index)


def _ends(pair_index: torch.Tensor, pairs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Question and source numbers of the pairs, each contiguous, as index_select wants them."""
    questions, sources = rows_of(pair_index, pairs).to(torch.int64).t().contiguous()
    return questions, sources


def _read(table: torch.Tensor, index: torch.Tensor, out: torch.Tensor) -> None:
    if table.dtype == out.dtype:
        torch.index_select(table, 0, index, out=out)
    else:
        out.copy_(rows_of(table, index))


def gather(
    tables: Mapping[str, torch.Tensor],
    negatives: Mapping[str, torch.Tensor],
    pairs: torch.Tensor,
    variants: NDArray[np.int64],
    out: Mapping[str, torch.Tensor],
    stack: Stack | None = None,
) -> None:
    """Fill the columns of `out` for the pair numbers `pairs` [B] and steering `variants` [B].

    `stack` joins the steering tables, where they could be joined.

    `pairs` is int64 on the tables' device and lies in [0, N_p): that, and that the tables refer
    only to rows that exist, was checked before.
    """
    questions, sources = _ends(tables["pair_index"], pairs)
    _read(tables["question_embs"], questions, out["question_emb"])
    _read(tables["source_embs"], sources, out["target_source_emb"])
    numbers = rows_of(negatives["hard_negatives"], pairs).to(torch.int64).view(-1)
    _read(tables["source_embs"], numbers, out["negative_embs"].flatten(0, 1))
    _read(negatives["negative_tiers"], pairs, out["negative_tiers"])
    _read(tables["pair_cluster_id"], pairs, out["cluster_id"])
    _read(tables["pair_relevance"], pairs, out["relevance"])
    _read(tables["centroid_distances"], pairs, out["centroid_distance"])
    drawn = out["steering_variant"].copy_(torch.from_numpy(variants))
    if stack is None:
        _steer(tables, pairs, variants, out["steering"])
    else:
        rows = stack.first.index_select(0, drawn).add_(pairs)
        _read(stack.table, rows.mul_(drawn != 0), out["steering"])  # the zero variant's is row 0


def wanted_rows(
    tables: Mapping[str, torch.Tensor],
    negatives: Mapping[str, torch.Tensor],
    pairs: torch.Tensor,
    variants: NDArray[np.int64],
    stack: Stack | None,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The wide tables and which of their rows `gather` will read for the same arguments."""
    questions, sources = _ends(tables["pair_index"], pairs)
    numbers = rows_of(negatives["hard_negatives"], pairs).to(torch.int64).view(-1)
    wanted = [
        (tables["question_embs"], questions),
        (tables["source_embs"], torch.cat([sources, numbers])),
    ]
    if stack is not None:
        wanted.append((stack.table, stack.first[torch.from_numpy(variants)] + pairs))
    return wanted


def _steer(
    tables: Mapping[str, torch.Tensor],
    pairs: torch.Tensor,
    variants: NDArray[np.int64],
    out: torch.Tensor,
) -> None:
    """Steering by groups of equal variant, from tables that could not be joined."""
    for variant, name in enumerate(STEERING):
        members = np.flatnonzero(variants == variant)
        if members.size == 0:
            continue
        if members.size == len(variants):
            if name is None:
                out.zero_()
            else:
                _read(tables[name], pairs, out)
            return
        places = torch.from_numpy(members).to(pairs.device)
        if name is None:
            out.index_fill_(0, places, 0.0)
        else:
            rows = rows_of(tables[name], pairs.index_select(0, places))
            out.index_copy_(0, places, rows.to(out.dtype))
