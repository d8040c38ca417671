"""Legal but suspicious content of a dataset: counted and reported, not refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from ..files.safetensors import chunks
from ..rules.config import CONFIG_FILE, Config, default_curriculum
from ..rules.integers import as_int64
from ..rules.schema import ARTIFACTS
from .manifest import Manifest

MEANING: Final = {
    "pairs_in_two_splits": "pairs appear in more than one split",
    "pairs_twice_in_a_split": "pairs appear twice in one split",
    "own_source_rows": "rows of negatives contain the pair's own source",
    "false_negative_rows": "rows of negatives contain another correct source of the question",
    "repeat_rows": "rows of negatives contain a source twice",
    "nonfinite_values": "values are NaN or infinite",
}
"""Name of a count -> its description."""

_SUSPECT_SHARE: Final = 0.5
_SUSPICIOUS: Final = ("own_source_rows", "repeat_rows")

_KNOWN_PAIRS = 1 << 23
"""Pairs looked up at a time: 64 MiB of keys, twice that while they are concatenated."""
_CELLS = 1 << 20
"""Negatives processed at a time."""


def sentences(counts: Mapping[str, int], shares: Mapping[str, float]) -> Iterator[str]:
    """Describe each count that is not 0, with its share if there is one.

    Except that of NaN and infinite values: `remarks` names their tables.
    """
    for name, meaning in MEANING.items():
        if (count := counts.get(name, 0)) and name != "nonfinite_values":
            share = f" ({shares[name]:.1%})" if name in shares else ""
            yield f"{count:,}{share} {meaning}"


def lint_splits(splits: Mapping[str, torch.Tensor], n_pairs: int) -> dict[str, int]:
    """Count pairs in several splits and pairs twice in one; all numbers are below `n_pairs`.

    Uses one byte of memory per pair.
    """
    here, twice, before, both = 1, 2, 4, 8
    marks = np.zeros(n_pairs, np.uint8)
    for split in splits.values():
        for piece in chunks(split):
            pairs, counts = np.unique(_whole(piece), return_counts=True)
            again = (counts > 1) | (marks[pairs] & here != 0)
            marks[pairs[again]] |= twice
            marks[pairs] |= here
        marks[marks & (here | before) == here | before] |= both
        marks[marks & here != 0] |= before
        marks &= 0xFF ^ here
    return {
        "pairs_in_two_splits": int(np.count_nonzero(marks & both)),
        "pairs_twice_in_a_split": int(np.count_nonzero(marks & twice)),
    }


def count_unsuitable(
    pair_index: torch.Tensor, hard_negatives: torch.Tensor, n_sources: int
) -> dict[str, int]:
    """Count the rows of `hard_negatives` [N_p,N] with unsuitable negatives.

    These are the pair's own source, another correct source of its question (a false negative), and
    repeats. Memory is bounded: pairs are processed in blocks, by question number modulo the number
    of blocks.
    """
    own = false = repeated = 0
    n_pairs, n_neg = hard_negatives.shape
    blocks = max(1, -(-n_pairs // _KNOWN_PAIRS))
    step = max(1, _CELLS // n_neg)
    for block in range(blocks):
        known = np.sort(
            np.concatenate(
                [
                    pairs[:, 0] * n_sources + pairs[:, 1]
                    for piece in chunks(pair_index)
                    if len(pairs := _of_block(_whole(piece), block, blocks)[0])
                ]
                or [np.zeros(0, np.int64)]
            )
        )
        for begin in range(0, n_pairs, step):
            pairs, in_block = _of_block(_whole(pair_index[begin : begin + step]), block, blocks)
            rows = np.sort(_whole(hard_negatives[begin : begin + step])[in_block], axis=1)
            is_own = rows == pairs[:, 1:]
            keys = pairs[:, :1] * n_sources + rows
            at = np.searchsorted(known, keys)
            at[at == len(known)] = 0
            is_true = (known[at] == keys) & ~is_own
            own += int(is_own.any(1).sum())
            false += int(is_true.any(1).sum())
            repeated += int((rows[:, 1:] == rows[:, :-1]).any(1).sum())
    return {"own_source_rows": own, "false_negative_rows": false, "repeat_rows": repeated}


def suspicion(shares: Mapping[str, float]) -> str | None:
    """A warning if many rows are unsuitable, by the shares of the counts of `count_unsuitable`.

    Not an error: with few sources such rows are unavoidable.
    """
    high = [name for name in _SUSPICIOUS if shares.get(name, 0) > _SUSPECT_SHARE]
    if not high:
        return None
    counted = " and ".join(f"{shares[name]:.1%} of {MEANING[name]}" for name in high)
    return f"{counted}; check that these are the hard negatives, not their tiers"


def count_changed_rows(
    before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]
) -> int:
    """Count the rows in which a table [N_p,N] of `after` differs from that of the same name."""
    n_pairs, n_neg = next(iter(after.values())).shape
    changed = 0
    for rows in _pieces(n_pairs, n_neg):
        differs = [_whole(before[n][rows]) != _whole(table[rows]) for n, table in after.items()]
        changed += int(np.logical_or.reduce(differs).any(1).sum())
    return changed


def equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether two tables [N_p,N] hold the same values, regardless of dtype."""
    return all(bool((_whole(a[rows]) == _whole(b[rows])).all()) for rows in _pieces(*a.shape))


