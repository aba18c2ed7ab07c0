"""Checks `trainer.strategy` and says what is wrong with it.

The parser accepts any text as a name. A mapping with a wrong argument would end as "invalid strategy name".
"""

import re
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch.strategies import Strategy, StrategyRegistry

from lrsa_lightning.errors import InputError

_REASON = re.compile(r"Parser key .*: (?!Does not validate)|not accepted|No module|Not a valid|no attribute")
# Lightning's own, which would not train by the run's settings.
_OURS = {"DeepSpeedStrategy": "sp_deepspeed", "ModelParallelStrategy": "sp_fsdp2"}


def check_choice(given: Any) -> None:
    """
    Args:
        given: from the configuration: a name, a mapping as text, or the parsed entry of a class.

    Raises:
        InputError: the strategy does not exist, has a wrong argument, or is Lightning's own where there is one of ours.
    """
    if isinstance(given, str) and given.lstrip().startswith("{"):
        _check_mapping(given)
    elif isinstance(given, str):
        _check_name(given)
    else:
        name = str(getattr(given, "class_path", "")).rpartition(".")[2]
        if name in _OURS:
            raise InputError(f"trainer.strategy {name} is Lightning's own: take {_OURS[name]}")


def _check_name(name: str) -> None:
    if name.lower().startswith("deepspeed"):
        raise InputError(f"trainer.strategy {name} is Lightning's own: take sp_deepspeed, with its stage")
    names = ["auto", *StrategyRegistry.available_strategies()]
    if name.lower() not in names:
        some = [other for other in names if other in ("auto", "ddp") or other.startswith(("sp_", "npu_"))]
        raise InputError(f"trainer.strategy is {name!r}, but must be one of {', '.join(some)}, or a class_path")


def _check_mapping(text: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--strategy", type=Strategy)
    try:
        parser.parse_object({"strategy": yaml.safe_load(text)})
    except (ArgumentError, yaml.YAMLError) as error:
        lines = [line.strip(" -") for line in str(error).splitlines() if line.strip(" -")]
        # The parser names each type that the value does not have. For a mapping the last lines say why.
        reason = next((line for line in reversed(lines) if _REASON.search(line)), " ".join(lines))
        raise InputError(f"trainer.strategy {text}: {reason}") from error
