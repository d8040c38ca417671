"""A file with the similarity and the flags of every slot, for a loss that masks some."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch

from ..errors import JasperError
from ..files.safetensors import chunks, map_tensors, writing
from ..store.target import check_target
from .examine import Take
from .flags import KNOWN, LOWEST, OWN

_SIMILARITIES: Final = "similarities"
_FLAGS: Final = {"margin_false": LOWEST, "margin_false_own": OWN, "known_right": KNOWN}


def check_flags_target(path: Path, store: Path) -> None:
    """Raise a `JasperError` unless flags can be written to `path`; earlier flags are replaced."""
    check_target(path, store, "file of flags", _is_flags)


def _is_flags(path: Path) -> bool:
    try:
        return set(map_tensors(path).tensors) == {_SIMILARITIES, *_FLAGS}
    except JasperError:
        return False


@contextmanager
def writing_flags(path: Path, shape: tuple[int, int]) -> Iterator[Take]:
    """Write the tensors [N_p,N] to `path`, which appears when the block succeeds.

    They are `similarities` (float32), and as 0 or 1 (uint8) `margin_false`, `margin_false_own`
    (both without the known right sources) and `known_right`.
    """
    every = torch.empty(shape, dtype=torch.uint8, device="cpu")
    specs = {
        _SIMILARITIES: (torch.float32, shape),
        **dict.fromkeys(_FLAGS, (torch.uint8, shape)),
    }
    done = 0
    with writing(path, specs) as (writer, _):

        def take(cosines: torch.Tensor, codes: torch.Tensor) -> None:
            nonlocal done
            writer.write(cosines)
            every[done : done + len(codes)] = codes.to(torch.uint8)
            done += len(codes)

        yield take
        for bits in _FLAGS.values():
            for codes in chunks(every):
                flagged = (codes & bits) != 0
                if bits != KNOWN:
                    flagged &= (codes & KNOWN) == 0
                writer.write(flagged.to(torch.uint8))
