"""What a plan knows of an accelerator. Every measured constant of the plan is in this file, to be corrected here."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Work:
    """What a device has to do.

    Attributes:
        flops: of matrix products.
        dense_attention_flops: of attention over all earlier tokens; 2 a multiply-add, visible pairs only, and twice the
            forward for the backward.
        sparse_attention_flops: the same under a mask that hides earlier tokens.
        bytes: read and written by everything else.
        host_bytes: moved between the device and its host.
        link_bytes: received from other devices of the host.
    """

    flops: float = 0.0
    dense_attention_flops: float = 0.0
    sparse_attention_flops: float = 0.0
    bytes: float = 0.0
    host_bytes: float = 0.0
    link_bytes: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(a + b for a, b in zip(self._parts, other._parts, strict=True)))

    def __mul__(self, times: float) -> "Work":
        return Work(*(times * part for part in self._parts))

    @property
    def _parts(self) -> tuple[float, ...]:
        return tuple(vars(self).values())


@dataclass(frozen=True)
class Device:
    """Memory and rates of one accelerator. A rate is what a training step reaches, not a data sheet's peak.

    Attributes:
        label: what a person calls it.
        memory: bytes that the driver reports.
        matrix_rate: FLOP/s of large bf16 matrix products.
        dense_attention_rate: FLOP/s of causal attention, forward and backward, counted as in `Work`.
        sparse_attention_rate: the same for LRSA, selection and gathering included.
        byte_rate: bytes/s of element-wise kernels.
        host_rate: bytes/s to and from pinned host memory.
        link_rate: bytes/s from other devices of the host.
        is_measured: whether someone measured the rates; otherwise they follow from data sheets.
        has_known_rates: whether they are this device's at all; otherwise they only put settings in an order.
        has_fused_mlp: whether fused layers never keep SwiGLU's product.
        has_graphs: whether decoding runs under CUDA graphs.
    """

    label: str
    memory: int
    matrix_rate: float
    dense_attention_rate: float
    sparse_attention_rate: float
    byte_rate: float
    host_rate: float
    link_rate: float
    is_measured: bool
    has_known_rates: bool = True
    has_fused_mlp: bool = True
    has_graphs: bool = True

    @property
    def usable(self) -> int:
        """Bytes that tensors can have: the context of the driver and fragments of the allocator take the rest."""
        return int(self.memory - _CONTEXT - FRAGMENTS * self.memory)

    def seconds(self, work: Work) -> float:
        """How long the work takes, one kind after the other."""
        return (
            work.flops / self.matrix_rate
            + work.dense_attention_flops / self.dense_attention_rate
            + work.sparse_attention_flops / self.sparse_attention_rate
            + work.bytes / self.byte_rate
            + work.host_bytes / self.host_rate
            + work.link_bytes / self.link_rate
        )


_GIB = 2**30
_CONTEXT = int(0.6 * _GIB)
FRAGMENTS = 0.03  # of a device's memory
# A decoder layer for one new token of each of 8 rows at 32768 tokens, 1.5B: 5.5 ms for 28 layers under a CUDA graph,
# else what Python takes to launch the kernels.
SECONDS_OF_A_NEW_TOKEN = {True: 0.0055 / 28, False: 0.035 / 28}

# H100 80GB HBM3: 798 TFLOP/s in large products; those of a 1.5B shape reach 88% of it. A layer of it at 32768
# tokens, forward and backward, takes 18.3 ms dense (FlashAttention-4), 11.3 ms at r = 1/2, 7.1 ms at r = 1/4.
# Element-wise kernels in a step reach two thirds of the 3.0 TB/s of a copy.
H100 = Device("H100 80GB", int(79.1 * _GIB), 700e12, 540e12, 465e12, 2.0e12, 50e9, 250e9, True)
# H200: at 131072 tokens 297, 166 and 94 ms. Its matrix rate is the H100's.
H200 = Device("H200", int(139.8 * _GIB), 700e12, 533e12, 465e12, 2.9e12, 50e9, 250e9, True)
# Data sheets: 312 and about 354 TFLOP/s, 2.0 and 1.6 TB/s. The shares of these peaks are guesses.
A100 = Device("A100 80GB", int(79.1 * _GIB), 250e12, 160e12, 110e12, 1.5e12, 25e9, 180e9, False)
ASCEND_910B = Device(
    "Ascend 910B",
    int(61.0 * _GIB),
    250e12,
    120e12,
    90e12,
    1.1e12,
    25e9,
    100e9,
    False,
    has_fused_mlp=False,
    has_graphs=False,
)
DEVICES = {"h100": H100, "h200": H200, "a100": A100, "910b": ASCEND_910B}


def find_device(name: str, memory: int) -> Device:
    """The device of a driver's name, with the memory that it reports; its rates are unknown outside of `DEVICES`."""
    for key, device in DEVICES.items():
        if key in name.lower():
            return replace(device, memory=memory)
    return replace(A100, label=name, memory=memory, has_known_rates=False)
