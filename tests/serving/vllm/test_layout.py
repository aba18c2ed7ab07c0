"""The arithmetic of slots and blocks, against a cache that is moved token by token."""

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lrsa_lightning.attention.rule import LagRule
from lrsa_lightning.serving.vllm.layout import BlockLayout


@st.composite
def layouts(draw):
    block_size = draw(st.sampled_from([1, 2, 4, 16]))
    blocks_per_chunk = draw(st.integers(1, 5))
    kept_blocks = draw(st.integers(0, blocks_per_chunk))
    sink_size = draw(st.integers(0, 3 * block_size + 1))
    return BlockLayout(LagRule(sink_size, blocks_per_chunk * block_size, kept_blocks * block_size), block_size)


def kept_of(rule: LagRule, chunk: int) -> list[int]:
    """Any M tokens of a chunk: the last ones, which are never where they must be."""
    end = rule.sink_size + (chunk + 1) * rule.lag_size
    return [*range(end - rule.kept, end)]


def visible_to(rule: LagRule, position: int) -> list[int]:
    """The tokens that a query sees, as the specification has it."""
    chunk = max(0, (position - rule.sink_size) // rule.lag_size)
    kept = [token for c in range(max(0, chunk - 1)) for token in kept_of(rule, c)]
    first_raw = rule.sink_size + max(0, chunk - 1) * rule.lag_size
    return [*range(min(rule.sink_size, position + 1)), *kept, *range(first_raw, position + 1)]


def compress(layout: BlockLayout, slots: dict[int, int], chunk: int) -> None:
    first = layout.first_block(chunk) * layout.block_size
    tokens = kept_of(layout.rule, chunk) or [slots[first + place] for place in range(layout.offset)]
    slots.update(zip(layout.target_slots(chunk), tokens, strict=True))


@settings(deadline=None)  # a busy machine is no error
@given(layout=layouts(), num_chunks=st.integers(0, 5), rest=st.integers(0, 80))
def test_the_compact_table_holds_what_the_query_sees(layout, num_chunks, rest):
    rule, block = layout.rule, layout.block_size
    num_tokens = rule.sink_size + num_chunks * rule.lag_size + rest % rule.lag_size
    slots, freed = {}, set()
    for position in range(num_tokens):
        slots[position] = position
        if (chunk := layout.due_chunk(position)) is not None:
            compress(layout, slots, chunk)
            assert layout.compressed_for(position) == chunk + 1
            freed |= {*layout.freed_blocks(chunk)}
    assume(num_tokens)
    compressed = layout.compressed_for(num_tokens - 1)
    columns = layout.compact_columns(-(-num_tokens // block) + 1, torch.tensor([compressed]))[0].tolist()
    held = layout.held_len(num_tokens, compressed)
    seen = [slots[columns[i // block] * block + i % block] for i in range(held)]
    assert seen == visible_to(rule, num_tokens - 1)
    assert freed.isdisjoint(columns[: -(-held // block)])
    assert len(freed) + -(-held // block) == -(-num_tokens // block)


@settings(deadline=None)  # a busy machine is no error
@given(layout=layouts(), num_tokens=st.integers(1, 400), step=st.integers(1, 150))
def test_no_request_holds_more_blocks_than_foreseen(layout, num_tokens, step):
    def held(end: int) -> int:
        processed = max(0, end - step)
        freed = sum(len(layout.freed_blocks(chunk)) for chunk in range(layout.compressed_after(processed)))
        return -(-end // layout.block_size) - freed

    assert layout.most_blocks(num_tokens, step) == max(held(end) for end in range(1, num_tokens + 1))
