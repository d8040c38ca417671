"""What publishing changes: shown after it in a line, or before it by a dry run."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ...console import answering, echo, echo_json, echo_warning, verdict
from ...errors import JasperError
from ...negatives.candidate import Limits, take_in
from ...negatives.publish import publish_within, shares
from ...rules.schema import TIERS
from ...similarity.change.slots import STATES, Numbers, slot_counts
from ...store.folder import Store
from ...store.lint import suspicion
from ...store.pointer import Pointer
from .comparison import compare, comparison_to_dict, print_comparison, published, side_of


def changed_slots(store: Path, pointer: Pointer, generation: int) -> Numbers | None:
    """The slots [tiers, states] of a generation, compared with the one before it in the history.

    None if it is the first one, or one of the two is not on disk.
    """
    numbers = [entry["generation"] for entry in pointer.history]
    if generation not in numbers[1:]:
        return None
    before = numbers[numbers.index(generation) - 1]
    try:
        opened = Store(store)
        old, new = (opened.generation(number)[1].tables for number in (before, generation))
    except JasperError:
        return None
    return slot_counts(old, new, opened.manifest.sizes["N_s"])


def slots_to_dict(counts: Numbers | None) -> dict[str, Any] | None:
    """The JSON form: tier -> state -> slots."""
    if counts is None:
        return None
    return {
        str(tier): dict(zip(STATES, row.tolist(), strict=True))
        for tier, row in zip(TIERS, counts, strict=True)
    }


def rehearse(store: Path, files: tuple[Path, Path], *, as_json: bool, **options: Any) -> None:
    """Print what publishing two files would change, and that it would be refused, or the number
    that it would have; `options` are those of `publish_negatives`. What is compared is linted once.

    Raises what publishing would raise, after the comparison is printed.
    """
    opened = Store(store)
    allow_equal: bool = options.pop("allow_equal")
    limits = Limits(**{limit.name: options.pop(limit.name) for limit in fields(Limits)})
    candidate = take_in(opened, *files, allow_equal=allow_equal, copies_in_store=False)
    after = side_of(candidate)
    try:
        before = published(opened, None)
    except JasperError:  # none yet, or a spoilt one, for which publishing is the remedy
        before = None
    result = None if before is None else compare(opened, before, after)
    warning = suspicion(shares(after.lint, opened.manifest.sizes["N_p"]))
    answer: dict[str, Any] = {"dry_run": True, "store": str(opened.path), "warning": warning}
    if before is not None and result is not None:
        candidate = replace(candidate, similarity=result.lint_after)
        answer |= comparison_to_dict(opened, before, after, result)
        if not as_json:
            print_comparison(opened, before, after, result)
            echo("")
    try:
        with answering():
            number = publish_within(opened, candidate, limits, dry_run=True, **options)
    except JasperError as error:
        if as_json:
            echo_json({**answer, "generation": None, "refused": str(error)})
        raise
    same = before is not None and number == before.generation
    if as_json:
        echo_json({**answer, "generation": number, "same": same, "refused": None})
        return
    if warning is not None:
        echo_warning(warning)
    if same:
        unused = ", so the note would not be used" if options.get("note") else ""
        fate = verdict(f"generation {number} has these values already{unused}", "doubtful")
    else:
        fate = verdict(f"this would be generation {number}", "good")
    echo("dry run, nothing was published: ", fate)
