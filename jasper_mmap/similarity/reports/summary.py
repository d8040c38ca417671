"""The lint of a generation in a few numbers, for its entry in the history."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final

from ...rules.names import VARIANTS
from .report import GenerationLint

KEY: Final = "similarity"
"""Of an entry of the history. Versions that do not know it leave it alone."""
MOST_BYTES: Final = 400
RULE: Final = 1
"""Rises with every change of what a number of the lint means."""


def summary(lint: GenerationLint, margin: float) -> dict[str, float]:
    """Return the numbers of a generation's lint that outlive it, at most 400 bytes as JSON.

    `own` and `tier1` to `tier4` are medians of similarities, `nearest` is the share of rows where
    the question alone is nearest to its right source, the others are counts as in the report.
    """
    similarity = lint.similarity["all"]
    medians = {f"tier{tier}": values.p50 for tier, values in similarity.tiers.items()}
    numbers = {
        "rule": RULE,
        "margin": margin,
        "rows": lint.rows,
        "slots": lint.slots,
        "own": similarity.own.p50,
        **medians,
        "margin_rows": lint.margin_false.rows.count,
        "margin_slots": lint.margin_false.slots.count,
        "known_rows": lint.known_right.rows.count,
        "known_slots": lint.known_right.slots.count,
        "weak_rows": lint.weak_right.rows.count,
        "eval_rows": lint.evaluation_sources.rows.count,
        "eval_slots": lint.evaluation_sources.slots.count,
        "nearest": round(lint.untrained["all"][VARIANTS[0]].nearest.share, 4),
    }
    there = {name: number for name, number in numbers.items() if number is not None}
    assert len(json.dumps(there)) <= MOST_BYTES
    return there


def summary_in(entry: Mapping[str, Any]) -> dict[str, float]:
    """Return the summary in an entry of the history, which is untrusted; {} without a valid one."""
    value = entry.get(KEY)
    if not isinstance(value, Mapping):
        return {}
    sound = all(
        isinstance(name, str) and type(number) in (int, float) and math.isfinite(number)
        for name, number in value.items()
    )
    return dict(value) if sound and value.get("rule") == RULE else {}
