"""A model with random weights, a tokenizer for numbers, and rows of random tokens, as files for `lrsa fit`."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

_QWEN = {"max_position_embeddings": 131072, "rope_theta": 1e6, "rms_norm_eps": 1e-6, "model_type": "qwen2"}
SHAPES = {
    "tiny": {
        **{"vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True},
    },
    "qwen2.5-0.5b": {
        **{"vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24},
        **{"num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True},
    },
    "qwen2.5-1.5b": {
        **{"vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28},
        **{"num_attention_heads": 12, "num_key_value_heads": 2, "tie_word_embeddings": True},
    },
    "qwen2.5-7b": {
        **{"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28},
        **{"num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False},
    },
}


def config_keys(name: str, length: int) -> dict[str, Any]:
    """Keys of a model's configuration.

    Args:
        name: of `SHAPES`, or JSON: an object with keys that override those of qwen2.5-1.5b.
        length: tokens of a row; the model gets at least as many positions.

    Raises:
        ValueError: it is neither.
    """
    own = json.loads(name) if name.lstrip().startswith("{") else None
    if own is None and name not in SHAPES:
        raise ValueError(f"{name!r} is none of {', '.join(SHAPES)}, nor a JSON object")
    keys = _QWEN | (SHAPES["qwen2.5-1.5b"] | own if own is not None else SHAPES[name])
    return keys | {"max_position_embeddings": max(keys["max_position_embeddings"], length)}


def model_config(keys: dict[str, Any]) -> Any:
    """The configuration of transformers that has these keys."""
    from transformers import CONFIG_MAPPING

    keys = dict(keys)
    return CONFIG_MAPPING[keys.pop("model_type")](**keys)


def random_model(keys: dict[str, Any], device: torch.device) -> Any:
    """A model with random weights in bfloat16, drawn on the device: on the host that takes a minute."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with device:
        return AutoModelForCausalLM.from_config(model_config(keys), dtype=torch.bfloat16).eval()


@dataclass(frozen=True)
class Inputs:
    """Files of a bench.

    Attributes:
        folder: where they lie.
        keys: of the model's configuration.
        length: tokens of a row.
        labels: label tokens of a row, its last ones.
        rows: how many rows there are.
    """

    folder: Path
    keys: dict[str, Any]
    length: int
    labels: int
    rows: int

    @property
    def model(self) -> Path:
        """Folder with the weights, in bfloat16, and the tokenizer."""
        return self.folder / "model"

    @property
    def train_file(self) -> Path:
        return self.folder / "train.jsonl"

    @property
    def ids(self) -> np.ndarray:
        """int64 [rows, length + 1], the same at each call: the last id of a row is only a label."""
        vocabulary = self.keys["vocab_size"]
        ids = np.random.default_rng(0).integers(0, vocabulary - 1, (self.rows, self.length + 1))
        ids[:, -1] = vocabulary - 1  # the end token
        return ids

    def wait(self) -> None:
        """Waits until another process has written them."""
        while not self.train_file.exists():
            time.sleep(0.2)

    def write(self, device: torch.device) -> None:
        """Writes what is not there yet."""
        if self.train_file.exists():
            return
        random_model(self.keys, device).save_pretrained(self.model)
        self._write_tokenizer()
        first_label = self.length + 1 - self.labels
        partial = self.train_file.with_suffix(".partial")
        with partial.open("w", encoding="utf-8") as file:
            for row in self.ids.tolist():
                parts = {"document": row[: first_label - 1], "question": row[first_label - 1 : first_label]}
                parts["answer"] = row[first_label:-1]
                file.write(json.dumps({name: " ".join(map(str, part)) for name, part in parts.items()}) + "\n")
        partial.rename(self.train_file)  # it comes last: whoever sees it finds everything

    def _write_tokenizer(self) -> None:
        """Token i is the number i as a word; the last token ends an answer."""
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        end = self.keys["vocab_size"] - 1
        words = {str(i): i for i in range(end)} | {"<end>": end}
        core = Tokenizer(models.WordLevel(words, unk_token="0"))
        core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", pad_token="<end>")
        tokenizer.save_pretrained(self.model)
