"""Facts of a machine on which all is well, to change one at a time."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from jasper_mmap.control_groups import Limits
from jasper_mmap.doctor.facts import Facts, Mount, Sharing, StoreFacts

GB = 1 << 30

SHARED = Sharing(mapped=8 << 20, rss=8 << 20, pss=4 << 20, shared=8 << 20, huge=0)
COPIED = SHARED._replace(pss=8 << 20, shared=0)

STORE = StoreFacts(
    path=Path("store"),
    mount=Mount("/", "ext4", "/dev/vda"),
    nbytes=2 * GB,
    problems=(),
    closed_to_others=(),
    group_writes=False,
    sharing=SHARED,
    sharing_error=None,
    lock_excludes=True,
    lock_error=None,
)
FACTS = Facts(
    store=STORE,
    free_bytes=16 * GB,
    limits=Limits(None, None),
    huge_pages="madvise",
    shm_bytes=GB,
    descriptors=4096,
    memfd_error=None,
    temporary_error=None,
    proc_missing=(),
    start_method="fork",
    cores=8,
    torch_threads=8,
    umask=0o022,
    versions={"torch": ("2.13.0+cpu", "2.6")},
    gpu="a GPU",
    gpu_free_bytes=8 * GB,
)


def planted(**changed: Any) -> Facts:
    """Return healthy facts but for these, of the store or of the machine."""
    of_store = {name: changed.pop(name) for name in [*changed] if name in vars(STORE)}
    return replace(FACTS, store=replace(STORE, **of_store), **changed)
