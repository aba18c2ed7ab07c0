"""How a model gets its attention: from its folder, by the name "lrsa", or by mode.install; and what is saved of it."""

import copy
import json
import logging
import pickle
import subprocess
import sys
import textwrap

import pytest
import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
)

from lrsa_lightning import LRSA, Vanilla, generate
from lrsa_lightning.attention.saved_mode import saved_mode
from lrsa_lightning.errors import InputError
from lrsa_lightning.import_hook import after_import
from lrsa_lightning.pretrained.decoder import load_config, load_model
from tests.conftest import TINY_MODEL, make_model

MODE = LRSA(lag_size=8, sink_size=4, retention_ratio=0.25, v_weight=0.5, skip_layers=[1])
IDS = torch.randint(0, 97, (2, 70), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(IDS, use_cache=False).logits


@pytest.fixture
def installed():
    model = make_model()
    MODE.install(model)
    return model


@pytest.fixture
def dense_folder(tmp_path) -> str:
    make_model().save_pretrained(tmp_path / "dense")
    return str(tmp_path / "dense")


def test_a_fresh_process_needs_nothing_but_the_import(installed, folder, tmp_path):
    """Neither torch nor transformers comes with the import. A pickled model runs its mode there, too."""
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(installed))
    code = f"""
        import sys, json, pickle
        import lrsa_lightning
        assert not {{"torch", "transformers"}} & sys.modules.keys()
        from transformers import AutoModelForCausalLM
        import torch
        models = AutoModelForCausalLM.from_pretrained({folder!r}), pickle.load(open("model.pickle", "rb"))
        ids = torch.tensor({IDS.tolist()})
        print(json.dumps([model.generate(ids, max_new_tokens=8)[:, 70:].tolist() for model in models]))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    answer = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    expected = generate(installed, IDS, MODE, 8).tolist()
    assert json.loads(answer.stdout.splitlines()[-1]) == [expected, expected]


def test_an_action_comes_right_after_the_first_import(tmp_path, monkeypatch):
    (tmp_path / "imported_later.py").write_text("value = 1")
    monkeypatch.syspath_prepend(tmp_path)
    values = []

    def act():
        values.append(sys.modules["imported_later"].value)

    after_import("imported_later", act)
    assert not values
    import imported_later

    assert values == [1]
    after_import("imported_later", act)
    assert values == [1, 1]
    assert "exec_module" not in vars(imported_later.__spec__.loader)


@pytest.mark.parametrize("arguments", [{}, {"attn_implementation": "lrsa"}], ids=str)
def test_a_folder_loads_with_its_rule(installed, folder, arguments):
    model = AutoModelForCausalLM.from_pretrained(folder, **arguments)
    assert model.config._attn_implementation == "lrsa"
    assert torch.equal(logits(model), logits(installed))
    decoder = AutoModel.from_pretrained(folder, **arguments)
    with torch.no_grad():
        assert torch.equal(decoder(IDS).last_hidden_state, installed.model(IDS).last_hidden_state)
    classifier = AutoModelForSequenceClassification.from_pretrained(folder, **arguments)
    assert classifier.model.config._attn_implementation == "lrsa"


def test_the_cache_reaches_the_decoder_alone(folder):
    """While a model is built, it is not known whether it is a decoder or has one."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    given = []
    model.register_forward_hook(lambda module, args, kwargs, out: given.append(kwargs), with_kwargs=True)
    model.generate(IDS, max_new_tokens=2)
    assert len(given) == 2
    assert not any("kv_cache" in arguments for arguments in given)


