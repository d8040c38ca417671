"""Names and defaults that calls and options take: no torch, so commands answer quickly."""

from __future__ import annotations

from typing import Final

SPLITS: Final = ("train", "val", "test")
VARIANTS: Final = ("zero", "centroid", "keyword", "residual")

NARROW_DTYPES: Final = ("float16", "bfloat16")
"""What embeddings and steering may be stored in."""
SOURCE: Final = "source"
"""The `embeddings_dtype` that asks for the dtypes of the builder's files again."""

KEEP: Final = 3
"""Generations that stay on disk."""
LOCK_TIMEOUT_S: Final = 60.0
"""How long a publisher waits for another one."""
