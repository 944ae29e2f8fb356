"""Checkpoints: what is saved comes back, and anything else is refused in one line."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from transfiner_refine.errors import CheckpointError
from transfiner_refine.model.checkpoint import load_network, save_network
from transfiner_refine.model.config import Architecture, RefinerConfig, RefineSettings
from transfiner_refine.model.network import MaskTransfiner
from transfiner_refine.model.weights import KIND, find_weights
from transfiner_refine.refine.torch_engine import TorchEngine


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "small.safetensors"
    torch.manual_seed(0)
    network = MaskTransfiner(RefinerConfig(layers=1, root_threshold=0.25))
    save_network(network, path, about={"data": "none"})
    return path


def test_weights_and_configuration_come_back(saved: Path) -> None:
    network = load_network(saved)
    assert network.config == RefinerConfig(layers=1, root_threshold=0.25)
    stored = load_file(saved)
    for name, value in network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, stored[name].float()), name


def test_the_side_file_tells_people_what_it_is(saved: Path) -> None:
    side = json.loads(saved.with_suffix(".json").read_text())
    assert side["kind"] == KIND
    assert side["data"] == "none"
    assert side["config"]["layers"] == 1


def test_nothing_temporary_is_left(saved: Path) -> None:
    assert sorted(p.name for p in saved.parent.iterdir()) == ["small.json", "small.safetensors"]


def broken(kind: str, saved: Path, folder: Path) -> Path:
    path = folder / f"{kind}.safetensors"
    tensors, metadata = (
        load_file(saved),
        {"kind": KIND, "config": json.dumps(RefinerConfig(layers=1).to_json())},
    )
    if kind == "truncated":
        path.write_bytes(saved.read_bytes()[:5000])
    elif kind == "text":
        path.write_text("these are not weights")
    elif kind == "foreign":
        save_file(tensors, path)
    elif kind == "incomplete":
        tensors.pop("decoder.hidden.weight")
        save_file(tensors, path, metadata)
    elif kind == "reshaped":
        tensors["decoder.hidden.bias"] = torch.zeros(7)
        save_file(tensors, path, metadata)
    elif kind == "newer":
        metadata["config"] = json.dumps({"wings": 2})
        save_file(tensors, path, metadata)
    elif kind == "without configuration":
        del metadata["config"]
        save_file(tensors, path, metadata)
    elif kind in NUMBERS:
        values = tensors["decoder.hidden.weight"]
        values[:] = 0 if kind == "zeros" else values
        values[0, 0] = NUMBERS[kind]
        save_file(tensors, path, metadata)
    return path


NUMBERS = {"nan": float("nan"), "infinite": float("inf"), "zeros": 0.0}


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("absent", "no such weights file"),
        ("truncated", "not a readable safetensors file"),
        ("text", "not a readable safetensors file"),
        ("foreign", "a checkpoint of another kind"),
        ("incomplete", "a refiner that lacks decoder.hidden.weight"),
        ("reshaped", r"decoder.hidden.bias: \(7,\), expected \(128,\)"),
        ("without configuration", "no readable configuration"),
        ("nan", "tensor decoder.hidden.weight holds values that are not finite"),
        ("infinite", "tensor decoder.hidden.weight holds values that are not finite"),
        ("zeros", "tensor decoder.hidden.weight holds nothing but zeros"),
        ("newer", "unknown configuration fields 'wings'"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_name(
    kind: str, reason: str, saved: Path, tmp_path: Path
) -> None:
    path = broken(kind, saved, tmp_path)
    with pytest.raises(CheckpointError, match=reason) as error:
        load_network(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("null", "configuration: NoneType instead of named fields"),
        ("[1]", "list instead of named fields"),
        ("{", "no readable configuration"),
        ("[" * 100_000, "no readable configuration"),
        ('{"width": "x"}', "width is 'x'; expected a whole number, 1 to 4096"),
        ('{"width": true}', "width is True; expected a whole number"),
        ('{"width": 128.0}', "width is 128.0; expected a whole number"),
        ('{"width": -1}', "width is -1; expected"),
        ('{"heads": 7}', r"width is 128; expected a multiple of 4 and 7 heads"),
        ('{"crop_side": 1}', "crop_side is 1; expected a whole number, 224 to 224"),
        ('{"trust": null}', "trust is missing; expected a number"),
        ('{"trust": NaN}', "trust is nan; expected a number"),
        ('{"roi_max_aspect": 1' + "0" * 400 + "}", "roi_max_aspect is 1000.*too large"),
        ('{"layers": 10000000}', "layers is 10000000; expected a whole number, 1 to 64"),
        ('{"backbone": 5}', "backbone is 5; expected one of lite0, lite1"),
        ('{"backbone": "huge"}', "backbone is 'huge'; expected one of lite0"),
        ('{"node_budget": 5}', "node_budget is 5; expected a list"),
        ('{"node_budget": []}', r"node_budget is \[\]; expected a list"),
        ('{"node_budget": [1, 2, 3, 4]}', r"node_budget is \(1, 2, 3, 4\); expected 5 numbers"),
        ('{"node_budget": [1, 2, 3, 4, 1e9]}', "node_budget is .*expected a whole number"),
        ('{"dense_widths": [1, 2]}', "dense_widths is .*expected a list of 3 numbers"),
        ('{"width": 4096, "layers": 64, "feedforward": 65536}', r"lacks \d+ tensors"),
    ],
)
def test_a_configuration_that_makes_no_network_is_refused_by_field_and_value(
    text: str, reason: str, saved: Path, tmp_path: Path
) -> None:
    path = tmp_path / "odd.safetensors"
    save_file(load_file(saved), path, {"kind": KIND, "config": text})
    with pytest.raises(CheckpointError, match=reason) as error:
        load_network(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_every_default_is_in_its_range_and_settings_of_older_versions_change_nothing() -> None:
    values = json.loads(json.dumps(RefinerConfig().to_json()))
    assert RefinerConfig.from_json(values) == RefinerConfig()
    assert RefinerConfig.from_json(values | {"passes": 2, "repeat_share": 0.1}) == RefinerConfig()
    for broken in ({"passes": "x"}, {"passes": 1_000_000_000}, {"repeat_share": None}):
        with pytest.raises(CheckpointError, match=next(iter(broken))):
            RefinerConfig.from_json(values | broken)
    values["close_up_from"] = values.pop("tiles_from") + 1
    assert RefinerConfig.from_json(values).tiles_from == RefinerConfig().tiles_from + 1
    assert isinstance(RefinerConfig.from_json(values | {"trust": 1}).trust, float)


def test_architecture_and_refine_settings_are_told_apart() -> None:
    names = [{field.name for field in fields(cls)} for cls in (Architecture, RefineSettings)]
    assert not names[0] & names[1]
    assert {field.name for field in fields(RefinerConfig)} == names[0] | names[1]


def test_loading_leaves_the_random_state_of_the_caller_alone(saved: Path) -> None:
    before = torch.random.get_rng_state()
    network = load_network(saved)
    assert torch.equal(before, torch.random.get_rng_state())
    assert not any(value.is_meta for value in network.state_dict().values())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_an_engine_leaves_the_network_that_it_is_given_as_it_is(saved: Path) -> None:
    network = load_network(saved).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    TorchEngine(network, "cpu")
    assert network.training
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_an_unknown_name_lists_the_built_in_models() -> None:
    with pytest.raises(
        CheckpointError, match=r"huge: neither a file nor a built-in model; built-in models: .*lite"
    ):
        find_weights("huge")


def test_a_folder_of_ones_own_models_is_found_by_name(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "transfiner-mine.safetensors"
    mine.write_bytes(saved.read_bytes())
    monkeypatch.setenv("TRANSFINER_REFINE_HOME", str(tmp_path))
    assert find_weights("mine") == mine


def test_a_file_from_before_there_was_trust_gives_the_given_mask_no_say() -> None:
    values = RefinerConfig().to_json()
    assert RefinerConfig.from_json(values) == RefinerConfig()
    del values["trust"], values["deep_trust"]
    old = RefinerConfig.from_json(values)
    assert (old.trust, old.deep_trust) == (0.0, 0.0)
