"""Names and defaults of arguments and options, as types and as values.

This module does not import torch, so commands start quickly.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

Split = Literal["train", "val", "test"]
Variant = Literal["zero", "centroid", "keyword", "residual"]
"""A kind of steering; its number is its place in this list."""
Adopt = Literal["now", "epoch"]
"""When a watch serves a new generation: from the next batch, or from the next epoch on."""
Again = Literal["auto", "state", "current"]
"""Which generation a resumed pass is served with: that of the state if it is there, that of the
state or an error, or the newest."""
Validation = Literal["auto", "full"]
"""What is checked at open: files that changed since the conversion, or everything."""
Auto = Literal["auto"]
"""A loader that is divided among ranks if a process group is up when that is first needed."""
Tail = Literal["share", "pad", "cut"]
"""How ranks divide the end of an order that is no multiple of their number."""

SPLITS: Final[tuple[Split, ...]] = get_args(Split)
VARIANTS: Final[tuple[Variant, ...]] = get_args(Variant)

NARROW_DTYPES: Final = ("float16", "bfloat16")
"""The narrower dtypes in which embeddings and steering may be stored."""
SOURCE: Final = "source"
"""The `embeddings_dtype` that restores the dtypes of the builder's files."""

SEED: Final = 42
"""The default of every seed."""
MARGIN: Final = 0.05
"""By default a negative is too similar above 95 % of the right source's similarity."""
KEEP: Final = 3
"""Number of generations that are kept on disk."""
GRACE_S: Final = 600.0
"""A generation is kept at least this long after it was replaced: a process that has read the
pointer, or a worker that is waiting, may be about to open it."""
LOCK_TIMEOUT_S: Final = 60.0
"""How long a publisher waits for another one."""
