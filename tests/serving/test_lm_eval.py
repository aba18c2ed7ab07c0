"""The model `lrsa` of lm-eval against its model `hf`, against the mode's own forward, and against our `generate`.

The commands of docs/lm_eval.md run.
"""

import json
import re
import shlex
from functools import partialmethod
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from lrsa_lightning import LRSA, generate
from lrsa_lightning.attention.saved_mode import save_mode
from lrsa_lightning.cli import main
from lrsa_lightning.errors import InputError
from lrsa_lightning.serving.lm_eval import LRSALM
from tests.conftest import make_model

ROOT = Path(__file__).parents[2]
MODE = LRSA(lag_size=8, sink_size=4, retention_ratio=0.5)
TASKS = ("tiny_choice", "tiny_answer", "tiny_text")
CHOICE = """
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: ["green", "blue", "7"]
doc_to_target: gold
"""
ANSWER = """
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["."], max_gen_toks: 24}
metric_list: [{metric: exact_match}]
"""
TEXT = """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}]
"""


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory) -> Path:
    """A model's folder that names its rule, with three tasks beside it: prompts of 7 to 90 tokens."""
    folder = tmp_path_factory.mktemp("lm_eval")
    model = make_model(vocab_size=len(tokenizer))
    save_mode(model.config, MODE)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [
        {"text": "The grass is green. " * n + f"{n} is", "gold": n % 3, "answer": "green"} for n in (1, 11, 4, 18, 7)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tasks").mkdir()
    for name, body in zip(TASKS, (CHOICE, ANSWER, TEXT), strict=True):
        data = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder}/rows.jsonl}}}}\ntest_split: test\n"
        (folder / "tasks" / f"{name}.yaml").write_text(f"task: {name}\n{data}{body}")
    return folder


@pytest.fixture(autouse=True)
def offline_and_alone(tmp_path, monkeypatch):
    """Without the network, and without the thousands of tasks that lm-eval's command would list for 12 s."""
    only_ours = partialmethod(TaskManager.__init__, include_defaults=False)
    monkeypatch.setattr(TaskManager, "__init__", only_ours)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.chdir(tmp_path)


def evaluate(folder: Path, model: str, batch_size: int = 1, **arguments) -> dict:
    """The scores of the tasks and, for each sample, what the model answered."""
    arguments = {"pretrained": str(folder / "model"), **arguments}
    manager = TaskManager(include_path=str(folder / "tasks"))
    outcome = simple_evaluate(
        model, arguments, [*TASKS], task_manager=manager, batch_size=batch_size, device="cpu", bootstrap_iters=0
    )
    answers = {task: [sample["resps"] for sample in outcome["samples"][task]] for task in TASKS}
    return {"scores": outcome["results"], "answers": answers}


def numbers(answers: list) -> torch.Tensor:
    return torch.tensor([float(part) for part in re.findall(r"-?\d+\.\d+", str(answers))])


def same_likelihoods(first: dict, second: dict) -> bool:
    pairs = [
        (numbers(first["answers"][task]), numbers(second["answers"][task])) for task in ("tiny_choice", "tiny_text")
    ]
    return all(torch.allclose(one, other, rtol=1e-4) for one, other in pairs)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_with_everything_kept_the_results_are_those_of_hf(folder, batch_size):
    dense = evaluate(folder, "hf", attn_implementation="sdpa")
    ours = evaluate(folder, "lrsa", batch_size, retention_ratio=1)
    assert ours["answers"]["tiny_answer"] == dense["answers"]["tiny_answer"]
    assert ours["scores"]["tiny_choice"] == dense["scores"]["tiny_choice"]
    assert same_likelihoods(ours, dense)


def test_a_compressed_batch_equals_its_rows_and_not_the_dense_model(folder):
    alone, together = (evaluate(folder, "lrsa", batch_size) for batch_size in (1, 5))
    assert together["answers"]["tiny_answer"] == alone["answers"]["tiny_answer"]
    assert same_likelihoods(together, alone)
    dense = evaluate(folder, "hf", attn_implementation="sdpa")
    assert alone["answers"]["tiny_answer"] != dense["answers"]["tiny_answer"]
    assert not same_likelihoods(alone, dense)


def test_likelihoods_are_those_of_the_training_mask_and_answers_those_of_generate(folder, tokenizer):
    answers = evaluate(folder, "lrsa", 5, retention_ratio=0.25)["answers"]
    model, mode = make_model(vocab_size=len(tokenizer)), LRSA(lag_size=8, sink_size=4, retention_ratio=0.25)
    for row, line in enumerate((folder / "rows.jsonl").read_text().splitlines()):
        text = json.loads(line)["text"]
        prompt = torch.tensor([tokenizer(text).input_ids])
        new = tokenizer.decode(generate(model, prompt, mode, 24)[0], skip_special_tokens=True)
        assert answers["tiny_answer"][row] == [[new.split(".")[0]]]
        for choice, answer in zip(("green", "blue", "7"), answers["tiny_choice"][row], strict=True):
            ids = torch.tensor([tokenizer(f"{text} {choice}").input_ids])
            with mode.installed(model), torch.no_grad():
                logs = model(ids, use_cache=False).logits.log_softmax(-1)[0, prompt.shape[1] - 1 : -1]
            expected = logs.gather(1, ids[0, prompt.shape[1] :, None]).sum()
            assert float(answer[0][0]) == pytest.approx(float(expected), rel=1e-4)


