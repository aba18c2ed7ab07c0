"""Secrets among a configuration's values: what is saved and shown has a reference to the environment in their place."""

import os
import re
from typing import Any

# Of a key, its last word; `eos_token` and the like are no secrets.
_SECRET_WORDS = {"token", "password", "passwd", "passphrase", "secret", "apikey", "credential", "credentials"}
_SECRET_KEYS = {"api", "access", "secret", "private", "auth"}  # before `key`
_OF_TEXT = {"bos", "eos", "pad", "unk", "sep", "cls", "mask", "special", "stop", "start", "end", "image", "max", "per"}
# Of an environment variable: TOKENIZER, KEYBOARD and MONKEY are none.
_SECRET_NAME = re.compile(r"(.*_)?KEY|.*(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|APIKEY)|(.*_)?PAT")
_SHORTEST = 8
_SHORTEST_PART = 16


class Secrets:
    """The secrets of one configuration: what a key calls one, and in arguments of classes what the environment does.

    Only under ``trainer``, where loggers and callbacks are: model and data have none. A path is never one.

    Attributes:
        references: to the environment, by the secret.
    """

    def __init__(self, config: dict[str, Any]):
        """
        Args:
            config: as nested mappings.
        """
        self.references: dict[str, str] = {}
        self._environment = {
            value: f"${{oc.env:{name}}}" for name, value in sorted(os.environ.items()) if _is_secret(name, value)
        }
        self.masked = {
            key: self._mask(value, key, False) if key == "trainer" else value for key, value in config.items()
        }

    def hide(self, text: str) -> str:
        """The text with references in place of the secrets."""
        for secret in sorted(self.references, key=len, reverse=True):
            text = text.replace(secret, self.references[secret])
        return text

    def _mask(self, value: Any, key: str, is_argument: bool) -> Any:
        if isinstance(value, dict):
            inside = is_argument or key in ("init_args", "dict_kwargs")
            return {name: self._mask(item, str(name), inside) for name, item in value.items()}
        if isinstance(value, list):
            return [self._mask(item, key, is_argument) for item in value]
        if not isinstance(value, str) or not value or key == "class_path" or os.path.exists(value):
            return value
        masked = self._reference(value, key) if _says_secret(key) else self._by_environment(value, is_argument)
        if masked != value:
            self.references[value] = masked
        return masked

    def _reference(self, value: str, key: str) -> str:
        """To the variable that holds it, or to one of a name that the user is to export."""
        for name, held in sorted(os.environ.items()):
            if held == value:
                return f"${{oc.env:{name}}}"
        if value in self.references:
            return self.references[value]
        name = re.sub(r"\W", "_", f"LRSA_{key.upper()}")
        number = sum(reference.startswith(f"${{oc.env:{name}") for reference in self.references.values())
        return f"${{oc.env:{name}{f'_{number + 1}' if number else ''}}}"

    def _by_environment(self, value: str, is_argument: bool) -> str:
        if not is_argument or value.startswith(("/", "~", "./", "../")):
            return value
        if value in self._environment:
            return self._environment[value]
        for secret, reference in self._environment.items():
            if len(secret) >= _SHORTEST_PART:
                value = value.replace(secret, reference)
        return value


def _says_secret(key: str) -> bool:
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key).lower().replace("-", "_").split("_")
    before = words[-2] if len(words) > 1 else ""
    if words[-1] == "key":
        return before in _SECRET_KEYS
    return words[-1] in _SECRET_WORDS and before not in _OF_TEXT


def _is_secret(name: str, value: str) -> bool:
    """Whether a variable is named as one, and its value looks like one: no path, no word, no number."""
    named = _SECRET_NAME.fullmatch(re.sub(r"(_VALUE|_?\d+)+$", "", name.upper()))
    if not named or len(value) < _SHORTEST or value.startswith("/") or os.path.exists(value):
        return False
    return bool(re.search(r"\d", value) and re.search(r"[A-Za-z]", value) and not re.search(r"\s", value))
