"""One call of a whole decoder returns the reference's bits, and those do not depend on how it is called."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from agreement.cases import same_bits
from agreement.decoders import Maker, Result, Tokens, random_case, same_results
from llmint8.backends.decoder import NativeDecoder
from llmint8.backends.native import Native
from llmint8.errors import InputError
from llmint8.reference import decoder as meaning
from llmint8.reference.decoder import Decoder


def run(native: Native, decoder: Decoder, tokens: Tokens) -> Result:
    tokens = tokens.copy()
    return *NativeDecoder(decoder, native)(*tokens.arguments), tokens.keys, tokens.values


@pytest.mark.parametrize("block", range(6))
def test_random_decoders(native: Native, block: int) -> None:
    threads = torch.get_num_threads()
    for seed in range(25 * block, 25 * (block + 1)):
        decoder, tokens, want = random_case(seed)
        before = tokens.hidden._version
        try:
            torch.set_num_threads(1 + seed % 3)
            got = run(native, decoder, tokens)
        finally:
            torch.set_num_threads(threads)
        assert same_results(got, want), f"seed {seed}: {tokens.hidden.dtype} {list(tokens.hidden.shape)}"
        assert tokens.hidden._version == before


def prompt(maker: Maker, decoder: Decoder, batch: int, tokens: int) -> Tokens:
    """Tokens without a past, and room for just them."""
    caches = [
        [
            torch.zeros(batch, decoder.kv_heads, tokens, decoder.head_dim, dtype=maker.dtype)
            for _ in decoder.layers
        ]
        for _ in range(2)
    ]
    hidden = maker.randn(batch, tokens, len(decoder.norm)).to(maker.dtype)
    angles = maker.randn(batch, tokens, decoder.head_dim)
    logits = tokens if decoder.head is not None else 0
    return Tokens(
        hidden, angles.cos().to(maker.dtype), angles.sin().to(maker.dtype), *caches, 0, None, logits
    )


@pytest.mark.parametrize("seed", range(12))
def test_tokens_one_by_one_are_the_prompt_at_once(native: Native, seed: int) -> None:
    """Also a prompt of several blocks of keys, several tasks of attention, and several chunks of tokens."""
    maker = Maker(seed)
    decoder = maker.decoder()
    tokens = prompt(maker, decoder, 2, 150 if seed % 2 else 600)
    whole = run(native, decoder, tokens)
    fast, single, out, logits, past = NativeDecoder(decoder, native), tokens.copy(), [], [], 0
    for count in (1, 1, 70, 3, 1, tokens.hidden.shape[1] - 77, 1):
        part = slice(past, past + count)
        hidden, scores = fast(
            single.hidden[:, part], single.cos[:, part], single.sin[:, part],
            single.keys, single.values, past, None, min(count, tokens.logits),
        )  # fmt: skip
        out.append(hidden)
        logits.append(scores)
        past += count
    scores = None if decoder.head is None else torch.cat(logits, 1)
    assert same_results((torch.cat(out, 1), scores, single.keys, single.values), whole)


@pytest.mark.parametrize("seed", range(12))
def test_a_sequence_never_depends_on_its_batch_or_padding(native: Native, seed: int) -> None:
    maker = Maker(seed)
    decoder = maker.decoder()
    tokens, padding = prompt(maker, decoder, 3, 90), 37
    mask = torch.ones(3, 90, dtype=torch.bool)
    mask[1, :padding] = False
    tokens = Tokens(**{**vars(tokens), "mask": mask})
    out, logits, keys, _ = run(native, decoder, tokens)
    alone = {
        name: value[1:2, padding:].contiguous()
        for name, value in vars(tokens).items()
        if name in ("hidden", "cos", "sin")
    }
    caches = {
        name: [t[1:2, :, padding:].contiguous() for t in getattr(tokens, name)] for name in ("keys", "values")
    }
    single = Tokens(**alone, **caches, past=0, mask=None, logits=90 - padding if tokens.logits else 0)
    out_alone, logits_alone, keys_alone, _ = run(native, decoder, single)
    assert same_bits(out_alone, out[1:2, padding:].contiguous())
    assert logits is None or same_bits(logits_alone, logits[1:2, padding:].contiguous())
    assert all(same_bits(a, b[1:2, :, padding:].contiguous()) for a, b in zip(keys_alone, keys, strict=True))


@pytest.mark.parametrize("seed", range(8))
def test_long_prompts_of_extreme_numbers(native: Native, seed: int) -> None:
    """Holes, windows and a past; subnormal numbers, and values without bound that not every query sees."""
    maker = Maker(seed)
    maker.dtype = (torch.bfloat16, torch.float16)[seed % 4 == 3]
    decoder = maker.decoder()
    layer = replace(decoder.layers[0], window=(7, 20, 45)[seed % 3])
    decoder = replace(decoder, layers=(layer,))
    past, count = 40, 50
    tokens = prompt(maker, decoder, 2, past + count)
    for cache in (*tokens.keys, *tokens.values):
        cache.copy_(maker.randn(*cache.shape))
        cache[maker.randn(*cache.shape) > 1] *= 2.0**-60
        cache[maker.randn(*cache.shape) > 1] *= 2.0**-70
    tokens.values[0][0, :, 35, ::3] = float("inf")
    tokens.values[0][1, :, 38, 1] = float("nan")
    tokens = replace(
        tokens,
        **{name: getattr(tokens, name)[:, past:].contiguous() for name in ("hidden", "cos", "sin")},
        past=past,
        mask=maker.randn(2, past + count) > -1 if seed % 2 else None,
        logits=0,
    )
    filled = tokens.copy()
    want = (*meaning.forward(decoder, *filled.arguments), filled.keys, filled.values)
    assert want[0].isfinite().any()
    assert not want[0].isfinite().all()
    assert same_results(run(native, decoder, tokens), want)


def test_what_is_wrong_is_refused(native: Native) -> None:
    maker = Maker(0)
    decoder = maker.decoder()
    tokens = maker.tokens(decoder)
    fast = NativeDecoder(decoder, native)
    given = vars(tokens)
    other = torch.float32 if maker.dtype != torch.float32 else torch.bfloat16
    wrong = {
        "hidden": tokens.hidden.to(other),
        "cos": tokens.cos[:, :, :-1],
        "keys": [k[:, :, :-1] for k in tokens.keys],
        "values": tokens.values[1:],
        "mask": torch.ones(7, 7, dtype=torch.bool),
    }
    for name, value in wrong.items():
        with pytest.raises(InputError):
            fast(**{**given, name: value})
    with pytest.raises(Exception, match="room for the tokens"):
        fast(**{**given, "past": tokens.keys[0].shape[2], "mask": None})


def test_python_threads_can_share_a_decoder(native: Native) -> None:
    decoder = Maker(2).decoder()
    fast = NativeDecoder(decoder, native)
    makers = [Maker(seed) for seed in range(40) if Maker(seed).dtype == decoder.norm.dtype]
    every = [prompt(maker, decoder, 1, 40) for maker in makers]
    want = [run(native, decoder, tokens)[0] for tokens in every]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda tokens: fast(*tokens.copy().arguments)[0], every))
    assert all(map(same_bits, got, want))
