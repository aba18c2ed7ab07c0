"""A checkpoint of one file as a Hugging Face folder; those of ZeRO are in tests/distributed."""

import errno
import json
import os
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from lrsa_lightning.attention import Vanilla
from lrsa_lightning.attention.saved_mode import saved_mode
from lrsa_lightning.cli import main
from lrsa_lightning.conversation.source import ModelSource
from lrsa_lightning.data.template import answer_ends
from lrsa_lightning.errors import InputError
from lrsa_lightning.model_folder.export import export
from lrsa_lightning.ruler.evaluated_model import EvaluatedModel
from lrsa_lightning.trained_model import RunCheckpoint, load_checkpoint
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


def test_weights_are_cast_to_the_given_dtype(run):
    export(run / "checkpoints" / "step=1.ckpt", Path("exported"), torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained("exported", dtype="auto")
    assert same(model.state_dict(), {name: weight.bfloat16() for name, weight in weights(run).items()})


def test_without_a_given_dtype_the_weights_keep_the_runs(arguments):
    callbacks = json.dumps([callback("Checkpoints")])
    options = {"trainer.max_steps": "1", "trainer.callbacks": callbacks, "trainer.precision": "bf16-true"}
    main(command({**arguments, **options}))
    export(RUN, Path("exported"))
    (file,) = Path("exported").glob("*.safetensors")
    assert {z.dtype for z in load_file(file).values()} == {torch.bfloat16}
    assert json.loads(Path("exported/config.json").read_text())["dtype"] == "bfloat16"
    trained = load_checkpoint(RUN / "checkpoints" / "last.ckpt")
    assert (trained.model.dtype, trained.model.training) == (torch.bfloat16, False)


def test_values_beyond_the_range_of_a_dtype_are_refused(run):
    checkpoint = torch.load(run / "checkpoints" / "step=1.ckpt", weights_only=True)
    checkpoint["state_dict"]["model.lm_head.weight"][0, 0] = 1e5
    torch.save(checkpoint, run / "checkpoints" / "step=1.ckpt")
    with pytest.raises(InputError, match=r"lm_head\.weight is NaN or infinite in float16; take another"):
        export(run, Path("exported"), torch.float16)
    export(run, Path("exported"), torch.bfloat16)


def test_rope_and_generation_settings_are_exported(arguments, tmp_path):
    """The run starts from a folder and scales its RoPE."""
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


def test_the_newest_configuration_of_the_run_defines_the_model(run, arguments):
    """The user has allowed a resume with another RoPE."""
    callbacks = json.dumps([callback("Checkpoints")])
    options = {"trainer.max_steps": "2", "trainer.callbacks": callbacks, "allow_mismatch": "true", "ckpt_path": "last"}
    rope = {"rope_type": "linear", "factor": 2.0}
    main(command({**arguments, **options, "model.rope_parameters": json.dumps(rope)}))
    export(run, Path("exported"))
    assert AutoModelForCausalLM.from_pretrained("exported").config.rope_parameters.items() >= rope.items()


class Fails:
    """A part of a folder that fails after some of its files."""

    def __init__(self, error: BaseException):
        self.error = error

    def save_pretrained(self, folder: Path, **_) -> None:
        (Path(folder) / "half").write_text("x")
        raise self.error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "exported cannot be written: .*No space left"),
        (SafetensorError("I/O error: No space left on device"), "exported cannot be written: .*No space left"),
        (KeyboardInterrupt(), None),
    ],
)
def test_an_export_that_fails_leaves_nothing(run, monkeypatch, error, said):
    before = sorted(Path().iterdir())
    monkeypatch.setattr("lrsa_lightning.model_folder.export.load_tokenizer", lambda *_: Fails(error))
    with pytest.raises(InputError if said else KeyboardInterrupt, match=said):
        export(run, Path("exported"))
    assert sorted(Path().iterdir()) == before


def test_the_folder_appears_when_all_of_it_is_on_the_disk(run, monkeypatch):
    synced, replace = [], os.replace

    def watched(source: Path, target: Path) -> None:
        names.extend(path.name for path in Path(source).rglob("*"))
        assert not Path(target).exists()
        assert {Path(source), *Path(source).rglob("*")} <= {*synced}
        replace(source, target)

    names: list[str] = []
    monkeypatch.setattr("lrsa_lightning.model_folder.place.sync", synced.append)
    monkeypatch.setattr("lrsa_lightning.model_folder.place.os.replace", watched)
    export(run, Path("exported"))
    assert {"config.json", "tokenizer.json", "generation_config.json", "model.safetensors", "generate.py"} <= {*names}
    assert synced[-1] == Path("exported").absolute().parent


class TouchesAFile:
    def __reduce__(self):
        return Path.touch, (Path("touched"),)


def test_a_checkpoint_loads_only_plain_data(run, monkeypatch):
    """`load_checkpoint` alone refuses it, without an earlier check."""
    file = run / "checkpoints" / "step=1.ckpt"
    torch.save({**torch.load(file, weights_only=True), "of a callback": TouchesAFile()}, file)
    for looks in (True, False):
        if not looks:
            monkeypatch.setattr("lrsa_lightning.trained_model.fault_of", lambda _: None)
        with pytest.raises(InputError, match=r"step=1\.ckpt is"):
            load_checkpoint(file)
    assert not Path("touched").exists()


