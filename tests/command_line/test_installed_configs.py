"""`configs/...` names the package's files from any folder."""

from pathlib import Path

import pytest

from lrsa_lightning.cli import main
from lrsa_lightning.command_line.installed_configs import with_installed
from lrsa_lightning.configs import CONFIG_DIR

pytestmark = pytest.mark.usefixtures("in_tmp_path")


@pytest.mark.parametrize("join", ["{}", "--config={}", "--model.attention={}"])
def test_a_name_is_the_installed_file_unless_there_is_one_here(join):
    name = "configs/attention/lrsa.yaml"
    given = join.format(name)
    assert with_installed(["fit", given]) == ["fit", join.format(CONFIG_DIR / "attention/lrsa.yaml")]
    Path("configs/attention").mkdir(parents=True)
    Path(name).touch()
    assert with_installed(["fit", given]) == ["fit", given]


@pytest.mark.parametrize(
    "other", ["configs/absent.yaml", "configs/attention", "my/configs/demo.yaml", "--config", "a=b"]
)
def test_other_words_stay(other):
    assert with_installed([other]) == [other]


def test_a_run_is_configured_from_any_folder(capsys):
    with pytest.raises(SystemExit) as caught:
        main(
            [
                "fit",
                "--config",
                "configs/demo.yaml",
                "--model.attention=configs/attention/vanilla.yaml",
                "--print_config",
            ]
        )
    assert caught.value.code == 0
    assert "lrsa_lightning.attention.Vanilla" in capsys.readouterr().out
