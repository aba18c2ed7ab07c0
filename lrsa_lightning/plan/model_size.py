"""How many parameters a model has and where, counted on torch's meta device: no weight exists."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from lrsa_lightning.decoder_sizes import head_dim, kv_heads
from lrsa_lightning.errors import InputError
from lrsa_lightning.plan.layer_shape import Adapters
from lrsa_lightning.pretrained.decoder import load_model
from lrsa_lightning.pretrained.starting_model import StartingModel


@dataclass(frozen=True)
class ModelSize:
    """Parameters of a decoder.

    Attributes:
        total: all of them, adapters included; a head that is tied to the embedding has none of its own.
        layers: number of decoder layers.
        layer: parameters of the largest layer.
        embedding: vocabulary x hidden size.
        is_tied: whether the head uses the embedding.
        products: parameters in matrices that multiply activations, the head's included, adapters left out.
        tensors: numbers of each weight that is trained.
        trained_layer: parameters that are trained in the layer that has most of them.
        trains_embedding: whether the embedding is trained.
        adapters: of that layer; None where all weights are trained.
    """

    total: int
    layers: int
    layer: int
    embedding: int
    is_tied: bool
    products: int
    tensors: tuple[int, ...]
    trained_layer: int
    trains_embedding: bool = True
    adapters: Adapters | None = None

    @property
    def outside_layers(self) -> int:
        """Parameters of embedding, last norm and head."""
        return self.total - self.layers * self.layer

    @property
    def trained(self) -> int:
        """Parameters that are trained."""
        return sum(self.tensors)

    @property
    def frozen(self) -> int:
        """Parameters that are not trained."""
        return self.total - self.trained

    @property
    def layer_products(self) -> int:
        """Parameters in the matrices of all layers: those that quantisation covers."""
        return self.products - self.embedding

    @classmethod
    def of(cls, config, start: StartingModel | None = None) -> "ModelSize":
        """
        Args:
            config: the model's, of `load_config`.
            start: with the adapters that are trained; None trains all weights.

        Raises:
            InputError: the model's layers or adapters are not those that the plan covers.
        """
        with torch.device("meta"):
            model = load_model(config, None)
        text = config.get_text_config(decoder=True)
        expected = _matrices(text)
        layers = list(getattr(model.get_decoder(), "layers", []))
        found = {sum(p.numel() for p in layer.parameters() if p.ndim > 1) for layer in layers}
        if expected is None or found != {expected}:
            raise InputError(
                f"the plan does not cover {config.model_type!r}: it knows decoders of attention and a gated "
                "feed-forward (Qwen2, Llama, Mistral and their like)"
            )
        adapters = None
        if start is not None and start.has_adapters:
            with torch.device("meta"):
                model = start.load_adapted(copy.deepcopy(config)).get_base_model()
            layers = list(model.get_decoder().layers)
            adapters = adapters_of(layers)
        embedding = text.vocab_size * text.hidden_size
        return cls(
            total=sum(p.numel() for p in model.parameters()),
            layers=len(layers),
            layer=max(sum(p.numel() for p in layer.parameters()) for layer in layers),
            embedding=embedding,
            is_tied=text.tie_word_embeddings,
            products=len(layers) * expected + embedding,
            tensors=tuple(p.numel() for p in model.parameters() if p.requires_grad),
            trained_layer=max(sum(p.numel() for p in layer.parameters() if p.requires_grad) for layer in layers),
            trains_embedding=any(p.requires_grad for p in model.get_input_embeddings().parameters()),
            adapters=adapters,
        )


def adapters_of(layers: Iterable[nn.Module]) -> Adapters | None:
    """The LoRA adapters of the decoder layer that has most of them, as peft has put them there; None without any.

    Raises:
        InputError: they are DoRA's. peft then makes complete weights in each forward, to take the lengths of their rows
            and to multiply without dropout; what autograd keeps of them was never measured.
    """
    found = [_adapters_of_one(layer) for layer in layers]
    most = max(found, key=lambda each: each.parameters)
    return most if most.parameters else None


def _adapters_of_one(layer: nn.Module) -> Adapters:
    found = {name: module for name, module in layer.named_modules() if getattr(module, "lora_A", None)}
    if any(use for module in found.values() for use in getattr(module, "use_dora", {}).values()):
        raise InputError(
            "the plan does not cover model.lora.use_dora: DoRA makes complete weights in each forward; what it "
            "keeps of them was not measured. Plan with use_dora: false; DoRA takes more than that"
        )
    first = [part for module in found.values() for part in module.lora_A.values()]
    second = [part for module in found.values() for part in module.lora_B.values()]
    drops = [drop for module in found.values() for drop in module.lora_dropout.modules()]
    return Adapters(
        parameters=sum(p.numel() for part in (*first, *second) for p in part.parameters()),
        rank=sum(a.out_features for a in first),
        inputs=sum(a.in_features for a in first),
        outputs=sum(b.out_features for b in second),
        has_dropout=any(isinstance(drop, nn.Dropout) and drop.p > 0 for drop in drops),
        in_mlp=any(".mlp." in f".{name}" for name in found),
    )


def _matrices(config) -> int | None:
    """Parameters in the matrices of one covered layer; None if the configuration lacks a size."""
    names = ("hidden_size", "intermediate_size", "num_attention_heads")
    sizes = [getattr(config, name, None) for name in names]
    if not all(isinstance(size, int) for size in sizes):
        return None
    hidden, intermediate, heads = sizes
    return 2 * hidden * head_dim(config) * (heads + kv_heads(config)) + 3 * hidden * intermediate
