"""The rule by which a negative may be a right source that nobody knows of.

It is the relative margin with an absolute value, as sentence-transformers defines it for mining.
"""

from __future__ import annotations

import torch

from ..rules.names import MARGIN


def is_margin_false(s: torch.Tensor, p: torch.Tensor, margin: float = MARGIN) -> torch.Tensor:
    """Return whether a negative of similarity `s` is too near, the right source having `p`.

    That is s > p - margin * |p|, element by element (the shapes broadcast). NaN is never too near.
    """
    return s > p - margin * p.abs()
