"""YAML that is taken and YAML that is refused; tests/test_bad_input.py has it in every file that is read."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from yaml import safe_dump

from lrsa_lightning.errors import InputError
from lrsa_lightning.files.yaml_text import check_yaml, load_yaml, read_mapping

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
    max_leaves=20,
)


@settings(max_examples=60, deadline=None)
@given(PLAIN, st.booleans())
def test_what_can_be_written_is_read_back(value, flow):
    assert load_yaml(safe_dump(value, default_flow_style=flow), "x") == value


@pytest.mark.parametrize(
    "text",
    [
        "a: {b: 1}\nc: {b: 1}\n",
        "- {a: 1}\n- {a: 1}\n",
        "a: [{b: 1}, {b: 2}]\n",
        "base: &base {lr: 1}\nmodel:\n  <<: *base\n  lr: 2\n",
        "text: |\n  a: 1\n  a: 2\n",
        "a: &x [1, 2]\nb: *x\nc: *x\n",
        "a: b\nb: a\n",
    ],
)
def test_equal_words_that_are_not_repeated_keys_are_accepted(text):
    check_yaml(text, "x")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\na: 2\n", "x, line 2: key a was given in line 1 already"),
        ("a: 1\n'a': 2\n", "x, line 2"),
        ("a:\n  - b: 1\n    b: 2\n", "x, line 3: key b was given in line 2"),
        ("? {a: 1}\n: 2\n", "unhashable key"),
        ("a: 2024-99-99\n", "month"),
        ("a: \x00\n", "control characters"),
    ],
)
def test_what_is_refused_is_named(text, said):
    with pytest.raises(InputError, match=said):
        load_yaml(text, "x")


def test_lines_of_keys_are_returned():
    assert check_yaml("a:\n  b: 1\nc: [{d: 1}]\n", "x") == {"a": 1, "a.b": 2, "c": 3}


@pytest.mark.parametrize("text", ["a: &a [*a]\n", "[" * 100_000, "a: " * 100_000], ids=["itself", "deep", "keys"])
def test_hostile_text_is_refused_quickly(text):
    started = time.process_time()
    with pytest.raises(InputError):
        load_yaml(text, "x")
    assert time.process_time() - started < 2


def test_a_byte_order_mark_is_ignored(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_bytes("\ufeffa: 1\n".encode())
    assert read_mapping(file, "keys") == {"a": 1}