def test_a_checkpoint_of_another_model_is_named(run):
    file = run / "checkpoints" / "step=1.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    del checkpoint["state_dict"]["model.lm_head.weight"]
    torch.save(checkpoint, file)
    with pytest.raises(InputError, match=r"does not hold the weights of its run's model: .*lm_head\.weight"):
        load_checkpoint(file)
    torch.save({"weights": torch.ones(1)}, file)
    with pytest.raises(InputError, match=r"step=1\.ckpt is not a checkpoint of a run"):
        load_checkpoint(file)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "nowhere does not exist"),
        ("runs/x/checkpoints/corrupt.ckpt", "corrupt.ckpt is corrupt or no checkpoint"),
        ("runs/empty", "runs/empty has no complete checkpoint"),
        ("runs", "runs is neither a run (it has no config.yaml) nor a checkpoint"),
        ("runs/x/checkpoints", "checkpoints is neither a run"),
        ("alone.ckpt", "config.yaml does not exist"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(run, source, message, capsys, monkeypatch):
    (run / "checkpoints" / "corrupt.ckpt").write_bytes(b"PK")
    Path("runs/empty").mkdir()
    Path("runs/empty/config.yaml").write_text("{}")
    Path("alone.ckpt").write_bytes((run / "checkpoints" / "last.ckpt").read_bytes())
    monkeypatch.setattr(sys, "argv", ["export_hf.py", source, "--output", "exported"])
    script = Path(__file__).parents[2] / "scripts" / "export_hf.py"
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(script), run_name="__main__")
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith("lrsa: error: ")
    assert message in line
    assert not Path("exported").exists()


def test_a_folder_that_is_not_empty_is_refused(run):
    Path("full").mkdir()
    Path("full/mine.txt").write_text("x")
    with pytest.raises(InputError, match="full exists"):
        export(run, Path("full"))
    assert Path("full/mine.txt").read_text() == "x"
    Path("empty").mkdir()
    export(run, Path("empty"))
    assert Path("empty/config.json").exists()


def test_the_model_that_a_run_started_from_is_not_replaced(run, arguments):
    export(run, Path("base"))
    del arguments["model.from_config"]
    callbacks = json.dumps([callback("Checkpoints")])
    arguments |= {"model.name_or_path": "base", "run_name": "y", "trainer.max_steps": "1"}
    main(command({**arguments, "trainer.callbacks": callbacks}))
    before = Path("base/model.safetensors").read_bytes()
    with pytest.raises(InputError, match="base is what the export is made of"):
        export(Path("runs/y"), Path("base"), overwrite=True)
    assert Path("base/model.safetensors").read_bytes() == before


@pytest.mark.parametrize("template", ["base", "chatml", "auto"])
def test_a_folder_names_the_rule_and_the_end_of_an_answer(arguments, tokenizer, template):
    rule = {"retention_ratio": 0.25, "v_weight": 0.5, "skip_layers": [1], "scorer": "random", "seed": 7}
    options = {f"model.attention.{name}": str(value) for name, value in rule.items()}
    callbacks = json.dumps([callback("Checkpoints")])
    main(command({**arguments, **options, "data.template": template, "trainer.callbacks": callbacks}))
    export(RUN, Path("exported"))
    config = AutoConfig.from_pretrained("exported")
    trained = RunCheckpoint(RUN / "checkpoints" / "last.ckpt").attention
    assert saved_mode(config).rule() == trained.rule()
    assert ModelSource("exported").attention.registry_key() == saved_mode(config).registry_key()
    keys = json.loads(Path("exported/config.json").read_text())
    assert keys["lrsa"].items() >= rule.items()
    assert keys["architectures"] == ["LrsaQwen2ForCausalLM"]
    trained = "chatml" if template == "auto" else template  # the rows are chats
    (end,) = answer_ends(trained, tokenizer)
    assert ModelSource("exported").template == trained
    assert EvaluatedModel("exported", None, None, torch.float32).template == trained
    assert EvaluatedModel(None, str(RUN / "checkpoints" / "last.ckpt"), None, torch.float32).template == trained
    assert GenerationConfig.from_pretrained("exported").eos_token_id == end
    modes = {path.stat().st_mode & 0o777 for path in Path("exported").rglob("*") if path.is_file()}
    Path("new").touch()
    assert modes == {Path("new").stat().st_mode & 0o777}


def test_a_folder_of_full_attention_names_no_rule(arguments):
    for name in [name for name in arguments if name.startswith("model.attention.")]:
        del arguments[name]
    callbacks = json.dumps([callback("Checkpoints")])
    main(command({**arguments, "model.attention": "Vanilla", "trainer.callbacks": callbacks}))
    export(RUN, Path("exported"))
    config = AutoConfig.from_pretrained("exported")
    assert (saved_mode(config), config.architectures) == (None, ["Qwen2ForCausalLM"])
    assert isinstance(ModelSource("exported").attention, Vanilla)
    assert not Path("exported/custom_generate").exists()


@pytest.mark.parametrize("settings", [[1], {"lag": 8}, {"lag_size": 0}, {"lag_size": "x"}], ids=str)
def test_a_rule_that_is_none_is_refused_by_name(settings):
    with pytest.raises(InputError, match=r"config\.json: lrsa"):
        saved_mode(SimpleNamespace(lrsa=settings))


def test_a_mode_that_cannot_be_found_does_not_stop_the_export(run, caplog):
    path = run / "config.yaml"
    path.write_text(path.read_text().replace("lrsa_lightning.LRSA", "gone.Mode"))
    export(run, Path("exported"))
    assert "names no attention mode" in caplog.text
