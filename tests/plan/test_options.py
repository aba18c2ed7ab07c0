"""What fits, and which sequence-parallel degrees are possible: by hand, and against all options."""

from dataclasses import replace

import pytest

from lrsa_lightning import LRSA, Vanilla
from lrsa_lightning.attention.layout import TILE, KVLayout
from lrsa_lightning.distributed.sequence_parallel import SequenceParallel
from lrsa_lightning.errors import InputError
from lrsa_lightning.plan import fitting_options, predict
from lrsa_lightning.plan.devices import H100, find_device
from lrsa_lightning.plan.division import Division
from lrsa_lightning.plan.options import options, way_out
from lrsa_lightning.plan.sequence import possible_degrees
from lrsa_lightning.pretrained import load_config
from tests.plan.runs import KEYS_1_5B, run_of

CARD = replace(H100, memory=24 * 2**30)


def test_the_first_option_is_the_fastest_that_fits():
    run = run_of(division=Division("zero", 8, 2), global_batch_size=8, precision="bf16-master")
    everything, fitting = options(run, CARD), fitting_options(run, CARD)
    assert 0 < len(fitting) < len(everything)
    assert fitting[0].prediction.times.step == min(o.prediction.times.step for o in everything if o.prediction.fits)
    assert all(option.prediction.peak <= CARD.usable for option in fitting)
    kinds = {(option.run.division.kind, option.run.division.stage) for option in everything}
    assert kinds == {("zero", 2), ("zero", 3), ("fsdp2", 0)}


def test_one_device_has_no_other_division():
    assert {option.run.division for option in options(run_of(), H100)} == {Division()}


def test_batches_that_do_not_divide_are_no_option():
    run = run_of(division=Division("ddp", 4), global_batch_size=2)
    with pytest.raises(InputError, match=r"data\.global_batch_size 2"):
        predict(run, H100)
    assert {option.run.division.degree for option in options(run, H100)} == {2, 4}


def test_the_way_out_is_the_fewest_devices_that_do():
    run = run_of(precision="bf16-master", global_batch_size=16)
    assert not fitting_options(run, CARD)
    assert way_out(run, CARD).startswith(f"2 x {CARD.label}: ")
    more = replace(run, division=Division("zero", 2, 3))
    assert fitting_options(more, CARD)


@pytest.mark.parametrize(("heads", "kv_heads", "ulysses"), [(12, 2, [1, 2, 4, 6, 12]), (28, 4, [1, 2, 4, 28])])
def test_possible_degrees_are_those_of_the_docs(heads, kv_heads, ulysses):
    config = run_of().config.__class__(**{**run_of().config.to_dict(), "num_attention_heads": heads})
    config.num_key_value_heads = kv_heads
    degrees = possible_degrees(config, LRSA(lag_size=1024), 32768, 40)
    assert degrees["ulysses"] == ulysses
    assert degrees["context"] == list(range(1, 32))  # (32768 - 16) // 1024 complete chunks
    assert possible_degrees(config, Vanilla(), 32768, 40)["context"] == list(range(1, 41))


def _shape(mode, kind: str, size: int):
    division = Division("zero", size, 3, sequence_parallel=SequenceParallel(size, kind))
    return run_of(mode=mode, division=division, global_batch_size=1).shapes()[0]


def test_a_rank_has_its_part_of_a_layer():
    complete = run_of(mode=Vanilla()).shapes()[0]
    ulysses = _shape(Vanilla(), "ulysses", 4)
    # One of two KV heads over the complete sequence, as much as both over half of it.
    assert (ulysses.tokens, ulysses.keys) == (8192, 16384)
    assert ulysses.pairs == complete.pairs // 4
    context = _shape(LRSA(), "context", 4)
    assert abs(context.tokens - 8192) <= 1024
    # The last segment sees all that is kept. Each segment also has the chunk before it.
    compact = 16 + 30 * 512
    assert compact + context.tokens < context.keys < 2 * compact + context.tokens + 2 * 1024


def test_skipped_layers_keep_raw_keys():
    mode = LRSA(skip_layers=[0, 3])
    shapes = run_of(mode=mode).shapes()
    assert [shape.is_sparse for shape in shapes[:5]] == [False, True, True, False, True]
    assert shapes[0].keys == 32768
    layout = KVLayout.of_sequence(mode.rule(1), 32768, TILE).with_duplicates()
    assert shapes[1].keys == layout.num_keys


def test_devices_are_found_by_their_drivers_names():
    found = {
        name: find_device(name, 7)
        for name in ("NVIDIA H100 80GB HBM3", "NVIDIA H200", "NVIDIA A100-SXM4-80GB", "Ascend910B2", "NVIDIA L4")
    }
    labels = [device.label for device in found.values()]
    assert labels == ["H100 80GB", "H200", "A100 80GB", "Ascend 910B", "NVIDIA L4"]
    assert [device.has_known_rates for device in found.values()] == [True] * 4 + [False]
    assert found["NVIDIA H200"].memory == 7


def test_a_layer_that_keeps_its_window_is_planned_as_it_is():
    """28 layers of Qwen2. The upper 14 keep a window: only the lower ones drop tokens."""
    keys = {"use_sliding_window": True, "max_window_layers": 14, "sliding_window": 4096}
    window = run_of(config=load_config(None, {"model_type": "qwen2", **KEYS_1_5B, **keys}))
    shapes, plain = window.shapes(), run_of().shapes()
    assert shapes[:14] == plain[:14]
    kept = replace(plain[14], keys=32768, pairs=4096 * 4097 // 2 + 28672 * 4096)
    assert shapes[14:] == [kept] * 14
    assert kept.pairs < plain[0].pairs < 32768 * 32769 // 2
