"""RULER's metrics on cases worked out by hand."""

import pytest

from lrsa_lightning.errors import InputError
from lrsa_lightning.ruler import score_predictions
from lrsa_lightning.ruler.scoring import score_file
from lrsa_lightning.ruler.tasks import match_all, match_part, postprocess


def test_string_match_all_is_the_fraction_of_references_found():
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
    # They still separate words.
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


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ("12", [["1"], ["2"]], "score_predictions.predictions is '12', but must be a list"),
        (["1", "2"], "12", "score_predictions.references is '12', but must be a list"),
        ({"0": "1"}, [["1"]], "score_predictions.predictions is .*, but must be a list"),
        (["1"], ["1"], "score_predictions.references is '1', but must be a list"),
        (None, [["1"]], "score_predictions.predictions is None, but must be a list"),
        (["1", None], [["1"], ["2"]], "vt, sample 1: the prediction is None, expected a text"),
        ([float("nan")], [["1"]], "the prediction is nan"),
        ([["1"]], [["1"]], r"the prediction is \['1'\]"),
        (["1"], [[]], r"the references are \[\], expected a list of texts, one at least"),
        (["1"], [[1]], r"the references are \[1\]"),
        (["1"], [None], "score_predictions.references is None, but must be a list"),
    ],
)
def test_anything_but_texts_and_lists_of_texts_is_refused(predictions, references, message):
    with pytest.raises(InputError, match=message):
        score_predictions("vt", predictions, references)


def test_a_file_of_predictions_is_scored(tmp_path):
    path = tmp_path / "vt.jsonl"
    path.write_text('{"pred": "a", "outputs": ["a", "b"]}\n{"pred": "", "outputs": ["c"]}\n\n')
    assert score_file(path) == 25


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"pred": ["a"], "outputs": ["a"]}', r"line 2: the prediction is \['a'\], expected a text"),
        (b'{"pred": NaN, "outputs": ["a"]}', "line 2: the prediction is nan"),
        (b'{"pred": "a", "outputs": "a"}', "line 2: the references are 'a', expected a list of texts"),
        (b'{"pred": "a", "outputs": []}', r"line 2: the references are \[\]"),
        (b'{"pred": "a", "outputs": [1]}', "line 2: the references are"),
        (b'{"outputs": ["a"]}', "line 2: expected an object with pred and outputs, pred is missing"),
        (b'["a", ["a"]]', "line 2: expected a JSON object, not list"),
        (b'{"pred": "a", "outp', "line 2: expected a JSON object .* at column"),
        (b"\xff", "line 2: expected a JSON object"),
        (b'\n{"pred": "a", "outputs": ["a"]}', "line 2: expected a JSON object"),
        (b"[" * 100_000, "line 2: expected a JSON object"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, content, message):
    path = tmp_path / "vt.jsonl"
    path.write_bytes(b'{"pred": "a", "outputs": ["a"]}\n' + content)
    with pytest.raises(InputError, match=rf"vt\.jsonl, {message}"):
        score_file(path)


def test_files_without_predictions_or_of_no_task_are_named(tmp_path):
    for content in ("", "\n"):
        (tmp_path / "vt.jsonl").write_text(content)
        with pytest.raises(InputError, match=r"predictions file .*vt\.jsonl is empty"):
            score_file(tmp_path / "vt.jsonl")
    with pytest.raises(InputError, match=r"predictions file .*vtt\.jsonl must be named <task>\.jsonl.*mean vt\?"):
        score_file(tmp_path / "vtt.jsonl")
    for path in (tmp_path / "cwe.jsonl", tmp_path / "fwe.jsonl"):
        if path.stem == "fwe":
            path.mkdir()
        with pytest.raises(InputError, match=rf"{path.name} cannot be read"):
            score_file(path)
