"""The hardware check on the stand-ins. This tests the check, not any hardware."""

import json
import subprocess
import sys

import pytest

from lrsa_lightning.npu.check.__main__ import ITEMS, main

pytestmark = pytest.mark.npu


def test_every_item_runs_through(tmp_path):
    out = tmp_path / "npu_check.json"
    command = [sys.executable, "-m", "lrsa_lightning.npu.check", "--small", "--devices", "2", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    results = json.loads(out.read_text())
    assert [item["error"] for item in results["items"] if not item["passed"]] == [], done.stderr
    assert done.returncode == 0
    assert [item["item"] for item in results["items"]] == [item.__name__ for item in ITEMS]
    assert all(item["numbers"] for item in results["items"])
    assert results["small"]


def test_a_failure_is_reported_and_exits_non_zero(tmp_path, capsys):
    out = tmp_path / "npu_check.json"
    assert main(["--small", "--devices", "9", "--only", "versions", "random_numbers", "--out", str(out)]) == 1
    versions, numbers = json.loads(out.read_text())["items"]
    assert not versions["passed"]
    assert "devices are missing" in versions["error"]
    assert numbers["passed"]  # the next items still run
    assert "FAIL  versions" in capsys.readouterr().out


def test_a_kernel_that_is_wrong_fails(tmp_path, monkeypatch):
    """Softmax without its scale."""
    import torch_npu

    genuine = torch_npu.npu_fusion_attention
    monkeypatch.setattr(torch_npu, "npu_fusion_attention", lambda *a, scale, **k: genuine(*a, scale=1.0, **k))
    out = tmp_path / "npu_check.json"
    assert main(["--small", "--only", "fused_attention", "merged_gradients", "lrsa_attention", "--out", str(out)]) == 1
    assert not any(item["passed"] for item in json.loads(out.read_text())["items"])
