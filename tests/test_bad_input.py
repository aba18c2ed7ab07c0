"""Wrong inputs of every part: one line that names the key or the file, exit status 2, and nothing left behind."""

import json
import shutil
from pathlib import Path

import pytest

from lrsa_lightning.cli import main
from tests.conftest import make_model
from tests.refusals import BOMB, cases, refused, write
from tests.runs import callback, command

pytestmark = pytest.mark.usefixtures("in_tmp_path")


CONFIGS = [
    ("model:\n  lr: 1e-3\n  lr: 1e-4\n", "x.yaml, line 3: key lr was given in line 2 already"),
    ("model.lr: 1e-3\nmodel:\n  lr: 1e-4\n", "x.yaml, line 3", "given in line 1 already"),
    ("trainer:\n  callbacks:\n    - class_path: A\n      class_path: B\n", "x.yaml, line 4: key class_path"),
    ("model: {lr: 1, lr: 2}\n", "x.yaml, line 1: key lr was given in line 1 already"),
    (BOMB, "x.yaml, line 5", "more than 100000 values"),
    ("model: &m {lr: *m}\n", "x.yaml, line 1: *m stands within &m itself"),
    ("model: " + "[" * 5000, "x.yaml"),
    ("model:\n\tlr: 1\n", "x.yaml: line 2, column 1: a tab"),
    ("model: {lr: 1\n", "x.yaml: line 2"),
    ("model: {lr: *x}\n", "x.yaml: line 1, column 13: found undefined alias"),
    ("model: {lr: 1}\n---\nmodel: {lr: 2}\n", "x.yaml: line 2", "another document"),
    ("model: !!python/object/apply:os.system [touch x]\n", "x.yaml: line 1, column 8"),
    ("- a\n- b\n", "x.yaml holds no keys and values: expected a configuration"),
    ("hello\n", "x.yaml holds no keys and values"),
    ("", "x.yaml is empty"),
    ("# nothing\n", "x.yaml is empty"),
    (b"\x00\x01\xff\xfe" * 9, "x.yaml is not UTF-8 text"),
    ("model: {lr: 1}\n".encode("utf-16"), "x.yaml is not UTF-8 text", "save it as UTF-8"),
    ("run_name: ü\n".encode("latin-1"), "x.yaml is not UTF-8 text"),
    ("modell: {}\n", "Key 'modell' is not accepted (x.yaml, line 1): did you mean model?"),
    ("modell:\n  lr: 1\n", "'modell.lr' (x.yaml, line 2): did you mean model.lr?"),
    ("model:\n  lrr: 1\n", "'model.lrr' (x.yaml, line 2): did you mean model.lr?"),
    ("model:\n  zzz: 1\n", "'model.zzz' (x.yaml, line 2): see `lrsa fit --help`"),
    ("model:\n  lr: fast\n", "model.lr is fast, but must be", "(x.yaml, line 2)"),
    ("model: null\n", "x.yaml (--config): model holds no keys and values"),
    ("model: {lr: '${nope.x}'}\n", "model.lr", "Interpolation key 'nope.x' not found", "x.yaml, line 1"),
    ("model: {lr: '${oc.env:NOPE_X}'}\n", "model.lr", "'NOPE_X' not found", "x.yaml, line 1"),
    ("model: {attention: x.yaml}\n", "x.yaml (x.yaml: model.attention) names itself"),
    ("config: x.yaml\n", "x.yaml (x.yaml: config) names itself"),
    ("model: {attention: absent.yaml}\n", "absent.yaml (x.yaml: model.attention) does not exist"),
]
ATTENTIONS = [
    ("class_path: LRSA\ninit_args:\n  lag_size: 16\n  lag_size: 32\n", "x.yaml, line 4: key lag_size"),
    (BOMB, "x.yaml, line 5", "more than 100000 values"),
    ("- LRSA\n", "x.yaml holds no keys and values: expected an attention mode, as configs/attention/*.yaml"),
    ("LRSA\n", "x.yaml holds no keys and values"),
    ("", "x.yaml is empty"),
    (b"\x00\x01\xff\xfe" * 9, "x.yaml is not UTF-8 text"),
    ("class_path: LRSA\n".encode("utf-16"), "x.yaml is not UTF-8 text"),
    ("class_path: LRSA\ninit_args:\n\tlag_size: 16\n", "x.yaml: line 3, column 1: a tab"),
    ("class_path: LSRA\n", "model.attention: there is no class LSRA (x.yaml)", "Attention modes: LRSA, Vanilla"),
    ("class_path: LRSA\ninit_args:\n  lagsize: 1\n", "(x.yaml, line 3): did you mean lag_size?"),
    ("class_path: LRSA\ninit_args:\n  lag_size: big\n", "LRSA.lag_size is big, but must be a whole", "x.yaml, line 3"),
    ("foo: bar\n", "model.attention: LRSA: Option 'foo' is not accepted (x.yaml, line 1)"),
    ("class_path: lightning.Trainer\n", "lightning.Trainer", "AttentionMode (x.yaml)"),
]
CHECKPOINT = "lightning.pytorch.callbacks.ModelCheckpoint"
OPTIONS = [
    ({"model.attention": "absent.yaml"}, "absent.yaml (--model.attention) does not exist"),
    ({"model.attention": "."}, "model.attention"),
    ({"model.attention": "LSRA"}, "model.attention: there is no class LSRA\n  Attention modes"),
    ({"config": "absent.yaml"}, "absent.yaml (--config) does not exist"),
    ({"config": "."}, "(--config) is a folder"),
    ({"config": "{model: {lr: 1, lr: 2}}"}, "--config, line 1: key lr was given in line 1 already"),
    ({"config": "model:\n  lr: 1\n  lr: 2"}, "--config, line 3: key lr was given in line 2 already"),
    ({"config": "x" * 300}, "(--config) cannot be read (File name too long)"),
    ({"model.attention": "{class_path: LRSA, init_args: {lag_size: 16, lag_size: 32}}"}, "key lag_size was given"),
    ({"trainer.callbacks": "{a: 1, a: 2}"}, "value {a: 1, a: 2}, line 1: key a was given in line 1 already"),
    ({"model.from_config": "{hidden_size: 32, hidden_size: 64}"}, "key hidden_size was given"),
    ({"trainer.gradient_clip_val": "-1"}, "trainer.gradient_clip_val is -1, but must be a finite number of at least 0"),
    ({"trainer.gradient_clip_val": ".inf"}, "trainer.gradient_clip_val is .inf"),
    ({"trainer.gradient_clip_algorithm": "foo"}, "gradient_clip_algorithm"),
    ({"trainer.max_steps": "-5"}, "trainer.max_steps is -5, but must be a whole number from -1 (no limit)"),
    ({"trainer.max_steps": "2.5"}, "trainer.max_steps is 2.5"),
    ({"trainer.max_steps": "1e20"}, "trainer.max_steps is 1e20"),
    ({"trainer.max_epochs": "-3"}, "trainer.max_epochs is -3"),
    ({"trainer.min_steps": "-1"}, "trainer.min_steps is -1"),
    ({"trainer.log_every_n_steps": "0"}, "trainer.log_every_n_steps is 0, but must be a whole number of at least 1"),
    ({"trainer.devices": "0"}, "trainer.devices is 0"),
    ({"trainer.devices": "-3"}, "trainer.devices is -3"),
    ({"trainer.devices": "some"}, "trainer.devices is some"),
    ({"trainer.devices": "[0,0]"}, "devices"),
    ({"trainer.num_nodes": "0"}, "trainer.num_nodes is 0"),
    ({"trainer.accumulate_grad_batches": "-1"}, "trainer.accumulate_grad_batches is -1"),
    ({"trainer.val_check_interval": "-3"}, "trainer.val_check_interval is -3"),
    ({"trainer.val_check_interval": "0"}, "trainer.val_check_interval is 0"),
    ({"trainer.check_val_every_n_epoch": "0"}, "trainer.check_val_every_n_epoch is 0"),
    ({"trainer.limit_train_batches": "0"}, "trainer.limit_train_batches is 0"),
    ({"trainer.limit_train_batches": "1.5"}, "trainer.limit_train_batches is 1.5"),
    ({"trainer.limit_val_batches": "-2"}, "trainer.limit_val_batches is -2"),
    ({"trainer.overfit_batches": "-1"}, "overfit_batches"),
    ({"trainer.precision": "bf17"}, "trainer.precision is bf17, but must be", "'bf16-mixed'"),
    ({"trainer.accelerator": "foo"}, "accelerator='foo'"),
    ({"trainer.accelerator": "cuda"}, "CUDAAccelerator"),
    ({"trainer.accelerator": "npu"}, "accelerator npu needs"),
    ({"trainer.accelerator": "npu", "trainer.strategy": "npu_ddp"}, "accelerator npu needs"),
    ({"trainer.strategy": "foo"}, "trainer.strategy is 'foo', but must be one of auto, ddp, sp_ddp"),
    ({"trainer.profiler": "foo"}, "profiler"),
    ({"trainer.deterministic": "maybe"}, "trainer.deterministic is maybe, but must be true or false"),
    ({"trainer.logger": "Foo"}, "trainer.logger: there is no class Foo"),
    ({"trainer.logger": "lightning.pytorch.loggers.CSVLogger"}, "trainer.logger: CSVLogger", "save_dir"),
    ({"trainer.plugins": "foo"}, "trainer.plugins"),
    ({"trainer.callbacks": "Foo"}, "trainer.callbacks: there is no class Foo"),
    ({"trainer.callbacks": "[Foo]"}, "trainer.callbacks: there is no class Foo"),
    ({"trainer.callbacks": "[3]"}, "trainer.callbacks", "class_path of a Callback"),
    ({"trainer.callbacks": json.dumps([callback("StepProgress", lines=1)])}, "StepProgress: Option 'lines'"),
    ({"trainer.callbacks": json.dumps([callback("RulerEval", tasks=["x"])])}, "unknown RULER task 'x'"),
    ({"trainer.callbacks": json.dumps([{"class_path": CHECKPOINT, "init_args": {"save_top_k": -3}}])}, "save_top_k=-3"),
    ({"trainer.nothing": "1"}, "--trainer.nothing=1: see `", "fit --help`"),
    ({"ckpt_path": "absent.ckpt"}, "--ckpt_path absent.ckpt does not exist"),
    ({"seed_everything": "x"}, "seed_everything is x"),
    ({"model.from_config": "null", "model.name_or_path": "no/such/model"}, "model.name_or_path 'no/such/model'"),
    ({"model.from_config": "null", "model.name_or_path": "x/absent"}, "model.name_or_path 'x/absent'"),
    ({"model.from_config": '{"model_type": "qwen99"}'}, "model.from_config", "qwen99"),
    ({"data.tokenizer": "no/such/tokenizer"}, "data.tokenizer 'no/such/tokenizer' cannot be loaded"),
    ({"data.train_files": "absent.jsonl"}, "absent.jsonl does not exist"),
    ({"data.seq_len": "long"}, "data.seq_len is long"),
]


