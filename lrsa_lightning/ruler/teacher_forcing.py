"""The likelihood of the references, without decoding: the cheap check of a model in training.

Shape suffixes: B batch, N tokens, D hidden size, A label tokens of a row, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lrsa_lightning.generation import Prompt, hidden_states


class TeacherForced(NamedTuple):
    """How a model rates a reference answer.

    Attributes:
        nll: mean negative log-likelihood of its tokens, in nats.
        exact_match: whether each of them is the likeliest one, so that greedy decoding would write the answer.
    """

    nll: float
    exact_match: bool


@torch.no_grad()
def teacher_force(
    model, mode, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], width: int
) -> list[TeacherForced]:
    """Rates each answer after its prompt, in one forward pass of the whole rows under the mode's training mask.

    Args:
        model: a transformers causal decoder. It keeps its installed mode.
        mode: the attention mode.
        prompts: token ids of each row.
        answers: token ids of each row's reference.
        width: least number of tokens of a row, padding on the right included; one width means one compiled kernel.
    """
    rows = [torch.tensor([*prompt, *answer]) for prompt, answer in zip(prompts, answers, strict=True)]
    width = max(width, *map(len, rows))
    input_ids_BN = torch.stack([torch.nn.functional.pad(row, (0, width - len(row))) for row in rows]).to(model.device)
    # A position predicts the next token.
    spans = [(len(prompt) - 1, len(row) - 1) for prompt, row in zip(prompts, rows, strict=True)]
    with mode.installed(model):
        hidden_of_rows = hidden_states(iter([(0, _last_hidden(model, input_ids_BN))]), spans)
        return _rate(model, hidden_of_rows, answers)


@torch.no_grad()
def rate_after(model, prompt: Prompt, answers: Sequence[Sequence[int]]) -> list[TeacherForced]:
    """Rates each answer after a prompt that is prefilled: the same as `teacher_force`, for one short forward pass.

    Args:
        model: a transformers causal decoder.
        prompt: the rows' prompts, from which nothing was decoded yet.
        answers: token ids of each row's reference.
    """
    rows = [torch.tensor(answer) for answer in answers]
    hidden_BAD = prompt.hidden_before(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(model.device))
    return _rate(model, [own_AD[: len(ids)] for own_AD, ids in zip(hidden_BAD, answers, strict=True)], answers)


def _last_hidden(model, input_ids_BN: Tensor) -> Tensor:
    positions_1N = torch.arange(input_ids_BN.shape[1], device=model.device).unsqueeze(0)
    decoder = model.get_decoder()
    return decoder(input_ids=input_ids_BN, position_ids=positions_1N, use_cache=False).last_hidden_state


def _rate(model, hidden_of_rows: Sequence[Tensor], answers: Sequence[Sequence[int]]) -> list[TeacherForced]:
    """The ratings of answers, given the hidden states [A, D] before their tokens. The host waits once for all rows."""
    head, nlls, matches = model.get_output_embeddings(), [], []
    for hidden_AD, answer in zip(hidden_of_rows, answers, strict=True):
        logits_AV, target_A = head(hidden_AD), torch.tensor(answer, device=hidden_AD.device)
        nlls.append(torch.nn.functional.cross_entropy(logits_AV.float(), target_A))
        matches.append((logits_AV.argmax(dim=-1) == target_A).all())
    rated = zip(torch.stack(nlls).tolist(), torch.stack(matches).tolist(), strict=True)
    return [TeacherForced(nll, is_match) for nll, is_match in rated]
