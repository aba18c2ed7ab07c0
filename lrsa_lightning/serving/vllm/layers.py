"""vLLM's models with compressed attention layers, under architecture names that only the plug-in knows."""

from dataclasses import replace

from torch import nn
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM
from vllm.model_executor.models.utils import extract_layer_index

from lrsa_lightning.attention.lrsa import LRSA
from lrsa_lightning.serving.vllm.backends.choice import compressed
from lrsa_lightning.serving.vllm.cache_spec import LagSpec
from lrsa_lightning.serving.vllm.settings import served_mode


class LagAttention(Attention):
    """An attention layer whose chunks are compressed.

    Attributes:
        rule: of the layer; it knows which KV heads this rank has.
        layer_idx: the decoder layer.
    """

    def __init__(self, stock: Attention, mode: LRSA, vllm_config: VllmConfig):
        """
        Args:
            stock: the layer to replace, not yet loaded.
            mode: the attention mode.
            vllm_config: of the model.
        """
        super().__init__(
            stock.num_heads,
            stock.head_size,
            stock.impl.scale,
            num_kv_heads=stock.num_kv_heads,
            cache_config=vllm_config.cache_config,
            quant_config=stock.quant_config,
            prefix=stock.layer_name,
            attn_backend=compressed(stock.attn_backend),
        )
        self.layer_idx = extract_layer_index(stock.layer_name)
        self._rule_of_all_heads = mode.rule(self.layer_idx)
        self.rule = replace(self._rule_of_all_heads, first_kv_head=_first_kv_head(vllm_config))

    def get_kv_cache_spec(self, vllm_config: VllmConfig) -> LagSpec:
        """See the base class."""
        return LagSpec(
            block_size=vllm_config.cache_config.block_size,
            num_kv_heads=self.num_kv_heads,
            head_size=self.head_size,
            head_size_v=self.head_size_v,
            dtype=self.kv_cache_torch_dtype,
            rule=self._rule_of_all_heads,
            step_tokens=vllm_config.max_in_flight_tokens,
        )


def _first_kv_head(vllm_config: VllmConfig) -> int:
    """The first KV head of this rank. Where there are more ranks than heads, several have the same."""
    total = vllm_config.model_config.get_total_num_kv_heads()
    return get_tensor_model_parallel_rank() * total // get_tensor_model_parallel_world_size()


class _Compressed:
    """Mixin before a model of vLLM."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        mode = served_mode(vllm_config)
        for module in [*self.modules()]:
            for name, child in [*module.named_children()]:
                if type(child) is Attention and mode.rule(extract_layer_index(child.layer_name)).drops_tokens:
                    _replace(module, name, child, mode, vllm_config)


def _replace(module: nn.Module, name: str, stock: Attention, mode: LRSA, vllm_config: VllmConfig) -> None:
    del vllm_config.compilation_config.static_forward_context[stock.layer_name]
    setattr(module, name, LagAttention(stock, mode, vllm_config))


class LrsaQwen2ForCausalLM(_Compressed, Qwen2ForCausalLM):
    """Qwen2 and Qwen2.5."""


class LrsaQwen3ForCausalLM(_Compressed, Qwen3ForCausalLM):
    """Qwen3."""


class LrsaLlamaForCausalLM(_Compressed, LlamaForCausalLM):
    """Llama."""
