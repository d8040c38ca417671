"""Sandboxes: what the package would like to use may be there and refused."""

import ctypes
import errno
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jasper_mmap.errors import StorageError
from jasper_mmap.files.shared_memory import anonymous_memory
from tests.oracle import Oracle
from tests.publishing import IMPORTING, numbered, publish_numbered
from tests.serving import CONTEXTS, assert_pass_equals_oracle, loader_of

PR_SET_DUMPABLE = 4
PROCESSES = multiprocessing.get_context("fork")


def in_child(act: Callable[[], object]) -> None:
    """Run `act` in a forked process, and require that it ends well."""
    child = PROCESSES.Process(target=act)
    child.start()
    child.join(120)
    assert child.exitcode == 0


# Memory that is shared with workers


def refuse(code: int) -> Callable[..., int]:
    """Return a function that the system refuses."""

    def refused(*_: Any) -> int:
        raise OSError(code, os.strerror(code))

    return refused


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS, errno.EACCES, None])
@pytest.mark.parametrize("context", CONTEXTS)
def test_workers_serve_without_memfd(
    context: str,
    code: int | None,
    demo_store: Path,
    oracle: Oracle,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Forbidden, not implemented or not there: deleted temporary files do as well."""
    if code is None:
        monkeypatch.delattr(os, "memfd_create")
    else:
        monkeypatch.setattr(os, "memfd_create", refuse(code))
    before = set(Path(tempfile.gettempdir()).iterdir())
    loader = loader_of(demo_store, "train", 8, 2, context)
    kept = list(loader)  # more than there are slots for
    assert loader.slot_fallbacks > 0
    del kept
    assert_pass_equals_oracle(loader, oracle, "train")
    left = set(Path(tempfile.gettempdir()).iterdir()) - before
    assert not [path for path in left if path.name.startswith("jasper-")]


def test_what_is_forbidden_is_said_where_nothing_else_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With both reasons and what to do."""
    monkeypatch.setattr(os, "memfd_create", refuse(errno.EPERM))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(StorageError, match=r"not permitted.*none.*TMPDIR"):
        anonymous_memory("x", 1)


def test_filter_of_system_calls_hinders_nothing(demo_store: Path) -> None:
    """As a container's: memfd_create is there and answers EPERM (x86-64 only)."""
    program = (
        "import ctypes, struct, sys\n"
        "from jasper_mmap import create_loader\n"
        "rules = (32, 0, 0, 0), (21, 0, 1, 319), (6, 0, 0, 0x50001), (6, 0, 0, 0x7FFF0000)\n"
        "code = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *r) for r in rules))\n"
        "whole = struct.pack('HxxxxxxP', len(rules), ctypes.addressof(code))\n"
        "libc = ctypes.CDLL(None)\n"
        "assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, whole) == 0\n"
        "print(sum(1 for _ in create_loader(sys.argv[1], 'train', 8, 2)))\n"
    )
    if os.uname().machine != "x86_64":
        pytest.skip("the number of the call is that of x86-64")
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, str(demo_store)],
        capture_output=True,
        text=True,
        timeout=120,
        env=IMPORTING,
        check=False,
    )
    assert int(ran.stdout) > 0, ran.stderr


# The owner's descriptors


def adopts(store: Path, oracle: Oracle) -> None:
    """Serve a generation that was published while workers were at work."""
    loader = loader_of(store, "train", 8, 2)
    assert len(list(loader)) == len(loader)
    number = publish_numbered(store, oracle)
    assert loader.dataset_obj.reload_negatives() == number
    list(loader)  # batches that were queued
    tiers = {tuple(row) for batch in loader for row in batch["negative_tiers"].to(int).tolist()}
    assert tiers <= {tuple(row) for row in numbered(oracle, number)[1].tolist()}


def test_workers_adopt_where_the_owner_gave_up_root(demo_store: Path, oracle: Oracle) -> None:
    """What lies under /proc/PID/fd is root's then, and the owner's own workers may not look."""
    if os.getuid() != 0:
        pytest.skip("only root can give it up")

    def as_nobody(root: Path) -> None:
        store = Path(shutil.copytree(demo_store, root / "store"))
        for path in (root, store, *store.rglob("*")):
            os.chown(path, 65534, 65534)
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        adopts(store, oracle)

    with tempfile.TemporaryDirectory() as folder:  # pytest's own are open to root alone
        in_child(lambda: as_nobody(Path(folder)))


def test_workers_adopt_where_the_owner_is_not_dumpable(store: Path, oracle: Oracle) -> None:
    """As a hardened service; run by root it may look all the same."""

    def undumpable() -> None:
        assert ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0
        adopts(store, oracle)

    in_child(undumpable)


@pytest.mark.parametrize("call", ["stat", "open"])
def test_workers_adopt_where_the_owners_descriptors_are_refused(
    call: str, store: Path, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To look at, or to open alone; forked workers inherit the refusal."""
    real = getattr(os, call)

    def refused(path: Any, *rest: Any, **options: Any) -> Any:
        if str(path).startswith(f"/proc/{os.getppid()}/fd/"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *rest, **options)

    monkeypatch.setattr(os, call, refused)
    adopts(store, oracle)
