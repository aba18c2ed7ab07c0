"""Runs to be planned: Qwen2.5-1.5B's shape on one H100, as it was measured."""

from dataclasses import replace
from functools import cache

from lrsa_lightning import LRSA
from lrsa_lightning.plan import Run
from lrsa_lightning.plan.division import Division
from lrsa_lightning.plan.model_size import ModelSize
from lrsa_lightning.pretrained.decoder import load_config

KEYS_1_5B = {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
}


@cache
def _one() -> Run:
    config = load_config(None, KEYS_1_5B)
    return Run(
        config=config,
        size=ModelSize.of(config),
        mode=LRSA(),
        seq_len=32768,
        rows=1,
        global_batch_size=1,
        loss_chunk_size=512,  # as many label tokens as the measured rows had
        precision="bf16-true",
        recompute="full",
        is_fused=False,
        division=Division(),
    )


def run_of(**changed) -> Run:
    """The 1.5B shape at 32K in bf16-true, one row a step, full recomputation, no fused layers; with changes."""
    return replace(_one(), **changed)