def test_the_folder_says_the_rule_and_arguments_replace_parts_of_it(folder):
    path = str(folder / "model")
    assert LRSALM(path, device="cpu").mode.rule() == MODE.rule()
    mode = LRSALM(path, device="cpu", retention_ratio=0.25, scorer="random", seed=3).mode
    assert mode.rule() == LRSA(lag_size=8, sink_size=4, retention_ratio=0.25, scorer="random", seed=3).rule()


def test_an_adapter_runs_under_its_own_rule(folder, tokenizer, tmp_path):
    settings = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "model"), settings)
    adapted.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    mode = LRSA(lag_size=8, sink_size=2, retention_ratio=0.25)
    (tmp_path / "adapter" / "base_config.json").write_text(json.dumps({"lrsa": mode.settings()}))
    model, text = LRSALM(str(tmp_path / "adapter"), device="cpu"), "The grass is green. " * 9
    request = Instance("generate_until", {}, (text, {"until": ["."], "max_gen_toks": 20}), 0)
    prompt = torch.tensor([tokenizer(text).input_ids])
    new = tokenizer.decode(generate(adapted.merge_and_unload(), prompt, mode, 20)[0], skip_special_tokens=True)
    assert model.generate_until([request]) == [new.split(".")[0]]
    (tmp_path / "adapter" / "base_config.json").write_text('{"rope_parameters": {"rope_type": "linear", "factor": 2}}')
    with pytest.raises(InputError, match="has changed the RoPE of its base"):
        LRSALM(str(tmp_path / "adapter"), device="cpu")


def test_text_is_split_as_the_folders_tokenizer_does(folder, tokenizer):
    """Beside a Qwen2 model AutoTokenizer makes a token of each digit."""
    number, path = "The magic number is 1234567.", str(folder / "model")
    assert LRSALM(path, device="cpu").tok_encode(number) == tokenizer(number).input_ids
    assert HFLM(path, device="cpu").tok_encode(number) != tokenizer(number).input_ids


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"retention_ration": 0.5}, "does not know 'retention_ration' in --model_args: did you mean retention_ratio?"),
        ({"serving_ratio": 0.5}, "does not know 'serving_ratio'"),
        ({"attn_implementation": "sdpa"}, "does not know 'attn_implementation'"),
        ({"retention_ratio": 1.5}, "retention_ratio"),
        ({"skip_layers": [7]}, r"skip_layers \[7\] do not exist"),
    ],
)
def test_what_it_does_not_know_is_refused_before_weights_are_read(folder, arguments, said, monkeypatch):
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", None)
    with pytest.raises(InputError, match=said):
        LRSALM(str(folder / "model"), device="cpu", **arguments)


def test_a_folder_without_a_rule_needs_one(tokenizer, tmp_path):
    make_model(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="names no rule"):
        LRSALM(str(tmp_path), device="cpu")
    assert LRSALM(str(tmp_path), device="cpu", lag_size=8).mode.lag_size == 8


def test_the_entry_point_of_the_package_is_the_model():
    """lm-eval after 0.4.13 looks for it in the group lm_eval.models."""
    listed = (ROOT / "pyproject.toml").read_text()
    target = re.search(r'entry-points."lm_eval.models"\]\nlrsa = "(.*)"', listed)[1]
    assert EntryPoint("lrsa", target, "lm_eval.models").load() is LRSALM


def test_the_commands_of_the_page_run(folder, capsys):
    page = (ROOT / "docs" / "lm_eval.md").read_text()
    commands = [
        re.sub(r"\\\n\s*", "", line) for line in re.findall(r"^lrsa lm_eval (?:.*\\\n)*.*$", page, re.MULTILINE)
    ]
    assert len(commands) >= 3
    for command in commands:
        words = command.replace("FOLDER", str(folder / "model")).replace("TASK", "tiny_choice")
        main([*shlex.split(words, comments=True)[1:], "--include_path", str(folder / "tasks"), "--device", "cpu"])
        assert "|tiny_choice|" in capsys.readouterr().out


def test_a_mistake_is_one_line(folder, capsys):
    arguments = f"pretrained={folder / 'model'},retention=0.5"
    with pytest.raises(SystemExit) as caught:
        main(["lm_eval", "--model", "lrsa", "--model_args", arguments, "--tasks", "tiny_choice",
              "--include_path", str(folder / "tasks"), "--device", "cpu"])  # fmt: skip
    assert caught.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("lrsa: error: --model lrsa does not know 'retention'")
