"""Names in transformers' registry: one for each thing that is computed, in every process of several models."""

import copy
import inspect
import typing

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lrsa_lightning import LRSA, AttentionMode, Vanilla
from tests.conftest import make_model

IDS = torch.randint(0, 97, (2, 70), generator=torch.Generator().manual_seed(0))
SIZES = {"lag_size": 8, "sink_size": 4}


class Sharpened(LRSA):
    """Takes one more argument, and keeps it to itself."""

    def __init__(self, sharpness: float = 2.0, **arguments):
        super().__init__(**arguments)
        self._sharpness = sharpness

    def _transformers_attention(self, module, query, *arguments, **asked):
        return super()._transformers_attention(module, query * self._sharpness, *arguments, **asked)


# Arguments that go with a list of ratios.
OF_A_LIST = {"retention_weights": [1.0, 2.0], "retention_schedule": "curriculum", "serving_ratio": 1.0}


def other_value(parameter: inspect.Parameter, hint):
    """One that the argument takes and that is not its default."""
    if parameter.name in OF_A_LIST:
        return OF_A_LIST[parameter.name]
    if typing.get_origin(hint) is typing.Literal:
        return next(value for value in typing.get_args(hint) if value != parameter.default)
    return [1] if parameter.default == () else parameter.default / 2 if isinstance(parameter.default, float) else 7


def arguments_of(mode_class: type) -> list[str]:
    return [name for name in inspect.signature(mode_class.__init__).parameters if name != "self"]


@pytest.mark.parametrize("name", arguments_of(LRSA))
def test_each_argument_changes_the_key(name):
    parameter = inspect.signature(LRSA.__init__).parameters[name]
    value = other_value(parameter, typing.get_type_hints(LRSA.__init__)[name])
    assert value != parameter.default
    given = {"retention_ratio": [1.0, 0.5]} if name in OF_A_LIST else {}
    assert LRSA(**given, **{name: value}).registry_key() != LRSA(**given).registry_key()


def test_an_argument_that_a_subclass_adds_changes_the_key():
    assert Sharpened(3.0).registry_key() != Sharpened(2.0).registry_key()


def test_what_is_changed_after_the_start_changes_the_key():
    mode = LRSA(**SIZES)
    changed = copy.copy(mode)
    changed.v_weight = 0.5
    assert changed.registry_key() != mode.registry_key()


def test_arguments_whose_text_is_cut_short_are_told_apart():
    class Weighted(AttentionMode):
        def __init__(self, weights):
            self.weights = weights

        def make_cache(self, config, lengths=None): ...

    weights = torch.zeros(5000)
    changed = weights.clone()
    changed[2500] = 1
    assert repr(weights) == repr(changed)
    assert Weighted(weights).registry_key() != Weighted(changed).registry_key()


def test_equal_modes_share_a_key():
    assert LRSA(**SIZES, skip_layers=[1]).registry_key() == LRSA(**SIZES, skip_layers=(1,)).registry_key()


@torch.no_grad()
def test_a_subclass_with_equal_arguments_leaves_the_other_model_alone():
    first, second = make_model(), make_model()
    LRSA(**SIZES).install(first)
    alone = first(IDS, use_cache=False).logits
    Sharpened(**SIZES).install(second)
    assert torch.equal(first(IDS, use_cache=False).logits, alone)
    assert (second(IDS, use_cache=False).logits - alone).abs().max() > 1e-2


@torch.no_grad()
def test_two_classes_of_one_name_are_two():
    """As two cells of a notebook make them."""

    def make(factor):
        class Same(LRSA):
            def _transformers_attention(self, module, query, *arguments, **asked):
                return super()._transformers_attention(module, query * factor, *arguments, **asked)

        Same.__qualname__ = Same.__name__ = "Twin"
        Same.__module__ = LRSA.__module__
        return Same(**SIZES)

    first, second = make_model(), make_model()
    make(1.0).install(first)
    alone = first(IDS, use_cache=False).logits
    make(3.0).install(second)
    assert torch.equal(first(IDS, use_cache=False).logits, alone)


@torch.no_grad()
def test_a_subclass_of_vanilla_does_not_take_transformers_name():
    class Halved(Vanilla):
        def install(self, model):
            theirs = ALL_ATTENTION_FUNCTIONS["sdpa"]
            AttentionInterface.register(
                self.registry_key(), lambda module, query, *rest, **asked: theirs(module, query / 2, *rest, **asked)
            )
            AttentionMaskInterface.register(self.registry_key(), AttentionMaskInterface()["sdpa"])
            super().install(model)

    first, second = make_model(), make_model()
    Vanilla().install(first)
    alone = first(IDS).logits
    Halved().install(second)
    assert torch.equal(first(IDS).logits, alone)
    assert (second(IDS).logits - alone).abs().max() > 1e-2


@torch.no_grad()
def test_a_subclass_of_vanilla_without_a_function_runs_transformers_own():
    class Named(Vanilla):
        pass

    model = make_model()
    expected = model(IDS).logits
    Named().install(model)
    assert torch.equal(model(IDS).logits, expected)


def test_names_mean_nothing_to_transformers():
    """It loads kernels for names with flash, flex_attention, a slash or a bar in them."""

    class flash_sdpa_flex_attention(LRSA):
        pass

    key = flash_sdpa_flex_attention(backend="flex").registry_key()
    assert not any(word in key for word in ("flash", "sdpa", "flex", "/", ":", "|"))
    flash_sdpa_flex_attention(**SIZES).install(make_model())


def test_a_model_that_calls_no_registered_attention_is_refused():
    class Plain(AttentionMode):
        def make_cache(self, config, lengths=None): ...

        def install(self, model):
            AttentionInterface.register(self.registry_key(), ALL_ATTENTION_FUNCTIONS["sdpa"])
            super().install(model)

    model = make_model("falcon", new_decoder_architecture=False)
    with pytest.raises(ValueError, match="AttentionInterface"):
        Plain().install(model)
