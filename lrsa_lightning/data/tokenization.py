"""Tokenises long texts in linear time, with the same ids as the text in one piece."""

import re
from array import array
from collections.abc import Sequence
from itertools import pairwise

from lrsa_lightning.errors import InputError
from lrsa_lightning.hub import before_loading
from lrsa_lightning.library_errors import reading
from lrsa_lightning.lora.folder import home_of_tokenizer

# Long enough that the overhead of a piece is small, short enough that no tokenizer slows down on it.
_PIECE = 8192
# Characters of a piece whose ids are kept: a text without a safe place to cut would be tokenised again at each draw.
_HUGE = 2**16
# Safe places to cut: no token spans them. The most frequent ones come first, and each tokenizer is tested for them. A
# letter after a line end begins a token in the Qwen and Llama-3 families; in GPT-2's, which looks ahead of white space,
# only after a single line end. All of them split a letter from a Chinese full stop. All but those whose tokens hold
# several words split a letter from the blank before the next word.
_LINES = (r"(?<=\n)(?=[^\W\d_])", r"(?<=\S\n)(?=[^\W\d_])")
_WORDS, _FULL_STOPS = r"|(?<=[^\W\d_])(?=。| [^\W\d_])", r"|(?<=[^\W\d_])(?=。)"
_SAFE_PLACES = tuple(re.compile(lines + _WORDS) for lines in _LINES)
_SAFE_WITH_SEVERAL_WORDS = tuple(re.compile(lines + _FULL_STOPS) for lines in _LINES)
_WAY_OUT = "give a hub id that this machine can reach, or a folder with tokenizer.json; code in it is not run"
_PROBE = "One line, two words.\nAnd 3 more:\nDon't\n\nstop here \nnow\r\nnew\n一行中文。\n第二行。还有“引号”。\n" * 2


def load_tokenizer(name: str, option: str):
    """The tokenizer of a hub id or folder, as its tokenizer.json defines it.

    transformers' AutoTokenizer takes the Qwen2 class for each folder with a Qwen2 model, even where the folder names
    no class. Its splitting of text would silently replace that of another tokenizer, such as the demo's.

    Args:
        name: hub id or folder; an adapter without a tokenizer means that of its base.
        option: the user's name for it, for errors.

    Raises:
        InputError: there is no tokenizer, no fast version of it, or it has no tokens for plain text.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    if (home := home_of_tokenizer(name)) != name:
        name, option = home, f"{option} is that of the base of the adapter {name}:"
    before_loading(name)
    with reading(f"{option} {name!r} cannot be loaded", _WAY_OUT):
        declared = get_tokenizer_config(name).get("tokenizer_class")
        is_generic = declared in ("PreTrainedTokenizerFast", "TokenizersBackend")  # the same, before and since 5.0
        kind = PreTrainedTokenizerFast if is_generic else AutoTokenizer
        tokenizer = kind.from_pretrained(name, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise InputError(f"{option} {name!r} has no fast version (tokenizer.json), which preparing data needs")
    # From a folder without a tokenizer's files, transformers 5 makes a tokenizer without a vocabulary.
    if not set(tokenizer(_PROBE, add_special_tokens=False)["input_ids"]) - {tokenizer.unk_token_id}:
        raise InputError(
            f"{option} {name!r} turns every text into nothing: its vocabulary is empty. The folder lacks the "
            "tokenizer's files (tokenizer.json, tokenizer_config.json): copy them there, or name another"
        )
    return tokenizer


class LongTokenizer:
    """Text -> token ids, without special tokens."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self.safe_places = next(filter(self._holds, _SAFE_PLACES + _SAFE_WITH_SEVERAL_WORDS), None)
        self._of_huge: dict[str, array] = {}

    def __call__(self, text: str) -> list[int]:
        return [token for ids in self._ids(self._pieces(text)) for token in ids]

    def first(self, text: str, count: int) -> list[int]:
        """The first ``count`` ids of a text. It tokenises no more of the text than they need."""
        ids: list[int] = []
        for piece in self._pieces(text):
            if len(ids) >= count:
                break
            ids += self._ids_of_piece(piece)[: count - len(ids)]
        return ids

    def split(self, text: str) -> tuple[str, str]:
        """The text in two parts. The first has the same ids whatever follows the text; it may be empty."""
        places = self.safe_places.finditer(text, max(0, len(text) - _PIECE)) if self.safe_places else ()
        end = max((match.start() for match in places), default=0)
        return text[:end], text[end:]

    def _ids_of_piece(self, piece: str) -> Sequence[int]:
        if len(piece) <= _HUGE:
            return self._ids([piece])[0]
        if piece not in self._of_huge:
            self._of_huge[piece] = array("i", self._ids([piece])[0])
        return self._of_huge[piece]

    def _pieces(self, text: str) -> list[str]:
        return [text] if self.safe_places is None else cut(text, self.safe_places)

    def _holds(self, places: re.Pattern) -> bool:
        """Whether the tokenizer's words end at these places, and pieces give the same ids as the text in one piece."""
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
    """The text, cut at such places into pieces of at least `_PIECE` characters; the last may be shorter."""
    starts = [0]
    while match := places.search(text, starts[-1] + _PIECE):
        starts.append(match.start())
    return [text[start:end] for start, end in pairwise([*starts, None])]
