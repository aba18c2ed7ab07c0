"""RULER's metrics on cases worked out by hand."""

import pytest

from lrsa_lightning.ruler import score_predictions
from lrsa_lightning.ruler.scoring import match_all, match_part, postprocess


def test_string_match_all_is_the_share_of_references_found():
    assert match_all("1234567 and 7654321", ["1234567", "7654321"]) == 1
    assert match_all("only 1234567", ["1234567", "7654321"]) == 0.5
    assert match_all("", ["1234567"]) == 0


def test_string_match_part_is_any_reference():
    assert match_part("in Paris, France", ["London", "paris"]) == 1
    assert match_part("nowhere", ["London", "Paris"]) == 0


def test_match_is_a_case_insensitive_substring():
    assert match_all("I KNOW", ["no"]) == 1
    assert match_all("x", [" x"]) == 0  # a reference with an outer space can never match


def test_control_characters_become_newlines():
    assert postprocess(" \x00a\tb\x1f ") == "a\nb"
    assert match_all("543\t7923", ["5437923"]) == 0


def test_score_is_a_rounded_percentage():
    assert score_predictions("niah_single_1", ["1", "x", "x"], [["1"], ["2"], ["3"]]) == 33.33


def test_lists_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="1 predictions for 2 references"):
        score_predictions("niah_single_1", ["1"], [["1"], ["2"]])
