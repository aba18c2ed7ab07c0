"""The command: every YAML, the run directory, and one clear error for bad input."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lrsa_lightning import LRSA, Vanilla
from lrsa_lightning.cli import main
from lrsa_lightning.commands import COMMANDS
from lrsa_lightning.commands.training import LRSACLI
from lrsa_lightning.ruler.records import read_records
from lrsa_lightning.version import __version__
from tests.conftest import QUIET, longalign_row, write_jsonl
from tests.lora_runs import lora_run, save_base
from tests.ruler.conftest import hotpotqa_content, squad_content
from tests.runs import callback, checkpoints, command, losses, metrics

pytestmark = pytest.mark.usefixtures("in_tmp_path")
CONFIGS = Path(__file__).parent.parent / "configs"


def error_of(capsys, arguments: dict[str, str]) -> str:
    with pytest.raises(SystemExit) as caught:
        main(command(arguments))
    assert caught.value.code == 2
    return capsys.readouterr().err


# Those of sweeps/ are W&B's, and the modes that they name: tests/sweep runs and parses them.
FILES = sorted(file for file in CONFIGS.rglob("*.yaml") if "sweeps" not in file.relative_to(CONFIGS).parts)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONFIGS)))
def test_every_yaml_parses_and_instantiates(file, arguments, tokenizer, tmp_path):
    contents = {"essays": {"text": "A text."}, "squad": squad_content(), "hotpotqa": hotpotqa_content()}
    for name, source in re.findall(r"^ +(essays|squad|hotpotqa): (\S+)", file.read_text(), re.MULTILINE):
        Path(source).parent.mkdir(parents=True, exist_ok=True)
        Path(source).write_text(json.dumps(contents[name]))
    for key in [key for key in arguments if key.startswith(("trainer.", "model.attention"))]:
        del arguments[key]
    arguments |= {"trainer.accelerator": "cpu", "data.source": "longalign"}
    arguments |= dict.fromkeys(("model.name_or_path", "model.gguf_file"), "null")
    if file.parent.name == "attention":
        arguments["model.attention"] = str(file)
    model = yaml.safe_load(file.read_text()).get("model") or {}
    lora = file.name if file.parent.name == "lora" else model.get("lora")
    if lora is not None:
        arguments = lora_run(arguments, save_base(tmp_path / "base", tokenizer))
        arguments["model.lora"] = str((file.parent / lora).resolve())
    config = [] if file.parent.name in ("attention", "lora") else [f"--config={file}"]
    cli = LRSACLI([*config, *command(arguments)[1:]], run=False)
    cli.model.configure_model()
    assert cli.model.model.config.num_hidden_layers == 2
    key = cli.model.model.config._attn_implementation
    assert key == cli.model.attention.registry_key()
    if file.parent.name == "attention":
        assert isinstance(cli.model.attention, Vanilla if file.stem == "vanilla" else LRSA)


def test_defaults_are_the_papers_run(train_file, tokenizer_dir):
    cli = LRSACLI(["--config", str(CONFIGS / "experiment/paper_32k.yaml"), "--trainer.accelerator=cpu"], run=False)
    model, data, trainer = cli.config.model, cli.config.data, cli.config.trainer
    assert (model.lr, list(model.betas), model.weight_decay, model.warmup_steps) == (1.25e-5, [0.9, 0.95], 0.1, 0)
    assert (data.seq_len, data.global_batch_size, model.seq_len) == (32768, 16, 32768)
    assert (trainer.max_steps, trainer.precision) == (4000, "bf16-master")
    assert model.attention.init_args.lag_size == 1024
    assert model.attention.init_args.retention_ratio == 0.5
    assert model.name_or_path == "Qwen/Qwen2.5-1.5B"


def test_fit_writes_the_run_directory(arguments):
    import wandb

    ruler = {"tasks": ["niah_single_1"], "lengths": [512], "num_samples": 2}
    arguments["trainer.callbacks"] = json.dumps(
        [
            *json.loads(checkpoints(3)),
            {"class_path": "lrsa_lightning.callbacks.RulerEval", "init_args": ruler},
            {"class_path": "lrsa_lightning.callbacks.LossCurve"},
            {"class_path": "lrsa_lightning.callbacks.StepProgress"},
        ]
    )
    logger = {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": {"project": "test"}}
    arguments["trainer.logger"] = json.dumps([*json.loads(QUIET["trainer.logger"]), logger])
    main(command(arguments))
    wandb.finish()  # a later test in this process would go on with it
    run = Path("runs/x")
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["model"]["attention"]["class_path"].endswith("LRSA")
    assert saved["model"]["attention"]["init_args"]["lag_size"] == 16
    assert saved["run_name"] == "x"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["last.ckpt", "step=3.ckpt", "step=6.ckpt"]
    assert (run / "loss_curve.png").read_bytes().startswith(b"\x89PNG")
    assert (run / "wandb_id").read_text() in str(next((run / "wandb").glob("offline-run-*")))
    assert list(losses()) == [*range(1, 7)]
    checks = [row for row in metrics() if "ruler/niah_single_1/512/r0.5" in row]
    assert len(checks) == 2
    for figure in ("ruler", "ruler_stderr", "ruler_nll", "ruler_exact_match"):
        assert checks[0].keys() >= {f"{figure}/niah_single_1/512/r{budget}" for budget in ("1", "0.5", "0.25")}
    assert not any("average" in key for key in checks[0])
    assert len(read_records(run / "ruler" / "step-000006.jsonl")) == 3 * ruler["num_samples"]
    assert (run / "ruler" / "step-000006-depths.png").read_bytes().startswith(b"\x89PNG")


def test_the_ruler_callback_does_not_change_the_loss_curve(arguments):
    main(command(arguments))
    ruler = {"tasks": ["niah_single_1"], "lengths": [512], "num_samples": 2, "every_n_steps": 2}
    arguments["trainer.callbacks"] = json.dumps(
        [{"class_path": "lrsa_lightning.callbacks.RulerEval", "init_args": ruler}]
    )
    main(command({**arguments, "run_name": "with_ruler"}))
    assert losses("with_ruler") == losses("x")


def test_swapping_lrsa_for_vanilla_drops_all_lrsa_arguments(arguments, tmp_path):
    base = tmp_path / "job.yaml"
    lrsa = {"class_path": "LRSA", "init_args": {"lag_size": 16, "backend": "fill"}}
    base.write_text(yaml.safe_dump({"model": {"attention": lrsa}}))
    for key in [key for key in arguments if key.startswith("model.attention")]:
        del arguments[key]
    fit, *options = command(arguments)
    vanilla = f"--model.attention={CONFIGS / 'attention/vanilla.yaml'}"
    main([fit, f"--config={base}", *options, vanilla])
    saved = yaml.safe_load(Path("runs/x/config.yaml").read_text())["model"]["attention"]
    assert saved["class_path"].endswith("Vanilla")
    assert saved["init_args"] == {"implementation": "sdpa"}


def test_same_seed_same_losses_and_another_seed_others(arguments):
    for run, seed in (("x", 1), ("y", 1), ("z", 2)):
        main(command({**arguments, "run_name": run, "seed_everything": str(seed)}))
    assert losses("x") == losses("y")
    assert losses("x") != losses("z")


@pytest.mark.parametrize("mode", ["LRSA", "Vanilla"])
def test_packed_rows_train_like_separate_samples(arguments, mode):
    """One step over all 24 samples, each in its own row or all in one row."""
    arguments |= {"data.extend": "false", "trainer.max_steps": "1", "data.micro_batch_size": "1"}
    if mode == "Vanilla":
        arguments = {k: v for k, v in arguments.items() if not k.startswith("model.attention.")}
        arguments["model.attention"] = "Vanilla"
    main(command({**arguments, "run_name": "apart", "data.global_batch_size": "24"}))
    packed = {"data.packing": "true", "data.seq_len": "4800", "data.global_batch_size": "1"}
    config = json.loads(arguments["model.from_config"]) | {"max_position_embeddings": 4800}
    main(command({**arguments, **packed, "run_name": "packed", "model.from_config": json.dumps(config)}))
    assert losses("packed") == pytest.approx(losses("apart"), rel=1e-5)


def test_accumulation_changes_nothing_but_rounding(arguments):
    main(command(arguments))
    main(command({**arguments, "run_name": "whole", "data.micro_batch_size": "4"}))
    assert losses("whole") == pytest.approx(losses("x"), abs=1e-5)


def test_validation_scores_the_answers_of_every_sample(arguments, train_file):
    arguments |= {"data.val_files": str(train_file), "data.micro_batch_size": "4", "trainer.callbacks": checkpoints(6)}
    main(command(arguments))  # six steps are an epoch, and an epoch ends with a validation
    in_fit = metrics()[-1]["val/loss"]
    main(command({**arguments, "ckpt_path": "last"}, "validate"))
    alone = metrics()[-1]["val/loss"]
    assert alone == pytest.approx(in_fit, abs=1e-6)
    cli = LRSACLI(command(arguments)[1:], run=False)
    cli.datamodule.prepare_data()
    cli.datamodule.setup("validate")
    assert len(cli.datamodule.val_dataloader()) == 24


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.attention.lagsize": "3"}, "Option 'lagsize' is not accepted"),
        ({"model.attention": "LSRA"}, "Attention modes: LRSA, "),
        ({"model.attention.lag_size": "0"}, "lag_size"),
        ({"data.train_files": "nowhere.jsonl"}, "nowhere.jsonl does not exist"),
        ({"data.train_files": "[]"}, "data.train_files is empty"),
        ({"data.seq_len": "2000"}, "data.seq_len 2000 is beyond the model's 1024 positions"),
        ({"data.global_batch_size": "7"}, "not a multiple of 2"),
        ({"data.tokenizer": "no/such/tokenizer"}, "data.tokenizer 'no/such/tokenizer' cannot be loaded"),
        ({"model.from_config": '{"hidden_sizes": 3}'}, "hidden_sizes not in Qwen2Config"),
        ({"model.from_config": '{"model_type": "qwen99"}'}, "qwen99"),
        ({"model.from_config": '{"vocab_size": 50}'}, "data.tokenizer has"),
        ({"model.name_or_path": "somewhere"}, "give exactly one of"),
        ({"model.from_config": "null", "model.name_or_path": "no/such/model"}, "no/such/model"),
        ({"ckpt_path": "nowhere.ckpt"}, "--ckpt_path nowhere.ckpt does not exist"),
        ({"trainer.accumulate_grad_batches": "3"}, "contradicts data.global_batch_size"),
        ({"trainer.callbacks": json.dumps([callback("RulerEval", tasks=["x"])])}, "unknown RULER task 'x'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_bad_input_is_one_clear_error(arguments, capsys, change, message):
    error = error_of(capsys, {**arguments, **change})
    assert message in error
    assert "Traceback" not in error
    assert not Path("runs/x/config.yaml").exists()


def test_a_malformed_line_is_named_before_training(arguments, capsys, tmp_path):
    path = write_jsonl(tmp_path / "broken.jsonl", [longalign_row("A.\n\nB.", "C?", "D.")])
    path.write_text(path.read_text() + "{broken\n")
    assert "broken.jsonl, line 2: not valid JSON" in error_of(capsys, {**arguments, "data.train_files": str(path)})


def test_an_existing_run_is_refused(arguments, capsys):
    main(command(arguments))
    assert "runs/x holds a run already" in error_of(capsys, arguments)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"]])
def test_lrsa_alone_imports_neither_lightning_nor_torch(arguments):
    code = f"import sys; sys.argv[1:] = {arguments}; from lrsa_lightning.cli import main\n"
    code += "try: main()\nfinally: print({'torch', 'lightning'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == (0 if arguments else 2)
    said = [f"lrsa-lightning {__version__}"] if arguments == ["--version"] else [f"\n  {name} " for name in COMMANDS]
    assert not [words for words in said if words not in done.stdout + done.stderr]
    assert done.stdout.endswith("set()\n")


@pytest.mark.slow
def test_help_costs_little_more_than_importing_lightning():
    """Compares processor time, because machines and their load differ."""
    commands = {"help": ["-m", "lrsa_lightning.cli", "fit", "--help"], "peer": ["-c", "import lightning.pytorch.cli"]}
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(2):
        for name, arguments in commands.items():
            before = os.times()
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
            after = os.times()
            used = after.children_user + after.children_system - before.children_user - before.children_system
            seconds[name].append(used)
    assert min(seconds["help"]) < 1.58 * min(seconds["peer"])
