"""16-bit outlier weights in two processes: each rank multiplies its part, and saving writes the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

from agreement.cases import same_bits
from distributed.ranks import needs_gloo, run_ranks
from llmint8 import Int8Config, Int8Linear, QuantizationError, quantize_model, reference
from llmint8.numerics import AUTO_CODE
from tiny import tiny_llama, tiny_tokenizer

pytestmark = needs_gloo
CausalLM = transformers.AutoModelForCausalLM
INT16 = Int8Config("auto", outlier_weights="int16")
TOKENS = torch.arange(24).reshape(2, 12)
#: Row-parallel layers of a Llama; its other linear layers are column-parallel.
CUT_ROWS = ("o_proj", "down_proj")


def int8_layers(model: nn.Module) -> dict[str, Int8Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Int8Linear)}


def local(tensor: Tensor | None) -> Tensor | None:
    return getattr(tensor, "to_local", lambda: tensor)()


def load_and_save(rank: int, folder: Path) -> Any:
    model = CausalLM.from_pretrained(folder / "int8", tp_plan="auto")
    seen: dict[str, dict[str, Any]] = {}
    for name, layer in int8_layers(model).items():
        part = {key: local(getattr(layer, key)) for key in ("weight", "outlier_cols", "weight_low")}

        def note(_: nn.Module, inputs: Any, output: Any, name: str = name, part: Any = part) -> None:
            seen[name] = {"input": inputs[0], "output": output, **part}

        layer.register_forward_hook(note)
    with torch.no_grad():
        model(TOKENS)
    model.save_pretrained(folder / "saved")
    with pytest.raises(QuantizationError) as error:
        CausalLM.from_pretrained(folder / "float", tp_plan="auto", quantization_config=INT16)
    return seen, str(error.value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a width that two ranks cannot share evenly, and its int8 form."""
    folder = tmp_path_factory.mktemp("models")
    model = tiny_llama(attention_bias=True, mlp_bias=True, hidden_size=128, intermediate_size=257)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.input_layernorm.weight[[3, 70]] = 40.0
            layer.post_attention_layernorm.weight[[9, 100]] = 40.0
            layer.self_attn.v_proj.bias[:2] = 3000.0  # the first columns of o_proj: one rank has all of them
    model.save_pretrained(folder / "float")
    tiny_tokenizer().save_pretrained(folder / "float")
    quantize_model(model, INT16, calibration_ids=torch.arange(200)[None])
    model.save_pretrained(folder / "int8")
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[Any]:
    return run_ranks(load_and_save, folder)


def test_layers_that_deal_out_rows_return_the_same_bits(folder: Path, ranks: list[Any]) -> None:
    layers = int8_layers(CausalLM.from_pretrained(folder / "int8"))
    dealt = [n for n, m in layers.items() if not n.endswith(CUT_ROWS) and m.outlier_cols is not None]
    assert len(dealt) > 5
    for name in dealt:
        layer, parts = layers[name], [rank[0][name] for rank in ranks]
        assert torch.equal(torch.cat([part["weight_low"] for part in parts]), layer.weight_low)
        assert all(torch.equal(part["outlier_cols"], layer.outlier_cols) for part in parts)
        output = torch.cat([part["output"] for part in parts], dim=-1)
        assert same_bits(output, layer(parts[0]["input"]).detach()), name


def test_of_a_cut_row_each_rank_multiplies_its_columns(folder: Path, ranks: list[Any]) -> None:
    layers = int8_layers(CausalLM.from_pretrained(folder / "int8"))
    cut = [n for n, m in layers.items() if n.endswith(CUT_ROWS) and m.outlier_cols is not None]
    assert len(cut) > 1
    shares = set()
    for name in cut:
        layer, total, first = layers[name], 0, 0
        columns, low = [], []
        for rank in ranks:
            part = rank[0][name]
            digit = part["outlier_cols"], part["weight_low"]
            rows = part["input"].flatten(0, 1).contiguous()
            total = total + reference.linear(
                rows, part["weight"].contiguous(), layer.SCB, None, AUTO_CODE, *digit
            )
            shares.add(0 if digit[0] is None else len(digit[0]))
            if digit[0] is not None:
                columns.append(digit[0] + first)
                low.append(digit[1])
            first += part["weight"].shape[1]
        assert torch.equal(torch.cat(columns), layer.outlier_cols)
        assert torch.equal(torch.cat(low, dim=1), layer.weight_low)
        output = ranks[0][0][name]["output"].flatten(0, 1)
        assert same_bits(output, (total + layer.bias).detach()), name
    assert {0, 2} <= shares


def test_the_saved_checkpoint_is_that_of_one_process(folder: Path, ranks: list[Any]) -> None:
    want, got = (load_file(folder / kind / "model.safetensors") for kind in ("int8", "saved"))
    assert want.keys() == got.keys()
    assert not [key for key, tensor in want.items() if not torch.equal(tensor, got[key])]


def test_columns_are_not_looked_for_by_a_part_of_a_model(ranks: list[Any]) -> None:
    for _, error in ranks:
        assert "is spread over several" in error
        assert "`llmint8 quantize MODEL OUT --outlier-weights int16`" in error
