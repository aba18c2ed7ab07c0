"""docs/architectures.md says what LRSA does in each decoder, and nothing else."""

import logging

import pytest
import transformers

from tests.attention import architecture_page

LINES = architecture_page.PAGE.read_text(encoding="utf-8").splitlines(keepends=True)


@pytest.fixture(autouse=True)
def this_version():
    if f"transformers {transformers.__version__}." not in LINES[2]:
        pytest.skip("the page is that of another version of transformers")


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text", "gpt_oss", "jamba", "llama", "mistral", "qwen3_next"])
def test_a_row_says_what_was_found(name):
    assert architecture_page.row(name) in LINES


def test_the_head_names_the_decoders_that_are_trained():
    assert "".join(LINES).startswith(architecture_page.head())


@pytest.mark.slow
def test_the_page_says_what_was_found(caplog):
    with caplog.at_level(logging.ERROR):
        assert architecture_page.page() == "".join(LINES), f"rewrite it: {architecture_page.COMMAND}"