def _pieces(n_pairs: int, n_neg: int) -> Iterator[slice]:
    step = max(1, _CELLS // n_neg)
    return (slice(begin, begin + step) for begin in range(0, n_pairs, step))


def _whole(numbers: torch.Tensor) -> NDArray[np.int64]:
    return as_int64(numbers).numpy()


def _of_block(
    pairs: NDArray[np.int64], block: int, blocks: int
) -> tuple[NDArray[np.int64], NDArray[Any] | slice]:
    """The (question, source) rows whose question belongs to the block, and their places."""
    if blocks == 1:
        return pairs, slice(None)
    in_block = pairs[:, 0] % blocks == block
    return pairs[in_block], in_block


def remarks(config: Config, manifest: Manifest) -> list[str]:
    """The remarks of reports, `inspect` and `verify` about a sound store, a sentence each."""
    return [
        *_edited(config, manifest),
        *([defaults] if (defaults := default_curriculum(config)) else []),
        *_beyond(manifest),
        *_nonfinite(manifest),
        *_narrowed(manifest),
    ]


def _edited(config: Config, manifest: Manifest) -> list[str]:
    if manifest.config_sha256 in (None, config.sha256):
        return []
    return [
        f"{CONFIG_FILE} was edited since the conversion (this is allowed; run jasper-convert to"
        " check and record the change)."
    ]


def _nonfinite(manifest: Manifest) -> list[str]:
    return [
        f"{name} holds {entry.nonfinite:,} NaN or infinite value{_s(entry.nonfinite)}, kept by"
        " --allow-nonfinite, and so do batches of these rows. If this is not intended, correct the"
        " .pt file and convert again without it."
        for name, entry in manifest.artifacts.items()
        if entry.nonfinite
    ]


def _s(count: int) -> str:
    return "" if count == 1 else "s"


def _beyond(manifest: Manifest) -> list[str]:
    return [
        f"{name} holds {count:,} finite value{_s(count)} that {'is' if count == 1 else 'are'}"
        " infinite as float32, the dtype of batches."
        for name, count in (manifest.beyond_float32 or {}).items()
        if name in ARTIFACTS
    ]


def _narrowed(manifest: Manifest) -> list[str]:
    """Tables that version 0.1.0 narrowed and this version would not."""
    return [
        f"{name} was narrowed to {entry.dtype} by an earlier version of this package;"
        " jasper-convert with --dtype or --force restores its original dtype."
        for name, entry in manifest.artifacts.items()
        if entry.cosine_error is not None and not ARTIFACTS[name].narrow
    ]
