"""Every architecture: converted in memory and while it loads, run, saved and loaded, with its coverage."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from agreement.cases import same_bits
from llmint8 import Int8Config, quantize_model
from llmint8.convert import convertible_weights, is_convertible
from llmint8.nn import INT8_MODULES, is_embedding
from zoo import ZOO, Kind

#: How far int8 may move the outputs of a random model of two layers, of their largest magnitude.
BOUND = 0.06


def outputs(model: nn.Module, kind: Kind) -> torch.Tensor:
    with torch.inference_mode():
        result: Any = model(**kind.inputs())
    return result.logits_per_image if hasattr(result, "logits_per_image") else result.logits


def linear_sizes(model: nn.Module) -> dict[str, int]:
    """Parameters in the weight of each linear layer and of each group of experts."""
    modules = ((name, m) for name, m in model.named_modules() if is_convertible(m) and not is_embedding(m))
    return {name: sum(w.numel() for w in convertible_weights(m).values()) for name, m in modules}


def assert_same_state(a: nn.Module, b: nn.Module) -> None:
    left, right = a.state_dict(), b.state_dict()
    assert left.keys() == right.keys()
    for key, tensor in left.items():
        assert tensor.dtype == right[key].dtype, key
        assert torch.equal(tensor, right[key]), key


@pytest.mark.parametrize("name", ZOO)
def test_architecture(name: str, tmp_path: Path) -> None:
    kind = ZOO[name]
    model = kind.build()
    model.save_pretrained(tmp_path / "float")
    sizes, want = linear_sizes(model), outputs(model, kind)
    assert not any(isinstance(m, nn.Linear) and key not in sizes for key, m in model.named_modules()), (
        "a linear layer that the count leaves out"
    )

    int8 = {row.name for row in quantize_model(model).converted}
    skips = {key for key in sizes if key.rpartition(".")[2] in kind.floats}
    covered, body = sizes.keys() & int8, sizes.keys() - skips
    share = sum(sizes[key] for key in covered) / sum(sizes[key] for key in body)
    whole = sum(sizes[key] for key in covered) / sum(sizes.values())
    print(f"{name}: {share:.0%} of the linear parameters outside the head are int8, {whole:.1%} with it")
    assert covered == body

    got = outputs(model, kind)
    assert torch.isfinite(got).all()
    assert (got - want).abs().max() <= BOUND * want.abs().max()

    loaded = kind.model.from_pretrained(tmp_path / "float", quantization_config=Int8Config())
    assert_same_state(loaded, model)
    for source, folder in ((loaded, "on the fly"), (model, "in memory")):
        source.save_pretrained(tmp_path / folder)
        again, info = kind.model.from_pretrained(tmp_path / folder, output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert {key for key, m in again.named_modules() if isinstance(m, INT8_MODULES)} == int8
        assert_same_state(again, model)
        assert same_bits(outputs(again, kind), got)
