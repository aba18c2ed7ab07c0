"""Tiny decoders of every architecture that transformers has, built from its configurations' own names for sizes."""

import copy

import torch
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

NAMES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
VOCABULARY = 97
MOST_WEIGHTS = 2_000_000
SIZES = {
    **dict.fromkeys(["hidden_size", "n_embd", "d_model", "dim"], 32),
    **dict.fromkeys(["intermediate_size", "n_inner", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim"], 64),
    **dict.fromkeys(["num_hidden_layers", "n_layer", "n_layers", "decoder_layers", "encoder_layers", "num_layers"], 2),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "decoder_attention_heads"], 4),
    **dict.fromkeys(["encoder_attention_heads"], 4),
    **dict.fromkeys(["num_key_value_heads", "num_global_key_value_heads"], 2),
    **dict.fromkeys(["head_dim", "qk_nope_head_dim", "v_head_dim", "global_head_dim"], 8),
    **dict.fromkeys(["qk_rope_head_dim"], 4),
    **dict.fromkeys(["linear_num_value_heads"], 4),
    **dict.fromkeys(["linear_num_key_heads"], 2),
    **dict.fromkeys(["linear_key_head_dim", "linear_value_head_dim"], 8),
    **dict.fromkeys(["q_lora_rank", "kv_lora_rank"], 16),
    **dict.fromkeys(["max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"], 256),
    **dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"], 32),
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"], 4),
    **dict.fromkeys(["num_experts_per_tok", "moe_topk", "top_k", "moe_k"], 2),
    **dict.fromkeys(["n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"], 1),
    **dict.fromkeys(["bos_token_id", "eos_token_id"], 1),
    "pad_token_id": 0,
    "vocab_size": VOCABULARY,
    "layer_types": None,
    "mlp_layer_types": None,
}
PLAIN = {
    **dict.fromkeys(["sliding_window", "attention_window_size", "attention_chunk_size"], 1024),
    **dict.fromkeys(
        ["attention_dropout", "attn_pdrop", "attention_probs_dropout_prob", "dropout", "attn_dropout"], 0.0
    ),
    **dict.fromkeys(["embd_pdrop", "resid_pdrop", "hidden_dropout", "hidden_dropout_prob", "activation_dropout"], 0.0),
}
# Windows within reach of every text, in models whose layers are of one kind and in those that mix them.
WINDOW = {
    **dict.fromkeys(["sliding_window", "attention_window_size", "attention_chunk_size"], 16),
    "use_sliding_window": True,
    "max_window_layers": 0,
}
# Enough for one layer of each kind: Gemma 3 has five windows before a layer of full attention.
MIXED = {"num_hidden_layers": 6}
# What the sizes above do not fit.
OF_MODEL = {
    "codegen": {"rotary_dim": 4},
    "gptj": {"rotary_dim": 4},
    "lfm2": {"full_attn_idxs": [1]},
    "gpt_neo": {"attention_types": [[["global"], 2]]},
}


def build(name: str, **keys):
    """A tiny model with large weights, or None where the sizes above do not fit together.

    Args:
        name: the model_type.
        keys: of its configuration, set where it has them.
    """
    torch.manual_seed(0)
    try:
        config_class = CONFIG_MAPPING[name]
        known = config_class().to_dict()
        sizes = {**SIZES, **OF_MODEL.get(name, {}), **keys}
        config = config_class(**{key: value for key, value in sizes.items() if key in known})
        model_class = MODEL_FOR_CAUSAL_LM_MAPPING[config_class]
        with torch.device("meta"):
            if sum(parameter.numel() for parameter in model_class(copy.deepcopy(config)).parameters()) > MOST_WEIGHTS:
                return None
        model = model_class._from_config(config, attn_implementation="eager").eval()
        model.get_decoder()(input_ids=torch.zeros(1, 3, dtype=torch.long))
    except Exception:
        return None  # sizes that a test may not know
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    return model