@cases(CONFIGS)
def test_configs(arguments, capsys, wrong, said):
    write("x.yaml", wrong)
    refused(capsys, lambda: main([*command(arguments), "--config=x.yaml"]), *said)


@cases(ATTENTIONS)
def test_attention_files(arguments, capsys, wrong, said):
    write("x.yaml", wrong)
    plain = {key: value for key, value in arguments.items() if not key.startswith("model.attention")}
    refused(capsys, lambda: main(command({**plain, "model.attention": "x.yaml"})), *said)


def _ruler(**arguments) -> dict[str, str]:
    return {"trainer.callbacks": json.dumps([callback("RulerEval", **arguments)])}


def _checkpoints(**arguments) -> dict[str, str]:
    return {"trainer.callbacks": json.dumps([callback("Checkpoints", **arguments)])}


RANGES = [
    ({"seed_everything": "-4"}, "seed_everything is -4"),
    ({"model.lr": "-1"}, "model.lr is -1"),
    ({"model.lr": "inf"}, "model.lr is inf"),
    ({"model.betas": "[0.9, 1.5]"}, "model.betas", "1.5"),
    ({"model.betas": "[0.9]"}, "model.betas"),
    ({"model.weight_decay": "-0.1"}, "model.weight_decay is -0.1"),
    ({"model.warmup_steps": "-1"}, "model.warmup_steps is -1"),
    ({"model.loss_chunk_size": "0"}, "model.loss_chunk_size is 0"),
    ({"model.attention.lag_size": "0"}, "lag_size is 0"),
    ({"model.attention.retention_ratio": "1.5"}, "retention_ratio is 1.5"),
    ({"model.attention.retention_ratio": "0.001"}, "retention_ratio"),
    ({"model.attention.v_weight": "nan"}, "v_weight"),
    ({"model.attention.skip_layers": "[7]"}, "skip_layers"),
    ({"model.rope_parameters": '{"rope_tpye": "yarn"}'}, "model.rope_parameters", "rope_tpye"),
    ({"model.rope_parameters": '{"rope_type": "yarn"}'}, "model.rope_parameters", "factor"),
    ({"model.rope_parameters": '{"rope_type": "linear", "factor": -2.0}'}, "model.rope_parameters", "factor"),
    ({"model.rope_parameters": '{"rope_theta": 0}'}, "model.rope_parameters", "rope_theta"),
    ({"model.from_config": '{"num_hidden_layers": -1}'}, "model.from_config", "num_hidden_layers", "-1"),
    ({"model.from_config": '{"num_attention_heads": 3, "num_key_value_heads": 2}'}, "num_attention_heads 3 is not"),
    (
        {"model.from_config": '{"hidden_size": 30, "num_attention_heads": 4, "num_key_value_heads": 2}'},
        "size 30 is",
    ),
    ({"data.seq_len": "0"}, "data.seq_len is 0"),
    ({"data.micro_batch_size": "0"}, "data.micro_batch_size is 0"),
    ({"data.num_workers": "-1"}, "data.num_workers is -1"),
    ({"data.prepare_workers": "0"}, "data.prepare_workers is 0"),
    ({"data.mixture": '{"train.jsonl": 1e9}'}, "data.mixture", "1000"),
    ({"data.delimiter": ""}, "data.delimiter"),
    ({"data.cache_dir": "/proc/nowhere"}, "/proc/nowhere"),
    ({"runs_dir": "/proc/nowhere"}, "/proc/nowhere"),
    ({"run_name": "../x"}, "run_name"),
    ({"run_name": "a\nb"}, "run_name"),
    ({"run_name": "x" * 300}, "run_name"),
    ({"trainer.max_time": "soon"}, "trainer.max_time is soon"),
    ({"trainer.callbacks": json.dumps([callback("StepProgress", every_n_lines=0)])}, "StepProgress.every_n_lines is 0"),
    (_ruler(budgets=[]), "budgets"),
    (_ruler(budgets=[1.5]), "RulerEval.budgets", "1.5"),
    (_ruler(tasks=[]), "tasks"),
    (_ruler(tasks=["nope"]), "unknown RULER task 'nope'"),
    (_ruler(num_samples=0), "RulerEval.num_samples is 0"),
    (_ruler(lengths=[0]), "RulerEval.lengths", "0"),
    (_ruler(max_seconds=-1), "RulerEval.max_seconds is -1"),
    (_ruler(tasks=["qa_1"]), "qa_1", "squad"),
    (_checkpoints(every_n_steps=0), "Checkpoints.every_n_steps is 0"),
    (_checkpoints(keep_best=-1), "Checkpoints.keep_best is -1"),
]


