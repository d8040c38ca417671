"""`.ci/run` goes through every check in order and fails where one of them fails."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHECKS = [
    "pip install --quiet torch==2.13.0",
    "pip install -e .[dev]",
    "pip install --quiet -e .[browser,frameworks]",
    "ruff check",
    "ruff format --check",
    "mypy",
    "python -m pytest",
]
# Stands for python3, and for every program of the environment that `python3 -m venv` makes.
STAND_IN = """#!/bin/sh
name=$(basename "$0")
if [ "$name" = python3 ]; then
    mkdir -p "$3/bin"
    for program in pip python ruff mypy; do cp "$0" "$3/bin/$program"; done
    exit
fi
set -- "$name" "$@"
echo "$*" >> "$LOG"
[ "$*" != "$BROKEN" ]
"""


def run_ci(folder: Path, broken: str) -> tuple[int, list[str]]:
    """Run `.ci/run` on stand-ins, `broken` failing; return its status and what was called."""
    (folder / "python3").write_text(STAND_IN)
    (folder / "python3").chmod(0o755)
    log = folder / "log"
    variables = {"PATH": f"{folder}:{os.environ['PATH']}", "LOG": str(log), "BROKEN": broken}
    done = subprocess.run(["bash", ROOT / ".ci" / "run"], env=os.environ | variables, check=False)
    return done.returncode, log.read_text().splitlines()


def test_ci_runs_the_readme_command_after_the_fast_checks(tmp_path: Path) -> None:
    """Torch first; style and types between the halves of the second line of the README's set-up."""
    assert run_ci(tmp_path, broken="") == (0, CHECKS)
    line = "pip install -e '.[dev]' && python -m pytest"
    assert line in (ROOT / "README.md").read_text().splitlines()
    assert "'.[dev]'" not in (ROOT / ".ci" / "run").read_text(), "taken from the README instead"


@pytest.mark.parametrize("broken", sorted(set(CHECKS)))
def test_ci_fails_where_a_check_fails(tmp_path: Path, broken: str) -> None:
    """A check that fails ends it with a status that is not 0."""
    status, called = run_ci(tmp_path, broken)
    assert status != 0
    assert called == CHECKS[: CHECKS.index(broken) + 1]


def test_pre_commit_runs_the_checks_of_style_and_types() -> None:
    """Its hooks are local, and run the very commands of `.ci/run` between installing and pytest."""
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    checks = [check for check in CHECKS if not check.startswith(("pip", "python"))]
    assert re.findall(r"^        entry: (.*)$", text, re.MULTILINE) == checks
    assert re.findall(r"repo: (.*)$", text, re.MULTILINE) == ["local"]
    assert text.count("language: system") == text.count("- id: ")


@pytest.mark.xdist_group("grouped")
def test_tests_of_a_group_take_turns(request: pytest.FixtureRequest) -> None:
    """pytest-xdist tells its scheduler of a group by the name of the test."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("runs without pytest-xdist's processes")
    assert request.node.nodeid.endswith("@grouped")
