"""What the fast path does not cover takes the model's own forward, and gives what that gives."""

import copy
import gc
import pickle
import weakref
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import tiny
from fast.models import build, counting, pair, tokens
from llmint8 import ConfigError, QuantizationError, optimize_for_inference, quantize_model
from llmint8.fast import fast_path, restore

IDS = tokens(2, 6)


def agree(plain: Any, fast: Any, **settings: Any) -> None:
    with torch.no_grad():
        expected, got = plain(IDS, **settings).logits, fast(IDS, **settings).logits
    assert torch.allclose(expected, got, rtol=1e-5, atol=2e-5)


def test_arguments_of_another_kind() -> None:
    plain, fast = pair()
    agree(plain, fast, output_hidden_states=True)  # leaves transformers' own hooks behind
    causal = torch.ones(6, 6).tril().expand(2, 1, 6, 6) > 0
    with counting(fast) as calls:
        agree(plain, fast, output_hidden_states=True)
        agree(plain, fast, output_attentions=True)
        agree(plain, fast, attention_mask=causal)
        agree(plain, fast, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]]))
        assert not calls
        agree(plain, fast, position_ids=torch.tensor([[3, 4, 5, 6, 7, 8]]))
        assert calls == [6]
    with torch.no_grad():
        assert len(fast(IDS, output_hidden_states=True).hidden_states) == 3
        assert isinstance(fast(IDS, return_dict=False), tuple)


def test_gradients_are_those_of_the_modules() -> None:
    plain, fast = pair()
    with counting(fast) as calls:
        gradients = []
        for model in (plain, fast):
            model(IDS, labels=IDS).loss.backward()
            gradients.append(model.model.embed_tokens.weight.grad)
        fast.train()
        with torch.no_grad():
            fast(IDS)
        assert not calls
    assert torch.equal(*gradients)


@pytest.mark.parametrize("implementation", ["static", "offloaded_static", "quantized"])
def test_foreign_caches(implementation: str) -> None:
    if implementation == "offloaded_static" and not torch.cuda.is_available():
        pytest.skip("transformers offloads from a GPU only")
    if implementation == "quantized":
        pytest.importorskip("optimum.quanto", reason="transformers quantises caches with it")
    plain, fast = pair()
    settings = {"attention_mask": IDS > 0, "max_new_tokens": 5, "cache_implementation": implementation}
    with counting(fast) as calls:
        written = [m.generate(IDS, disable_compile=True, **settings) for m in (plain, fast)]
    assert not calls
    assert torch.equal(*written)


def test_hooks_count() -> None:
    _, fast = pair()
    seen: list[int] = []
    handle = fast.model.layers[1].mlp.up_proj.register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        fast(IDS)
        assert seen == [1]
        assert "hooks" in str(fast_path(fast))
        handle.remove()
        fast(IDS)
    assert seen == [1]
    assert fast_path(fast).reason is None


def test_changes_of_the_model_are_noticed() -> None:
    plain, fast = pair()
    for model in (plain, fast):
        model.model.layers[0].mlp.up_proj.threshold = "auto"
    agree(plain, fast)
    for model in (plain, fast):
        model.model.norm.weight.data = model.model.norm.weight.data * 2
    agree(plain, fast)
    for model in (plain, fast):
        with torch.no_grad():
            model.model.norm.weight.mul_(0.7)
            model.lm_head.weight.neg_()
    agree(plain, fast)
    other = build("Llama", seed=5)
    for model in (plain, fast):
        model.load_state_dict(other.state_dict())
    agree(other, fast)
    for model in (plain, fast):
        model.model.layers[1].self_attn.q_proj = copy.deepcopy(other.model.layers[0].self_attn.q_proj)
    with counting(fast) as calls:
        agree(plain, fast)
    assert calls
    for model in (plain, fast):
        model.model.layers[1].mlp.up_proj = nn.Sequential(model.model.layers[1].mlp.up_proj)
    agree(plain, fast)
    assert "up_proj is a" in str(fast_path(fast))


