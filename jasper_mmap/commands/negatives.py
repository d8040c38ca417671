"""The commands for generations of hard negatives: publish, rollback, generations, watch.

Each imports what it needs when it is called.
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
            help="Number of generations to keep on disk.",
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
    """The options that limit what publishing accepts."""
    meanings = {
        "--max-false-negatives": "contain another correct source of the question",
        "--max-own-source": "contain the pair's own source",
        "--max-repeats": "contain a source twice",
        "--max-changed": "differ from the current generation",
        "--max-margin-false-negatives": "contain a negative that is too similar (see lint)",
    }
    for name, meaning in reversed(meanings.items()):
        text = f"Refuse if more than this share (0 to 1) of rows {meaning}."
        command = click.option(name, type=_SHARE, help=text)(command)
    text = (
        "Refuse if more than this share (0 to 1) of the rows of train contain a source that is"
        " right for val or test only."
    )
    command = click.option("--max-eval-sources", type=_SHARE, help=text)(command)
    return click.option(
        "--allow-equal", is_flag=True, help="Accept negatives and tiers of equal values."
    )(command)


@click.command()
@store_argument
@click.option(
    "--negatives", required=True, type=PATH, help="File of source numbers, .pt or .safetensors."
)
@click.option("--tiers", required=True, type=PATH, help="File of their tiers, 1 to 4.")
@click.option("--note", default="", help="Text for the history.")
@click.option(
    "--dry-run", is_flag=True, help="Check and compare everything, but publish and write nothing."
)
@_limited
@_publishing
@json_option()
@debug_option
def publish(
    store: Path, negatives: Path, tiers: Path, dry_run: bool, as_json: bool, **options: Any
) -> None:
    """Check and publish new hard negatives.

    They become the current generation, which running trainers that watch the store adopt. If
    anything is wrong, the current generation stays the same.

    --dry-run shows what would change, as diff does, and ends as publishing would: with status 1 and
    the reason if the files are refused. It writes nothing into the store, which may be read-only,
    and does not wait for another publisher, which may change the current generation meanwhile.
    """
    if dry_run:
        from .effects import rehearse

        rehearse(store, (negatives, tiers), as_json=as_json, **options)
        return
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
    help="The generation to roll back to.  [default: the one before the current one]",
)
@click.option("--note", default="", help="Text for the history.")
@_publishing
@json_option()
@debug_option
def rollback(store: Path, as_json: bool, **options: Any) -> None:
    """Publish an older generation again.

    It gets the next number, since numbers only rise.
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
    """List all generations.

    Marks the current one, and those that were removed from the disk.
    """
    from .answers import print_history

    print_history(store, as_json=as_json)


@click.command()
@store_argument
@click.option(
    "--inbox",
    metavar="PATTERN",
    help="A folder, or a pattern for the files of hard negatives.  [default: DIR/inbox]",
)
@click.option(
    "--interval",
    type=_SECONDS,
    default=1.0,
    show_default=True,
    help="Seconds between two looks, > 0.",
)
@click.option(
    "--settle",
    type=_AMOUNT,
    default=2.0,
    show_default=True,
    help="Seconds for which files must not change.",
)
@click.option("--once", is_flag=True, help="Publish the complete pairs now, and exit.")
@click.option(
    "--keep-days",
    type=_AMOUNT,
    help="Remove files from done/ and failed/ after this many days.  [default: keep them]",
)
@json_option("Print each event as a JSON object.")
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
    """Publish pairs of files dropped into an inbox.

    Runs until interrupted. A pair is two files whose names differ only in hard_negatives and
    negative_tiers. Once both exist and no longer change, it is published and moved to done/, or
    refused and moved to failed/, beside the reason. An error of the store or the disk is logged
    once and retried. Prints a line per event; exits cleanly on SIGINT and SIGTERM. With --once, the
    exit status is 1 if a pair was refused or could not be published.
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
