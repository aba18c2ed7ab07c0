"""The model `lrsa` of lm-eval: transformers' model of its class `hf`, under the mode that the folder names.

To import this module is to register it. lm-eval newer than 0.4.13 finds it by the entry point of this package.
"""

import inspect
from pathlib import Path

from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from transformers import AutoConfig

from lrsa_lightning.attention import LRSA
from lrsa_lightning.attention.lrsa import ELASTIC_SETTINGS, SETTINGS
from lrsa_lightning.attention.saved_mode import saved_mode
from lrsa_lightning.data.tokenization import load_tokenizer
from lrsa_lightning.errors import InputError, suggestion
from lrsa_lightning.lora.folder import AdapterFolder
from lrsa_lightning.saved_settings import save_settings

_SETTINGS = tuple(name for name in inspect.signature(LRSA).parameters if name not in ELASTIC_SETTINGS)
# lm-eval hands keys that it does not know on to transformers, which takes some of them without a word.
_KEYS = {*inspect.signature(HFLM).parameters, "device_map"} - {"self", "kwargs"}


@register_model("lrsa")
class LRSALM(HFLM):
    """Likelihoods under the mask of training; generation through the compressed cache.

    Rows of a batch may be unequal in length.

    Attributes:
        mode: the attention mode.
    """

    def __init__(self, pretrained, **arguments):
        """
        Args:
            pretrained: a folder or hub id whose config.json names its rule under ``lrsa``; the folder of an adapter, as
                `lrsa export --adapter` writes it; or a loaded model.
            arguments: of `HFLM`; and of `LRSA`, in place of those in config.json.

        Raises:
            InputError: an unknown key, a rule that is none, or a model that the rule cannot be exact for.
        """
        given = {name: arguments.pop(name) for name in _SETTINGS if name in arguments}
        if unknown := [name for name in arguments if name not in _KEYS]:
            known = (*_SETTINGS, *sorted(_KEYS))
            near = suggestion(unknown[0], known) or f": it takes {', '.join(known)}"
            raise InputError(f"--model lrsa does not know {unknown[0]!r} in --model_args{near}")
        if isinstance(pretrained, str) and Path(pretrained).is_dir():
            # lm-eval would take Qwen's splitting of text for each folder with a Qwen2 model.
            arguments.setdefault("tokenizer", load_tokenizer(pretrained, "pretrained"))
            if (adapter := AdapterFolder.of(pretrained)) is not None:
                pretrained, arguments["peft"] = adapter.base, pretrained
        self.mode = _mode_of(_config_of(pretrained, arguments), given)
        super().__init__(pretrained, **arguments)
        self.mode.for_length(self.max_length).install(self.model)
        self.model.config.use_cache = False  # a likelihood needs no cache; generation asks for one

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **arguments) -> Tensor:
        """`HFLM`'s, on a compressed cache. Shapes: context [B, N], the result [B, N + new tokens]."""
        cache = self.mode.make_cache(self.model.config, max_tokens=max_length)
        return super()._model_generate(context, max_length, stop, past_key_values=cache, **arguments)


def _config_of(pretrained, arguments: dict):
    """The model's configuration, before its weights are read.

    Raises:
        InputError: an adapter needs another RoPE than its base has.
    """
    if not isinstance(pretrained, str):
        return pretrained.config
    where = {name: arguments[name] for name in ("revision", "subfolder") if name in arguments}
    config = AutoConfig.from_pretrained(pretrained, trust_remote_code=False, **where)
    adapter = AdapterFolder.of(arguments["peft"]) if arguments.get("peft") else None
    changes = {} if adapter is None else adapter.changes
    if "rope_parameters" in changes:
        raise InputError(
            f"the run of the adapter {adapter.name} has changed the RoPE of its base, and lm-eval loads the base as it "
            "is: export the adapter merged, with lrsa export"
        )
    if "lrsa" in changes:
        save_settings(config, changes["lrsa"])
    return config


def _mode_of(config, given: dict) -> LRSA:
    """The mode that a configuration names, with other settings where they are given."""
    saved = saved_mode(config)
    if saved is None and not given:
        raise InputError(
            "config.json names no rule under 'lrsa': give one in --model_args (lag_size=1024,retention_ratio=0.5), or "
            "take --model hf for full attention"
        )
    settings = {} if saved is None else {name: getattr(saved, name) for name in SETTINGS}
    mode = LRSA(**{**settings, **given})
    mode.check(config)
    return mode
