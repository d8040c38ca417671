"""A program: try to take the lock of a file, as `filelock` does, without waiting.

Run by its path, without the package. Its argument is the file. For each line of stdin it writes
`taken`, `refused` or the system's error.
"""

import fcntl
import os
import sys


def attempt(path: str) -> str:
    """Take the lock and release it."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError as error:
        return str(error.strerror)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "refused"
    except OSError as error:
        return str(error.strerror)
    finally:
        os.close(descriptor)
    return "taken"


if __name__ == "__main__":
    for _ in sys.stdin:
        print(attempt(sys.argv[1]), flush=True)
