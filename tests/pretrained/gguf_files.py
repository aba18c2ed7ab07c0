"""Tiny GGUF files of the llama architecture, as llama.cpp's converter writes them."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def make_llama(vocab_size: int = 128) -> LlamaForCausalLM:
    """A small random model. Its matrices survive quantisation to Q8_0: each block of 32 holds multiples of 1/512."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config).float().eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                whole = torch.randint(-126, 127, weight.shape)
                whole[:, ::32] = 127  # the largest of its block decides the block's scale: 127 / 512 / 127
                weight.copy_(whole / 512)
    return model


def write_gguf(model: LlamaForCausalLM, path: Path, architecture: str = "llama", leave_out: str = "") -> None:
    """Writes matrices in Q8_0 and vectors in float32, all but the tensor ``leave_out``."""
    import gguf

    config = model.config
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    for name, weight in model.state_dict().items():
        kind = gguf.GGMLQuantizationType.Q8_0 if weight.dim() == 2 else gguf.GGMLQuantizationType.F32
        if (known := _gguf_name(name)) != leave_out:
            writer.add_tensor(known, gguf.quantize(_permuted(name, weight, config), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem.startswith("model.layers."):
        _, _, layer, part = stem.split(".", 3)
        return f"blk.{layer}.{_NAMES[part]}.weight"
    return f"{_NAMES[stem]}.weight"


def _permuted(name: str, weight: torch.Tensor, config: LlamaConfig):
    """llama.cpp rotates neighbouring channels, transformers those half a head apart: rows of Q and K trade places."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for part, count in heads.items():
        if part in name:
            rows, columns = weight.shape
            weight = weight.view(count, 2, rows // count // 2, columns).transpose(1, 2).reshape(rows, columns)
    return weight.contiguous().numpy()
