"""The command `jasper-mmap`: what it prints where, and how it ends."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from jasper_mmap.commands.main import command
from jasper_mmap.rules.names import VARIANTS
from jasper_mmap.rules.schema import ARTIFACTS
from jasper_mmap.store.lint import MEANING
from tests.commands.conftest import Command
from tests.damage import rewrite
from tests.oracle import Oracle

ROOT = Path(__file__).parents[2]


def spoil(store: Path) -> None:
    """Put a wrong index and a NaN into two files."""
    rewrite(store / "pair_index.safetensors", lambda t: t["pair_index"][3, 1].fill_(-1), touch=True)
    rewrite(
        store / "source_embs.safetensors",
        lambda t: t["source_embs"][0, 0].fill_(float("nan")),
        touch=True,
    )


# all commands


def test_no_option_takes_nan_or_infinity(jasper: Command, tmp_path: Path) -> None:
    """Each option that is a number with a fraction says so before anything is read."""
    tried = 0
    for name, subcommand in command.commands.items():
        arguments = [tmp_path for one in subcommand.params if isinstance(one, click.Argument)]
        for option in subcommand.params:
            if isinstance(option.type, click.types.FloatParamType):
                for text in ("nan", "inf"):
                    ended = jasper(name, *arguments, option.opts[0], text)
                    assert (ended.status, ended.out) == (2, "")
                    assert f"Invalid value for '{option.opts[0]}'" in ended.err
                    tried += 1
    assert tried > 20


# verify


def test_verify_of_a_sound_store_succeeds(jasper: Command, any_store: Path) -> None:
    """Status 0, one line that says what was checked, nothing on stderr."""
    for options in ((), ("--quick",)):
        ended = jasper("verify", any_store, *options)
        assert (ended.status, ended.err) == (0, "")
        last = ended.out.splitlines()[-1]
        assert last.startswith(f"{any_store}: sound; ")
        assert "16 files" in last


def test_verify_lists_every_problem_and_fails_with_one_line(jasper: Command, store: Path) -> None:
    """All of them on stdout, the first on stderr with the number of the others."""
    spoil(store)
    ended = jasper("verify", store)
    assert ended.status == 1
    for file in ("pair_index.safetensors", "source_embs.safetensors"):
        assert file in ended.out
    assert "4 problems" in ended.out.splitlines()[-1]
    assert ended.err.startswith("Error: ")
    assert ended.err.count("\n") == 1
    assert "Traceback" not in ended.err
    assert "(3 more problems)" in ended.err


def test_verify_answers_programs_in_json(jasper: Command, store: Path) -> None:
    """The whole report and nothing else on stdout, sound or not."""
    sound = jasper("verify", store, "--json")
    assert (sound.status, json.loads(sound.out)["ok"]) == (0, True)
    spoil(store)
    ended = jasper("verify", store, "--json")
    report = json.loads(ended.out)
    assert (ended.status, report["ok"], ended.err.count("\n")) == (1, False, 1)
    assert [p["file"] for p in report["problems"]] == ["source_embs.safetensors"] * 2 + [
        "pair_index.safetensors"
    ] * 2
    assert all(set(p) == {"file", "error", "message"} for p in report["problems"])


def test_verify_renews_stamps_unless_told_not_to(jasper: Command, store: Path) -> None:
    """What it did is told."""
    os.utime(store / "source_embs.safetensors", ns=(1, 1))
    assert "renewed" not in jasper("verify", store, "--no-renew").out
    assert "stamp renewed: source_embs.safetensors" in jasper("verify", store).out
    assert "renewed" not in jasper("verify", store).out


# inspect


def test_inspect_tells_programs_what_is_there(
    jasper: Command, any_store: Path, any_oracle: Oracle
) -> None:
    """Every number as counted from the `.pt` files."""
    ended = jasper("inspect", any_store, "--json")
    assert (ended.status, ended.err) == (0, "")
    told = json.loads(ended.out)
    artifacts = {a["name"]: a for a in told["artifacts"]}
    tables = {t["name"]: t for t in told["generation"]["tables"]}
    assert {*artifacts, *tables} == set(ARTIFACTS)
    for name, entry in {**artifacts, **tables}.items():
        table = any_oracle.tables.get(name)
        if table is not None and name != "pair_keyword_ids":
            assert entry["shape"] == list(table.shape)
    for entry in artifacts.values():
        assert entry["bytes"] == (any_store / entry["file"]).stat().st_size
    assert told["bytes"] == sum(p.stat().st_size for p in any_store.rglob("*.safetensors"))
    assert told["splits"] == {split: len(pairs) for split, pairs in any_oracle.splits.items()}
    n_clusters = len(any_oracle.tables["centroid_embs"])
    assert told["clusters"] == [any_oracle.cluster_ids.count(c) for c in range(n_clusters)]
    tiers = [tier for row in any_oracle.negative_tiers for tier in row]
    assert told["tiers"] == {str(tier): tiers.count(tier) for tier in (1, 2, 3, 4)}
    assert told["generation"]["number"] == 1
    assert set(told["warnings"]) == set(MEANING)
    for row in told["steering_probabilities"]:
        found = {variant: row[variant] for variant in VARIANTS}
        assert found == pytest.approx(any_oracle.curriculum(row["epoch"]))
    epochs = [row["epoch"] for row in told["steering_probabilities"]]
    total = any_oracle.config.get("curriculum", {}).get("epochs_total", 0)
    assert (epochs[0], epochs[-1]) == (0, total)


def test_inspect_reads_well_in_a_pipe(jasper: Command, real_store: Path) -> None:
    """Whole lines, no escape codes, nothing cut off; the warnings stand there in words."""
    out = jasper("inspect", real_store).out
    assert "\x1b" not in out
    assert "…" not in out
    assert str(real_store) in out
    for words in (
        *ARTIFACTS,
        "4,806 x 384",
        "3,827",
        "current generation 1",
        "warning: 1,545 rows of negatives contain another correct source of the question",
    ):
        assert words in out
    assert re.search(r"^ *100 +0\.1000 +0\.3000", out, re.MULTILINE)
    assert max(map(len, out.splitlines())) < 200


def test_inspect_on_a_narrow_terminal_keeps_every_name(demo_store: Path) -> None:
    """On 80 columns of a real terminal; one process of its own, by `python -m jasper_mmap`."""
    terminal, inside = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-m", "jasper_mmap", "inspect", str(demo_store)],
        stdout=inside,
        stderr=subprocess.PIPE,
        cwd=demo_store,
        env=environment,
    ) as process:
        os.close(inside)
        parts = []
        try:
            while part := os.read(terminal, 1 << 16):
                parts.append(part)
        except OSError:  # Linux's way of saying that the other end is closed
            pass
        assert process.stderr is not None
        assert process.stderr.read() == b""
    os.close(terminal)
    shown = b"".join(parts).decode()
    assert process.returncode == 0
    assert "\x1b" in shown
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert all(name in plain for name in (*ARTIFACTS, *VARIANTS))


# How commands end


@pytest.mark.parametrize("name", ["verify", "inspect"])
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_failure_is_one_line_and_status_1(
    jasper: Command, tmp_path: Path, name: str, options: Any
) -> None:
    """Neither a traceback nor half an answer."""
    ended = jasper(name, tmp_path / "x", *options)
    told = f"Error: Dataset directory not found: {tmp_path / 'x'}. Correct the path.\n"
    assert ended == (1, "", told)


def test_inspect_of_a_damaged_store_fails(jasper: Command, store: Path) -> None:
    """What cannot be opened cannot be shown."""
    os.truncate(store / "source_embs.safetensors", 4096)
    ended = jasper("inspect", store)
    assert (ended.status, ended.out, ended.err.count("\n")) == (1, "", 1)
    assert "source_embs.safetensors" in ended.err


@pytest.mark.parametrize("place", ["before", "after"])
def test_debug_shows_the_traceback(jasper: Command, tmp_path: Path, place: str) -> None:
    """Given before or after the name of the command, and the one line comes last."""
    arguments = ["verify", tmp_path / "x"]
    arguments.insert(0 if place == "before" else 2, "--debug")
    ended = jasper(*arguments)
    assert ended.status == 1
    assert "Traceback" in ended.err
    assert ended.err.splitlines()[-1].startswith("Error: Dataset directory not found")


@pytest.mark.parametrize(
    "arguments",
    [("verify",), ("inspect", "a", "b"), ("verify", "a", "--fast"), ("explode",), ("--nonsense",)],
)
def test_wrong_usage_is_status_2(jasper: Command, arguments: tuple[str, ...]) -> None:
    """With click's explanation on stderr."""
    ended = jasper(*arguments)
    assert (ended.status, ended.out) == (2, "")
    assert "Usage:" in ended.err


def test_help_and_version_succeed(jasper: Command) -> None:
    """Every command is listed with a sentence, and has a help of its own."""
    shown = jasper("--help")
    assert (shown.status, shown.err) == (0, "")
    names = ("verify", "inspect", "publish", "rollback", "generations", "watch")
    for name in (*names, "show", "diff"):
        assert re.search(rf"^  {name} +[A-Z]", shown.out, re.MULTILINE), name
        own = jasper(name, "--help")
        assert own.status == 0
        assert f"jasper-mmap {name}" in own.out
    version = jasper("--version")
    assert version.status == 0
    assert version.out.startswith("jasper-mmap, version ")
