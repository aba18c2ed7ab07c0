"""The code in an exported folder against the rule, and in a process that cannot import this package."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lrsa_lightning import LRSA, Vanilla, generate
from lrsa_lightning.attention.rule import LagRule
from lrsa_lightning.attention.saved_mode import save_mode
from lrsa_lightning.attention.scorers import LagKVScorer
from lrsa_lightning.model_folder import custom_generate
from lrsa_lightning.model_folder.code import write_custom_generate
from lrsa_lightning.model_folder.custom_generate import generate as plain
from tests.conftest import make_model

SIZES = {"lag_size": 8, "sink_size": 4, "retention_ratio": 0.5}
RULES = [
    {},
    {"retention_ratio": 0.25, "v_weight": 0.3},
    {"retention_ratio": 1.0},
    {"sink_size": 0, "lag_size": 5, "skip_layers": [0]},
    {"scorer": "window"},
]
IDS = torch.randint(0, 97, (3, 61), generator=torch.Generator().manual_seed(0))
PADDED = torch.ones_like(IDS).index_put((torch.tensor([1]), torch.arange(20)), torch.tensor(0))
PADDED[2, :60] = 0
# None in sys.modules makes an import fail.
ALONE = """
import sys
sys.modules["lrsa_lightning"] = None
import torch
from transformers import AutoModelForCausalLM
for folder in sys.argv[1:]:
    case = torch.load(f"{folder}/case.pt")
    more = {"custom_generate": folder, "trust_remote_code": True, "do_sample": False, "pad_token_id": 0}
    model = AutoModelForCausalLM.from_pretrained(folder)
    dense = model(case["ids"]).logits
    for name in ("ones", "padded"):
        out = model.generate(case["ids"], attention_mask=case[name], max_new_tokens=30, **more)
        assert torch.equal(out[:, : case["ids"].shape[1]], case["ids"])
        assert torch.equal(out[:, case["ids"].shape[1] :], case["of " + name]), (folder, name)
    assert torch.equal(model(case["ids"]).logits, dense)
    trusting = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    out = trusting.generate(case["ids"], max_new_tokens=30, do_sample=False, pad_token_id=0)
    assert torch.equal(out[:, case["ids"].shape[1] :], case["of ones"]), folder
assert not [name for name, module in sys.modules.items() if name.startswith("lrsa_lightning") and module]
print("as the package")
"""


def exported(folder: Path, **rule):
    """A model's folder, and the model with its mode."""
    model, mode = make_model(), LRSA(**{**SIZES, **rule})
    save_mode(model.config, mode)
    model.save_pretrained(folder)
    write_custom_generate(folder, mode)
    return model, mode


def test_without_the_package_the_tokens_are_the_same(tmp_path):
    for number, rule in enumerate(RULES):
        model, mode = exported(tmp_path / str(number), **rule)
        case = {"ids": IDS, "ones": torch.ones_like(IDS), "padded": PADDED}
        for name in ("ones", "padded"):
            case[f"of {name}"] = generate(model, IDS, mode, 30, attention_mask=case[name])
        torch.save(case, tmp_path / str(number) / "case.pt")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-c", ALONE, *(str(tmp_path / str(number)) for number in range(len(RULES)))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.stdout.strip().endswith("as the package"), done.stderr


def test_the_code_needs_torch_and_transformers_alone():
    nodes = [*ast.walk(ast.parse(Path(plain.__file__).read_text()))]
    names = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    assert {name.split(".")[0] for name in names} - sys.stdlib_module_names == {"torch", "transformers"}


def test_it_keeps_the_tokens_of_the_rule():
    """Also where a channel has no range or a tiny one, where two tokens are equal, and near float32's maximum."""
    k, v = torch.randn(2, 2, 3, 16, 6, generator=torch.Generator().manual_seed(1))
    k[:, :, 8:, 0], v[..., 1] = 1.0, 3e38 * v[..., 1].sign()
    k[..., 2] *= 1e-9
    k[:, :, 3], v[:, :, 3] = k[:, :, 5], v[:, :, 5]
    theirs = plain.Rule(0, 8, 3, 0.5).best(k, v).squeeze(-1)
    assert torch.equal(theirs, LagRule(0, 8, 3, LagKVScorer(0.5)).keep_best(k, v, 0, 0))


def test_beams_equal_those_of_the_packages_cache(tmp_path):
    model, mode = exported(tmp_path, retention_ratio=0.25)
    beams = {"max_new_tokens": 20, "num_beams": 3, "num_return_sequences": 2, "do_sample": False, "pad_token_id": 0}
    with mode.installed(model):
        cache = mode.make_cache(model.config)
        expected = model.generate(IDS, past_key_values=cache, attention_mask=torch.ones_like(IDS), **beams)
    assert torch.equal(plain.generate(IDS, model=model, **beams), expected)


def test_a_layer_holds_what_the_rule_says(tmp_path):
    model, mode = exported(tmp_path, skip_layers=[1])
    cache = plain.make_cache(model.config)
    with plain._plain_attention(model):
        plain._prefill(model, cache, IDS)
    assert cache.layers[0].keys.shape[2] == mode.rule(0).stored_len(61) < 61
    assert cache.layers[1].keys.shape[2] == 61


@pytest.mark.parametrize(
    ("settings", "arguments", "said"),
    [
        ({"scorer": "random"}, {}, "scorer 'random' is not among .*package lrsa_lightning"),
        ({}, {"retention_ratio": 0.01}, "retention_ratio must be in"),
        ({}, {"past_key_values": 1}, "cannot take past_key_values"),
        ({}, {"assistant_model": 1}, "cannot take assistant_model"),
        ({}, {"attention_mask": PADDED, "return_dict_in_generate": True}, "rows without padding"),
    ],
)
def test_what_it_cannot_do_is_refused(tmp_path, settings, arguments, said):
    model, _ = exported(tmp_path, **settings)
    with pytest.raises(ValueError, match=said):
        plain.generate(IDS, model=model, max_new_tokens=2, **arguments)


def test_a_model_without_a_rule_or_with_a_window_is_refused():
    with pytest.raises(ValueError, match=r"config\.json has no 'lrsa'"):
        plain.generate(IDS, model=make_model())
    model = make_model("mistral", sliding_window=16)
    save_mode(model.config, LRSA(**SIZES))
    with pytest.raises(ValueError, match="layer 0 has a sliding window"):
        plain.generate(IDS, model=model)


def test_a_folder_of_full_attention_has_no_code(tmp_path):
    write_custom_generate(tmp_path, Vanilla())
    assert not list(tmp_path.iterdir())
    assert list(custom_generate.__path__)
