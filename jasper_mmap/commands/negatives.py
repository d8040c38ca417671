"""The commands for generations of hard negatives: publish, rollback, generations, prune, watch.

Each imports what it needs when it is called.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from ..console import PATH, FiniteRange, answering, debug_option, json_option, store_argument
from ..rules.names import GRACE_S, KEEP, LOCK_TIMEOUT_S
from .service import logged_to_stdout, signals_held

_SHARE = FiniteRange(0, 1)
_SECONDS = FiniteRange(0, min_open=True)
_AMOUNT = FiniteRange(0)


_keep = click.option(
    "--keep",
    type=click.IntRange(1),
    default=KEEP,
    show_default=True,
    help="Number of generations to keep on disk.",
)
_lock_timeout = click.option(
    "--lock-timeout",
    "lock_timeout_s",
    type=_AMOUNT,
    default=LOCK_TIMEOUT_S,
    show_default=True,
    help="Seconds to wait for another publisher.",
)


def _publishing(command: Callable[..., None]) -> Callable[..., None]:
    """The options of every command that publishes."""
    for option in reversed((_keep, _lock_timeout)):
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
@click.argument("folder", type=PATH, required=False)
@click.option("--negatives", type=PATH, help="File of source numbers, .pt or .safetensors.")
@click.option("--tiers", type=PATH, help="File of their tiers, 1 to 4.")
@click.option("--note", default="", help="Text for the history.")
@click.option(
    "--republish", is_flag=True, help="Publish values that the current generation has, too."
)
@click.option(
    "--dry-run", is_flag=True, help="Check and compare everything, but publish and write nothing."
)
@_limited
@_publishing
@json_option()
@debug_option
def publish(
    store: Path,
    folder: Path | None,
    negatives: Path | None,
    tiers: Path | None,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Check and publish new hard negatives.

    FOLDER has the two files, named hard_negatives and negative_tiers (.pt or .safetensors); files
    of other names are given by --negatives and --tiers. They become the current generation, which
    running trainers that watch the store adopt. If anything is wrong, the current generation stays
    the same, and so it does if it has these values already.

    --dry-run shows what would change, as diff does, and ends as publishing would: with status 1 and
    the reason if the files are refused. It writes nothing into the store, which may be read-only,
    and does not wait for another publisher, which may change the current generation meanwhile.
    """
    given = _pair_given(folder, negatives, tiers)
    from ..negatives.mined_folder import files_in
    from ..negatives.publish import publish_negatives
    from .answers.effects import rehearse
    from .answers.publications import current_number, print_publication

    files = files_in(given) if isinstance(given, Path) else given
    if dry_run:
        rehearse(store, files, as_json=as_json, **options)
        return
    before = current_number(store)
    with answering():
        number = publish_negatives(store, *files, **options)
    note = options["note"] if number <= before else ""
    print_publication(store, number, published=number > before, unused_note=note, as_json=as_json)


def _pair_given(
    folder: Path | None, negatives: Path | None, tiers: Path | None
) -> Path | tuple[Path, Path]:
    """Return the folder, or both files; `click.UsageError` for anything else."""
    if folder is not None and negatives is None and tiers is None:
        return folder
    if folder is None and negatives is not None and tiers is not None:
        return negatives, tiers
    if folder is not None:
        raise click.UsageError("Give FOLDER, or --negatives and --tiers, not both.")
    if negatives is None and tiers is None:
        raise click.UsageError("Give FOLDER, or --negatives and --tiers.")
    missing = "--negatives" if negatives is None else "--tiers"
    raise click.UsageError(f"{missing} is missing: both files are needed, or FOLDER with the two.")


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
    from ..negatives.rollback import rollback_negatives
    from .answers.publications import print_publication

    with answering():
        number = rollback_negatives(store, **options)
    print_publication(store, number, as_json=as_json)


@click.command()
@store_argument
@json_option()
@debug_option
def generations(store: Path, as_json: bool) -> None:
    """List all generations.

    Who made each, when (UTC), from which files, and how many rows it kept of the one before and how
    many it replaced; unsuitable rows, size, and whether it is current or was removed from the disk.
    """
    from .answers.publications import print_history

    print_history(store, as_json=as_json)


@click.command()
@store_argument
@click.option(
    "--keep",
    type=click.IntRange(1),
    required=True,
    help="Number of generations to keep, the current one included.",
)
@click.option(
    "--grace",
    "grace_s",
    type=_AMOUNT,
    default=GRACE_S,
    show_default=True,
    help="Keep one that was replaced less than so many seconds ago: a reader may be opening it.",
)
@_lock_timeout
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
@json_option()
@debug_option
def prune(store: Path, as_json: bool, **options: Any) -> None:
    """Remove old generations from the disk.

    The current one always stays. Programs that serve an older one keep it on a local disk, but fail
    on a network file system.
    """
    from ..negatives.retention import prune_negatives
    from .answers.publications import print_pruned

    pruned = prune_negatives(store, **options)
    print_pruned(store, pruned, as_json=as_json)


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
        partial(publish_negatives, store, **options),
        settle_s=settle,
        by_age=once,
        keep_days=keep_days,
    )
    with logged_to_stdout(as_json=as_json), signals_held() as signals:
        if once:
            service.run_once(signals)
        else:
            service.run(signals, interval)
