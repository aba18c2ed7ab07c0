"""What `lrsa doctor` says of machines: this one, and others that are made up."""

import json
import shutil
from contextlib import nullcontext

import pytest
import torch

from lrsa_lightning import doctor
from lrsa_lightning.cli import main

GIB = 2**30


@pytest.fixture
def two_hoppers(monkeypatch):
    """A machine with two H100s without the packages of the extra cuda."""
    answers = {"is_available": True, "device_count": 2, "get_device_capability": (9, 0), "get_device_name": "H100"}
    for name, answer in (answers | {"mem_get_info": (78 * GIB, 79 * GIB)}).items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(doctor, "_backend", lambda kind: "flex, kernel TRITON")
    monkeypatch.setattr(doctor, "_installed", lambda package: None)
    monkeypatch.setattr(doctor, "missing", lambda kind: "the package liger-kernel is not installed")


def report(capsys, status: int = 0) -> dict:
    with pytest.raises(SystemExit) if status else nullcontext() as ended:
        main(["doctor", "--json"])
    assert not status or ended.value.code == status
    return json.loads(capsys.readouterr().out)


def test_this_machine(capsys, in_tmp_path, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "_DRIVERS", tmp_path)
    found = report(capsys)
    assert found["versions"]["torch"] == torch.__version__
    assert found["devices"] | {"cpu": ""} == {"cpu": "", "cuda": "none", "npu": "none"}
    free = float(found["space"]["disk here, for runs/"].split()[0])
    assert free == pytest.approx(shutil.disk_usage(".").free / GIB, abs=1)
    assert found["choices"]["accelerator"] == "cpu"
    assert found["choices"]["trainer.strategy auto"] == "one device"
    assert found["choices"]["attention backend auto"] == "fill"
    assert found["missing"] == []


def test_the_text_has_each_section(capsys):
    found = doctor.examine()
    text = str(found)
    places = [text.index(f"{section}\n") for section in vars(found)]
    assert places == sorted(places)
    assert "attention backend auto" in text


def test_two_gpus_without_their_packages(capsys, two_hoppers):
    found = report(capsys, status=1)
    assert found["devices"]["cuda"].count("H100 (capability 9.0), 78.0 GiB of 79.0 GiB free") == 2
    assert found["choices"]["trainer.strategy auto"] == "sp_fsdp2"
    assert found["choices"]["model.fused_layers auto"].startswith("plain: the package liger-kernel is not installed")
    lacks = "\n".join(found["missing"])
    for package in ("liger-kernel", "flash-attn-4"):
        assert f"{package}, for " in lacks
    assert "pip install 'lrsa-lightning[cuda]'" in lacks


@pytest.mark.parametrize(
    ("driver", "said"), [("nvidiactl", "install a CUDA build of torch"), ("davinci0", "pip install 'torch_npu==")]
)
def test_a_device_that_cannot_be_used(capsys, monkeypatch, tmp_path, driver, said):
    (tmp_path / driver).touch()
    monkeypatch.setattr(doctor, "_DRIVERS", tmp_path)
    (line,) = report(capsys, status=1)["missing"]
    assert said in line


def test_no_compiler(capsys, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert report(capsys, status=1)["missing"][-1].endswith("apt install g++")
