"""Secrets become references; what is none stays, whatever the environment holds."""

import pytest

from lrsa_lightning.run.secret_values import Secrets

SECRET = "s3cret-0123456789abcdef"


def with_argument(key: str, value) -> dict:
    return {"trainer": {"logger": [{"class_path": "a.B", "init_args": {key: value}}]}}


def argument(config: dict, key: str):
    return config["trainer"]["logger"][0]["init_args"][key]


@pytest.mark.parametrize("key", ["token", "hf_token", "api_key", "apiKey", "password", "client_secret", "api-key"])
def test_what_a_key_calls_a_secret_is_a_reference_to_be_exported(key):
    secrets = Secrets(with_argument(key, "abc"))
    reference = argument(secrets.masked, key)
    assert reference.startswith("${oc.env:LRSA_")
    assert secrets.hide(f"--logger.{key}=abc") == f"--logger.{key}={reference}"


def test_two_typed_secrets_of_one_name_are_two_variables():
    config = {"trainer": {"logger": [{"init_args": {"token": "abc"}}, {"init_args": {"token": "xyz"}}]}}
    first, second = (entry["init_args"]["token"] for entry in Secrets(config).masked["trainer"]["logger"])
    assert (first, second) == ("${oc.env:LRSA_TOKEN}", "${oc.env:LRSA_TOKEN_2}")


def test_a_secret_that_the_environment_holds_is_a_reference_to_it(monkeypatch):
    monkeypatch.setenv("MY_API_KEY", SECRET)
    for key, value, masked in [
        ("token", SECRET, "${oc.env:MY_API_KEY}"),
        ("tags", [SECRET], ["${oc.env:MY_API_KEY}"]),
        ("url", f"https://me:{SECRET}@host", "https://me:${oc.env:MY_API_KEY}@host"),
    ]:
        assert argument(Secrets(with_argument(key, value)).masked, key) == masked


@pytest.mark.parametrize(
    "name", ["TOKENIZER", "TOKENIZERS_PARALLELISM", "KEYBOARD", "MONKEY", "KEY_FILE", "TOKEN_COUNT"]
)
def test_a_variable_that_is_no_secret_by_its_name_is_left_alone(monkeypatch, name):
    monkeypatch.setenv(name, SECRET)
    config = with_argument("name", SECRET)
    assert Secrets(config).masked == config


@pytest.mark.parametrize("value", ["{tmp}", "/no/such/path1", "lightning", "12345678", "two words 1"])
def test_a_path_or_a_plain_word_is_no_secret_whatever_the_variables_name(monkeypatch, tmp_path, value):
    value = value.format(tmp=tmp_path)
    monkeypatch.setenv("MY_TOKEN", value)
    config = with_argument("name", value) | {"data": {"tokenizer": value}, "model": {"name_or_path": value}}
    assert Secrets(config).masked == config


@pytest.mark.parametrize("key", ["eos_token", "pad_token", "tokenizer", "max_tokens", "key", "monkey", "token_file"])
def test_keys_that_name_no_secret(key):
    config = with_argument(key, "abc")
    assert Secrets(config).masked == config


def test_model_and_data_are_never_rewritten(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", SECRET)
    config = {"model": {"name_or_path": SECRET}, "data": {"train_files": [SECRET]}, "run_name": SECRET}
    assert Secrets(config).masked == config
