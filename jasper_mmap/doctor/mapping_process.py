"""A program: map parts of files as a dataset does, and say how much of that memory is shared.

Run by its path, without the package: importing torch would take longer than the measurement. The
arguments are pairs of a file and a number of bytes. It writes a line once all pages were touched,
reads a line, writes its numbers as JSON (null if /proc does not tell), and ends with its stdin.
"""

import contextlib
import ctypes
import json
import mmap
import sys
from pathlib import Path

_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
_FIELDS = {"Rss": "rss", "Pss": "pss", "FilePmdMapped": "huge"}


def mapped(path: str, length: int) -> tuple[mmap.mmap, int]:
    """Return a private mapping whose pages were all touched, and its address."""
    with Path(path).open("rb") as file:
        mapping = mmap.mmap(
            file.fileno(),
            length,
            flags=mmap.MAP_PRIVATE | _NORESERVE,
            prot=mmap.PROT_READ | mmap.PROT_WRITE,
        )
    with contextlib.suppress(OSError, AttributeError):  # a kernel without huge pages
        mapping.madvise(mmap.MADV_HUGEPAGE)
    for place in range(0, length, mmap.PAGESIZE):
        mapping[place]
    return mapping, ctypes.addressof(ctypes.c_char.from_buffer(mapping))


def memory(ranges: list[tuple[int, int]]) -> dict[str, int] | None:
    """Return the bytes of the mappings that lie in `ranges` of addresses."""
    numbers = dict.fromkeys(("rss", "pss", "shared", "huge"), 0)
    inside = False
    try:
        text = Path("/proc/self/smaps").read_text(errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if "-" in name.split(" ")[0]:
            begin, end = (int(part, 16) for part in name.split(" ")[0].split("-"))
            inside = any(low <= begin and end <= high for low, high in ranges)
        elif inside and name in _FIELDS:
            numbers[_FIELDS[name]] += int(value.split()[0]) << 10
        elif inside and name.startswith("Shared_") and name != "Shared_Hugetlb":
            numbers["shared"] += int(value.split()[0]) << 10
    return numbers


def main() -> None:
    """Map, wait until the other process has mapped too, and say."""
    names, lengths = sys.argv[1::2], map(int, sys.argv[2::2])
    ranges, kept = [], []
    for name, length in zip(names, lengths, strict=True):
        mapping, address = mapped(name, length)
        kept.append(mapping)
        ranges.append((address, address + -(-length // mmap.PAGESIZE) * mmap.PAGESIZE))
    print("mapped", flush=True)
    sys.stdin.readline()
    print(json.dumps(memory(ranges)), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
