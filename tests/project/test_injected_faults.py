"""Whichever call of the operating system fails: an error of ours, nothing lost, nothing left."""

import errno
import gc
import logging
import os
import random
import resource
import shutil
import signal
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from converters import convert, export_pt
from jasper_mmap import JASPERSteeringDataset, publish_negatives, rollback_negatives
from jasper_mmap.errors import AccessError, ExistsError, JasperError, StorageError
from jasper_mmap.files.failures import user_path
from jasper_mmap.negatives import candidate
from jasper_mmap.negatives.renewal import verify_store
from jasper_mmap.rules.schema import ARTIFACTS
from jasper_mmap.store.manifest import STAGING
from jasper_mmap.store.summary import summarise
from jasper_mmap.store.verify import VerifyReport
from tests.converting import SMALL, in_child, state
from tests.injecting import ERRORS, Fault, injected
from tests.publishing import NAMES, SOAK_S
from tools.demo.folder import make_builder_folder

FAULTS = int(SOAK_S * 14)
"""Calls that fail of each operation, drawn from all of them and all error numbers."""
WORDS = {
    "EIO": "I/O error",
    "ENOSPC": "disk is full",
    "EDQUOT": "disk is full",
    "EMFILE": "ulimit -n",
    "ENFILE": "fs.file-max",
    "ESTALE": "stale file handle",
    "ENOMEM": "memory",
}
HIDDEN = (STAGING, ".tmp", ".lock", "/dev/fd", "/proc/")

Operation = Callable[[Path], object]


def _negatives(root: Path, folder: str) -> tuple[Path, ...]:
    return tuple(root / folder / f"{name}.pt" for name in NAMES)


def _publish_tensors(root: Path) -> int:
    return publish_negatives(root / "s", *(torch.load(p) for p in _negatives(root, "one")))


def _reload(root: Path) -> int:
    with JASPERSteeringDataset(root / "s", "train") as dataset:
        return dataset.reload_negatives(source_dir=root / "two")


