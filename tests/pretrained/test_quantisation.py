"""Quantised weights beside adapters: what is refused, and runs on bitsandbytes' kernels for CPUs."""

import json
from pathlib import Path

import pytest
import torch

from lrsa_lightning.cli import main
from lrsa_lightning.errors import InputError
from lrsa_lightning.lora.adapters import LoraSettings
from lrsa_lightning.pretrained import quantisation
from lrsa_lightning.pretrained.quantisation import Quantisation
from lrsa_lightning.pretrained.starting_model import StartingModel
from tests.lora_runs import lora_run, save_base
from tests.refusals import cases, refused
from tests.runs import checkpoints, command, losses, refusal

pytestmark = pytest.mark.usefixtures("in_tmp_path")
WIDE = {"hidden_size": 64, "intermediate_size": 128}


@pytest.fixture
def quantised(arguments, tokenizer, tmp_path) -> dict[str, str]:
    """The options of a run with adapters beside weights of 4 bits."""
    arguments = lora_run(arguments, save_base(tmp_path / "base", tokenizer, **WIDE))
    return arguments | {"model.quantization": "nf4", "trainer.precision": "bf16-master"}


@pytest.fixture
def on_cpu(monkeypatch):
    """Lets a run quantise on the CPU, where bitsandbytes is installed."""
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(quantisation, "_DEVICES", ("cpu",))


@pytest.fixture
def as_installed(monkeypatch):
    monkeypatch.setattr(quantisation, "_PACKAGES", ())


@cases(
    [
        ("nf3", "model.quantization is 'nf3', but must be one of nf4, fp4, int8", "did you mean nf4?"),
        ("{bnb_4bit_quant_type: nf4}", "must have either load_in_4bit or load_in_8bit"),
    ]
)
def test_what_quantises_nothing_is_refused(wrong, said, quantised, capsys):
    refused(capsys, lambda: main(command(quantised | {"model.quantization": wrong})), *said)


def test_without_adapters_it_is_refused(arguments, capsys):
    wrong = arguments | {"model.quantization": "nf4"}
    assert "give model.lora, or leave model.quantization out" in refusal(capsys, command(wrong))


def test_a_missing_package_is_named_with_its_extra(quantised, monkeypatch, capsys):
    monkeypatch.setattr(quantisation, "_PACKAGES", ("bitsandbytes_of_nobody",))
    assert "needs bitsandbytes_of_nobody: pip install 'lrsa-lightning[optimizers]'" in refusal(
        capsys, command(quantised)
    )


@pytest.mark.usefixtures("as_installed")
def test_a_cpu_is_refused(quantised, capsys):
    assert "model.quantization runs on CUDA alone, not on cpu" in refusal(capsys, command(quantised))


@pytest.mark.usefixtures("as_installed")
@pytest.mark.parametrize("strategy", ["sp_fsdp2", "sp_deepspeed"])
def test_strategies_that_divide_or_cast_weights_are_refused(strategy, quantised, monkeypatch, capsys):
    monkeypatch.setattr(quantisation, "_DEVICES", ("cpu",))
    wrong = quantised | {"trainer.strategy": strategy}
    assert "model.quantization runs on one device or under sp_ddp" in refusal(capsys, command(wrong))


@pytest.mark.usefixtures("as_installed")
def test_autocast_and_an_unknown_key_are_refused(quantised, monkeypatch, capsys):
    monkeypatch.setattr(quantisation, "_DEVICES", ("cpu",))
    mixed = quantised | {"trainer.precision": "bf16-mixed"}
    assert "set bf16-master or bf16-true" in refusal(capsys, command(mixed))
    unknown = quantised | {"model.quantization": "{load_in_4bit: true, bnb_4bit_quant_typ: nf4}"}
    assert "did you mean bnb_4bit_quant_type?" in refusal(capsys, command(unknown))


def test_words_are_keys_of_transformers():
    for word in ("nf4", "fp4", "int8"):
        given = Quantisation.of(word).arguments(torch.bfloat16, torch.device("cpu"))
        config = given["quantization_config"]
        assert config.load_in_8bit == (word == "int8")
        assert config.load_in_4bit == (word != "int8")
        if config.load_in_4bit:
            assert (config.bnb_4bit_quant_type, config.bnb_4bit_compute_dtype) == (word, torch.bfloat16)
            assert config.bnb_4bit_use_double_quant
    assert Quantisation.of(None) is None


