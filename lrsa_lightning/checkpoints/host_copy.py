"""Copies of a run's state in host memory, which a thread writes while training changes the state."""

import logging
import math
import mmap
import weakref
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch.nn import Parameter

log = logging.getLogger(__name__)
_BLOCK = 2**28  # bytes; torch rounds pinned memory up to a power of two
_ALIGNMENT = 512
_LARGE = 2**20  # bytes of a tensor that is worth sparing a copy
_HOST = "cpu"
_SPARE = 1.2  # free memory that a copy needs, relative to its size


class HostCopies:
    """Copies states from a device to pinned host memory that it keeps, and states on the CPU to new memory.

    torch's own stager (torch.distributed.checkpoint.staging) pins memory when the first copy waits for it, and finds it
    again by the tensors copied, which are new ones each time if devices gather them.
    """

    def __init__(self, are_gathered: bool = False, processes: int = 1):
        """
        Args:
            are_gathered: large tensors on the CPU belong to the state alone, since devices gathered them for it.
            processes: how many of a host make copies of this size.
        """
        self._are_gathered = are_gathered
        self._processes = processes
        self._memory = _PinnedMemory()
        self._reserving: Future | None = None
        self._has_warned = False

    def reserve(self, values: Iterable[Any]) -> None:
        """Pins memory for the tensors among the values, in a thread: it takes a second for a few GB."""
        tensors = (value for value in values if type(value) in (Tensor, Parameter))
        storages = _storages(tensors, on_host=False)
        if storages and self._is_room(_size(storages)):
            sizes = [storage.nbytes() for storage in storages.values()]
            self._reserving = in_thread(self._memory.reserve, sizes)

    def of(self, state: Any) -> Any | None:
        """A copy that no later change of the state reaches, complete on return; its memory is its own until `release`.

        Returns:
            None if the free memory of the host is too small. The log says so once.
        """
        if self._reserving is not None:
            self._reserving.result()
            self._reserving = None
        tensors = [*_tensors_in(state)]
        gathered = [tensor for tensor in tensors if self._are_gathered and _is_large_on_host(tensor)]
        memo = {id(tensor): tensor for tensor in gathered}
        tensors = [tensor for tensor in tensors if id(tensor) not in memo]
        on_devices, on_host = (_storages(tensors, on_host) for on_host in (False, True))
        missing = max(0, _size(on_devices) - self._memory.free)
        if not self._is_room(missing + _size(on_host)):
            return None
        copies = {key: self._memory.copy(storage) for key, storage in on_devices.items()}
        copies |= {key: storage.clone() for key, storage in on_host.items()}
        for device in {storage.device for storage in on_devices.values()}:
            getattr(torch, device.type).synchronize(device)  # torch.cuda, torch.npu
        nothing = UntypedStorage(0)
        # deepcopy finds these copies, and copies the rest. It refuses tensors with a gradient function itself.
        memo |= {id(tensor): _over(copies.get(_key(tensor), nothing), tensor) for tensor in tensors}
        return deepcopy(state, memo)

    def release(self) -> None:
        """Allows the next copies to use the memory of those made so far."""
        self._memory.release()

    def _is_room(self, size: int) -> bool:
        is_room = size * self._processes * _SPARE <= available_memory()
        if not is_room and not self._has_warned:
            self._has_warned = True
            log.warning(
                "the free memory of the host is too small for a copy of the state (%.1f GB): training waits while a "
                "checkpoint is written",
                size / 1e9,
            )
        return is_room


