"""transformers' generate and pipelines make the compressed cache; the reference recomputes everything without one."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    ContinuousBatchingConfig,
    DynamicCache,
    GenerationConfig,
    StaticCache,
    pipeline,
)
from transformers.generation.continuous_batching import continuous_api

from lrsa_lightning import LRSA, LagKVCache, Vanilla
from lrsa_lightning.errors import InputError
from tests.conftest import make_model

MODE = LRSA(lag_size=8, sink_size=4)
IDS = torch.randint(2, 97, (3, 60), generator=torch.Generator().manual_seed(0))
STARTS = [0, 23, 51]
KINDS = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "temperature": 0.7},
    "beam": {"num_beams": 3, "do_sample": False},
    "prefill in pieces": {"do_sample": False, "prefill_chunk_size": 13},
    "two answers": {"do_sample": True, "num_return_sequences": 2},
}


def by_install():
    model = make_model()
    MODE.install(model)
    return model


def by_name():
    model = make_model()
    model.config.lrsa = MODE.settings()
    model.set_attn_implementation("lrsa")
    return model


WAYS = {"install": by_install, "lrsa": by_name}


@pytest.fixture(params=WAYS)
def model(request):
    return WAYS[request.param]()


def answer(model, ids, **arguments) -> torch.Tensor:
    torch.manual_seed(0)
    out = model.generate(ids, max_new_tokens=20, pad_token_id=0, eos_token_id=1, **arguments)
    return out[:, ids.shape[1] :]


@pytest.mark.parametrize("kind", KINDS)
def test_generate_makes_the_cache(model, kind):
    full_attention = answer(make_model(), IDS, **KINDS[kind])
    got = answer(model, IDS, **KINDS[kind])
    without_pieces = {name: value for name, value in KINDS[kind].items() if name != "prefill_chunk_size"}
    assert torch.equal(got, answer(model, IDS, use_cache=False, **without_pieces))
    assert not torch.equal(got, full_attention)


@pytest.mark.parametrize("kind", ["greedy", "beam"])
def test_a_batch_padded_on_the_left_equals_its_rows(model, kind):
    mask = (torch.arange(60) >= torch.tensor(STARTS)[:, None]).long()
    together = answer(model, IDS * mask, attention_mask=mask, **KINDS[kind])
    for row, start in enumerate(STARTS):
        alone = answer(model, IDS[row : row + 1, start:], use_cache=False, **KINDS[kind])[0]
        assert torch.equal(together[row, : len(alone)], alone)
        assert not together[row, len(alone) :].any()


@pytest.mark.parametrize("kind", ["greedy", "beam"])
def test_a_hybrid_model_gets_the_caches_of_all_its_layers(tmp_path, kind):
    kinds = ["sliding_attention", "full_attention"]
    hybrid = make_model("gemma3_text", head_dim=8, sliding_window=16, layer_types=kinds)
    MODE.install(hybrid)
    hybrid.save_pretrained(tmp_path)
    got = answer(AutoModelForCausalLM.from_pretrained(tmp_path), IDS, **KINDS[kind])
    assert torch.equal(got, answer(hybrid, IDS, use_cache=False, **KINDS[kind]))


def test_what_comes_back_is_the_compressed_cache(model):
    out = model.generate(IDS, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    assert isinstance(out.past_key_values, LagKVCache)
    assert out.past_key_values.layers[0].keys.shape[2] == MODE.rule().stored_len(63)


@torch.no_grad()
@pytest.mark.parametrize("own", [True, False], ids=["an empty cache", "use_cache"])
def test_a_loop_of_forwards(model, own):
    cache = DynamicCache(config=model.config) if own else None
    logits = []
    for piece in IDS.split([30, 1, 1, 28], dim=1):
        out = model(piece, past_key_values=cache, use_cache=True)
        cache = cache if own else out.past_key_values
        logits.append(out.logits)
    assert cache.get_seq_length() == 60
    torch.testing.assert_close(torch.cat(logits, dim=1), model(IDS, use_cache=False).logits, rtol=0, atol=1e-4)


def conversation(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize("chat", [False, True], ids=["text", "chat"])
def test_a_pipeline_on_unequal_prompts(tokenizer, tmp_path, chat):
    model = make_model(vocab_size=len(tokenizer))
    MODE.install(model)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    answers = pipeline("text-generation", str(tmp_path / "model"), device="cpu")
    assert answers.model.config._attn_implementation == "lrsa"
    answers.tokenizer.padding_side = "left"
    texts = ["The grass is green. " * 8, "One of the special magic numbers.", "House 7."]
    prompts = [conversation(text) for text in texts] if chat else texts
    options = {"max_new_tokens": 12, "do_sample": False, "return_full_text": False}
    together = [row[0]["generated_text"] for row in answers(prompts, batch_size=3, **options)]
    for prompt, got in zip(prompts, together, strict=True):
        if chat:
            ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        else:
            ids = tokenizer(prompt, return_tensors="pt").input_ids
        out = model.generate(ids, max_new_tokens=12, do_sample=False, use_cache=False, pad_token_id=0)
        assert got == tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def full_cache(model):
    cache = DynamicCache()
    with Vanilla().installed(model), torch.no_grad():
        model(IDS[:, :9], past_key_values=cache)
    return {"past_key_values": cache}


REFUSED = {
    "filled": (full_cache, "holds 9 tokens already"),
    "static": (lambda model: {"cache_implementation": "static"}, "StaticCache"),
    "own static": (lambda model: {"past_key_values": StaticCache(model.config, max_cache_len=99)}, "StaticCache"),
    "offloaded": (lambda model: {"cache_implementation": "offloaded"}, "an offloaded DynamicCache"),
    "lookup": (lambda model: {"prompt_lookup_num_tokens": 3}, "Assisted decoding"),
    "assistant": (lambda model: {"assistant_model": make_model(seed=1)}, "Assisted decoding"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_caches_that_cannot_follow_the_rule_are_refused(model, kind):
    arguments, message = REFUSED[kind]
    with pytest.raises(InputError, match=message):
        model.generate(IDS[:1], max_new_tokens=20, do_sample=False, pad_token_id=0, **arguments(model))


@pytest.mark.parametrize("way", ["generate_batch", "init_continuous_batching"])
@pytest.mark.parametrize("has_flash", [False, True])
def test_continuous_batching_is_refused(model, monkeypatch, way, has_flash):
    """Where flash attention is installed, transformers would switch to it: full attention."""
    for version in (2, 3):
        name = f"is_flash_attn_{version}_available"
        monkeypatch.setattr(continuous_api, name, lambda **_: has_flash, raising=False)
    before = model.config._attn_implementation
    with pytest.raises(InputError, match="continuous batching keeps all tokens, so LRSA is not supported there"):
        getattr(model, way)(*[[IDS[0].tolist()]] * (way == "generate_batch"))
    assert model.config._attn_implementation == before


def test_continuous_batching_runs_full_attention_by_choice():
    model = make_model()
    expected = model.generate(IDS[:1], max_new_tokens=8, do_sample=False, pad_token_id=0)[0, IDS.shape[1] :].tolist()
    MODE.install(model)
    Vanilla().install(model)
    greedy = GenerationConfig(max_new_tokens=8, do_sample=False, eos_token_id=-1)
    small = ContinuousBatchingConfig(num_blocks=4, max_batch_tokens=256)  # by default, all of the free memory
    prompts = [IDS[0].tolist()]
    (answer,) = model.generate_batch(prompts, generation_config=greedy, continuous_batching_config=small).values()
    assert answer.generated_tokens == expected


@pytest.mark.parametrize("way", ["another model's cache", "another process's configuration", "after Vanilla"])
def test_a_compressed_cache_without_its_mode_is_refused(tmp_path, way):
    model = make_model()
    if way == "after Vanilla":
        MODE.install(model)
        Vanilla().install(model)
    config = model.config if way == "after Vanilla" else by_install().config
    if way == "another process's configuration":
        model.save_pretrained(tmp_path)
        config = AutoModelForCausalLM.from_pretrained(tmp_path).config
        config._attn_implementation = None
    with pytest.raises(InputError, match="not installed in the model"):
        model.generate(IDS, past_key_values=MODE.make_cache(config), max_new_tokens=20, do_sample=False)
