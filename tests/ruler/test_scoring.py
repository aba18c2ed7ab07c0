"""RULER's metrics on cases worked out by hand."""

import pytest

from lrsa_lightning.ruler import score_predictions
from lrsa_lightning.ruler.scoring import match_all, match_part, postprocess


def test_string_match_all_is_the_share_of_references_found():
    assert match_all("1234567 and 7654321", ["1234567", "7654321"]) == 1
    assert match_all("only 1234567", ["1234567", "7654321"]) == 0.5
    assert match_all("1, 2, 3", ["1", "2", "4"]) == pytest.approx(2 / 3)
    # A reference given twice counts twice.
    assert match_all("1", ["1", "1", "2", "2"]) == 0.5


def test_string_match_part_is_any_reference():
    assert match_part("in Paris, France", ["London", "paris"]) == 1
    assert match_part("nowhere", ["London", "Paris"]) == 0
    assert match_part("London or Paris", ["London", "Paris"]) == 1


@pytest.mark.parametrize("metric", [match_all, match_part])
@pytest.mark.parametrize(
    ("prediction", "reference", "score"),
    [
        ("I KNOW", "no", 1),
        ("a notebook", "BOOK", 1),
        ("wrong, wrong, 12, wrong", "12", 1),
        ("x", " x", 0),  # a reference with an outer space can never match at the ends
        ("a x", " x", 1),
        ("3677 seated", "3,677 seated", 0),  # punctuation counts
        ("the Normans", "Normans.", 0),
        ("CAFÉ", "café", 1),
        ("cafe", "café", 0),
        ("", "x", 0),
        (" \n\t ", "x", 0),
        ("", "", 1),
    ],
)
def test_match_is_a_case_insensitive_substring(metric, prediction, reference, score):
    assert metric(prediction, [reference]) == score


def test_control_characters_become_newlines():
    for number in range(32):
        assert postprocess(f"a{chr(number)}b") == "a\nb"
        assert postprocess(f"{chr(number)}a{chr(number)}{chr(number)}") == "a"
    assert postprocess(" \x00a\tb\x1f ") == "a\nb"
    assert postprocess("\x00 \x00a  b\u00e9\x7f") == "a  b\u00e9\x7f"
    # Not dropped: what they part stays parted.
    assert match_all("543\t7923", ["5437923"]) == 0
    assert match_part("new\nyork", ["new york"]) == 0
    assert match_part("new\tyork", ["new\nyork"]) == 1


@pytest.mark.parametrize(
    ("task", "score"), [("niah_multiquery", 50), ("vt", 50), ("cwe", 50), ("fwe", 50), ("qa_1", 100), ("qa_2", 100)]
)
def test_the_task_chooses_the_metric(task, score):
    assert score_predictions(task, ["a"], [["a", "x"]]) == score


def test_score_is_a_percentage_rounded_once_at_the_end():
    assert score_predictions("niah_single_1", ["1", "x", "x"], [["1"], ["2"], ["3"]]) == 33.33
    thirds = [["1", "2", "3"]] * 3
    assert score_predictions("fwe", ["1", "2", "3"], thirds) == 33.33
    assert score_predictions("fwe", ["12", "1", "123"], thirds) == 66.67
    assert score_predictions("fwe", ["1"] * 3 + ["none"], [*thirds, ["1", "2", "3"]]) == 25


def test_lists_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="1 predictions for 2 references"):
        score_predictions("niah_single_1", ["1"], [["1"], ["2"]])
    with pytest.raises(ValueError, match="0 predictions"):
        score_predictions("niah_single_1", [], [])


def test_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match=r"qa_3.*qa_2"):
        score_predictions("qa_3", ["1"], [["1"]])
