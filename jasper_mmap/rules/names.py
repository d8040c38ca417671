"""Names and defaults that calls and options take, as types and as values.

It imports no torch, so commands answer quickly.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

Split = Literal["train", "val", "test"]
Variant = Literal["zero", "centroid", "keyword", "residual"]
"""Of steering; its number is its place here."""
Adopt = Literal["now", "epoch"]
"""When a watch serves a new generation: with the next batch, or from the next epoch on."""
Validation = Literal["auto", "full"]
"""What is checked at open: what changed since the conversion, or everything."""

SPLITS: Final[tuple[Split, ...]] = get_args(Split)
VARIANTS: Final[tuple[Variant, ...]] = get_args(Variant)

NARROW_DTYPES: Final = ("float16", "bfloat16")
"""What embeddings and steering may be stored in."""
SOURCE: Final = "source"
"""The `embeddings_dtype` that asks for the dtypes of the builder's files again."""

KEEP: Final = 3
"""Generations that stay on disk."""
LOCK_TIMEOUT_S: Final = 60.0
"""How long a publisher waits for another one."""
