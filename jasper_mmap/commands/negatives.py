"""The commands about generations of hard negatives: publish, rollback, generations, watch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click

from ..console import answering, debug_option
from ..negatives.dropped import Place
from ..negatives.inbox import Inbox
from ..negatives.publish import publish_negatives, rollback_negatives, shares
from ..printable import printable
from ..rules.names import KEEP, LOCK_TIMEOUT_S
from ..store.lint import MEANING, sentences, suspicion
from ..store.manifest import read_manifest
from ..store.pointer import Pointer, generations_on_disk, read_pointer
from .report import NOTE_LENGTH
from .service import Finite, logged_to_stdout, signals_held

_PATH = click.Path(path_type=Path, readable=False)
_SHARE = click.FloatRange(0, 1)
_SECONDS = Finite(0, min_open=True)
_AMOUNT = Finite(0)

_store = click.argument("dataset_dir", metavar="DIR", type=_PATH)
_json = click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")


def _publishing(command: Callable[..., None]) -> Callable[..., None]:
    """The options of every command that publishes."""
    options = (
        click.option(
            "--keep",
            type=click.IntRange(1),
            default=KEEP,
            show_default=True,
            help="Generations that stay on disk.",
        ),
        click.option(
            "--lock-timeout",
            "lock_timeout_s",
            type=_AMOUNT,
            default=LOCK_TIMEOUT_S,
            show_default=True,
            help="Seconds to wait for another publisher.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _limited(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say what publishing refuses."""
    meanings = {
        "--max-false-negatives": "contain another correct source of the question",
        "--max-own-source": "contain the pair's own source",
        "--max-repeats": "contain a source twice",
        "--max-changed": "differ from the generation in force",
    }
    for name, meaning in reversed(meanings.items()):
        text = f"Refuse if more than this share of rows (0 to 1) {meaning}."
        command = click.option(name, type=_SHARE, help=text)(command)
    return click.option(
        "--allow-equal", is_flag=True, help="Take negatives and tiers of equal values."
    )(command)


@click.command()
@_store
@click.option("--negatives", required=True, type=_PATH, help="Source numbers: .pt, .safetensors.")
@click.option("--tiers", required=True, type=_PATH, help="Their tiers, 1 to 4.")
@click.option("--note", default="", help="Kept in the history.")
@_limited
@_publishing
@_json
@debug_option
def publish(dataset_dir: Path, negatives: Path, tiers: Path, as_json: bool, **options: Any) -> None:
    """Check new hard negatives and put them in force in the store DIR.

    Running trainers that watch the store adopt them; what was in force stays so if anything is
    wrong.
    """
    with answering():
        number = publish_negatives(dataset_dir, negatives, tiers, **options)
    _tell(dataset_dir, number, as_json)


@click.command()
@_store
@click.option(
    "--to",
    "generation",
    type=click.IntRange(1),
    help="The generation to go back to.  [default: the one before the one in force]",
)
@click.option("--note", default="", help="Kept in the history.")
@_publishing
@_json
@debug_option
def rollback(dataset_dir: Path, as_json: bool, **options: Any) -> None:
    """Publish an older generation of the store DIR again, under the next number."""
    with answering():
        number = rollback_negatives(dataset_dir, **options)
    _tell(dataset_dir, number, as_json)


@click.command()
@_store
@_json
@debug_option
def generations(dataset_dir: Path, as_json: bool) -> None:
    """Show the history of the store DIR: which generations there were, and which is in force."""
    pointer, n_pairs = _pointer_and_pairs(dataset_dir)
    on_disk = generations_on_disk(dataset_dir)
    shown = [
        {
            **_entry(pointer, e["generation"]),
            "in_force": e["generation"] == pointer.generation,
            "on_disk": e["generation"] in on_disk,
        }
        for e in pointer.history
    ]
    if as_json:
        click.echo(json.dumps(shown, indent=2))
        return
    for entry in shown:
        state = "in force" if entry["in_force"] else "" if entry["on_disk"] else "removed"
        size = f"{entry['bytes'] / 2**20:.1f} MiB"
        click.echo(
            printable(
                f"{entry['generation']:>6}  {entry['when'][:19]}  {size:>10}  {state:<8}  "
                + "; ".join(filter(None, (entry["note"][:NOTE_LENGTH], *_counts(entry, n_pairs))))
            )
        )


