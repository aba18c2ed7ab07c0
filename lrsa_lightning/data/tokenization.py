"""Tokenising long texts in time linear in their length, with the ids that one piece would give."""

import re

# Long enough that a piece's own cost counts for nothing, short enough that no tokenizer slows down on it.
_PIECE = 8192
# Pre-tokenizers of the GPT-2, Llama-3 and Qwen families end a token at a line end that a letter follows.
_SAFE = re.compile(r"(?<=\n)(?=[^\W\d_])")
_PROBE = "One line, two words.\nAnd 3 more:\nDon't\n\nstop here \nnow\r\nnew\n一行中文。\n第二行\n" * 2


class LongTokenizer:
    """Text -> token ids, without special tokens."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self._may_split = self._parts_at_line_ends() and self._starts_no_piece_anew()

    def __call__(self, text: str) -> list[int]:
        if len(text) <= _PIECE or not self._may_split:
            return self._ids([text])[0]
        return [token for ids in self._ids(_pieces(text)) for token in ids]

    def _parts_at_line_ends(self) -> bool:
        """Whether no token can reach over a safe place; a tokenizer of another family may join what stands there."""
        pre_tokenizer = self._tokenizer.backend_tokenizer.pre_tokenizer
        if pre_tokenizer is None:
            return False
        starts = {start for _, (start, _) in pre_tokenizer.pre_tokenize_str(_PROBE)}
        return starts >= {match.start() for match in _SAFE.finditer(_PROBE)}

    def _starts_no_piece_anew(self) -> bool:
        """Whether a piece's first token is what it would be in the middle; SentencePiece puts a space before it."""
        pieces = self._ids(_SAFE.split(_PROBE))
        return self._ids([_PROBE])[0] == [token for ids in pieces for token in ids]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]


def _pieces(text: str) -> list[str]:
    """The text cut at safe places into pieces of at least `_PIECE` characters, the last excepted."""
    cuts = [0]
    for match in _SAFE.finditer(text):
        if match.start() - cuts[-1] >= _PIECE:
            cuts.append(match.start())
    return [text[start:end] for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True)]
