"""Where the served tables are: in the mapped files, or copied to a device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import DeviceError, DeviceMemoryError
from ...files.safetensors import flat_bytes
from ...files.torch_modes import plain_tensors
from .device_runtime import CPU_RUNTIME, CUDA_RUNTIME, Event, Runtime
from .stack import Stack, joinable, steering_begins

_STAGING_BYTES = 32 << 20
HEADROOM_BYTES = 256 << 20
"""Left free on the device for the batches themselves and the allocator's rounding."""


@dataclass(frozen=True)
class Placement:
    """`copied=False`: tables stay mapped (CPU). `copied=True`: each is copied to `device` once."""

    device: torch.device
    copied: bool
    runtime: Runtime = field(default=CPU_RUNTIME, compare=False)

    def reserve(self, tables: Iterable[torch.Tensor]) -> None:
        """Raise `DeviceMemoryError` now if copies of `tables` would not fit; allocates nothing."""
        if not self.copied:
            return
        need = sum(t.nbytes for t in tables) + HEADROOM_BYTES
        free = self.runtime.free_bytes(self.device)
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
        staging = _Staging(self)
        placed = {name: staging.copy(table) for name, table in tables.items()}
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
        joined[:1].zero_()
        staging = _Staging(self)
        parts = {
            name: staging.copy(table, joined[begin : begin + len(table)])
            for (name, table), begin in zip(tables.items(), begins, strict=True)
        }
        first = dict(zip(tables, begins, strict=True))
        steering = staging.copy(steering_begins(first))
        staging.finish()
        return Stack(joined, first, parts, steering)

    def positions(
        self, positions: NDArray[np.int64], variants: NDArray[np.int64]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return both arrays [B] as tensors where the tables are.

        To a device both go by one copy, of 16 bytes a sample, that nothing waits for.
        """
        if not self.copied:
            return torch.from_numpy(positions), torch.from_numpy(variants)
        pinned = self.runtime.pinned(2, len(positions), dtype=torch.int64)
        np.stack((positions, variants), out=pinned.numpy())
        placed = torch.empty(pinned.shape, dtype=pinned.dtype, device=self.device)
        placed.copy_(pinned, non_blocking=True)
        return placed[0], placed[1]


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
    return Placement(torch.device("cuda", index), copied=True, runtime=CUDA_RUNTIME)


class _Staging:
    """Copies through two bounded buffers, pinned for CUDA: reading a private mapping, the driver
    may write-fault every page of it, and pageable copies are slower."""

    def __init__(self, placement: Placement) -> None:
        self._runtime, self._device = placement.runtime, placement.device
        self._buffers = [self._runtime.pinned(_STAGING_BYTES, dtype=torch.uint8) for _ in range(2)]
        self._copied: list[Event | None] = [None, None]
        self._turn = 0

    def copy(self, table: torch.Tensor, placed: torch.Tensor | None = None) -> torch.Tensor:
        """Fill `placed` (contiguous, on the device), or new memory there, with `table`."""
        if placed is None:
            placed = torch.empty(table.shape, dtype=table.dtype, device=self._device)
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
        self._copied[self._turn] = self._runtime.event(self._device)
        self._turn = 1 - self._turn

    def finish(self) -> None:
        """Wait until all is copied."""
        self._runtime.event(self._device).synchronize()