@cases(RANGES)
def test_ranges(arguments, capsys, wrong, said):
    refused(capsys, lambda: main(command({**arguments, **wrong})), *said)


@cases(OPTIONS)
def test_options(arguments, capsys, wrong, said):
    if "model.attention" in wrong or "config" in wrong:
        arguments = {key: value for key, value in arguments.items() if not key.startswith("model.attention")}
    refused(capsys, lambda: main(command({**arguments, **wrong})), *said)


@cases(
    [
        (["test"], "test is no subcommand: give one of fit, validate, "),
        (["fitt"], "fitt is no subcommand: did you mean fit?"),
        (["--config", "x.yaml", "fit"], "--config is no subcommand"),
        (["fit", "--model.lr"], "model.lr: expected one argument"),
        (["fit", "more"], "unrecognized arguments: more: see `lrsa fit --help`"),
        (["fit", "--model.atention", "LRSA"], "--model.atention LRSA: did you mean --model.attention?"),
        (["fit", "--trainer.callbacks+=LossCurv"], "there is no class LossCurv: did you mean LossCurve?"),
        (["fit", "--lr", "1e-4"], "--lr 1e-4: did you mean --model.lr?"),
        (["export", "runs/x", "--output", "y", "--dtyp", "float16"], "--dtyp float16: did you mean --dtype?"),
        (["eval", "--lenghts", "4096"], "--lenghts 4096: did you mean --lengths?"),
    ]
)
def test_command_lines(capsys, wrong, said):
    refused(capsys, lambda: main(wrong), *said)