def test_bytes_of_a_number():
    """A float32 scale for 64 numbers; doubly quantised a byte, and a float32 for 256 of them."""
    assert Quantisation.of({"load_in_4bit": True}).bytes_a_number == 0.5625
    assert Quantisation.of("nf4").bytes_a_number == 0.5 + 1 / 64 + 4 / (64 * 256)
    assert Quantisation.of("int8").bytes_a_number == 1


@pytest.mark.slow
@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("word", ["nf4", "int8"])
def test_a_run_trains_adapters_alone_and_resumes_bit_for_bit(word, quantised):
    settings = quantised | {"model.quantization": word, "trainer.callbacks": checkpoints(2), "trainer.max_steps": "4"}
    main(command(settings))
    before = losses()
    assert before[3] < before[0]
    state = torch.load("runs/x/checkpoints/step=2.ckpt", weights_only=True)["state_dict"]
    assert {name.rpartition("lora_")[1] for name in state} == {"lora_"}
    main(command(settings | {"ckpt_path": "runs/x/checkpoints/step=2.ckpt"}))
    assert losses() == before


@pytest.mark.usefixtures("on_cpu")
def test_the_model_computes_with_the_weights_that_its_codes_mean(tokenizer, tmp_path):
    """The same decoder whose weights are the expanded codes."""
    from bitsandbytes.functional import dequantize_4bit

    save_base(tmp_path / "base", tokenizer, **WIDE)
    start = StartingModel(str(tmp_path / "base"), lora=LoraSettings(r=4), quantization="nf4")
    quantised = start.load(start.load_config())
    plain = StartingModel(str(tmp_path / "base"), lora=LoraSettings(r=4)).load(start.load_config())
    ids = torch.arange(64).view(1, -1)
    without_codes = plain(input_ids=ids).logits
    codes = {name: p for name, p in quantised.named_parameters() if p.dtype == torch.uint8}
    assert len(codes) == 2 * 7
    for name, parameter in plain.named_parameters():
        if name in codes:
            parameter.data.copy_(dequantize_4bit(codes[name], codes[name].quant_state))
    expected = plain(input_ids=ids).logits
    torch.testing.assert_close(quantised(input_ids=ids).logits, expected, rtol=1e-3, atol=1e-3)
    assert (without_codes - expected).abs().max() > 0.1


@pytest.mark.slow
@pytest.mark.usefixtures("on_cpu")
def test_it_exports_the_adapters_merged_into_weights_that_are_not_quantised(quantised):
    from transformers import AutoModelForCausalLM

    main(command(quantised | {"trainer.callbacks": checkpoints(2), "trainer.max_steps": "2"}))
    main(["export", "runs/x", "--output", "merged"])
    config = json.loads(Path("merged/config.json").read_text())
    assert "quantization_config" not in config
    model = AutoModelForCausalLM.from_pretrained("merged")
    assert {p.dtype for p in model.parameters()} <= {torch.float32, torch.bfloat16}


@pytest.mark.usefixtures("on_cpu")
def test_bytes_are_those_of_the_quantised_layers(tokenizer, tmp_path):
    save_base(tmp_path / "base", tokenizer, **WIDE)
    start = StartingModel(str(tmp_path / "base"), lora=LoraSettings(r=4), quantization="int8")
    model = start.load(start.load_config(), torch.bfloat16)
    codes = [p for p in model.parameters() if p.dtype == torch.int8]
    sizes = WIDE["hidden_size"] * (2 * 64 + 2 * 32 + 3 * WIDE["intermediate_size"])
    assert sum(p.numel() * p.element_size() for p in codes) == 2 * sizes * Quantisation.of("int8").bytes_a_number
    assert model.get_output_embeddings().weight.dtype == torch.bfloat16


def test_a_quantised_folder_stays_refused(quantised, tmp_path, capsys):
    path = tmp_path / "base" / "config.json"
    config = json.loads(path.read_text()) | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    path.write_text(json.dumps(config))
    assert "is quantised (gptq): give the weights before quantisation" in refusal(capsys, command(quantised))


def test_settings_of_python_are_checked_too():
    with pytest.raises(InputError, match=r"give model\.lora"):
        StartingModel("somewhere", quantization="nf4")
