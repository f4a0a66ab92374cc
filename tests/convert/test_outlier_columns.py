"""16-bit weights in outlier columns: which, in memory, on disk, and as the scheme that emulates them."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import llmint8
from llmint8 import ConfigError, Int8Config, QuantizationError, quantize_model, reference
from llmint8.analysis.schemes import applied, calibrate, schemes_named
from llmint8.convert import default_calibration_ids, find_outlier_columns, module_bytes, plan_conversion
from llmint8.nn import Int8Linear
from tiny import tiny_llama, tiny_tokenizer

INT16 = Int8Config("auto", outlier_weights="int16")
IDS = torch.arange(200)[None] % 250


def wide_llama() -> nn.Module:
    return tiny_llama(hidden_size=128, intermediate_size=256)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide") / "float"
    wide_llama().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def load(folder: Path, **settings: object) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, **settings)


def assert_same_tensors(got: nn.Module, want: nn.Module) -> None:
    tensors, wanted = got.state_dict(), want.state_dict()
    assert tensors.keys() == wanted.keys()
    assert not [key for key, tensor in wanted.items() if not torch.equal(tensors[key], tensor)]


def test_the_most_frequent_columns_the_first_of_equals_and_none_that_never_was_one() -> None:
    counts = torch.zeros(200, dtype=torch.int64)
    counts[[7, 150, 3, 90, 20]] = torch.tensor([5, 9, 2, 2, 2])
    assert reference.outlier_columns(counts).tolist() == [3, 7, 20, 150]  # 2 % of 200 are 4
    counts[[3, 20, 90]] = 0
    columns = reference.outlier_columns(counts)
    assert columns.tolist() == [7, 150]
    assert columns.dtype == torch.int32
    assert len(reference.outlier_columns(counts[:49])) == 0


def test_the_columns_are_those_of_the_scheme_and_so_are_the_bits() -> None:
    model = wide_llama()
    names = plan_conversion(model, None).convert
    seen = calibrate(model, names, lambda window: model(window, use_cache=False), IDS[0], 512)
    (scheme,) = schemes_named(["llmint8-auto-int16"], seen)
    with applied(model, names, scheme), torch.no_grad():
        want = model(IDS).logits
    report = quantize_model(model, INT16, calibration_ids=IDS)
    counts = {row.name: row.int16_columns for row in report.converted}
    assert {name: len(reference.outlier_columns(seen[name].outliers)) for name in names} == counts
    assert sum(counts.values()) > 0
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, want)
    assert f"{sum(counts.values())} columns int16" in str(report)


def test_finding_columns_leaves_the_model_as_it_was() -> None:
    model = wide_llama().train()
    model.lm_head.eval()
    before = {name: module.training for name, module in model.named_modules()}
    found = find_outlier_columns(model, ["model.layers.0.mlp.down_proj", "model.embed_tokens"], IDS)
    assert list(found) == ["model.layers.0.mlp.down_proj"]
    assert before == {name: module.training for name, module in model.named_modules()}
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_one_way_to_convert_gives_what_the_others_give(folder: Path, tmp_path: Path) -> None:
    want = load(folder)
    quantize_model(want, INT16)  # the tokenizer of its folder reads the shipped text
    given = load(folder)
    quantize_model(given, INT16, calibration_ids=default_calibration_ids(given))
    assert_same_tensors(given, want)
    assert any(key.endswith("weight_low") for key in want.state_dict())
    assert_same_tensors(load(folder, quantization_config=INT16), want)
    want.save_pretrained(tmp_path / "saved")
    loaded = load(tmp_path / "saved")
    assert_same_tensors(loaded, want)
    assert loaded.config.quantization_config.outlier_weights == "int16"
    report = llmint8.convert_checkpoint(folder, tmp_path / "streamed", INT16)
    assert_same_tensors(load(tmp_path / "streamed"), want)
    assert report.bytes_after == module_bytes(want)
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, want(IDS).logits)


def test_conv1d_is_streamed_as_it_is_converted(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=258, n_embd=128, n_layer=1, n_head=4, n_positions=256)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "float")
    want = load(tmp_path / "float")
    report = quantize_model(want, INT16, calibration_ids=IDS)
    assert sum(row.int16_columns for row in report.converted) > 0
    llmint8.convert_checkpoint(tmp_path / "float", tmp_path / "int8", INT16, calibration_ids=IDS)
    assert_same_tensors(load(tmp_path / "int8"), want)


def test_other_formats_cannot_say_it(folder: Path, tmp_path: Path) -> None:
    for name in ("bitsandbytes", "compressed-tensors"):
        with pytest.raises(ConfigError, match=f"{name} knows no int16 outlier weights"):
            llmint8.convert_checkpoint(
                folder, tmp_path / "x", Int8Config(6.0, outlier_weights="int16"), format=name
            )
    assert not list(tmp_path.iterdir())


def test_without_a_text_the_remedy_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not say in which folder.*give calibration_ids"):
        quantize_model(wide_llama(), INT16)
    wide_llama().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"holds no tokenizer.*give calibration_ids"):
        quantize_model(load(tmp_path), INT16)
    for bad in (IDS[0], IDS.int(), IDS[:, :0]):
        with pytest.raises(ConfigError, match=r"calibration_ids must be token ids int64"):
            quantize_model(wide_llama(), INT16, calibration_ids=bad)


def test_a_model_that_cannot_read_tokens_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8))
    with pytest.raises(QuantizationError, match="lets the model read token ids, and it failed"):
        quantize_model(model, INT16, calibration_ids=IDS)
    assert not any(isinstance(module, Int8Linear) for module in model.modules())


def test_torn_second_digits_are_refused(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    llmint8.convert_checkpoint(folder, tmp_path / "int8", INT16)
    file = tmp_path / "int8" / "model.safetensors"
    tensors = load_file(file)
    columns = next(key for key in tensors if key.endswith("outlier_cols"))
    for change, message in (
        ({columns: None}, "outlier_cols is missing"),
        ({columns: tensors[columns].long()}, "needs I32"),
        ({columns: tensors[columns][:-1].clone()}, "needs I32"),
        ({columns: tensors[columns].flip(0).contiguous()}, "outlier_cols"),
        ({columns: tensors[columns] + 1000}, "outlier_cols"),
    ):
        changed = {key: tensor for key, tensor in (tensors | change).items() if tensor is not None}
        save_file(changed, file, {"format": "pt"})
        with pytest.raises(llmint8.CheckpointError, match=message):
            load(tmp_path / "int8")


def test_a_merged_adapter_keeps_the_columns_and_comes_off_again() -> None:
    peft = pytest.importorskip("peft")
    model = wide_llama()
    quantize_model(model, INT16, calibration_ids=IDS)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(target_modules=["down_proj"], init_lora_weights=False)
    )
    layer = adapted.base_model.model.model.layers[0].mlp.down_proj
    base = layer.get_base_layer()
    low, exact = base.weight_low.clone(), base.dequantize() + layer.get_delta_weight("default")
    with pytest.warns(UserWarning, match="merging an adapter rounds"):
        adapted.merge_adapter()
    columns = base.outlier_cols.long()
    assert not torch.equal(base.weight_low, low)
    error = (base.dequantize() - exact).detach().abs() / (base.SCB[:, None] / 127)
    assert error[:, columns].max() < 0.01  # of a step of 8 bits; elsewhere half a step
    assert error.max() > 0.4
    adapted.unmerge_adapter()
    after = adapted.unload().state_dict()
    assert not [key for key, tensor in before.items() if not torch.equal(after[key], tensor)]


def test_offered_on_the_command_line(folder: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from llmint8.cli.app import app

    text = tmp_path / "text.txt"
    text.write_text("All happy families are alike. " * 20, encoding="utf-8")
    given = [
        "quantize",
        str(folder),
        str(tmp_path / "int8"),
        "--threshold",
        "auto",
        "--calibration",
        str(text),
    ]
    assert CliRunner().invoke(app, given).exit_code != 0
    result = CliRunner().invoke(app, [*given, "--outlier-weights", "int16"])
    assert result.exit_code == 0, result.output
    want = load(folder)
    ids = tiny_tokenizer()(text.read_text(encoding="utf-8"), return_tensors="pt")["input_ids"][:, :512]
    quantize_model(want, INT16, calibration_ids=ids)
    assert_same_tensors(load(tmp_path / "int8"), want)
