"""Where an inference engine would misread a model's shape, as far as it was seen."""


def misreadings(config) -> list[str]:
    """What users of other engines must know before they load the folder; one sentence or two for each point.

    Args:
        config: the model's transformers configuration.
    """
    heads, width = config.num_attention_heads, config.hidden_size
    head_dim = getattr(config, "head_dim", None) or width // heads
    if config.model_type != "qwen2" or head_dim * heads == width:
        return []
    return [
        "vLLM gives wrong tokens without an error. Its qwen2 takes hidden_size / num_attention_heads = "
        f"{width // heads} for the head size, but head_dim is {head_dim}. Load the folder with "
        'model_impl="transformers" there.'
    ]
