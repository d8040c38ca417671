"""What copies to a device need of torch: pinned memory, streams and events.

A CUDA device runs work later, in the order in which it was queued on a stream. Nothing else in this
package calls `torch.cuda`, but for the check that a named device exists.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Final, Protocol

import torch

from ...files.memory_pages import usable_bytes


class Event(Protocol):
    """A point in the work that is queued on a stream."""

    def synchronize(self) -> Any:
        """Wait until the device has reached it."""


class Runtime:
    """That of the CPU: memory is ordinary, and work is done when the call returns."""

    def free_bytes(self, device: torch.device) -> int:
        """Bytes that could be allocated on `device` now."""
        return usable_bytes()

    def pinned(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        """Allocate uninitialised memory of this machine that a device can copy by itself.

        A copy out of it that does not block keeps it from being allocated again before the copy is
        done, so it may be dropped at once, but not be written to.
        """
        return torch.empty(shape, dtype=dtype, device="cpu")

    def stream(self, device: torch.device) -> Hashable:
        """The stream on which this thread queues work for `device` now."""
        return None

    def event(self, device: torch.device) -> Event:
        """An event that comes after all work queued on the current stream."""
        return _REACHED

    def record_stream(self, table: torch.Tensor, device: torch.device) -> None:
        """After `table` is dropped, its memory is not reused before the work that is then queued on
        this stream is done."""


class CudaRuntime(Runtime):
    """That of a CUDA device."""

    def free_bytes(self, device: torch.device) -> int:
        """Of the whole device, beside what other processes have allocated."""
        return torch.cuda.mem_get_info(device)[0]

    def pinned(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        """Allocate it by torch's caching allocator, which knows of such copies."""
        return torch.empty(shape, dtype=dtype, device="cpu", pin_memory=True)

    def stream(self, device: torch.device) -> Hashable:
        """The current stream of torch."""
        return torch.cuda.current_stream(device)

    def event(self, device: torch.device) -> Event:
        """An event on the current stream."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(device))
        return event

    def record_stream(self, table: torch.Tensor, device: torch.device) -> None:
        """Note it with torch's caching allocator."""
        table.record_stream(torch.cuda.current_stream(device))


class _Reached:
    def synchronize(self) -> None:
        """Return at once."""


_REACHED: Final = _Reached()
CPU_RUNTIME: Final = Runtime()
CUDA_RUNTIME: Final = CudaRuntime()
