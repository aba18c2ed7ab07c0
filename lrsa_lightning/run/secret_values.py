"""Finds secrets among a configuration's values. Saved and shown texts hold references to the environment instead."""

import os
import re
from typing import Any

# Last words of keys that name secrets.
_SECRET_WORDS = {"token", "password", "passwd", "passphrase", "secret", "apikey", "credential", "credentials"}
# Words before `key` that make it a secret.
_SECRET_KEYS = {"api", "access", "secret", "private", "auth"}
# Words before `token` that mean no secret.
_OF_TEXT = {"bos", "eos", "pad", "unk", "sep", "cls", "mask", "special", "stop", "start", "end", "image", "max", "per"}
# Names of environment variables that hold secrets; TOKENIZER, KEYBOARD and MONKEY do not match.
_SECRET_NAME = re.compile(r"(.*_)?KEY|.*(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|APIKEY)|(.*_)?PAT")
_SHORTEST = 8
_SHORTEST_PART = 16


class Secrets:
    """The secrets of one configuration, as nested mappings.

    A value is a secret if its key says so. An argument of a class is one, too, if an environment variable with a
    secret's name holds it. Only ``trainer`` is searched, which holds loggers and callbacks. A path is never a secret.

    Attributes:
        references: the reference to the environment for each secret.
        masked: the configuration with references in place of the secrets.
    """

    def __init__(self, config: dict[str, Any]):
        self.references: dict[str, str] = {}
        self._environment = {
            value: f"${{oc.env:{name}}}" for name, value in sorted(os.environ.items()) if _is_secret(name, value)
        }
        self.masked = dict(config)
        if "trainer" in config:
            self.masked["trainer"] = self._mask(config["trainer"], "trainer", False)

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
        """Names the variable that holds the value, or a new one that the user can export."""
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
    """Whether the variable's name means a secret and its value looks like one: not a path, a word or a number."""
    named = _SECRET_NAME.fullmatch(re.sub(r"(_VALUE|_?\d+)+$", "", name.upper()))
    if not named or len(value) < _SHORTEST or value.startswith("/") or os.path.exists(value):
        return False
    return bool(re.search(r"\d", value) and re.search(r"[A-Za-z]", value) and not re.search(r"\s", value))
