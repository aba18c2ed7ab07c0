"""Tokenising long texts in time linear in their length, with the ids that one piece would give."""

import re

from lrsa_lightning.errors import InputError
from lrsa_lightning.hub import before_loading
from lrsa_lightning.library_errors import reading

# Long enough that a piece's own cost counts for nothing, short enough that no tokenizer slows down on it.
_PIECE = 8192
# Places where no token reaches over, the most frequent ones first; a tokenizer is asked which hold for it. A letter
# after a line end begins a token in the Qwen and Llama-3 families; in GPT-2's, which looks ahead of white space, only
# after a single one. A letter and a Chinese full stop are parted in all of them.
_FULL_STOP = r"|(?<=[^\W\d_])(?=。)"
_SAFE_PLACES = (
    re.compile(r"(?<=\n)(?=[^\W\d_])" + _FULL_STOP),
    re.compile(r"(?<=\S\n)(?=[^\W\d_])" + _FULL_STOP),
)
_WAY_OUT = "give a hub id that this machine can reach, or a folder with tokenizer.json; code in it is not run"
_PROBE = "One line, two words.\nAnd 3 more:\nDon't\n\nstop here \nnow\r\nnew\n一行中文。\n第二行。还有“引号”。\n" * 2


def load_tokenizer(name: str, option: str):
    """The tokenizer of a hub id or folder, as its tokenizer.json has it.

    transformers' AutoTokenizer takes the Qwen2 class for every folder with a Qwen2 model, even where the folder names
    no class of its own: its splitting of text would silently replace that of another tokenizer, such as the demo's.

    Args:
        name: hub id or folder.
        option: what the user calls it, for the error.

    Raises:
        InputError: there is none, or no fast version of it.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    before_loading(name)
    with reading(f"{option} {name!r} cannot be loaded", _WAY_OUT):
        declared = get_tokenizer_config(name).get("tokenizer_class")
        is_generic = declared in ("PreTrainedTokenizerFast", "TokenizersBackend")  # the same, before and since 5.0
        kind = PreTrainedTokenizerFast if is_generic else AutoTokenizer
        tokenizer = kind.from_pretrained(name, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise InputError(f"{option} {name!r} has no fast version (tokenizer.json), which preparing data needs")
    return tokenizer


class LongTokenizer:
    """Text -> token ids, without special tokens."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self.safe_places = next(filter(self._holds, _SAFE_PLACES), None)

    def __call__(self, text: str) -> list[int]:
        if len(text) <= _PIECE or self.safe_places is None:
            return self._ids([text])[0]
        return [token for ids in self._ids(cut(text, self.safe_places)) for token in ids]

    def _holds(self, places: re.Pattern) -> bool:
        """Whether the tokenizer's words end at these places, and pieces give the ids of the whole."""
        pre_tokenizer = self._tokenizer.backend_tokenizer.pre_tokenizer
        if pre_tokenizer is None:
            return False
        starts = {start for _, (start, _) in pre_tokenizer.pre_tokenize_str(_PROBE)}
        pieces = self._ids(places.split(_PROBE))
        same = self._ids([_PROBE])[0] == [token for ids in pieces for token in ids]
        return same and starts >= {match.start() for match in places.finditer(_PROBE)}

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]


def cut(text: str, places: re.Pattern) -> list[str]:
    """The text cut at such places into pieces of at least `_PIECE` characters, the last excepted."""
    cuts = [0]
    for match in places.finditer(text):
        if match.start() - cuts[-1] >= _PIECE:
            cuts.append(match.start())
    return [text[start:end] for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True)]
