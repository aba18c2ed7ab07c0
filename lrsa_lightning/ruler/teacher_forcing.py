"""The references' likelihood without decoding: the cheap check of a model in training.

Shape suffixes: B batch, N tokens, D hidden size, A label tokens of a row, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lrsa_lightning.generation import hidden_states, prefill


@dataclass(frozen=True)
class TeacherForced:
    """How a model rates a reference answer.

    Attributes:
        nll: mean negative log-likelihood of its tokens, in nats.
        exact_match: whether each of them is the likeliest one: greedy decoding would write the answer.
    """

    nll: float
    exact_match: bool


@torch.no_grad()
def teacher_force(
    model,
    mode,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    width: int,
    num_pieces: int | None = None,
) -> list[TeacherForced]:
    """Rates each answer behind its prompt.

    Args:
        model: a transformers causal decoder. Its installed mode is the same again afterwards.
        mode: the attention mode.
        prompts: token ids of each row.
        answers: token ids of each row's reference.
        width: tokens that every row is padded to on the right, at least; one width means one compiled kernel.
        num_pieces: forward passes through the mode's cache; when None a single one, under its training mask.
    """
    rows = [torch.tensor([*prompt, *answer]) for prompt, answer in zip(prompts, answers, strict=True)]
    width = max(width, *map(len, rows))
    input_ids_BN = torch.stack([torch.nn.functional.pad(row, (0, width - len(row))) for row in rows]).to(model.device)
    # A position predicts the token behind it.
    spans = [(len(prompt) - 1, len(row) - 1) for prompt, row in zip(prompts, rows, strict=True)]
    with mode.installed(model):
        if num_pieces is None:
            pieces = iter([(0, _last_hidden(model, input_ids_BN))])
        else:
            pieces = prefill(model, mode.make_cache(model.config), input_ids_BN, num_pieces)
        head = model.get_output_embeddings()
        hidden_of_rows = hidden_states(pieces, spans)
        return [_rate(head(hidden_AD), answer) for hidden_AD, answer in zip(hidden_of_rows, answers, strict=True)]


def _last_hidden(model, input_ids_BN: Tensor) -> Tensor:
    positions_1N = torch.arange(input_ids_BN.shape[1], device=model.device).unsqueeze(0)
    decoder = model.get_decoder()
    return decoder(input_ids=input_ids_BN, position_ids=positions_1N, use_cache=False).last_hidden_state


def _rate(logits_AV: Tensor, answer: Sequence[int]) -> TeacherForced:
    target_A = torch.tensor(answer, device=logits_AV.device)
    nll = torch.nn.functional.cross_entropy(logits_AV.float(), target_A)
    return TeacherForced(float(nll), bool((logits_AV.argmax(dim=-1) == target_A).all()))
