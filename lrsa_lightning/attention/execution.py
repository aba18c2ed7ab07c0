"""Which execution computes a rule: by device, by what a user asks for, and for which part of a sequence.

Shape suffixes: B batch, H query heads, G KV heads, N tokens, D head size, C compact keys, R raw keys, Q queries,
L lag, T scored chunks, M kept per chunk.
"""

import logging
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeAlias

from torch import Tensor

from lrsa_lightning.attention import fill, flash, flex, naive
from lrsa_lightning.attention.layout import TILE, KVLayout
from lrsa_lightning.attention.packing import CuSeqlens
from lrsa_lightning.attention.rule import LagRule
from lrsa_lightning.errors import InputError

log = logging.getLogger(__name__)

BackendName: TypeAlias = Literal["auto", "naive", "fill", "flex"]


@dataclass(frozen=True)
class Execution:
    """How attention under a rule is computed. It changes speed and memory, never the result.

    Attributes:
        backend: naive, fill or flex; auto picks by device.
        chunks_per_fill: of fill, chunks whose queries share one attention call.
    """

    backend: BackendName = "auto"
    chunks_per_fill: int = 1

    def attend_sequence(
        self,
        q_BHND: Tensor,
        k_BGND: Tensor,
        v_BGND: Tensor,
        rule: LagRule,
        scale: float | None = None,
        layer_idx: int = 0,
        cu_seqlens: CuSeqlens | None = None,
    ) -> Tensor:
        """Masked training forward of complete rows, [B, H, N, D]. Arguments as in `fill.lrsa_attention`."""
        backend = _resolve(self.backend, q_BHND.device.type, q_BHND.shape[-1])
        if not rule.drops_tokens:  # then nothing is ranked, and no key is there twice
            rule = rule.without_chunks()
        arguments = q_BHND, k_BGND, v_BGND, rule, scale
        options = {"layer_idx": layer_idx, "cu_seqlens": cu_seqlens}
        if backend == "fill":
            return fill.lrsa_attention(*arguments, **options, chunks_per_fill=self.chunks_per_fill)
        return {"naive": naive, "flex": flex}[backend].lrsa_attention(*arguments, **options)

    def attend_segment(
        self,
        q_BHQD: Tensor,
        compact: tuple[Tensor, Tensor],
        raw: tuple[Tensor, Tensor],
        layout: KVLayout,
        scale: float | None = None,
    ) -> Tensor:
        """Training attention of a segment of a sequence, [B, H, Q, D]. Arguments as in `fill.attend`."""
        if self.runs_flex(q_BHQD):
            return flex.attend_segment(q_BHQD, compact, raw, layout, scale)
        return fill.attend(q_BHQD, compact, raw, layout, scale, self.chunks_per_fill)

    def attend_cached(
        self,
        q_BHQD: Tensor,
        compact: tuple[Tensor, Tensor],
        raw: tuple[Tensor, Tensor],
        layout: KVLayout,
        scale: float | None = None,
    ) -> Tensor:
        """Attention of the newest Q tokens over the keys of a cache, [B, H, Q, D]. Arguments as in `fill.attend`."""
        is_sparse = layout.rule.compressed_chunks(layout.end) > 0
        runs_flash = self.runs_flex(q_BHQD) and flex.pick_kernel(q_BHQD) == "FLASH"
        if not is_sparse and layout.is_lower_right_causal:
            # For few queries flash-attn-4 has another kernel, and SDPA needs none to be compiled.
            attend = flash.attend_causal if runs_flash and q_BHQD.shape[2] >= TILE else fill.attend_causal
            return attend(q_BHQD, *map(layout.join, compact, raw), scale)
        # Triton would compile for every length of a prompt, and under a mask SDPA's first call takes 4 s.
        if is_sparse and runs_flash:
            return flex.attend_segment(q_BHQD, compact, raw, layout, scale, "FLASH")
        return fill.attend(q_BHQD, compact, raw, layout, scale, self.chunks_per_fill)

    def decodes_fused(self, k_BGND: Tensor, v_BGND: Tensor) -> bool:
        """Whether there are kernels for one new token a row, over keys and values like these."""
        dim = k_BGND.shape[-1]
        return self.runs_flex(k_BGND) and dim == v_BGND.shape[-1] and flex.is_power_of_two(dim)

    def compresses_fused(self, rule: LagRule, k_BGND: Tensor) -> bool:
        """Whether these kernels compress as the rule does."""
        return not rule.drops_tokens or rule.kept == 0 or flex.has_fused_selection(rule, k_BGND)

    def keep_best(self, rule: LagRule, k_BGND: Tensor, v_BGND: Tensor, layer_idx: int, start: int) -> Tensor:
        """`LagRule.keep_best`, fused where this execution has a kernel for it: int64 [B, G, T * M]."""
        if self.runs_flex(k_BGND) and flex.has_fused_selection(rule, k_BGND):
            return flex.fused_keep_best(rule, k_BGND, v_BGND)
        return rule.keep_best(k_BGND, v_BGND, layer_idx, start)

    def runs_flex(self, z_BXND: Tensor) -> bool:
        """Whether FlexAttention or FlashAttention-4 computes tensors like this one."""
        return _resolve(self.backend, z_BXND.device.type, z_BXND.shape[-1]) == "flex"


@cache
def _resolve(backend: BackendName, device_type: str, head_dim: int) -> str:
    """The backend for a device, logged once.

    Raises:
        InputError: flex on an NPU.
    """
    if backend == "flex" and device_type == "npu":
        raise InputError("LRSA: FlexAttention does not run on NPUs; take backend auto, or fill")
    if backend != "auto":
        return backend
    if device_type == "cuda" and head_dim >= 16:  # FlexAttention takes no smaller ones
        log.info("LRSA backend auto: flex ([compact ; raw] under a static block mask) on cuda")
        return "flex"
    kernel = "npu_fusion_attention" if device_type == "npu" else "SDPA"
    log.info("LRSA backend auto: fill (%s, chunk by chunk) on %s", kernel, device_type)
    return "fill"
