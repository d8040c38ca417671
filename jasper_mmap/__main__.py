"""`python -m jasper_mmap` is the command `jasper-mmap`."""

from __future__ import annotations

from .commands.main import command
from .console import run


def main() -> None:
    """Entry point of the console script."""
    run(command)


if __name__ == "__main__":
    main()
