"""What the tests share: tiny models, a tokenizer made on the spot, small files."""

import json
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

# The models are tiny: a second thread only waits, and where another process wants its core, for long.
torch.set_num_threads(1)
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TINY_MODEL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}
QUIET = {
    "trainer.logger": '[{"class_path": "lrsa_lightning.callbacks.MetricsFile"}]',
    "trainer.callbacks": "[]",
    "trainer.enable_model_summary": "false",
}


def make_model(model_type: str = "qwen2", vocab_size: int = 97, seed: int = 0, **keys):
    """A tiny decoder whose weights are large enough that attention matters."""
    torch.manual_seed(seed)
    config = CONFIG_MAPPING[model_type](vocab_size=vocab_size, **{**TINY_MODEL, **keys})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    return model


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, lossless, of a few hundred tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    text = ["The grass is green. One of the special magic numbers for blue-house is: 1234567."] * 10
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        text,
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


@pytest.fixture(scope="session")
def tokenizer_dir(tokenizer, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(directory)
    return directory


def longalign_row(document: str, question: str, answer: str) -> dict:
    """One line of a file in LongAlign's format."""
    user = {"role": "user", "content": f"{document}\n\n{question}"}
    return {"messages": [user, {"role": "assistant", "content": answer}]}


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def sample_rows() -> list[dict]:
    """24 short samples with documents of two or three paragraphs."""
    return [
        longalign_row(
            "\n\n".join(f"House {i}.{j} is painted in colour {i * j % 7}." for j in range(2 + i % 2)),
            f"Which colour has house {i}?",
            f"Colour {i % 7}.",
        )
        for i in range(24)
    ]


@pytest.fixture
def train_file(tmp_path) -> Path:
    return write_jsonl(tmp_path / "train.jsonl", sample_rows())


@pytest.fixture
def in_tmp_path(tmp_path, monkeypatch):
    """A folder of its own to run in, offline."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("LRSA_RUN_NAME", raising=False)
    monkeypatch.setattr(sys, "argv", ["lrsa"])


def tiny_run(train_file: Path, tokenizer: PreTrainedTokenizerFast, tokenizer_dir: Path) -> dict[str, str]:
    """The options of a run of a few seconds: six steps are an epoch."""
    return {
        "model.from_config": json.dumps({**TINY_MODEL, "vocab_size": len(tokenizer)}),
        "model.lr": "1e-2",
        "model.attention": "LRSA",
        "model.attention.lag_size": "16",
        "model.attention.sink_size": "4",
        "data.train_files": str(train_file),
        "data.tokenizer": str(tokenizer_dir),
        "data.seq_len": "160",
        "data.global_batch_size": "4",
        "data.micro_batch_size": "1",
        "data.num_workers": "0",
        "trainer.max_steps": "6",
        "trainer.precision": "32-true",
        **QUIET,
    }


@pytest.fixture
def arguments(train_file, tokenizer, tokenizer_dir) -> dict[str, str]:
    """The options of such a run on the CPU, named x, with two micro-batches a step."""
    own = {"trainer.accelerator": "cpu", "data.micro_batch_size": "2", "run_name": "x"}
    return tiny_run(train_file, tokenizer, tokenizer_dir) | own


@pytest.fixture
def two_steps(arguments, in_tmp_path) -> dict[str, str]:
    """The options of a run of two steps, with a checkpoint of each, that has ended."""
    from lrsa_lightning.cli import main
    from tests.runs import EACH_STEP, command

    arguments |= {"trainer.callbacks": EACH_STEP, "trainer.max_steps": "2"}
    main(command(arguments))
    return arguments


@pytest.fixture
def folder(installed, tmp_path) -> str:
    """A folder with the model of a file's fixture `installed`."""
    installed.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")
