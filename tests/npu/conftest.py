"""Tests of the NPU plug-in. Those that need the device run under `make test-npu`."""

import os

import pytest

WHY = "needs torch_npu on stand-in CANN libraries: make test-npu"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "LRSA_NPU_STANDIN" not in os.environ:
        for item in items:
            if item.get_closest_marker("npu"):
                item.add_marker(pytest.mark.skip(reason=WHY))
