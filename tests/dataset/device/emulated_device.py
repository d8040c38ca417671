"""A device where there is none: "fakegpu:0", on torch's own Python backend.

Its tensors keep their values in this machine's memory, out of reach of all but the operations that
a dispatch mode lets through: those that a CUDA device only queues. What a CUDA device would refuse,
and what would wait for it, is an error: an operand elsewhere, a copy that is not a non-blocking one
from pinned memory, and any other operation (`item`, `nonzero`, ...). So is what goes wrong only
now and then: pinned memory that is overwritten while it is copied, and reading on one stream what
another has just written.

It takes the place of a backend in the whole process: use it in one of its own.
"""

from collections.abc import Callable, Hashable, Iterable
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from jasper_mmap.dataset.device.device_runtime import Event, Runtime

_setup_privateuseone_for_python_backend("fakegpu")
DEVICE: Final = torch.device("fakegpu:0")

aten = torch.ops.aten
QUEUED: Final = {
    # Without any work on the device.
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.alias.default,
    aten.as_strided.default,
    aten.detach.default,
    aten.select.int,
    aten.slice.Tensor,
    aten.split_with_sizes.default,
    aten.unbind.int,
    aten.unsqueeze.default,
    aten.view.default,
    aten.view.dtype,
    aten._reshape_alias.default,
    aten._unsafe_view.default,
    # One kernel each, whose sizes do not depend on values.
    aten.add.out,
    aten.add_.Tensor,
    aten.bitwise_and_.Scalar,
    aten.eq.Scalar,
    aten.index_select.default,
    aten.index_select.out,
    aten.mul.Tensor,
    aten.mul_.Tensor,
    aten.ne.Scalar,
    aten.where.self_out,
    aten.zero_.default,
}
"""What CUDA queues. Add an operation only after a look at its CUDA implementation."""
COPIES: Final = {aten.copy_.default, aten._to_copy.default}


class OnDevice(Tensor):
    """A tensor of the device; `held` is what it holds."""

    held: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> "OnDevice":
        made: OnDevice = Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=DEVICE,
        )
        made.held = values
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_: Any) -> Any:
        raise AssertionError(f"{func} outside of the emulated device's mode")


