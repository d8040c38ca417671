"""Where the served tables are: in the mapped files, or copied to a device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate

import torch

from ..errors import DeviceError, DeviceMemoryError
from ..files.page_cache import free_bytes
from ..files.safetensors import flat_bytes
from ..files.torch_modes import plain_tensors
from .stack import Stack, joinable

_STAGING_BYTES = 32 << 20
_HEADROOM_BYTES = 256 << 20
"""Left free on the device for the batches themselves and the allocator's rounding."""


@dataclass(frozen=True)
class Placement:
    """`copied=False`: tables stay mapped (CPU). `copied=True`: each is copied to `device` once."""

    device: torch.device
    copied: bool
    free: Callable[[torch.device], int] = field(default=free_bytes, compare=False)

    def reserve(self, tables: Iterable[torch.Tensor]) -> None:
        """Raise `DeviceMemoryError` now if copies of `tables` would not fit; allocates nothing."""
        if not self.copied:
            return
        need = sum(t.nbytes for t in tables) + _HEADROOM_BYTES
        free = self.free(self.device)
        if need > free:
            raise DeviceMemoryError(
                f"{self.device}: the dataset needs {need / 2**20:,.0f} MB there, but"
                f" {free / 2**20:,.0f} MB are free. Serve it mapped with device='cpu', convert with"
                " embeddings_dtype='float16' (half the bytes), or free memory on the device."
            )

    @plain_tensors
    def place(self, tables: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the tables where they are served from."""
        if not self.copied:
            return dict(tables)
        staging = _Staging(self.device)
        placed = {
            name: staging.copy(t, torch.empty(t.shape, dtype=t.dtype, device=self.device))
            for name, t in tables.items()
        }
        staging.finish()
        return placed

    @plain_tensors
    def stack(self, tables: Mapping[str, torch.Tensor]) -> Stack | None:
        """Copy the tables joined to one; None if dtypes or widths differ."""
        if not joinable(tables):
            return None
        some = next(iter(tables.values()))
        *begins, end = accumulate((len(t) for t in tables.values()), initial=1)
        joined = torch.empty((end, *some.shape[1:]), dtype=some.dtype, device=self.device)
        joined[0] = 0
        staging = _Staging(self.device)
        parts = {
            name: staging.copy(table, joined[begin : begin + len(table)])
            for (name, table), begin in zip(tables.items(), begins, strict=True)
        }
        staging.finish()
        return Stack(joined, dict(zip(tables, begins, strict=True)), parts)


def device_named(device: str | torch.device | None) -> torch.device:
    """The device that a caller names ("cpu", "cuda", "cuda:1", ...; None is the CPU)."""
    try:
        return torch.device("cpu" if device is None else device)
    except (RuntimeError, TypeError):
        raise DeviceError(
            f"unknown device {device!r:.100}: it must be 'cpu' or a CUDA device ('cuda', 'cuda:1')."
        ) from None


def placement_for(device: str | torch.device | None) -> Placement:
    """The placement for `device`; raises `DeviceError` if there is no such device."""
    target = device_named(device)
    if target.type == "cpu":
        return Placement(target, copied=False)
    if target.type != "cuda":
        raise DeviceError(f"device {device!r}: it must be 'cpu' or a CUDA device.")
    if not torch.cuda.is_available():
        raise DeviceError(
            f"device {device!r}: torch finds no CUDA device; use device='cpu', or install a CUDA"
            " build of torch on a machine with a GPU."
        )
    index = torch.cuda.current_device() if target.index is None else target.index
    if index >= torch.cuda.device_count():
        raise DeviceError(
            f"device {device!r}: there are {torch.cuda.device_count()} CUDA devices, numbered"
            " from 0."
        )
    return Placement(torch.device("cuda", index), copied=True)


class _Staging:
    """Copies through two bounded buffers, pinned for CUDA: reading a private mapping, the driver
    may write-fault every page of it, and pageable copies are slower."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cuda = device.type == "cuda"
        self._buffers = [
            torch.empty(_STAGING_BYTES, dtype=torch.uint8, device="cpu", pin_memory=self._cuda)
            for _ in range(2)
        ]
        self._copied: list[torch.cuda.Event | None] = [None, None]
        self._turn = 0

    def copy(self, table: torch.Tensor, placed: torch.Tensor) -> torch.Tensor:
        """Fill `placed` (contiguous, on the device) with `table`."""
        source, target = flat_bytes(table), flat_bytes(placed)
        for begin in range(0, source.numel(), _STAGING_BYTES):
            piece = source[begin : begin + _STAGING_BYTES]
            buffer = self._free_buffer()[: piece.numel()]
            buffer.copy_(piece)
            target[begin : begin + piece.numel()].copy_(buffer, non_blocking=True)
            self._used()
        return placed

    def _free_buffer(self) -> torch.Tensor:
        event = self._copied[self._turn]
        if event is not None:
            event.synchronize()
        return self._buffers[self._turn]

    def _used(self) -> None:
        if self._cuda:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(self._device))
            self._copied[self._turn] = event
        self._turn = 1 - self._turn

    def finish(self) -> None:
        if self._cuda:
            torch.cuda.current_stream(self._device).synchronize()
