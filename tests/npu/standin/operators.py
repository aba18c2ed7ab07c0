"""The operators of torch_npu's device, computed by the CPU on an alias of the same memory.

Everything else of torch_npu stays genuine: allocation, views, streams, generators, statistics, schemas, autograd,
autocast, dispatch of the attention, the process group. An operator that torch_npu does not have goes its own way
through torch_npu's own CPU fallback.
"""

import ctypes
import os
import warnings
from collections.abc import Callable
from functools import partial

import torch

# Kernels that move no numbers: allocation, and what the genuine storage knows.
_GENUINE = {
    "empty_like",
    "resize_",
    "resize_as_",
    "set_",
    "is_pinned",
    "_pin_memory",
    "record_stream",
    "new_empty_strided",
}
# Decisions between kernels and compositions that stay torch_npu's own.
_GENUINE |= {"_fused_sdp_choice", "scaled_dot_product_attention", "isclose", "_lazy_clone", "_foreach_copy_"}
_PREFIXES = ("empty", "unsafe_empty", "npu_", "_npu_", "as_strided")
# Whether torch_npu launches from a thread of its own, which operators here would overtake.
_QUEUES = os.environ.get("TASK_QUEUE_ENABLE") != "0"
_libraries: list[torch.library.Library] = []  # a registration lives as long as its library


def host(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory, seen as a tensor of the CPU."""
    if tensor.device.type != "npu":
        return tensor.detach()
    if _QUEUES:
        torch.npu.synchronize()
    storage = tensor.untyped_storage()
    if storage.nbytes() == 0:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
    memory = (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())
    flat = torch.frombuffer(memory, dtype=torch.uint8).untyped_storage()
    empty = torch.empty(0, dtype=tensor.dtype, device="cpu")
    return empty.set_(flat, tensor.storage_offset(), tensor.shape, tensor.stride())


def device(tensor: torch.Tensor, like: torch.device) -> torch.Tensor:
    """A result of the CPU as a new tensor of the device."""
    result = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=like)
    host(result).copy_(tensor)
    return result


def register(library: torch.library.Library, name: str, function: Callable) -> None:
    """Replaces a kernel of the device; torch warns of each, and we mean it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library.impl(name, function, "PrivateUse1", allow_override=True)


def autoload() -> None:
    """Entry point that `import torch` calls, in this process and in all its children."""
    import torch_npu  # noqa: F401

    if not _libraries:
        install()


def install() -> None:
    """Replaces the kernels that compute."""
    library = torch.library.Library("aten", "IMPL")
    _libraries.append(library)
    for name in torch._C._dispatch_get_registrations_for_dispatch_key("PrivateUse1"):
        namespace, _, operator = name.partition("::")
        if namespace == "aten" and _computes(operator):
            overload = _overload(operator)
            register(library, operator, partial(_compute, overload, Signature(overload._schema)))
    for name, function in (("copy_", _copy), ("_to_copy", _to_copy), ("contiguous", _contiguous), ("clone", _clone)):
        register(library, name, function)
    register(library, "native_dropout", _native_dropout)
    register(library, "matmul_backward", _matmul_backward)
    from tests.npu.standin import fused

    _libraries.append(fused.install())


def _overload(operator: str):
    base, _, overload = operator.partition(".")
    packet = getattr(torch.ops.aten, base, None)
    return getattr(packet, overload or "default", None)


def _computes(operator: str) -> bool:
    base = operator.partition(".")[0]
    if base in _GENUINE or base.startswith(_PREFIXES) or (overload := _overload(operator)) is None:
        return False
    return not any(r.alias_info is not None and not r.alias_info.is_write for r in overload._schema.returns)  # views


class Signature:
    """What an operator's schema says of its arguments and results."""

    def __init__(self, schema):
        self.names = [a.name for a in schema.arguments]
        self.is_random = "generator" in self.names
        self.outs = [a.name for a in schema.arguments if a.is_out]
        self.single = len(schema.returns) == 1
        written = {self._letter(a): a.name for a in schema.arguments if self._letter(a)}
        self.returned = [written.get(self._letter(r)) for r in schema.returns]

    @staticmethod
    def _letter(declared) -> tuple[str, ...] | None:
        return tuple(declared.alias_info.before_set) if declared.alias_info and declared.alias_info.is_write else None


def _compute(op, signature: Signature, *args, **kwargs):
    """Runs an operator on aliases; what it wrote into is returned itself, what it made is moved to the device."""
    bound = dict(zip(signature.names, args, strict=False)) | kwargs
    target = _device_of(bound)
    if bound.get("device") is not None:
        bound["device"] = torch.device("cpu")
    if signature.is_random:
        bound["generator"] = _generator_at(bound.get("generator"), target)
    aliased = {name: _each_tensor(host, value) for name, value in bound.items()}
    outs = [name for name in signature.outs if bound.get(name) is not None]
    for name in outs:  # made anew: an operator may resize what it writes into
        aliased[name] = _each_tensor(lambda t: t.new_empty(0), aliased[name])
    positional = [aliased.pop(name) for name in signature.names[: len(args)]]
    result = op(*positional, **aliased)
    for name in outs:
        _write(bound[name], aliased[name])
    return _returned(signature, bound, result, target)


def _each_tensor(function: Callable, value):
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_each_tensor(function, one) for one in value)
    return value


