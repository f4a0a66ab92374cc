"""Tensor parallelism in two processes: tensors and saved files are those of one, outputs too.

A layer that deals out rows returns the same bits. One whose rows are cut rounds activations with a scale for
each rank, so its outputs are held to the bound of docs/parallel.md, which is computed here in float64.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.distributed import DistributedConfig

import tiny
from agreement.cases import same_bits
from distributed.ranks import RANKS, needs_gloo, run_ranks
from llmint8 import Int8Config, Int8Linear, QuantizationError, reference
from llmint8.nn import Int8Embedding, Int8Experts

pytestmark = needs_gloo
CausalLM = transformers.AutoModelForCausalLM

TOKENS = torch.arange(24).reshape(2, 12)
DTYPES = (torch.float32, torch.bfloat16)
THRESHOLD = 2.0
#: Row-parallel layers of a Llama; its other linear layers are column-parallel.
CUT_ROWS = ("o_proj", "down_proj")
#: Styles that no Llama asks for; such a model is saved, not run.
OTHER_PLAN = {
    "model.layers.*.self_attn.q_proj": "rowwise_split_input",
    "model.layers.*.self_attn.k_proj": "packed_colwise",
}
#: Models with int8 weights that no plan cuts, the second with a head that is tied to them.
WHOLE = {
    "experts": (tiny.tiny_mixture, Int8Config()),
    "embeddings": (
        lambda: tiny.tiny_llama(tie_word_embeddings=True),
        Int8Config(quantize_head=True, quantize_embeddings=True),
    ),
}
OTHER_KINDS = (Int8Experts, Int8Embedding)
BROKEN = "model.layers.1.mlp.down_proj"


def load(folder: Path, **options: Any) -> nn.Module:
    if folder.name == "float":
        options["quantization_config"] = Int8Config(threshold=THRESHOLD)
    model: nn.Module = CausalLM.from_pretrained(folder, **options)
    return model


def int8_layers(model: nn.Module) -> dict[str, Int8Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Int8Linear)}


def observe(model: nn.Module) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """The logits, and for each int8 layer what went into it and what came out on this rank."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    hooks = [
        layer.register_forward_hook(
            lambda _, inputs, output, name=name: seen.update({name: (inputs[0], output)})
        )
        for name, layer in int8_layers(model).items()
    ]
    with torch.no_grad():
        logits = model(TOKENS).logits
    for hook in hooks:
        hook.remove()
    return logits, seen


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Of each bias, whole; of a sum over logits that weighs them differently."""
    logits = model(TOKENS).logits.float()
    (logits * torch.linspace(-1, 1, logits.shape[-1])).mean().backward()
    found = {name: layer.bias.grad for name, layer in int8_layers(model).items()}
    return {name: getattr(grad, "full_tensor", lambda grad=grad: grad)() for name, grad in found.items()}


def load_and_save(rank: int, folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for kind in ("float", "int8"):
        for dtype in DTYPES:
            model = load(folder / kind, tp_plan="auto", dtype=dtype)
            parts = {
                name: {key: tensor.to_local() for key, tensor in layer.named_parameters()}
                for name, layer in int8_layers(model).items()
            }
            results[f"{kind} {dtype}"] = (parts, *observe(model))
        model.save_pretrained(folder / f"{kind}-saved")
        plan = DistributedConfig(tp_size=RANKS, tp_plan=OTHER_PLAN)
        load(folder / kind, distributed_config=plan).save_pretrained(folder / f"{kind}-other-plan")
    results["gradients"] = gradients(load(folder / "int8", tp_plan="auto"))
    with pytest.raises(QuantizationError) as error:
        CausalLM.from_pretrained(folder / "broken", tp_plan="auto", quantization_config=Int8Config())
    results["broken"] = str(error.value)
    for name, (_, config) in WHOLE.items():
        model = CausalLM.from_pretrained(folder / f"{name}-float", tp_plan="auto", quantization_config=config)
        model.save_pretrained(folder / f"{name}-saved")
        results[name] = {
            type(m).__name__: m.state_dict() for m in model.modules() if isinstance(m, OTHER_KINDS)
        }
    return results


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints of one model, one float and one int8, of widths that two ranks cannot share evenly."""
    folder = tmp_path_factory.mktemp("models")
    model = tiny.tiny_llama(attention_bias=True, mlp_bias=True, intermediate_size=49)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    model.save_pretrained(folder / "float")
    load(folder / "float").save_pretrained(folder / "int8")
    with torch.no_grad():
        model.get_submodule(BROKEN).weight[3, -1] = torch.nan  # which the last rank reads
    model.save_pretrained(folder / "broken")
    for name, (build, config) in WHOLE.items():
        build().save_pretrained(folder / f"{name}-float")
        int8 = CausalLM.from_pretrained(folder / f"{name}-float", quantization_config=config)
        int8.save_pretrained(folder / f"{name}-int8")
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[Any]:
    return run_ranks(load_and_save, folder)


