"""Finds what makes the host wait for a device, on a machine that has none."""

import traceback

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_READS = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "_unique2", "unique_consecutive")


class HostWaits(TorchDispatchMode):
    """Records what would make the host wait, were the tensors on a device, and where it comes from.

    A number that is read, elements that a mask picks, and a tensor that is made of Python numbers: its copy to the
    device waits as well.
    """

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        out = function(*args, **(kwargs or {}))
        picks = name in ("index", "index_put_", "index_put") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        copies = name in ("_to_copy", "copy_") and args[-1].device != out.device
        if picks or copies or name in _READS or name == "lift_fresh":
            self.found.append(f"{name}: {[frame.name for frame in traceback.extract_stack()[-8:-1]]}")
        return out
