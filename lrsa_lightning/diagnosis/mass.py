"""Where full attention looks, and how much of that a rule shows: exact, and computed block by block.

Shape suffixes: H query heads, G KV heads, R query heads of a KV head, N tokens, D head size, Q queries, K keys of a
block, C classes of keys.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lrsa_lightning.attention.layout import visible_bounds
from lrsa_lightning.attention.rule import LagRule

# Logits at a time: 64 MiB in float32, and three more tensors of their size.
_ELEMENTS = 2**24


class Visibility(NamedTuple):
    """Which keys the queries of a layer see.

    Attributes:
        kept_GN: True at tokens that stay visible for good.
        first_raw_N: from this position on, the query at a position sees all keys up to itself.
        hides_N: True at queries from which the rule hides a key.
    """

    kept_GN: Tensor
    first_raw_N: Tensor
    hides_N: Tensor

    @classmethod
    def of(cls, rule: LagRule, k_GND: Tensor, v_GND: Tensor, layer_idx: int) -> "Visibility":
        """That of a rule, given keys after RoPE and values of a sequence."""
        groups, num_tokens, _ = k_GND.shape
        position_N = torch.arange(num_tokens, device=k_GND.device)
        kept_GN = torch.zeros(groups, num_tokens, dtype=torch.bool, device=k_GND.device)
        kept_GN.scatter_(1, rule.select(k_GND[None], v_GND[None], layer_idx)[0], True)
        _, first_raw_N = visible_bounds(rule, position_N, torch.minimum, torch.Tensor.clamp_min)
        return cls(kept_GN, first_raw_N, (first_raw_N > rule.sink_size) & rule.drops_tokens)


class Mass(NamedTuple):
    """Attention weights of queries, added up over the keys of each class.

    Attributes:
        full_HQC: of full causal attention; sums to 1 over the classes.
        visible_HQC: the part of it on keys that the rule shows.
    """

    full_HQC: Tensor
    visible_HQC: Tensor


@torch.no_grad()
def attention_mass(
    q_HND: Tensor,
    k_GND: Tensor,
    visibility: Visibility,
    class_NC: Tensor,
    query_Q: Tensor,
    scale: float,
) -> Mass:
    """The mass of some queries of a sequence, by full softmax attention in float32.

    Args:
        q_HND: queries after RoPE.
        k_GND: keys after RoPE.
        visibility: which keys they see.
        class_NC: float32, 1 at the class of each key.
        query_Q: ascending positions of the queries, on the host.
        scale: of the logits.
    """
    size = max(1, _ELEMENTS // (q_HND.shape[0] * q_HND.shape[1]))
    with torch.autocast(q_HND.device.type, enabled=False):
        k_GND = k_GND.float()
        blocks = [_of_block(q_HND, k_GND, visibility, class_NC, query, scale) for query in query_Q.split(size)]
    return Mass(*(torch.cat(parts, dim=1) for parts in zip(*blocks, strict=True)))


def _of_block(
    q_HND: Tensor, k_GND: Tensor, visibility: Visibility, class_NC: Tensor, query_Q: Tensor, scale: float
) -> Mass:
    end = int(query_Q[-1]) + 1
    key_K, query_Q = torch.arange(end, device=q_HND.device), query_Q.to(q_HND.device)
    q_GRQD = q_HND[:, query_Q].float().unflatten(0, (k_GND.shape[0], -1))
    weights_GRQK = q_GRQD @ k_GND[:, None, :end].transpose(-1, -2) * scale
    weights_GRQK.masked_fill_(key_K > query_Q[:, None], float("-inf"))
    weights_GRQK = weights_GRQK.softmax(dim=-1)
    seen_GQK = visibility.kept_GN[:, None, :end] | (key_K >= visibility.first_raw_N[query_Q][:, None])
    full_GRQC = weights_GRQK @ class_NC[:end]
    visible_GRQC = weights_GRQK.mul_(seen_GQK[:, None]) @ class_NC[:end]
    return Mass(full_GRQC.flatten(0, 1), visible_GRQC.flatten(0, 1))