def whole_input(ranks: list[Any], case: str, name: str) -> Tensor:
    inputs: list[Tensor] = [rank[case][2][name][0] for rank in ranks]
    return torch.cat(inputs, dim=-1) if name.endswith(CUT_ROWS) else inputs[0]


CASES = pytest.mark.parametrize(
    ("kind", "dtype"), [(kind, dtype) for kind in ("float", "int8") for dtype in DTYPES], ids=str
)


@CASES
def test_each_rank_holds_its_part(folder: Path, ranks: list[Any], kind: str, dtype: torch.dtype) -> None:
    for name, layer in int8_layers(load(folder / kind, dtype=dtype)).items():
        first, second = (rank[f"{kind} {dtype}"][0][name] for rank in ranks)
        cut = 1 if name.endswith(CUT_ROWS) else 0
        assert abs(first["weight"].shape[cut] - second["weight"].shape[cut]) <= 1
        assert torch.equal(torch.cat([first["weight"], second["weight"]], dim=cut), layer.weight)
        for key, want in (("SCB", layer.SCB), ("bias", layer.bias)):
            parts = [first[key]] if cut else [first[key], second[key]]
            assert same_bits(torch.cat(parts), want.detach()), (name, key)
            assert cut == 0 or same_bits(first[key], second[key])


@CASES
def test_layers_that_deal_out_rows_return_the_same_bits(
    folder: Path, ranks: list[Any], kind: str, dtype: torch.dtype
) -> None:
    case, layers = f"{kind} {dtype}", int8_layers(load(folder / kind, dtype=dtype))
    dealt = [name for name in layers if not name.endswith(CUT_ROWS)]
    assert len(dealt) == 10
    for name in dealt:
        output = torch.cat([rank[case][2][name][1] for rank in ranks], dim=-1)
        assert same_bits(output, layers[name](whole_input(ranks, case, name)).detach()), name


def bound(layer: Int8Linear, x: Tensor, parts: list[Tensor], outputs: list[Tensor]) -> Tensor:
    """docs/parallel.md, "How far a row-parallel layer may differ", float64 `[M, N]`."""
    weight = layer.dequantize().double().abs()
    total = torch.zeros(len(x), len(weight), dtype=torch.float64)
    start = 0
    for rows, columns in [(x, None)] + [(part, part.shape[1]) for part in parts]:
        q, scale = (t.double() for t in reference.quantize_rows(rows.contiguous(), THRESHOLD))
        own = weight if columns is None else weight[:, start : start + columns]
        start += columns or 0
        total += scale[:, None] / 2 * own.sum(dim=1)
        total += 12 * 2.0**-24 * (q.abs() * scale[:, None]) @ own.T
    unit = torch.finfo(x.dtype).eps / 2
    return total + unit * 2 * sum(output.double().abs() for output in outputs)