def from_config(folder):
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="lrsa").eval()
    model.load_state_dict(AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").state_dict())
    return model


def set_later(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    model.set_attn_implementation("lrsa")
    return model


def set_by_hand(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    model.config._attn_implementation = "lrsa"
    return model


WAYS = {
    "from_pretrained": lambda folder: AutoModelForCausalLM.from_pretrained(folder, attn_implementation="lrsa"),
    "from_config": from_config,
    "set_attn_implementation": set_later,
    "by hand": set_by_hand,
}


@pytest.mark.parametrize("way", WAYS)
def test_the_name_runs_the_rule_of_the_configuration_or_the_defaults(installed, folder, dense_folder, way):
    assert torch.equal(logits(WAYS[way](folder)), logits(installed))
    model = WAYS[way](dense_folder)
    with LRSA().installed(model):
        expected = logits(model)
    assert torch.equal(logits(model), expected)


def test_what_runs_is_what_is_saved(dense_folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(dense_folder)

    def named():
        model.save_pretrained(tmp_path / "saved")
        return saved_mode(AutoConfig.from_pretrained(tmp_path / "saved"))

    assert named() is None
    model.set_attn_implementation("lrsa")
    assert named().rule() == LRSA().rule()
    MODE.install(model)
    assert [named().rule(layer) for layer in (0, 1)] == [MODE.rule(layer) for layer in (0, 1)]
    with Vanilla().installed(model):
        assert named() is None
    with LRSA().installed(model):
        assert named().rule() == LRSA().rule()
    assert named().rule() == MODE.rule()
    Vanilla().install(model)
    assert named() is None


def warnings(caplog) -> int:
    return sum("it was trained with another attention" in line for line in caplog.messages)


def test_a_dense_load_says_so_once(folder, caplog):
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa")
    assert warnings(caplog) == 1
    assert folder in caplog.text
    with Vanilla().installed(model):
        assert logits(model).isfinite().all()
    assert warnings(caplog) == 1


@pytest.mark.parametrize(("mode", "says"), [(MODE, 0), (LRSA(), 0), (Vanilla(), 1)], ids=str)
def test_our_own_loading_says_it_where_the_mode_is_dense(folder, mode, says, caplog):
    with caplog.at_level(logging.WARNING):
        model = load_model(load_config(folder, None), folder)
        assert model.config._attn_implementation == "sdpa"
        mode.install(model)
    assert warnings(caplog) == says
    assert (saved_mode(model.config) is None) == (mode.settings() is None)


def test_two_models_run_two_modes(folder, dense_folder):
    other = LRSA(lag_size=8, sink_size=0, retention_ratio=0.5)
    first, second = (AutoModelForCausalLM.from_pretrained(folder) for _ in range(2))
    alone = logits(first)
    other.install(second)
    third = AutoModelForCausalLM.from_pretrained(dense_folder)
    assert torch.equal(logits(first), alone)
    second_first = logits(second)
    assert (second_first - alone).abs().max() > 1e-3
    assert not torch.equal(logits(third), alone)
    assert generate(first, IDS, MODE, 8).tolist() == first.generate(IDS, max_new_tokens=8)[:, 70:].tolist()
    assert generate(second, IDS, other, 8).tolist() == second.generate(IDS, max_new_tokens=8)[:, 70:].tolist()
    assert torch.equal(logits(second), second_first)


@pytest.mark.parametrize("way", ["install", "lrsa"])
@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_exact(installed, folder, way, copy_of):
    model = installed if way == "install" else AutoModelForCausalLM.from_pretrained(folder)
    copied = copy_of(model)
    assert torch.equal(logits(copied), logits(model))
    assert torch.equal(copied.generate(IDS, max_new_tokens=8), model.generate(IDS, max_new_tokens=8))
    built = AutoModelForCausalLM.from_config(copy_of(model.config)).eval()
    built.load_state_dict(model.state_dict())
    assert torch.equal(built.generate(IDS, max_new_tokens=8), model.generate(IDS, max_new_tokens=8))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model_type": "gemma2", "head_dim": 8}, "caps its logits"),
        ({"model_type": "falcon"}, "do not each call transformers' AttentionInterface"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "rope_type 'dynamic'"),
        ({"lrsa": {"lag": 8}}, r"config\.json: lrsa"),
        ({"lrsa": {"skip_layers": [2]}}, "skip_layers"),
    ],
    ids=str,
)
def test_what_it_cannot_be_exact_for_is_refused_as_the_model_is_built(keys, message):
    keys = {"model_type": "qwen2", "vocab_size": 97, **TINY_MODEL, **keys}
    config = CONFIG_MAPPING[keys.pop("model_type")](**keys)
    with pytest.raises(InputError, match=message):
        AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation="lrsa")
    if "lrsa" not in keys:
        config.lrsa = MODE.settings()
    with pytest.raises(InputError, match=message):
        AutoModelForCausalLM.from_config(config)


def test_a_refused_name_leaves_the_model_as_it_was():
    model = make_model("gemma2", head_dim=8)
    before = logits(model)
    with pytest.raises(InputError, match="caps its logits"):
        model.set_attn_implementation("lrsa")
    assert torch.equal(logits(model), before)
    assert saved_mode(model.config) is None


def test_a_model_of_several_parts_gets_it_in_its_text_decoder():
    vision = {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    vision |= {"num_attention_heads": 4, "image_size": 8, "patch_size": 4}
    text = {"model_type": "qwen2", "vocab_size": 97, **TINY_MODEL}
    config = CONFIG_MAPPING["llava"](vision_config=vision, text_config=text, image_token_index=96)
    with pytest.raises(InputError, match=r"attn_implementation=\{'text_config': 'lrsa'\}"):
        AutoModelForImageTextToText.from_config(copy.deepcopy(config), attn_implementation="lrsa")
    named = copy.deepcopy(config)
    named.lrsa = MODE.settings()
    by_folder = AutoModelForImageTextToText.from_config(named)
    by_name = AutoModelForImageTextToText.from_config(config, attn_implementation={"text_config": "lrsa"})
    for model, mode in ((by_folder, MODE), (by_name, LRSA())):
        assert model.config.vision_config._attn_implementation == "sdpa"
        assert model.config.text_config._attn_implementation == "lrsa"
        assert saved_mode(model.config).rule() == mode.rule()
        assert torch.equal(model.generate(IDS % 96, max_new_tokens=2)[:, :70], IDS % 96)


def test_a_window_beyond_the_models_positions_is_no_hindrance(tmp_path):
    """transformers loads a model on the meta device, on which no mask has values."""
    model = make_model("mistral", sliding_window=4096)
    MODE.install(model)
    model.save_pretrained(tmp_path / "model")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "model")), logits(model))
