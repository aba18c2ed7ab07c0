"""`attn_implementation="lrsa"` in transformers, and the attention mode that a folder's config.json names.

transformers has no public hook for what a model must check and prepare as it is built. So `register` extends the one
public method through which transformers passes each choice of an attention, in ``from_pretrained``, ``from_config`` and
``set_attn_implementation``: `PreTrainedModel.get_correct_attn_implementation`. It extends two more in the same way: all
config.json are written by `PreTrainedConfig.save_pretrained`, and all continuous batches begin with
`ContinuousMixin.init_continuous_batching`.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps

from lrsa_lightning.attention.base import text_decoder
from lrsa_lightning.attention.installed import NAME, installed_mode
from lrsa_lightning.attention.lrsa import LRSA
from lrsa_lightning.attention.rows import find_rows
from lrsa_lightning.attention.saved_mode import saved_mode
from lrsa_lightning.errors import InputError
from lrsa_lightning.saved_settings import KEY, marked, save_settings, saved_settings, say_other


class NamedMode:
    """The attention function called ``lrsa``: the mode that the configuration of the layer's model names."""

    def __init__(self):
        self._modes: dict[str, LRSA] = {}

    def __call__(self, module, *arguments, **others):
        """The attention of a layer; arguments are those of transformers' attention functions."""
        return self.mode_of(module.config).attention_function()(module, *arguments, **others)

    def mode_of(self, config) -> LRSA:
        """The mode that a configuration names, or one with LRSA's defaults; one object for equal settings.

        Raises:
            InputError: what it names is no rule.
        """
        text = repr(saved_settings(config))
        if text not in self._modes:
            self._modes[text] = saved_mode(config) or LRSA()
        return self._modes[text]


_NAMED = NamedMode()


def register() -> None:
    """Adds the name to transformers' registries, and its choice to transformers' models; once in a process."""
    from transformers.masking_utils import AttentionMaskInterface
    from transformers.modeling_utils import AttentionInterface, PreTrainedModel

    AttentionInterface.register(NAME, _NAMED)
    AttentionMaskInterface.register(NAME, find_rows)
    check = PreTrainedModel.get_correct_attn_implementation

    @wraps(check)
    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        return check(self, _chosen(self, requested_attention, is_init_check), is_init_check)

    PreTrainedModel.get_correct_attn_implementation = get_correct_attn_implementation
    _mark_saved_configurations()


def _mark_saved_configurations() -> None:
    from transformers.configuration_utils import PreTrainedConfig

    save = PreTrainedConfig.save_pretrained

    @wraps(save)
    def save_pretrained(self, *arguments, **options):
        with marked(self):
            return save(self, *arguments, **options)

    PreTrainedConfig.save_pretrained = save_pretrained


def refuse_continuous_batching() -> None:
    """Lets transformers' continuous batching refuse LRSA: it has a paged cache of its own, and keeps all tokens there.

    Some versions would switch the model to flash attention, which is full attention, where its kernels are installed.
    """
    from transformers.generation.continuous_batching.continuous_api import ContinuousMixin

    begin = ContinuousMixin.init_continuous_batching

    @wraps(begin)
    def init_continuous_batching(self, *arguments, **options):
        if isinstance(installed_mode(text_decoder(self).config), LRSA):
            raise InputError(
                "transformers' continuous batching keeps all tokens, so LRSA is not supported there: serve the model "
                "with `lrsa serve` (vLLM), take model.generate, or set_attn_implementation('sdpa') for full attention"
            )
        return begin(self, *arguments, **options)

    ContinuousMixin.init_continuous_batching = init_continuous_batching


def _chosen(model, requested: str | None, is_built_now: bool) -> str | None:
    """The name of the attention that a model, or a part of one, shall have; prepares it for LRSA.

    Args:
        model: the model; without its layers while it is built.
        requested: what was asked for; None for the default.
        is_built_now: whether it is being built.

    Raises:
        InputError: LRSA cannot be exact for the model, or the settings in its configuration are no rule.
    """
    config = model.config
    is_named = getattr(config, KEY, None) is not None
    if requested == NAME or (requested is None and is_named):
        text = config.get_text_config(decoder=True)
        if text is not config:
            return _for_text_decoder(config, text, requested)
        mode = _NAMED.mode_of(config)
        _bind(mode, model, is_built_now)
        save_settings(config, mode.settings())
        return NAME
    if is_built_now:  # else `AttentionMode.install` prepares the model
        mode = installed_mode(config)  # by a configuration that a model with a mode has had
        if isinstance(mode, LRSA):
            _bind(mode, model, is_built_now)
        elif is_named:
            say_other(config, requested)
    return requested


def _bind(mode: LRSA, model, is_built_now: bool) -> None:
    decoder = model if is_built_now else text_decoder(model)
    with _complete_weights():
        mode.bind(decoder, _decoder_class(decoder))


@contextmanager
def _complete_weights() -> Iterator[None]:
    """Lets modules that are built in a `with` block keep their weights, where DeepSpeed's ZeRO-3 would divide them."""
    if "deepspeed" not in sys.modules:
        yield
        return
    from deepspeed.runtime.zero import partition_parameters

    partition_parameters.shutdown_init_context()
    try:
        yield
    finally:
        partition_parameters.restore_init_context()


def _for_text_decoder(config, text, requested: str | None) -> None:
    """Leaves a model of several parts, such as a vision tower, the default, and the name to its text decoder.

    Raises:
        InputError: the name was asked for all parts.
    """
    if requested is not None:
        part = next((key for key in config.sub_configs if getattr(config, key) is text), "text_config")
        raise InputError(
            f"attn_implementation='{NAME}' is for text decoders, and {config.model_type!r} has other parts: "
            f"give attn_implementation={{'{part}': '{NAME}'}}"
        )
    save_settings(config, saved_settings(config))
    text._attn_implementation = NAME


def _decoder_class(model) -> type | None:
    """The class of a decoder; None, for transformers' own, of a model around one that is being built."""
    from transformers import MODEL_MAPPING

    known = MODEL_MAPPING.get(type(model.config), None)
    is_decoder = not model.can_generate() if known is None else isinstance(model, known)
    return type(model) if is_decoder else None
