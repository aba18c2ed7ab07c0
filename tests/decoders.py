"""Tiny models of the usual decoders, each with what sets its attention apart."""

LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
# Keys of a configuration besides the sizes that all have, by model_type.
DECODERS = {
    "qwen3": {"head_dim": 16},  # heads that are wider together than the hidden states
    "qwen3_moe": {"head_dim": 16, **EXPERTS},
    "llama": {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 32}},
    "mistral": {"head_dim": 16},
    "phi": {"qk_layernorm": True, "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    "phi3": {"pad_token_id": 0},  # queries, keys and values of one matrix
    "olmo2": {},  # norms over all heads of queries and keys
    "glm": {"head_dim": 16, "pad_token_id": 0},  # RoPE in turns, on half of the channels
    "smollm3": {"no_rope_layers": [1, 0], "pad_token_id": 0},  # a layer without RoPE
}
