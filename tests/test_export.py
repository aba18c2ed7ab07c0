"""A checkpoint of one file as a Hugging Face folder; those of ZeRO are in tests/distributed."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from lrsa_lightning.cli import main
from lrsa_lightning.errors import InputError
from lrsa_lightning.export import export
from tests.runs import callback, command

pytestmark = pytest.mark.usefixtures("in_tmp_path")
RUN = Path("runs/x")


@pytest.fixture
def run(arguments):
    """A run of one step with its checkpoint."""
    callbacks = json.dumps([callback("Checkpoints")])
    main(command({**arguments, "trainer.max_steps": "1", "trainer.callbacks": callbacks}))
    return RUN


def weights(run: Path) -> dict[str, torch.Tensor]:
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return {name.removeprefix("model."): weight for name, weight in state.items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("tied", [False, True])
def test_what_transformers_loads_is_the_checkpoint_bit_by_bit(arguments, tied, tokenizer):
    keys = {**json.loads(arguments["model.from_config"]), "tie_word_embeddings": tied}
    callbacks = json.dumps([callback("Checkpoints")])
    main(command({**arguments, "trainer.callbacks": callbacks, "model.from_config": json.dumps(keys)}))
    assert export(RUN, Path("exported")).name == "step=6.ckpt"
    model = AutoModelForCausalLM.from_pretrained("exported", dtype="auto")
    assert same(model.state_dict(), weights(RUN))
    assert AutoTokenizer.from_pretrained("exported").get_vocab() == tokenizer.get_vocab()
    assert list(Path("exported").glob("*.safetensors"))


def test_another_dtype(run):
    export(run / "checkpoints" / "step=1.ckpt", Path("exported"), torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained("exported", dtype="auto")
    assert same(model.state_dict(), {name: weight.bfloat16() for name, weight in weights(run).items()})


def test_rope_and_generation_settings_go_along(arguments, tmp_path):
    """The run begins with a folder, whose RoPE it scales."""
    callbacks = json.dumps([callback("Checkpoints")])
    main(command({**arguments, "trainer.max_steps": "1", "trainer.callbacks": callbacks}))
    export(RUN, Path("base"))
    GenerationConfig(temperature=0.7, do_sample=True).save_pretrained("base")
    del arguments["model.from_config"]
    arguments |= {"model.name_or_path": "base", "model.rope_parameters": '{"rope_type": "linear", "factor": 2.0}'}
    main(command({**arguments, "run_name": "y", "trainer.max_steps": "1", "trainer.callbacks": callbacks}))
    export(Path("runs/y"), Path("exported"))
    model = AutoModelForCausalLM.from_pretrained("exported")
    assert (model.config.rope_parameters["rope_type"], model.config.rope_parameters["factor"]) == ("linear", 2.0)
    assert model.generation_config.temperature == 0.7


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "nowhere does not exist"),
        ("runs/x/checkpoints/torn.ckpt", "torn.ckpt is torn or no checkpoint"),
        ("runs/empty", "runs/empty has no whole checkpoint"),
        ("alone.ckpt", "config.yaml does not exist"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(run, source, message, capsys, monkeypatch):
    (run / "checkpoints" / "torn.ckpt").write_bytes(b"PK")
    Path("runs/empty").mkdir()
    Path("runs/empty/config.yaml").write_text("{}")
    Path("alone.ckpt").write_bytes((run / "checkpoints" / "last.ckpt").read_bytes())
    monkeypatch.setattr(sys, "argv", ["export_hf.py", source, "--output", "exported"])
    script = Path(__file__).parents[1] / "scripts" / "export_hf.py"
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(script), run_name="__main__")
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith("lrsa: error: ")
    assert message in line
    assert not Path("exported").exists()


def test_a_folder_with_something_in_it_is_refused(run):
    Path("full").mkdir()
    Path("full/mine.txt").write_text("x")
    with pytest.raises(InputError, match="full exists"):
        export(run, Path("full"))
    assert Path("full/mine.txt").read_text() == "x"
