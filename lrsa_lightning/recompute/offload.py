"""Layer inputs in the host's memory while they wait for the backward."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import ref

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


class HostMemory:
    """Moves tensors to pinned memory and back, on a stream of its own beside the computation.

    The backward needs them in the opposite order: when it fetches one, the one before is already on its way.
    """

    def __init__(self):
        self._newest: Callable[[], _Held | None] = lambda: None
        self._stream: torch.Stream | None = None

    @contextmanager
    def holding(self, hidden: Tensor) -> Iterator[None]:
        """Within it, autograd saves this tensor in the host's memory. On a CPU nothing changes."""
        if hidden.device.type == "cpu" or not torch.is_grad_enabled():
            yield
            return
        if self._stream is None:
            self._stream = torch.Stream(hidden.device)

        def pack(saved: Tensor) -> "Tensor | _Held":
            if saved.data_ptr() != hidden.data_ptr() or saved.shape != hidden.shape:
                return saved
            held = _Held(saved, self._stream, self._newest)
            self._newest = ref(held)
            return held

        with saved_tensors_hooks(pack, _unpack):
            yield


def _unpack(packed: "Tensor | _Held") -> Tensor:
    if isinstance(packed, Tensor):
        return packed
    tensor = packed.fetched()
    if (before := packed.before()) is not None:
        before.fetch()
    return tensor


class _Held:
    """A tensor in pinned memory; `before` gives the one that was saved before it, if it still waits."""

    def __init__(self, tensor: Tensor, stream: torch.Stream, before: "Callable[[], _Held | None]"):
        self._stream, self._device, self._back, self.before = stream, tensor.device, None, before
        self._host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
        stream.wait_stream(torch.accelerator.current_stream(self._device))
        with stream:
            self._host.copy_(tensor, non_blocking=True)
        tensor.record_stream(stream)

    def fetch(self) -> None:
        """Begins to copy the tensor back."""
        if self._back is None:
            with self._stream:
                self._back = self._host.to(self._device, non_blocking=True)

    def fetched(self) -> Tensor:
        """The tensor, on its device again."""
        self.fetch()
        current = torch.accelerator.current_stream(self._device)
        current.wait_stream(self._stream)
        self._back.record_stream(current)
        return self._back
