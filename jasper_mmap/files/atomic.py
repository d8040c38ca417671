"""Durable file writes: temporary sibling, fsync, the umask's mode, rename, fsync of the folder.

Whatever the packages create, write, rename, remove and sync on a disk goes through here.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import pwd
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import AccessError, FormatError, JasperError, StorageError
from .failures import TEMPORARY, failure, missing, not_durable, user_path
from .jsonfile import MOST_BYTES, parsed, read_small


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[io.FileIO]:
    """Open a new file that replaces `path`, complete and on disk, when the block succeeds.

    Nothing is visible under `path` before that; when the block fails, the sibling is removed.
    """
    sibling = sibling_of(path)
    with storage_errors(path):
        try:
            with _named(path):
                file = create(sibling)
            with file:
                yield file
                os.fsync(file.fileno())
            with _named(path):
                rename(sibling, path)
        except BaseException:
            with contextlib.suppress(OSError):
                remove(sibling)
            raise
        make_last(path)


def sibling_of(path: Path) -> Path:
    """A name under which to prepare `path`: `sweep` knows it, and errors name `path` itself."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}{TEMPORARY}")


def create(path: Path) -> io.FileIO:
    """A new file of the umask's mode; there must be nothing of this name."""
    # Not tempfile: its files are 0600 whatever the umask says.
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        return io.FileIO(fd, "wb")
    except BaseException:
        os.close(fd)
        raise


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Make the system's errors name `path`: the random name of the sibling helps no user."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def write_all(file: io.FileIO, data: bytes | memoryview) -> None:
    """Write all of `data`; a single raw write may stop early (on Linux after 2 GiB)."""
    view = memoryview(data).cast("B")
    while len(view):
        view = view[file.write(view) :]


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by the JSON text of `value`; `StorageError` if `read_json` would refuse it."""
    data = (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()
    if len(data) > MOST_BYTES:
        raise StorageError(
            f"{path}: not written, since its {len(data)} bytes exceed the limit of {MOST_BYTES}."
            " Shorten the notes in it."
        )
    with replacing(path) as file:
        write_all(file, data)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises `MissingFileError`, `AccessError`, or `FormatError` where it holds no JSON object, or
    more than `jsonfile.MOST_BYTES`.
    """
    with storage_errors(path, "read"):
        text = read_small(path)
    try:
        value = parsed(text)
    except ValueError as error:
        raise FormatError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise FormatError(f"{path}: must hold a JSON object, found {type(value).__name__}.")
    return value


def rename(source: Path, target: Path) -> None:
    """Move a file into the place of what is at `target`; it lasts once that folder is synced."""
    source.replace(target)


def remove(path: Path, *, missing_ok: bool = False) -> None:
    """Remove a file or a link."""
    path.unlink(missing_ok=missing_ok)


def remove_folder(folder: Path) -> None:
    """Remove an empty folder."""
    folder.rmdir()


def make_folder(folder: Path, *, parents: bool = False) -> None:
    """Make a folder where it is missing, so that it lasts as long as what will be synced in it."""
    missing = [path for path in folder.parents if not path.exists()] if parents else []
    for path in (*reversed(missing), folder):
        if not path.is_dir():
            path.mkdir(exist_ok=True)
            try:
                sync_folder(path.parent)
            except PermissionError:
                pass  # may be written, but not read
            except OSError:
                with contextlib.suppress(OSError):
                    remove_folder(path)  # or the next run would take it for one that lasts
                raise


def make_last(path: Path) -> None:
    """Sync the folder of `path`, which was just renamed and is what readers see from now on.

    Raises `DurabilityError` where that fails; `OSError` of a file that is still being prepared.
    """
    try:
        sync_folder(path.parent)
    except OSError as error:
        if user_path(path, path) != path:
            raise
        raise not_durable(error, path) from None


def sync_folder(folder: Path) -> None:
    """Make renames and removals in `folder` durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:
        # Some network and FUSE file systems have no fsync for folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def own_folder(folder: Path, *, parents: bool = False) -> None:
    """Create a folder that this package writes to, if it is missing.

    Raises `AccessError` if it is a link: one that came with a dataset could redirect writes and
    removals to any other folder.
    """
    with storage_errors(folder):
        refuse_link(folder)
        make_folder(folder, parents=parents)


def refuse_link(path: Path) -> None:
    """Raise `AccessError` if `path`, one of the package's own files or folders, is a link."""
    if path.is_symlink():
        raise AccessError(
            f"{path}: is a link to {str(path.readlink())!r}; this package does not write through"
            " links. Remove the link (a folder on another disk can be bind-mounted instead)."
        )


def sweep(folder: Path) -> None:
    """Remove siblings that killed writers left. Call with the lock held that excludes live ones."""
    with storage_errors(folder):
        for leftover in folder.glob(f".*{TEMPORARY}"):
            if leftover.is_symlink() or not leftover.is_dir():
                remove(leftover, missing_ok=True)


def exists(path: Path) -> bool:
    """Return whether `path` exists; raise a `JasperError` where the system cannot say."""
    with storage_errors(path, "read"):
        return path.exists()


@contextlib.contextmanager
def storage_errors(path: Path, verb: str = "write") -> Iterator[None]:
    """Translate the system's errors in the block into `JasperError`s that name `path`."""
    try:
        yield
    except JasperError:
        raise
    except FileNotFoundError as error:
        raise missing(error, path, verb) from None
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise access_error(path, verb, error) from None
        raise failure(error, path, verb) from None


def access_error(path: Path, verb: str, error: OSError) -> AccessError:
    """The error of a call that was not permitted; it names the folder or file that forbids it, its
    owner and its mode."""
    tried = Path(error.filename) if isinstance(error.filename, str) else path
    while tried.name.startswith("."):  # an internal name, of no use to the user
        tried = tried.parent
    what = f"{tried}: no permission to {verb} it ({error.strerror})"
    if error.errno == errno.EROFS:
        return AccessError(f"{what}. Use a folder on a writable disk.")
    barrier = _barrier(tried, verb)
    try:
        status = barrier.lstat()
    except OSError:
        return AccessError(f"{what}. Ask the owner of the folder for it.")
    which = "it" if barrier == tried else f"{barrier}"
    remedy = ", or use a folder of your own" if verb == "write" else ""
    return AccessError(
        f"{what}: {which} belongs to {_user(status.st_uid)}, has the mode"
        f" {stat.filemode(status.st_mode)}, and this process runs as {_user(os.geteuid())}. Ask the"
        f" owner to permit it (chmod){remedy}."
    )


def _barrier(path: Path, verb: str) -> Path:
    """The folder above `path`, or the file itself, that denies access."""
    above = [folder for folder in path.parents if os.path.lexists(folder)]
    for folder in reversed(above):
        if not os.access(folder, os.X_OK):
            return folder
    if verb == "read" or path.is_dir() or not above:
        return path
    if os.access(above[0], os.W_OK) and path.exists() and not os.access(path, os.W_OK):
        return path
    return above[0]


def _user(number: int) -> str:
    try:
        return f"{pwd.getpwuid(number).pw_name} (uid {number})"
    except KeyError:
        return f"uid {number}"