@CASES
def test_layers_whose_rows_are_cut_stay_within_the_bound(
    folder: Path, ranks: list[Any], kind: str, dtype: torch.dtype
) -> None:
    case, layers = f"{kind} {dtype}", int8_layers(load(folder / kind, dtype=dtype))
    cut = [name for name in layers if name.endswith(CUT_ROWS)]
    assert len(cut) == 4
    differing, tightness = 0, 0.0
    for name in cut:
        layer, x = layers[name], whole_input(ranks, case, name).flatten(0, 1)
        got, other = (rank[case][2][name][1].flatten(0, 1) for rank in ranks)
        assert same_bits(got, other)
        parts = [rank[case][2][name][0].flatten(0, 1) for rank in ranks]
        sizes = [part.shape[1] for part in parts]
        partial = [
            reference.linear(part.contiguous(), codes.contiguous(), layer.SCB, None, THRESHOLD)
            for part, codes in zip(parts, layer.weight.split(sizes, dim=1), strict=True)
        ]
        assert same_bits(got, (partial[0] + partial[1] + layer.bias).detach())  # exactly this is computed
        want = layer(x).detach()
        difference, limit = (
            (got.double() - want.double()).abs(),
            bound(layer, x, parts, [*partial, got, want]),
        )
        assert (difference <= limit).all()
        differing += int((difference > 0).sum())
        tightness = max(tightness, float((difference / limit).max()))
    assert differing > 0
    assert tightness > 0.05  # a bound that says nothing would pass too


@pytest.mark.parametrize("kind", ["float", "int8"])
def test_the_saved_checkpoint_is_that_of_one_process(folder: Path, ranks: list[Any], kind: str) -> None:
    load(folder / kind, dtype=DTYPES[-1]).save_pretrained(folder / f"{kind}-one")
    want, got = (load_file(folder / f"{kind}-{by}" / "model.safetensors") for by in ("one", "saved"))
    assert want.keys() == got.keys()
    for key, tensor in want.items():
        assert tensor.dtype == got[key].dtype, key
        assert torch.equal(tensor, got[key]), key
    config = [(folder / f"{kind}-{by}" / "config.json").read_text() for by in ("one", "saved")]
    assert config[0] == config[1]
    again = load(folder / f"{kind}-saved")
    assert same_bits(again(TOKENS).logits, load(folder / f"{kind}-one")(TOKENS).logits)


@pytest.mark.parametrize("kind", ["float", "int8"])
def test_scales_follow_their_rows_under_any_plan(folder: Path, ranks: list[Any], kind: str) -> None:
    want, got = (load_file(folder / name / "model.safetensors") for name in ("int8", f"{kind}-other-plan"))
    assert want.keys() == got.keys()
    assert not [key for key, tensor in want.items() if not torch.equal(tensor, got[key])]


def test_a_broken_weight_is_named_on_every_rank(ranks: list[Any]) -> None:
    for rank in ranks:
        assert rank["broken"].startswith(f"{BROKEN}.weight holds a NaN or an infinity")


@pytest.mark.parametrize("name", WHOLE)
def test_int8_weights_of_other_modules_stay_whole(folder: Path, ranks: list[Any], name: str) -> None:
    want, got = (load_file(folder / f"{name}-{by}" / "model.safetensors") for by in ("int8", "saved"))
    assert want.keys() == got.keys()
    assert not [key for key, tensor in want.items() if not torch.equal(tensor, got[key])]
    from torch.distributed.tensor import DTensor  # torch without gloo has none

    for rank in ranks:
        states = rank[name]
        assert len(states) == 1
        assert not [key for state in states.values() for key, t in state.items() if isinstance(t, DTensor)]


def test_logits_and_gradients_agree_with_one_process(folder: Path, ranks: list[Any]) -> None:
    """Only roughly: later layers see inputs that differ by what the bound allows."""
    model = load(folder / "int8")
    want = model(TOKENS).logits
    for rank in ranks:
        assert (rank["int8 torch.float32"][1] - want).abs().mean() < 0.05 * want.abs().mean()
    for name, grad in gradients(model).items():
        first, second = (rank["gradients"][name] for rank in ranks)
        assert same_bits(first, second)
        assert torch.nn.functional.cosine_similarity(first, grad, dim=0) > 0.99, name