class EmulatedDevice(TorchDispatchMode):
    """The mode in which the device is there."""

    def __init__(self) -> None:
        super().__init__()
        self.runtime = EmulatedRuntime()
        self.staged_bytes: list[int] = []
        """The size of each copy from pinned memory."""
        self.used: set[tuple[int, Hashable]] = set()
        """The storages from which rows were read, each with the stream."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = tensors_in((*args, *kwargs.values()))
        own = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
        named = kwargs.get("device")
        if not own and (named is None or named.type != DEVICE.type):
            return func(*args, **kwargs)
        if func in COPIES:
            self._must_not_wait(func, args, kwargs)
        else:
            assert func in QUEUED, f"{func} waits for the device, or is not known not to"
            assert len(own) == len(tensors), f"{func} with an operand that is not on the device"
        if func in (aten.index_select.default, aten.index_select.out):
            self.used.add((storage_of(args[0]), self.runtime.current_stream))
        if named is not None:
            kwargs["device"] = torch.device("cpu")
        made_of = {id(tensor.held): tensor for tensor in own}
        on_cpu = [mapped(held_by, argument) for argument in args]
        result = func(*on_cpu, **{name: mapped(held_by, v) for name, v in kwargs.items()})
        self.runtime.in_order(func, own, tensors_in((result,)))
        # What an operation has written into is returned as it came.
        return mapped(lambda v: made_of[id(v)] if id(v) in made_of else OnDevice(v), result)

    def _must_not_wait(self, func: Any, args: Any, kwargs: Any) -> None:
        """Let pass what copies on the device, or from pinned memory to it."""
        source = args[-1] if func is aten._to_copy.default else args[1]
        target = args[0] if func is aten.copy_.default else None
        to_device = isinstance(target, OnDevice) or kwargs.get("device") == DEVICE
        if isinstance(source, OnDevice):
            assert to_device or kwargs.get("device") is None, f"{func} copies to the CPU"
            assert target is None or isinstance(target, OnDevice), f"{func} copies to the CPU"
            return
        non_blocking = kwargs.get("non_blocking", len(args) > 2 and args[2])
        assert non_blocking, f"{func} to the device blocks"
        assert self.runtime.is_pinned(source), f"{func} to the device from memory not pinned"
        if target is not None:  # else torch converts in memory of its own
            assert target.dtype == source.dtype, f"{func} to the device converts"
            assert target.shape == source.shape, f"{func} to the device expands"
            assert target.is_contiguous(), f"{func} to the device is strided"
        assert source.is_contiguous(), f"{func} to the device is strided"
        self.staged_bytes.append(source.nbytes)
        self.runtime.copying(source)


class EmulatedRuntime(Runtime):
    """Pinned memory, streams and events of the device; it knows what may be under way."""

    def __init__(self) -> None:
        self.current_stream: Hashable = "first"
        self.recorded: set[tuple[int, Hashable]] = set()
        """The storages whose use by a stream was recorded."""
        self._pinned: dict[int, Tensor] = {}
        self._written: dict[int, Hashable] = {}
        """The stream that wrote to a storage, until an event shows that it has."""
        self.begun = 0
        self._under_way: dict[int, tuple[Tensor, Tensor]] = {}
        """The memory that is being copied from, and what it held when that began."""

    def free_bytes(self, device: torch.device) -> int:
        return 1 << 40

    def pinned(self, *shape: int, dtype: torch.dtype) -> Tensor:
        buffer = torch.full(shape, 77, dtype=dtype, device="cpu")
        self._pinned[storage_of(buffer)] = buffer
        return buffer

    def stream(self, device: torch.device) -> Hashable:
        return self.current_stream

    def event(self, device: torch.device) -> Event:
        return _EmulatedEvent(self)

    def record_stream(self, table: Tensor, device: torch.device) -> None:
        assert isinstance(table, OnDevice)
        self.recorded.add((storage_of(table), self.current_stream))

    def is_pinned(self, tensor: Tensor) -> bool:
        """Whether it views memory that was allocated as pinned."""
        return storage_of(tensor) in self._pinned

    def in_order(self, func: Any, read: list[OnDevice], results: list[Tensor]) -> None:
        """Require that no other stream has written what is read, and note what is written."""
        storages = {storage_of(tensor) for tensor in read}
        for storage in storages:
            written_on = self._written.get(storage, self.current_stream)
            assert written_on == self.current_stream, f"{func} of what another stream writes"
        for storage in map(storage_of, results):
            if func._schema.is_mutable or storage not in storages:
                self._written[storage] = self.current_stream

    def copying(self, source: Tensor) -> None:
        """Begin a copy, which must find what is there now until an event shows that it is done."""
        self.begun += 1
        self._under_way[self.begun] = source, source.clone()

    def finish(self, last: int) -> None:
        """End the copies up to number `last`: their memory must not have changed until now."""
        for number in [number for number in self._under_way if number <= last]:
            source, before = self._under_way.pop(number)
            assert torch.equal(source, before), "memory was overwritten while it was copied"

    def written_until_now(self) -> dict[int, Hashable]:
        """What the current stream has written, by storage."""
        return {k: stream for k, stream in self._written.items() if stream == self.current_stream}

    def wait_for(self, written: dict[int, Hashable]) -> None:
        """Let every stream read it."""
        for storage, stream in written.items():
            if self._written.get(storage) == stream:
                del self._written[storage]


class _EmulatedEvent:
    """Comes after all that was queued on the current stream."""

    def __init__(self, runtime: EmulatedRuntime) -> None:
        self._runtime, self._last = runtime, runtime.begun
        self._written = runtime.written_until_now()

    def synchronize(self) -> None:
        """Wait until those copies and what was written before are done."""
        self._runtime.finish(self._last)
        self._runtime.wait_for(self._written)


def tensors_in(arguments: Iterable[Any]) -> list[Tensor]:
    """Return the tensors among arguments, and in their lists."""
    lists = (a if isinstance(a, list | tuple) else (a,) for a in arguments)
    return [item for items in lists for item in items if isinstance(item, Tensor)]


def mapped(function: Callable[[Any], Any], argument: Any) -> Any:
    """Return an argument with `function` applied to it, or to the tensors of a list."""
    if isinstance(argument, list | tuple):
        return type(argument)(mapped(function, item) for item in argument)
    return function(argument) if isinstance(argument, Tensor) else argument


def held_by(tensor: Tensor) -> Tensor:
    """Return the values of a tensor, in this machine's memory."""
    return tensor.held if isinstance(tensor, OnDevice) else tensor


def storage_of(tensor: Tensor) -> int:
    """Return the address of a tensor's memory."""
    return held_by(tensor).untyped_storage().data_ptr()
