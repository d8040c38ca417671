"""The commands about generations of hard negatives: publish, rollback, generations, watch.

What they need of the package is imported when they are called.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from ..console import PATH, answering, debug_option, json_option, store_argument
from ..rules.names import KEEP, LOCK_TIMEOUT_S
from .service import Finite, logged_to_stdout, signals_held

_SHARE = click.FloatRange(0, 1)
_SECONDS = Finite(0, min_open=True)
_AMOUNT = Finite(0)


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
@store_argument
@click.option("--negatives", required=True, type=PATH, help="Source numbers: .pt, .safetensors.")
@click.option("--tiers", required=True, type=PATH, help="Their tiers, 1 to 4.")
@click.option("--note", default="", help="Kept in the history.")
@_limited
@_publishing
@json_option()
@debug_option
def publish(store: Path, negatives: Path, tiers: Path, as_json: bool, **options: Any) -> None:
    """Check new hard negatives and put them in force.

    Running trainers that watch the store adopt them; what was in force stays so if anything is
    wrong.
    """
    from ..negatives.publish import publish_negatives
    from .answers import print_publication

    with answering():
        number = publish_negatives(store, negatives, tiers, **options)
    print_publication(store, number, as_json=as_json)


@click.command()
@store_argument
@click.option(
    "--to",
    "generation",
    type=click.IntRange(1),
    help="The generation to go back to.  [default: the one before the one in force]",
)
@click.option("--note", default="", help="Kept in the history.")
@_publishing
@json_option()
@debug_option
def rollback(store: Path, as_json: bool, **options: Any) -> None:
    """Publish an older generation again.

    It gets the next number: the number in force only rises.
    """
    from ..negatives.publish import rollback_negatives
    from .answers import print_publication

    with answering():
        number = rollback_negatives(store, **options)
    print_publication(store, number, as_json=as_json)


@click.command()
@store_argument
@json_option()
@debug_option
def generations(store: Path, as_json: bool) -> None:
    """Show which generations there were.

    Also which is in force, and which are no longer on disk.
    """
    from .answers import print_history

    print_history(store, as_json=as_json)


@click.command()
@store_argument
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
@json_option("Print a JSON object an event.")
@_limited
@_publishing
@debug_option
def watch(
    store: Path,
    inbox: str | None,
    interval: float,
    settle: float,
    once: bool,
    keep_days: float | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Publish what a miner drops into an inbox.

    It runs until interrupted. A pair is two files whose names differ in hard_negatives and
    negative_tiers only. It is taken once both are there and rest, and then moved to done/ or, with
    the reason beside, to failed/. What is wrong with the store or the disk is said once and tried
    again. One line an event on stdout; ends cleanly on SIGINT and SIGTERM. With --once, status 1
    tells that a pair was refused or could not be published.
    """
    from ..negatives.dropped import Place
    from ..negatives.inbox import Inbox
    from ..negatives.publish import publish_negatives
    from ..store.manifest import read_manifest

    read_manifest(store)
    store, place = store.absolute(), Place.of(store, inbox)
    service = Inbox(
        store,
        place,
        partial(publish_negatives, store, republish=False, **options),
        settle_s=settle,
        by_age=once,
        keep_days=keep_days,
    )
    with logged_to_stdout(as_json=as_json), signals_held() as signals:
        if once:
            service.run_once(signals)
        else:
            service.run(signals, interval)
