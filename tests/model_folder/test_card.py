"""The model card against the run that it describes."""

import json
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from lrsa_lightning.cli import main
from lrsa_lightning.model_folder.card import Card
from lrsa_lightning.model_folder.engines import misreadings
from lrsa_lightning.model_folder.export import export
from lrsa_lightning.ruler.records import Record, write_records
from lrsa_lightning.trained_model import RunCheckpoint
from tests.conftest import make_model
from tests.runs import callback, command

pytestmark = pytest.mark.usefixtures("in_tmp_path")
RUN = Path("runs/x")


def train(arguments, **options) -> None:
    callbacks = json.dumps([callback("Checkpoints")])
    main(command({**arguments, "trainer.max_steps": "2", "trainer.callbacks": callbacks, **options}))


def record(number: int, budget: str, score: float) -> Record:
    return Record(f"vt-{number}", "vt", 512, budget, 0.99, ["a"], [], "a", score)


def card_of(folder: str) -> ModelCard:
    return ModelCard.load(Path(folder) / "README.md")


def test_it_names_attention_training_data_and_scores(arguments, train_file):
    train(arguments)
    records = [record(1, "r1", 1.0), record(2, "r1", 0.5), record(1, "r0.5", 0.0)]
    Path(RUN / "ruler").mkdir()
    write_records(RUN / "ruler" / "step-000002.jsonl", records)
    write_records(RUN / "ruler" / "step-000001.jsonl", [record(9, "r0.25", 1.0)])
    export(RUN, Path("exported"))
    rows = card_of("exported").text.splitlines()
    last = json.loads((RUN / "metrics.jsonl").read_text().splitlines()[-1])
    for row in (
        "| lag_size | 16 |",
        "| optimizer steps | 2 |",
        f"| tokens seen | {int(last['train/tokens'])} |",
        f"| label tokens seen | {int(last['train/answer_tokens'])} |",
        "| data.seq_len | 160 |",
        "| model.lr | 0.01 |",
        "| vt | 512 | r1 | 75.0 | 25.0 | 2 |",
        "| vt | 512 | r0.5 | 0.0 |  | 1 |",
    ):
        assert row in rows
    assert any(row.startswith("| train.jsonl | ") for row in rows)
    assert "r0.25" not in card_of("exported").text
    assert str(train_file.parent) not in Path("exported/README.md").read_text()


def test_what_is_unknown_stays_unsaid(arguments):
    train(arguments)
    export(RUN, Path("exported"))
    card = card_of("exported")
    assert card.data.to_dict().keys() == {"library_name", "pipeline_tag", "tags"}
    assert "RULER" not in card.text
    assert "from random weights" in card.text


def test_a_base_on_the_hub_is_named_and_a_folder_is_not(arguments, tokenizer):
    train(arguments)
    export(RUN, Path("base"))
    del arguments["model.from_config"]
    train(arguments, **{"run_name": "y", "model.name_or_path": "base"})
    export(Path("runs/y"), Path("exported"))
    assert "from a local folder with" in card_of("exported").text
    config = Path("runs/y/config.yaml")
    assert f"name_or_path: {Path('base').absolute()}" in config.read_text()
    config.write_text(config.read_text().replace(f"{Path('base').absolute()}\n", "someone/base\n"))
    trained = RunCheckpoint(Path("runs/y/checkpoints/last.ckpt"))
    Card(trained, trained.attention, tokenizer, False, []).write(Path("exported"))
    assert card_of("exported").data.base_model == "someone/base"


def test_the_code_in_it_runs(arguments, capsys, monkeypatch, tmp_path):
    train(arguments)
    export(RUN, Path("exported"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    capsys.readouterr()
    (code,) = re.findall(r"```python\n(.*?)```", card_of("exported").text, re.DOTALL)
    assert "PreTrainedTokenizerFast" in code
    exec(code.replace("FOLDER", "exported"), {})
    assert capsys.readouterr().out.startswith("The quick brown fox")


def test_full_attention_is_loaded_without_code(arguments):
    for name in [name for name in arguments if name.startswith("model.attention.")]:
        del arguments[name]
    train(arguments, **{"model.attention": "Vanilla"})
    export(RUN, Path("exported"))
    text = card_of("exported").text
    assert "was `Vanilla`" in text
    assert "custom_generate" not in text


def test_a_shape_that_vllm_misreads_is_said_in_the_card_and_in_the_log(arguments, caplog):
    keys = {**json.loads(arguments["model.from_config"]), "head_dim": 16}
    train(arguments, **{"model.from_config": json.dumps(keys)})
    export(RUN, Path("exported"))
    said = "Its qwen2 takes hidden_size / num_attention_heads = 8 for the head size, but head_dim is 16"
    assert said in card_of("exported").text
    assert said in caplog.text


@pytest.mark.parametrize("shape", [("qwen2", {}), ("qwen2", {"head_dim": 8}), ("qwen3", {"head_dim": 16})], ids=str)
def test_other_shapes_are_read_right(shape):
    model_type, keys = shape
    assert not misreadings(make_model(model_type, **keys).config)
