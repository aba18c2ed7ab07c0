"""Sequence parallelism in a plan: the part of a layer that one rank has, and the degrees that are possible."""

from dataclasses import replace

from lrsa_lightning.attention import AttentionMode
from lrsa_lightning.distributed.context import ContextParallel
from lrsa_lightning.distributed.group import SequenceGroup
from lrsa_lightning.distributed.sequence_parallel import SequenceParallel
from lrsa_lightning.distributed.sharded_attention import ShardedAttention
from lrsa_lightning.errors import InputError
from lrsa_lightning.plan.layer_shape import LayerShape

KINDS = ("ulysses", "context")


def rank_shape(
    config,
    mode: AttentionMode,
    sequence: SequenceParallel,
    rows: int,
    seq_len: int,
    element: int,
    residual: int,
    is_fused: bool,
    layer_idx: int,
) -> LayerShape:
    """A layer as the last rank of a sequence-parallel group sees it.

    Raises:
        InputError: the degree is impossible for this model and length; names the possible ones.
    """
    complete = LayerShape.of(config, mode, rows, seq_len, element, residual, is_fused, layer_idx)
    if sequence.size == 1:
        return complete
    sharded, kv_heads, size = last_rank(config, mode, sequence, seq_len), complete.kv_heads, sequence.size
    if isinstance(sharded, ContextParallel):
        keys = _keys_of_segments(sharded)
    else:  # of complete sequences, for its share of the heads or a copy of one
        keys = -(-complete.keys * max(kv_heads, size) // (size * kv_heads))
    return replace(complete, tokens=len(sharded.positions), keys=keys, pairs=-(-complete.pairs // size))


def last_rank(config, mode: AttentionMode, sequence: SequenceParallel, seq_len: int) -> ShardedAttention:
    """The attention of the last rank of a group; only the first one writes to the log."""
    return sequence.shard(mode, config, seq_len, SequenceGroup(sequence.size - 1, sequence.size))


def _keys_of_segments(sharded: ContextParallel) -> int:
    """Keys that a rank's segments attend to: compact ones, the chunk before a segment, and its own."""
    rule, segments = sharded.rule, sharded.layout.of_rank(sharded.group.rank)
    compact = sum(rule.compact_visible(rule.chunk_of(segment.stop - 1)) for segment in segments)
    before = sum(rule.lag_size for segment in segments if segment.index)
    return compact + before + len(sharded.positions)


def received_bytes(config, mode: AttentionMode, sequence: SequenceParallel, seq_len: int, element: int) -> int:
    """What a rank receives for one row and layer, forward and backward."""
    if sequence.size == 1:
        return 0
    return 2 * element * last_rank(config, mode, sequence, seq_len).received_elements()


def possible_degrees(config, mode: AttentionMode, seq_len: int, most: int) -> dict[str, list[int]]:
    """The degrees up to ``most`` that each kind of sequence parallelism can have for this model and length."""
    return {kind: [p for p in range(1, most + 1) if _is_possible(config, mode, seq_len, p, kind)] for kind in KINDS}


def _is_possible(config, mode: AttentionMode, seq_len: int, size: int, kind: str) -> bool:
    if size == 1:
        return True
    try:
        last_rank(config, mode, SequenceParallel(size, kind), seq_len)
    except InputError:
        return False
    return True
