"""generate with the fast path writes what it writes without: every way to decode, every kind of model."""

from typing import Any

import pytest
import torch
import transformers

from fast.models import counting, pair, tokens
from llmint8.fast import fast_path

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama, biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, one head for all": ("Llama", {"num_key_value_heads": 1}),
    "llama, gelu": ("Llama", {"hidden_act": "gelu_pytorch_tanh"}),
    "llama, tied": ("Llama", {"tie_word_embeddings": True}),
    "llama 3 angles": (
        "Llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ),
    "llama, dynamic angles": (
        "Llama",
        {
            "max_position_embeddings": 16,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
        },
    ),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral, window": ("Mistral", {"sliding_window": 6}),
    "qwen2": ("Qwen2", {}),
    "qwen2, some windows": (
        "Qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 6,
            "layer_types": ["full_attention", "sliding_attention"],
        },
    ),
    "qwen3": ("Qwen3", {"head_dim": 16}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_greedy_text(kind: str) -> None:
    name, overrides = KINDS[kind]
    plain, fast = pair(name, **overrides)
    assert fast_path(fast).reason is None
    ids = tokens(2, 9)
    with torch.no_grad(), counting(fast) as calls:
        expected, got = plain(ids).logits, fast(ids).logits
        assert calls == [9]
        assert torch.allclose(expected, got, rtol=1e-5, atol=2e-5)
        written = [m.generate(ids, attention_mask=ids > 0, max_new_tokens=14) for m in (plain, fast)]
    assert calls == [9, 9] + [1] * 13
    assert torch.equal(*written)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    plain, fast = pair(dtype=dtype)
    ids = tokens(1, 9)
    with torch.no_grad():
        expected, got = plain(ids).logits, fast(ids).logits
    assert got.dtype == dtype
    assert (expected - got).norm() < 0.03 * expected.norm()


WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 0.9, "top_k": 20},
    "beams": {"num_beams": 3},
    "beams, several texts": {"num_beams": 4, "num_return_sequences": 2},
    "repetition penalty": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "without a cache": {"use_cache": False},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("window", [None, 6])
def test_ways_to_decode(way: str, window: int | None) -> None:
    plain, fast = pair("Mistral", sliding_window=window)
    ids = tokens(1 if way == "prompt lookup" else 3, 10)
    mask = torch.ones_like(ids)
    if len(ids) > 1:
        mask[0, :4] = mask[1, :1] = 0
    written = []
    with counting(fast) as calls:
        for model in (plain, fast):
            torch.manual_seed(5)
            written.append(model.generate(ids, attention_mask=mask, max_new_tokens=12, **WAYS[way]))
    assert calls
    assert torch.equal(*written)


def test_many_prompts() -> None:
    plain, fast = pair(seed=1)
    for length in range(1, 25):
        ids = tokens(1, length, seed=length)
        written = [m.generate(ids, attention_mask=ids > 0, max_new_tokens=16) for m in (plain, fast)]
        assert torch.equal(*written)


def test_a_token_does_not_depend_on_its_batch_or_on_how_the_text_was_fed() -> None:
    _, fast = pair()
    ids = tokens(3, 11)
    with torch.no_grad():
        whole = fast(ids).logits
        assert torch.equal(whole[1:2], fast(ids[1:2]).logits)
        first = fast(ids[:, :5], use_cache=True)
        cache = first.cache
        rest = [fast(ids[:, i : i + 1], cache=cache).logits for i in range(5, 11)]
    assert torch.equal(whole, torch.cat([first.logits, *rest], 1))


@pytest.mark.parametrize("assistant_is_fast", [False, True])
def test_assisted_decoding(assistant_is_fast: bool) -> None:
    plain, fast = pair(seed=2)
    helper = pair(seed=2, num_hidden_layers=1)[assistant_is_fast]
    ids = tokens(1, 6)
    expected = plain.generate(ids, attention_mask=ids > 0, max_new_tokens=20)
    got = fast.generate(ids, attention_mask=ids > 0, max_new_tokens=20, assistant_model=helper)
    assert torch.equal(expected, got)


def test_streaming() -> None:
    plain, fast = pair()
    ids = tokens(1, 6)

    class Collect(transformers.generation.streamers.BaseStreamer):
        def __init__(self) -> None:
            self.got: list[int] = []

        def put(self, value: torch.Tensor) -> None:
            self.got += value.flatten().tolist()

        def end(self) -> None:
            self.got.append(-1)

    streamer = Collect()
    fast.generate(ids, attention_mask=ids > 0, max_new_tokens=8, streamer=streamer)
    assert streamer.got == [*plain.generate(ids, attention_mask=ids > 0, max_new_tokens=8)[0].tolist(), -1]


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (1, 1)])
def test_conversation_goes_on_with_the_cache_of_either_path(order: tuple[int, int]) -> None:
    models = pair("Mistral", sliding_window=8)
    ids = tokens(1, 6)
    settings = {"max_new_tokens": 5, "return_dict_in_generate": True}

    def talk(first: Any, second: Any) -> torch.Tensor:
        output = first.generate(ids, attention_mask=ids > 0, **settings)
        more = torch.cat([output.sequences, tokens(1, 3, seed=9)], 1)
        result = second.generate(more, attention_mask=more > 0, cache=output.cache, **settings)
        return result.sequences

    assert torch.equal(talk(models[0], models[0]), talk(models[order[0]], models[order[1]]))


def test_scores_and_labels() -> None:
    plain, fast = pair()
    ids = tokens(2, 7)
    with torch.no_grad(), counting(fast) as calls:
        losses = [m(ids, labels=ids).loss for m in (plain, fast)]
        last = [m(ids, logits_to_keep=1).logits for m in (plain, fast)]
        some = [m(ids, logits_to_keep=torch.tensor([0, 3])).logits for m in (plain, fast)]
        embedded = [m(inputs_embeds=m.get_input_embeddings()(ids)).logits for m in (plain, fast)]
    assert len(calls) == 4
    assert torch.allclose(*losses, rtol=1e-5)
    for two in (last, some, embedded):
        assert torch.allclose(*two, rtol=1e-5, atol=2e-5)
    settings = {"max_new_tokens": 4, "return_dict_in_generate": True, "output_scores": True}
    scores = [m.generate(ids, attention_mask=ids > 0, **settings).scores for m in (plain, fast)]
    for a, b in zip(*scores, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=2e-5)
