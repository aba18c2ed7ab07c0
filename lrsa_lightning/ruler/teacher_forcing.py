"""The references' likelihood in one forward pass: the cheap check of a model in training.

Shape suffixes: B batch, N tokens, D hidden size, A answer tokens of a row, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


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
    model, mode, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], width: int
) -> list[TeacherForced]:
    """Rates each answer behind its prompt, in one forward pass under the mode's training mask.

    Args:
        model: a transformers causal decoder. Its installed mode is the same again afterwards.
        mode: the attention mode.
        prompts: token ids of each row.
        answers: token ids of each row's reference.
        width: tokens that every row is padded to on the right, at least; one width means one compiled kernel.
    """
    rows = [torch.tensor([*prompt, *answer]) for prompt, answer in zip(prompts, answers, strict=True)]
    width = max(width, *map(len, rows))
    input_ids_BN = torch.stack([torch.nn.functional.pad(row, (0, width - len(row))) for row in rows]).to(model.device)
    with mode.installed(model):
        hidden_BND = model.get_decoder()(
            input_ids=input_ids_BN,
            position_ids=torch.arange(width, device=model.device).unsqueeze(0),
            use_cache=False,
        ).last_hidden_state
        head = model.get_output_embeddings()
        # A position predicts the token behind it.
        return [
            _rate(head(hidden_ND[len(prompt) - 1 : len(prompt) + len(answer) - 1]), answer)
            for hidden_ND, prompt, answer in zip(hidden_BND, prompts, answers, strict=True)
        ]


def _rate(logits_AV: Tensor, answer: Sequence[int]) -> TeacherForced:
    target_A = torch.tensor(answer, device=logits_AV.device)
    nll = torch.nn.functional.cross_entropy(logits_AV.float(), target_A)
    return TeacherForced(float(nll), bool((logits_AV.argmax(dim=-1) == target_A).all()))