@pytest.fixture(scope="module")
def model_dir(tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_model(vocab_size=len(tokenizer)).save_pretrained(folder)
    return folder


MODELS = [
    ({"model_type": "qwen99"}, "qwen99"),
    ({"hidden_size": "32"}, "hidden_size"),
    ({"rope_parameters": [1]}, "rope_parameters"),
    ({"model_type": "mine", "auto_map": {"AutoConfig": "code.Config"}}, "code in it (auto_map) is not run"),
    ("{broken", "config.json", "not a valid JSON file"),
    ("", "config.json", "not a valid JSON file"),
    ("[]", "model_type"),
    (b"\xff\xfe\x00", "config.json"),
]


@cases(MODELS)
def test_model_folders(arguments, capsys, model_dir, wrong, said):
    shutil.copytree(model_dir, "model")
    config = json.loads(Path("model/config.json").read_text())
    write("model/config.json", json.dumps(config | wrong) if isinstance(wrong, dict) else wrong)
    chosen = {**arguments, "model.from_config": "null", "model.name_or_path": "model"}
    refused(capsys, lambda: main(command(chosen)), "model.name_or_path 'model' cannot be loaded", *said)


def test_a_file_is_no_model(arguments, capsys, model_dir):
    chosen = {"model.from_config": "null", "model.name_or_path": str(model_dir / "config.json")}
    refused(capsys, lambda: main(command({**arguments, **chosen})), "config.json' is a file: give the folder")


TOKENIZERS = [
    ({"tokenizer.json": "{broken"}, "double quotes"),
    ({"tokenizer.json": "{}"}, "added_tokens"),
    ({"tokenizer_config.json": "{broken"}, "double quotes"),
    ({"tokenizer_config.json": '{"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["c.T", "c.T"]}}'}, "not run"),
]


@cases(TOKENIZERS)
def test_tokenizer_folders(arguments, capsys, tokenizer_dir, wrong, said):
    shutil.copytree(tokenizer_dir, "own")
    for name, text in wrong.items():
        write(f"own/{name}", text)
    call = command({**arguments, "data.tokenizer": "own"})
    refused(capsys, lambda: main(call), "data.tokenizer 'own' cannot be loaded", *said)
