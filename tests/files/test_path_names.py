"""Names of a user's and names made of values: one part of a path, whatever they hold."""

import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lrsa_lightning.errors import InputError
from lrsa_lightning.files.path_names import MOST_BYTES, checked_name, made_name

UNSAFE = [
    "",
    ".",
    "..",
    ".locks",
    "../x",
    "a/b",
    "/abs",
    "a\\b",
    "a\nb",
    "a\0b",
    "a\u202eb",
    "-",
    "--",
    "-x",
    " x",
    "x ",
]
UNSAFE += ["cells", "report", "${oc.env:HOME}", "x" * (MOST_BYTES + 1), "é" * MOST_BYTES, "\ud800"]


@pytest.mark.parametrize("name", UNSAFE)
def test_an_unsafe_name_is_refused(name):
    with pytest.raises(InputError, match=r"^--run_name is .*expected one part of a path"):
        checked_name(name, "--run_name")


@pytest.mark.parametrize("name", ["x", "lrsa-20261121-201314", "a b", "lr=1e-3,seed=2", "2026:11", "Läufe", "x" * 200])
def test_safe_names_do_not_change(name):
    assert checked_name(name, "--run_name") == made_name(name) == name


@given(st.text())
@example("..")
@example("cells")
@example("\ud800")
@example("/" * 300 + "é" * 300)
@example("- .-")
def test_a_made_name_is_safe(text):
    name = made_name(text)
    assert checked_name(name, "name") == name
    assert os.path.basename(os.path.normpath(os.path.join("runs", name))) == name


def test_long_texts_that_differ_at_the_end_have_names_that_differ():
    assert made_name("x" * 300 + "1") != made_name("x" * 300 + "2")
