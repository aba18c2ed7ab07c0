"""docs/elastic.md: its YAML and its loop run, and its examples are those of the schedule."""

import re
from pathlib import Path

import torch
import yaml

from lrsa_lightning import LRSA
from lrsa_lightning.attention.retention import Retention
from lrsa_lightning.commands.training import make_parser
from lrsa_lightning.configs import CONFIG_DIR
from tests.conftest import make_model

PAGE = (Path(__file__).parents[2] / "docs" / "elastic.md").read_text(encoding="utf-8")


def test_the_yaml_is_a_mode():
    given = yaml.safe_load(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1])["model"]["attention"]["init_args"]
    mode = LRSA(**given)
    assert mode.retention_weights == (1, 2, 1)
    assert [round(part, 2) for _, part in mode.phases()] == [0.25, 0.5, 0.25]
    assert given.keys() >= {*re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)}


def test_the_files_are_modes_of_the_command():
    for name, schedule in re.findall(r"configs/attention/(lrsa_(elastic|curriculum))\.yaml", PAGE):
        config = make_parser().parse_args([f"--model.attention={CONFIG_DIR / 'attention' / f'{name}.yaml'}"])
        mode = LRSA(**config.model.attention.init_args)
        assert mode.retention_ratio == (1.0, 0.5, 0.25)
        assert mode.needs_total_steps == (schedule == "curriculum")
        assert mode.serving_ratio == 0.25


def test_the_curriculum_of_ten_steps():
    said = re.search(
        r"steps 0 to (\d) of 10 have r = 1, steps (\d) to (\d) have 1/2, steps (\d) to (\d)\s+have 1/4", PAGE
    )
    ends = [int(number) for number in said.groups()]
    retention = Retention.of([1.0, 0.5, 0.25], None, "curriculum", None)
    places = [retention.place(step, 10, 0) for step in range(10)]
    assert places == [0] * (ends[0] + 1) + [1] * (ends[2] - ends[1] + 1) + [2] * (ends[4] - ends[3] + 1)


def test_the_loop_trains():
    model = make_model()
    ids = torch.randint(0, 97, (1, 300), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = model.lm_head.weight.clone()
    names = {"model": model, "batches": [{"input_ids": ids, "labels": ids}] * 4, "optimizer": optimizer}
    exec(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1], names)
    assert not torch.equal(model.lm_head.weight, before)
    assert names["mode"].rule(0).kept == 16