def test_a_cast_is_noticed() -> None:
    plain, fast = pair()
    for model in (plain, fast):
        model.to(torch.bfloat16)
    with torch.no_grad(), counting(fast) as calls:
        expected, got = plain(IDS).logits, fast(IDS).logits
    assert calls
    assert got.dtype == torch.bfloat16
    assert (expected - got).norm() < 0.03 * expected.norm()


def test_adapters() -> None:
    peft = pytest.importorskip("peft")
    plain, fast = pair()
    config = peft.LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapted = []
    for model in (plain, fast):
        torch.manual_seed(3)
        adapted.append(peft.get_peft_model(model, config).eval())
    agree(*adapted)
    merged = [model.merge_and_unload() for model in adapted]
    with counting(merged[1]) as calls:
        agree(*merged)
    assert calls


def test_compilation_sees_the_modules() -> None:
    plain, fast = pair()
    compiled = torch.compile(fast, backend="eager", fullgraph=False)
    with torch.no_grad():
        assert torch.equal(compiled(IDS).logits, plain(IDS).logits)


def test_copies_pickles_and_the_end() -> None:
    _, fast = pair()
    with torch.no_grad():
        expected = fast(IDS).logits
        for twin in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
            with counting(twin) as calls:
                assert torch.equal(twin(IDS).logits, expected)
            assert calls
            assert twin.forward.engine is twin.model.forward.engine
            assert twin.forward.engine.model is twin
    gone = weakref.ref(fast.model.layers[0].mlp.up_proj)
    gc.disable()
    try:
        del fast, twin
        assert gone() is None
    finally:
        gc.enable()


def test_restore() -> None:
    plain, fast = pair()
    restore(fast)
    with torch.no_grad():
        assert torch.equal(plain(IDS).logits, fast(IDS).logits)
    assert fast_path(fast).reason == "it is not optimised"


def test_signature_stays() -> None:
    import inspect

    plain, fast = pair()
    assert inspect.signature(fast.forward) == inspect.signature(plain.forward)
    assert inspect.signature(fast.model.forward) == inspect.signature(plain.model.forward)


@pytest.mark.parametrize("kind", ["Gemma", "Granite", "Helium", "Ernie4_5", "SmolLM3", "Olmo2", "Phi3"])
def test_other_architectures_keep_their_forward(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    model = build(kind)
    with torch.no_grad():
        expected = model(IDS).logits
        assert optimize_for_inference(model) is model
        assert torch.equal(model(IDS).logits, expected)
    assert fast_path(model).layers == 0
    assert f"{kind}ForCausalLM keeps the model's own forward" in caplog.text


@pytest.mark.parametrize(
    "make", [tiny.tiny_gpt2, tiny.tiny_opt, tiny.tiny_mixture, tiny.tiny_t5, tiny.tiny_classifier]
)
def test_models_of_another_kind(make: Any) -> None:
    model = make()
    quantize_model(model)
    assert optimize_for_inference(model) is model
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_decoder_without_a_head_and_classifiers() -> None:
    model = tiny.tiny_llama()
    quantize_model(model)
    plain, fast = model.model, optimize_for_inference(copy.deepcopy(model.model))
    with torch.no_grad(), counting(fast) as calls:
        states = [m(IDS).last_hidden_state for m in (plain, fast)]
    assert calls == [6]
    assert torch.allclose(*states, rtol=1e-5, atol=2e-5)

    torch.manual_seed(0)
    config = transformers.LlamaConfig(**(tiny.tiny_llama().config.to_dict() | {"pad_token_id": 0}))
    plain = transformers.LlamaForSequenceClassification(config).eval()
    quantize_model(plain)
    fast = optimize_for_inference(copy.deepcopy(plain))
    with counting(fast) as calls:
        agree(plain, fast)
    assert calls


def test_what_is_refused() -> None:
    with pytest.raises(QuantizationError, match="no int8 layer"):
        optimize_for_inference(tiny.tiny_llama())
    with pytest.raises(ConfigError, match="head must be"):
        optimize_for_inference(build("Llama"), head="exact")  # type: ignore[arg-type]
