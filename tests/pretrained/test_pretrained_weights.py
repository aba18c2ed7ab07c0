"""Incomplete folders of pretrained weights: one line that names what is wrong, never random numbers."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lrsa_lightning.cli import main
from lrsa_lightning.errors import InputError
from lrsa_lightning.pretrained.decoder import load_config, load_model
from tests.conftest import make_model
from tests.runs import command

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path) -> Path:
    return saved(tmp_path / "model")


def saved(folder: Path, **keys) -> Path:
    make_model(**keys).save_pretrained(folder)
    return folder


def load(folder: Path, dtype: torch.dtype = torch.float32):
    return load_model(load_config(str(folder), None), str(folder), dtype)


def change(folder: Path, **weights) -> None:
    """Replaces weights in the file; None removes one. Names have __ in place of a dot."""
    state = load_file(folder / WEIGHTS) | {name.replace("__", "."): z for name, z in weights.items()}
    save_file({name: z for name, z in state.items() if z is not None}, folder / WEIGHTS, metadata={"format": "pt"})


def configure(folder: Path, **keys) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config.pop("layer_types", None)
    file.write_text(json.dumps(config | keys))


def test_a_missing_weight_is_never_drawn_at_random(folder):
    change(folder, model__layers__0__mlp__up_proj__weight=None)
    with pytest.raises(InputError, match=r"they lack model\.layers\.0\.mlp\.up_proj\.weight\. Give the folder of"):
        load(folder)


def test_an_unexpected_weight_is_refused(folder):
    change(folder, model__layers__0__self_attn__q_norm__weight=torch.ones(8))
    with pytest.raises(
        InputError, match=r"have model\.layers\.0\.self_attn\.q_norm\.weight, which the model does not have"
    ):
        load(folder)


def test_another_shape_is_named(folder):
    change(folder, model__norm__weight=torch.ones(8))
    with pytest.raises(InputError, match=r"have model\.norm\.weight in shape \[8\], not \[32\]"):
        load(folder)


@pytest.mark.parametrize(("layers", "said"), [(3, "lack model.layers.2"), (1, "have model.layers.1")])
def test_another_number_of_layers(folder, layers, said):
    configure(folder, num_hidden_layers=layers)
    with pytest.raises(InputError, match=f"{said}.* and 9 more"):
        load(folder)


def test_weights_of_another_architecture(tmp_path):
    llama = saved(tmp_path / "llama", model_type="llama")
    configure(llama, model_type="qwen2", architectures=["Qwen2ForCausalLM"])
    with pytest.raises(InputError, match=r"lack .*k_proj\.bias"):
        load(llama)


def test_a_decoder_without_its_head(tmp_path):
    make_model().model.save_pretrained(tmp_path)
    with pytest.raises(
        InputError, match=r"they lack lm_head\.weight\. Give the folder of a complete causal language model"
    ):
        load(tmp_path)


@pytest.mark.parametrize("in_file", [False, True])
def test_a_tied_head_needs_no_weights_of_its_own(tmp_path, in_file):
    folder = saved(tmp_path, tie_word_embeddings=True)
    embedding = load_file(folder / WEIGHTS)["model.embed_tokens.weight"]
    if in_file:
        change(folder, lm_head__weight=embedding.clone())
    model = load(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, embedding)


def test_a_tied_head_of_other_values_is_refused(tmp_path):
    folder = saved(tmp_path, tie_word_embeddings=True)
    change(folder, lm_head__weight=2 * load_file(folder / WEIGHTS)["model.embed_tokens.weight"])
    with pytest.raises(InputError, match="set tie_word_embeddings to false"):
        load(folder)


@pytest.mark.parametrize("kept", [0, 50, -100])
def test_a_file_that_was_cut_short(folder, kept):
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:kept])
    with pytest.raises(InputError, match=r"model/model\.safetensors cannot be read .*copy the file again"):
        load(folder)


def test_files_that_are_missing(folder, tmp_path):
    (folder / WEIGHTS).unlink()
    with pytest.raises(InputError, match=r"lacks the weights of model\.safetensors"):
        load(folder)
    make_model().save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    part = sorted((tmp_path / "parts").glob("*.safetensors"))[1]
    part.unlink()
    with pytest.raises(InputError, match=f"lacks the weights of {part.name}: copy the folder again"):
        load(tmp_path / "parts")
    (tmp_path / "parts" / "model.safetensors.index.json").write_text("{")
    with pytest.raises(InputError, match=r"index\.json is not an index of weights"):
        load(tmp_path / "parts")


class TouchesAFile:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_loads_only_tensors(folder, tmp_path):
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save(state, folder / "pytorch_model.bin")
    assert torch.equal(load(folder).lm_head.weight, state["lm_head.weight"])
    torch.save(state | {"lm_head.weight": TouchesAFile(tmp_path / "touched")}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot be read: Weights only load failed"):
        load(folder)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_exactly(folder, dtype):
    state = {name: z.to(dtype) for name, z in load_file(folder / WEIGHTS).items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    read = load(folder).state_dict()
    assert all(read[name].dtype == torch.float32 and torch.equal(read[name], z.float()) for name, z in state.items())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_dtypes_that_need_scales_are_refused(folder, dtype):
    change(folder, lm_head__weight=load_file(folder / WEIGHTS)["lm_head.weight"].to(dtype))
    with pytest.raises(InputError, match=r"lm_head\.weight has dtype .*: give weights in float32, bfloat16 or float16"):
        load(folder)


def test_quantised_models_are_refused(folder):
    configure(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(InputError, match=r"is quantised \(gptq\): give the weights before quantisation"):
        load(folder)


@pytest.mark.parametrize(("value", "dtype"), [(float("nan"), torch.float32), (1e5, torch.float16)])
def test_weights_that_are_not_finite_are_named(folder, value, dtype):
    change(folder, model__norm__weight=torch.full((32,), value))
    with pytest.raises(InputError, match=rf"model\.norm\.weight is NaN or infinite in {str(dtype)[6:]}"):
        load(folder, dtype)


@pytest.mark.usefixtures("in_tmp_path")
@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("adapter_config.json", "{}", "is of peft_type None: only LORA"),
        ("config.json", "{", "is not a valid JSON file"),
        ("config.json", None, "config.json"),
        (WEIGHTS, "", "cannot be read"),
    ],
)
def test_the_command_refuses_in_one_line_before_data_is_read(arguments, folder, capsys, file, text, said):
    (folder / file).unlink() if text is None else (folder / file).write_text(text)
    del arguments["model.from_config"]
    arguments |= {"model.name_or_path": str(folder), "data.cache_dir": "cache"}
    with pytest.raises(SystemExit) as caught:
        main(command(arguments))
    assert caught.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lrsa: error: ")]
    assert said in line
    assert not [*Path("cache/prepared").glob("train-*")]
