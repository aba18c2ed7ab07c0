"""LoRA (arXiv 2106.09685) through peft: its settings, and the adapters that they put into a decoder."""

import copy
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lrsa_lightning.errors import InputError, listed, suggestion
from lrsa_lightning.library_errors import reading
from lrsa_lightning.ranges import DecayRate, NonNegativeInt, PositiveFiniteFloat, PositiveInt, checked

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

ALL_LINEAR = "all-linear"


@checked
@dataclass(frozen=True)
class LoraSettings:
    """Which adapters are trained in place of the weights.

    Attributes:
        r: rank of the adapters.
        alpha: the adapters' product is multiplied by alpha / r.
        dropout: probability that an adapter's input is 0 in training.
        target_modules: names, or ends of names, of the linear layers that get an adapter; a regular expression for
            complete names; or all-linear: all but the head.
        exclude_modules: names, or ends of names, that get none.
        layers_to_transform: decoder layers that get adapters; all if empty.
        modules_to_save: names, or ends of names, of modules that are trained in full and stored with the adapters.
        use_dora: train the length of each weight row on its own (DoRA, arXiv 2402.09353).
        use_rslora: multiply by alpha / sqrt(r) instead (arXiv 2312.03732).
        rank_pattern: another r for modules by name or regular expression.
        alpha_pattern: another alpha for modules by name or regular expression.
    """

    r: PositiveInt = 16
    alpha: PositiveFiniteFloat = 32.0
    dropout: DecayRate = 0.0
    target_modules: str | Sequence[str] = ALL_LINEAR
    exclude_modules: Sequence[str] = ()
    layers_to_transform: Sequence[NonNegativeInt] = ()
    modules_to_save: Sequence[str] = ()
    use_dora: bool = False
    use_rslora: bool = False
    rank_pattern: dict[str, PositiveInt] | None = None
    alpha_pattern: dict[str, PositiveFiniteFloat] | None = None

    def peft_config(self) -> "LoraConfig":
        """The same for peft.

        Raises:
            InputError: settings contradict each other.
        """
        from peft import LoraConfig

        targets = self.target_modules
        with reading("model.lora", "change model.lora"):
            return LoraConfig(
                task_type="CAUSAL_LM",
                r=self.r,
                lora_alpha=int(self.alpha) if self.alpha == int(self.alpha) else self.alpha,
                lora_dropout=self.dropout,
                target_modules=targets if isinstance(targets, str) else [*targets],
                exclude_modules=[*self.exclude_modules] or None,
                layers_to_transform=[*self.layers_to_transform] or None,
                modules_to_save=[*self.modules_to_save] or None,
                use_dora=self.use_dora,
                use_rslora=self.use_rslora,
                rank_pattern=dict(self.rank_pattern or {}),
                alpha_pattern=dict(self.alpha_pattern or {}),
            )


def adapted(model: nn.Module, config: "LoraConfig", key: str = "model.lora") -> "PeftModel":
    """Puts new adapters into a decoder, in place, and freezes everything else.

    The decoder stays what it is: peft replaces layers inside it. Trained parameters get torch's default dtype, whatever
    the decoder's is.

    Args:
        model: a transformers causal decoder.
        config: peft's; it is not changed.
        key: what an error names.

    Returns:
        peft's view of the decoder, which can merge and save adapters.

    Raises:
        InputError: a named module does not exist, or cannot have an adapter.
    """
    from peft import get_peft_model

    _check_names(model, config, key)
    with reading(key, f"change {key}"), _without_advice():
        peft_model = get_peft_model(model, copy.deepcopy(config))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.get_default_dtype())
    return peft_model


def merged(peft_model: "PeftModel", dtype: torch.dtype) -> "PreTrainedModel":
    """The decoder with its adapters added to its weights, in place, and no adapters left.

    Args:
        peft_model: the decoder in peft's view.
        dtype: of all weights afterwards. Modules that were trained in full may have another one.
    """
    with warnings.catch_warnings():
        # A trained embedding is no longer the head's weight. peft writes that into the configuration.
        warnings.filterwarnings("ignore", message=".*tie", category=UserWarning)
        model = peft_model.merge_and_unload()
    for parameter in model.parameters():  # not the buffers: RoPE's frequencies stay in float32
        parameter.data = parameter.data.to(dtype)
    return model


def trained_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: each for name, each in module.named_parameters(remove_duplicate=False) if each.requires_grad}


def keep_trained(module: nn.Module, state: dict[str, Any], prefix: str, _: dict[str, Any]) -> None:
    """A hook of `state_dict`: keeps the parameters that are trained. Frozen ones may have brought scales of codes."""
    kept = {prefix + name for name in trained_parameters(module)}
    for name in [*state]:
        if name.startswith(prefix) and name not in kept:
            del state[name]


def _check_names(model: nn.Module, config: "LoraConfig", key: str) -> None:
    """peft ignores a name that matches nothing beside one that does."""
    names = [name for name, _ in model.named_modules() if name]
    for setting in ("target_modules", "exclude_modules", "modules_to_save"):
        given = getattr(config, setting) or ()
        for wanted in () if isinstance(given, str) else sorted(given):
            if not any(name == wanted or name.endswith(f".{wanted}") for name in names):
                known = {name.rpartition(".")[2] for name in names} - {str(layer) for layer in range(len(names))}
                hint = suggestion(wanted, known) or f": it has {listed(sorted(known), 12)}"
                raise InputError(f"{key}.{setting} names {wanted}, which {type(model).__name__} does not have{hint}")


@contextmanager
def _without_advice() -> Iterator[None]:
    """peft advises about tied weights, which stay right here, and asks transformers for an attribute of an old name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings")
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")
        yield


def check_keys(found: Collection[str], wanted: Collection[str], whose: str) -> None:
    """
    Raises:
        InputError: the names of adapters' weights in a file are not those of the model.
    """
    faults = []
    if missing := sorted({*wanted} - {*found}):
        faults.append(f"lacks {listed(missing)}")
    if unexpected := sorted({*found} - {*wanted}):
        faults.append(f"has {listed(unexpected)}")
    if faults:
        raise InputError(f"{whose} does not hold the adapters of this model: it {', and '.join(faults)}")