OPERATIONS: dict[str, Operation] = {
    "publish": lambda root: publish_negatives(root / "s", *_negatives(root, "one")),
    "publish tensors": _publish_tensors,
    "rollback": lambda root: rollback_negatives(root / "s"),
    "reload": _reload,
    "verify": lambda root: verify_store(root / "s"),
    "convert": lambda root: convert(root / "one", root / "new"),
    "convert over": lambda root: convert(root / "two", root / "s"),
    "export": lambda root: export_pt(root / "s", root / "out"),
    "inspect": lambda root: summarise(root / "s"),
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two builder's folders and a store of two generations."""
    root = tmp_path_factory.mktemp("kept")
    for seed, name in enumerate(("one", "two")):
        make_builder_folder(root / name, seed=seed, **SMALL)
    convert(root / "one", root / "s")
    publish_negatives(root / "s", *_negatives(root, "two"))
    return root


@pytest.fixture
def silent() -> Iterator[None]:
    """Log nothing: what is logged holds errors, whose tracebacks hold files open."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def root(kept: Path, tmp_path: Path) -> Path:
    """Return the place of the operations: everything in it may be changed."""
    return Path(shutil.copytree(kept, tmp_path / "root"))


def renewed(kept: Path, root: Path) -> None:
    """Put the store back as it was, of a stamp that `verify` will renew."""
    for name in ("s", "new", "out"):
        shutil.rmtree(root / name, ignore_errors=True)
    shutil.copytree(kept / "s", root / "s")
    os.utime(root / "s" / "pair_index.safetensors", ns=(0, 10**18))


def said(operation: Operation, root: Path) -> list[tuple[str, bool]]:
    """Do it; what it says of failures, and whether of permissions (which are worded elsewhere)."""
    try:
        answer = operation(root)
    except JasperError as error:
        return [(str(error), isinstance(error, AccessError))]
    problems = answer.problems if isinstance(answer, VerifyReport) else ()
    return [(problem.message, problem.error == AccessError.__name__) for problem in problems]


def litter(root: Path) -> list[Path]:
    """Return what only a writer at work needs."""
    return [
        path
        for path in root.rglob("*")
        if path.name == STAGING or path.suffix == ".tmp" or path.name.endswith("-holder.json")
    ]


def _finished(operation: Operation, root: Path) -> None:
    try:
        operation(root)
    except ExistsError:  # the export was whole, what failed came after it
        assert {a.source for a in ARTIFACTS.values()} < set(os.listdir(root / "out"))  # noqa: PTH208


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("name", OPERATIONS)
def test_any_call_that_fails_is_told_and_leaves_a_whole_store(
    name: str, kept: Path, root: Path
) -> None:
    """The error names a user's file and why; the old state or the new one is current, and a rerun
    completes it and leaves nothing behind, no descriptor either."""
    operation = OPERATIONS[name]
    renewed(kept, root)
    before = state(root / "s")
    with injected(Fault()) as counted:
        operation(root)
    after = state(root / "s")
    dice, tolerated = random.Random(zlib.crc32(name.encode())), 0
    open_before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(FAULTS):
        renewed(kept, root)
        at, reason = dice.randrange(len(counted.calls)), dice.choice(ERRORS)
        what = f"call {at} ({counted.calls[at]}) of {name}: {reason}"
        with injected(Fault(at, getattr(errno, reason))):
            told = said(operation, root)
        for message, of_access in told:
            # Folders above the store are looked at too, and the version of the package.
            above = Path(message.partition(": ")[0]) in root.parents
            assert str(root) in message or above or "site-packages" in message, what
            assert "\n" not in message, what
            if not of_access:
                assert WORDS.get(reason, "") in message, f"{what}: {message}"
                assert not any(word in message for word in HIDDEN), f"{what}: {message}"
        tolerated += not told
        found = state(root / "s")
        # In the midst of the moves there is no store, which is said, and the rerun completes it.
        assert found in (before, after) or (
            (found is None and (root / "s" / STAGING).exists())
            or (found or "").split()[0] == (before or "").split()[0]
        ), what
        _finished(operation, root)
        assert state(root / "s") is not None, what
        left = litter(root)
        if counted.calls[at] == "unlink":  # of the name of a lock's holder, which the next replaces
            left = [path for path in left if not path.name.endswith("-holder.json")]
        assert not left, what
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= open_before  # noqa: PTH208
    print(f"{name}: {len(counted.calls)} calls, {FAULTS} failed, {tolerated} tolerated")


@pytest.mark.parametrize(
    ("path", "user"),
    [
        ("s/.converting/source_embs.safetensors", "s/source_embs.safetensors"),
        ("s/.converting/.config.json.0123456789ab.tmp", "s/config.json"),
        ("s/.converting/journal.json", "s"),
        ("s/.converting/negatives.safetensors", "s/negatives"),
        ("s/.converting/.CURRENT.json.0123456789ab.tmp", "s/negatives/CURRENT.json"),
        ("s/.converting", "s"),
        ("s/.converting/.lock", "s"),
        ("s/negatives/.lock", "s/negatives"),
        ("s/negatives/.incoming5abc.tmp", "s/negatives"),
        ("s/negatives/.000003.safetensors.0123456789ab.tmp", "s/negatives/000003.safetensors"),
        ("s/.hidden", "s/.hidden"),
        ("/dev/fd/5", "given"),
    ],
)
def test_errors_call_files_by_the_names_that_users_know(path: str, user: str) -> None:
    """Neither the folder of a conversion, nor temporary files, locks and descriptors are told."""
    assert user_path(path, Path("given")) == Path(user)


def test_a_full_disk_is_that_of_the_file_being_written(
    kept: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of the input, which is copied before it is read."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(candidate, "write_all", full)
    with pytest.raises(StorageError, match="disk is full") as caught:
        OPERATIONS["publish"](root)
    assert str(caught.value).startswith(f"{root / 's' / 'negatives'}: ")


@pytest.mark.parametrize("name", OPERATIONS)
def test_running_out_of_descriptors_is_told(name: str, root: Path) -> None:
    """At whichever descriptor it happens: the limit that helps is named, nothing is damaged."""

    def work() -> None:
        taken = set(map(int, os.listdir("/proc/self/fd")))  # noqa: PTH208
        free = [fd for fd in range(max(taken) + 20) if fd not in taken]
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        failed = 0
        for more in range(12):
            shutil.rmtree(root / "out", ignore_errors=True)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free[more], hard))
            told = said(OPERATIONS[name], root)
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            assert all("ulimit -n" in message for message, _ in told), told
            failed += bool(told)
        assert failed

    assert in_child(work) == 0


def test_signals_interrupt_nothing(root: Path) -> None:
    """Thousands of them in the midst of writing: Python goes on with every call."""
    came = 0

    def handler(*_: object) -> None:
        nonlocal came
        came += 1

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        for name in ("convert", "publish", "verify", "export"):
            assert not said(OPERATIONS[name], root)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert came > 20


def test_what_progress_raises_passes_as_it_is(root: Path) -> None:
    """An `OSError` of the caller's own is not taken for a failure of the file being written."""
    own = BrokenPipeError(errno.EPIPE, "nobody reads")

    def show(*_: object) -> None:
        raise own

    with pytest.raises(BrokenPipeError) as caught:
        convert(root / "one", root / "new", progress=show)
    assert caught.value is own
    assert not (root / "new").exists()