def _device_of(bound: dict) -> torch.device:
    if bound.get("device") is not None:
        return bound["device"]
    for value in bound.values():
        for one in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(one, torch.Tensor) and one.device.type == "npu":
                return one.device
    return torch.device("npu", torch.npu.current_device())


def _write(target, value) -> None:
    if isinstance(target, (list, tuple)):
        for one, its_value in zip(target, value, strict=True):
            _write(one, its_value)
        return
    if target.shape != value.shape:
        target.resize_(value.shape)
    host(target).copy_(value)


def _returned(signature: Signature, bound: dict, result, target: torch.device):
    if not signature.returned:
        return None
    values = (result,) if signature.single else result
    returned = [
        _each_tensor(lambda t: device(t, target), value) if name is None else bound[name]
        for name, value in zip(signature.returned, values, strict=True)
    ]
    return returned[0] if signature.single else tuple(returned)


def _generator_at(generator, target: torch.device) -> torch.Generator:
    """A CPU generator that stands where the device's stands; that one moves on, as after a kernel."""
    if generator is None:
        generator = torch.npu.default_generators[target.index or 0]
    seed, offset = generator.get_state().view(torch.int64).tolist()
    generator.set_state(torch.tensor([seed, offset + 4], dtype=torch.int64).view(torch.uint8))
    return torch.Generator("cpu").manual_seed((seed * 1_000_003 + offset) % 2**63)


def _copy(target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    host(target).copy_(host(source))
    return target


def _to_copy(
    source, *, dtype=None, layout=None, device=None, pin_memory=None, non_blocking=False, memory_format=None
):  # fmt: skip
    alias = host(source)
    kept = alias.to(dtype=dtype or source.dtype, memory_format=memory_format or torch.preserve_format, copy=True)
    where = source.device if device is None else torch.device(device)
    if where.type == "cpu":
        return kept
    result = torch.empty_strided(kept.shape, kept.stride(), dtype=kept.dtype, device=where)
    if where.type == "npu":
        host(result).copy_(kept)
    return result


def _clone(source: torch.Tensor, *, memory_format=None) -> torch.Tensor:
    return device(host(source).clone(memory_format=memory_format or torch.preserve_format), source.device)


def _contiguous(source: torch.Tensor, *, memory_format=torch.contiguous_format) -> torch.Tensor:
    if source.is_contiguous(memory_format=memory_format):
        return source
    return _clone(source, memory_format=memory_format)


def _native_dropout(source: torch.Tensor, p: float, train: bool | None):
    kept = torch.rand(source.shape, generator=_generator_at(None, source.device), device="cpu") >= p
    out = host(source) * kept / (1 - p)
    return device(out, source.device), device(kept, source.device)


def gradients(function: Callable, inputs: list[torch.Tensor], grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Gradients of a function of CPU tensors, taken inside a kernel, where autograd is otherwise switched off."""
    key = torch._C.DispatchKey
    included = torch._C._dispatch_tls_local_include_set().add(key.ADInplaceOrView)
    excluded = torch._C._dispatch_tls_local_exclude_set().remove(key.AutogradCPU).remove(key.ADInplaceOrView)
    with torch._C._ForceDispatchKeyGuard(included, excluded), torch.enable_grad():
        inputs = [z.detach().requires_grad_() for z in inputs]
        return torch.autograd.grad(function(*inputs), inputs, grad)


def _matmul_backward(grad: torch.Tensor, left: torch.Tensor, right: torch.Tensor, mask: list[bool]):
    return tuple(device(z, grad.device) for z in gradients(torch.matmul, [host(left), host(right)], host(grad)))