@click.command()
@_store
@click.option(
    "--inbox",
    metavar="PATTERN",
    help="A folder, or a pattern of the files of hard negatives.  [default: DIR/inbox]",
)
@click.option(
    "--interval",
    type=_SECONDS,
    default=1.0,
    show_default=True,
    help="Seconds between two looks, above 0.",
)
@click.option(
    "--settle",
    type=_AMOUNT,
    default=2.0,
    show_default=True,
    help="Seconds that files must rest.",
)
@click.option("--once", is_flag=True, help="Handle what is complete now, and end.")
@click.option(
    "--keep-days",
    type=_AMOUNT,
    help="Remove files that lay in done/ and failed/ for so many days.  [default: keep them]",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object an event.")
@_limited
@_publishing
@debug_option
def watch(
    dataset_dir: Path,
    inbox: str | None,
    interval: float,
    settle: float,
    once: bool,
    keep_days: float | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Publish what a miner drops into an inbox, until interrupted.

    A pair is two files whose names differ in hard_negatives and negative_tiers only. It is taken
    once both are there and rest, and then moved to done/ or, with the reason beside, to failed/.
    What is wrong with the store or the disk is said once and tried again. One line an event on
    stdout; ends cleanly on SIGINT and SIGTERM. With --once, status 1 tells that a pair was refused
    or could not be published.
    """
    read_manifest(dataset_dir)
    store, place = dataset_dir.absolute(), Place.of(dataset_dir, inbox)
    service = Inbox(
        store,
        place,
        partial(publish_negatives, store, republish=False, **options),
        settle_s=settle,
        by_age=once,
        keep_days=keep_days,
    )
    with logged_to_stdout(as_json=as_json), signals_held() as signals:
        service.begin()
        service.look(signals.came)
        if once:
            if signals.wait(settle) is None:  # the second look sees what has rested since
                service.look(signals.came)
            service.check()
            return
        while (number := signals.wait(interval)) is None:
            service.look(signals.came)
        service.end(number.name)


COMMANDS = (publish, rollback, generations, watch)
"""For the group of `jasper-mmap`."""


def _tell(store: Path, generation: int, as_json: bool) -> None:
    pointer, n_pairs = _pointer_and_pairs(store)
    entry = _entry(pointer, generation)
    warning = suspicion(shares(pointer.of(generation), n_pairs))
    if as_json:
        click.echo(json.dumps({**entry, "warning": warning}, indent=2))
        return
    if warning is not None:
        click.echo(f"warning: {warning}")
    click.echo("; ".join((f"published generation {generation}", *_counts(entry, n_pairs))))


def _pointer_and_pairs(store: Path) -> tuple[Pointer, int]:
    manifest = read_manifest(store)
    return read_pointer(store), manifest.sizes["N_p"]


def _entry(pointer: Pointer, generation: int) -> dict[str, Any]:
    found = pointer.of(generation)
    return {
        "generation": found.generation,
        "when": found.when,
        "by": found.by,
        "note": found.note,
        "bytes": found.bytes,
        "changed_rows": found.changed_rows,
        **found.lint,
    }


def _counts(entry: dict[str, Any], n_pairs: int) -> Iterator[str]:
    changed = entry["changed_rows"]
    if changed is not None:
        yield f"{changed} of {n_pairs} rows changed"
    portions = {name: entry[name] / n_pairs for name in MEANING if name in entry}
    yield from sentences(entry, portions)