class _PinnedMemory:
    """Blocks of pinned memory, divided among the storages of one state after the other."""

    def __init__(self):
        self._blocks: list[Tensor] = []
        self._used: list[int] = []
        self._is_pinned = True

    @property
    def size(self) -> int:
        """Bytes of all blocks."""
        return sum(block.numel() for block in self._blocks)

    @property
    def free(self) -> int:
        """Bytes that no storage uses."""
        return self.size - sum(self._used)

    def reserve(self, sizes: Iterable[int]) -> None:
        for size in sizes:
            self._take(size)
        self.release()

    def release(self) -> None:
        self._used = [0] * len(self._blocks)

    def copy(self, storage: UntypedStorage) -> UntypedStorage:
        """The copy runs until the device is synchronised."""
        place = self._take(storage.nbytes())
        place.copy_(_bytes_of(storage), non_blocking=True)
        return place.untyped_storage()

    def _take(self, size: int) -> Tensor:
        for number, block in enumerate(self._blocks):
            if self._used[number] + size <= block.numel():
                break
        else:
            number, block = len(self._blocks), self._allocated(max(_BLOCK, 2 ** math.ceil(math.log2(size))))
            self._blocks.append(block)
            self._used.append(0)
        start = self._used[number]
        self._used[number] = min(block.numel(), start + math.ceil(size / _ALIGNMENT) * _ALIGNMENT)
        # numpy's slice gets a storage of its own: torch.save writes the complete storage of a tensor.
        return torch.from_numpy(block.numpy()[start : start + size])

    def _allocated(self, size: int) -> Tensor:
        if self._is_pinned:
            try:
                return _registered(size) if torch.cuda.is_available() else _pinned(size)
            except RuntimeError as error:
                log.warning("host memory cannot be pinned, so copies of the state take longer: %s", error)
                self._is_pinned = False
        return torch.empty(size, dtype=torch.uint8)


def _pinned(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)


def _registered(size: int) -> Tensor:
    """Pinned memory whose pages are there before CUDA takes them.

    While CUDA finds pages itself, no other thread can launch a kernel: 3.6 s for 8 GiB on an H100's host, here 0.5 s.

    Raises:
        RuntimeError: CUDA refuses.
    """
    block = torch.empty(size, dtype=torch.uint8)
    block[:: mmap.PAGESIZE] = 0
    cuda, address = torch.cuda.cudart(), block.data_ptr()
    torch.cuda.check_error(cuda.cudaHostRegister(address, size, 0))
    weakref.finalize(block, cuda.cudaHostUnregister, address).atexit = False
    return block


def in_thread(function, *arguments) -> Future:
    """Runs a function once. The interpreter waits for it before it exits."""
    executor = ThreadPoolExecutor(max_workers=1)
    future = executor.submit(function, *arguments)
    executor.shutdown(wait=False)
    return future


def available_memory() -> float:
    """Bytes of host memory that this process may still take; infinity where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return math.inf
    free = 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    return min(free, _free_in_group(Path("/sys/fs/cgroup")))


def _free_in_group(folder: Path) -> float:
    """Bytes that a container may still take (cgroup v2); the files it has read do not count, for they can go."""
    try:
        limit, used = ((folder / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
        pages = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
    except OSError:
        return math.inf
    return math.inf if limit == "max" else int(limit) - int(used) + int(pages["inactive_file"])


def _tensors_in(state: Any) -> Iterator[Tensor]:
    if type(state) is Tensor and state.layout is torch.strided and not state.is_meta:
        yield state
    elif isinstance(state, dict | list | tuple):
        for item in state.values() if isinstance(state, dict) else state:
            yield from _tensors_in(item)


def _storages(tensors: Iterable[Tensor], on_host: bool) -> dict[tuple, UntypedStorage]:
    """Each storage once: tied weights have one."""
    kept = (tensor for tensor in tensors if (tensor.device.type == _HOST) == on_host)
    return {_key(tensor): tensor.untyped_storage() for tensor in kept if tensor.untyped_storage().nbytes()}


def _size(storages: dict[tuple, UntypedStorage]) -> int:
    return sum(storage.nbytes() for storage in storages.values())


def _key(tensor: Tensor) -> tuple:
    return tensor.device, tensor.untyped_storage().data_ptr()


def _is_large_on_host(tensor: Tensor) -> bool:
    return tensor.device.type == _HOST and tensor.untyped_storage().nbytes() >= _LARGE


def _bytes_of(storage: UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage, 0, (storage.nbytes(),), (1,))


def _over(storage: UntypedStorage, like: Tensor) -> Tensor:
    """A tensor that lays out a storage as another one does."""
    made = torch.empty(0, dtype=like.dtype).set_(storage, like.storage_offset(), like.shape, like.stride())
    return made.requires_grad_(like.requires_grad)
