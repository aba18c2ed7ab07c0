"""How many parameters a model has and where, counted on torch's meta device: no weight exists."""

from dataclasses import dataclass

import torch

from lrsa_lightning.errors import InputError
from lrsa_lightning.pretrained import load_model


@dataclass(frozen=True)
class ModelSize:
    """Parameters of a decoder.

    Attributes:
        total: all of them; a head that is tied to the embedding has none of its own.
        layers: number of decoder layers.
        layer: parameters of the largest layer.
        embedding: vocabulary x hidden size.
        is_tied: whether the head uses the embedding.
        products: parameters in matrices that multiply activations, the head's included.
    """

    total: int
    layers: int
    layer: int
    embedding: int
    is_tied: bool
    products: int

    @property
    def outside_layers(self) -> int:
        """Parameters of embedding, last norm and head."""
        return self.total - self.layers * self.layer

    @classmethod
    def of(cls, config) -> "ModelSize":
        """
        Args:
            config: the model's, of `load_config`.

        Raises:
            InputError: the model's layers are not those that the plan covers.
        """
        with torch.device("meta"):
            model = load_model(config, None)
        layers = list(getattr(model.get_decoder(), "layers", []))
        text = config.get_text_config(decoder=True)
        expected = _matrices(text)
        found = {sum(p.numel() for p in layer.parameters() if p.ndim > 1) for layer in layers}
        if expected is None or found != {expected}:
            raise InputError(
                f"the plan does not cover {config.model_type!r}: it knows decoders of attention and a gated "
                "feed-forward (Qwen2, Llama, Mistral and their like)"
            )
        embedding = model.get_input_embeddings().weight
        return cls(
            total=sum(p.numel() for p in model.parameters()),
            layers=len(layers),
            layer=max(sum(p.numel() for p in layer.parameters()) for layer in layers),
            embedding=embedding.numel(),
            is_tied=model.get_output_embeddings().weight is embedding,
            products=len(layers) * expected + embedding.numel(),
        )


def _matrices(config) -> int | None:
    """Parameters in the matrices of one covered layer; None if the configuration lacks a size."""
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    sizes = [getattr(config, name, None) for name in names]
    if not all(isinstance(size, int) for size in sizes):
        return None
    hidden, intermediate, heads, kv_heads = sizes
    head_dim = getattr(config, "head_dim", None) or hidden // heads
    return 2 * hidden * head_dim * (heads + kv_heads) + 3 * hidden * intermediate
