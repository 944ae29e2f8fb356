"""Checkpoints: what is saved comes back, and anything else is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from transfiner_refine.errors import CheckpointError
from transfiner_refine.model.checkpoint import load_network, save_network
from transfiner_refine.model.config import RefinerConfig
from transfiner_refine.model.network import MaskTransfiner
from transfiner_refine.model.weights import KIND, find_weights


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
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("absent", "no such weights file"),
        ("truncated", "not a readable safetensors file"),
        ("text", "not a readable safetensors file"),
        ("foreign", "a checkpoint of another kind"),
        ("incomplete", "1 tensors are missing and 0 unknown, the first: decoder.hidden.weight"),
        ("reshaped", r"decoder.hidden.bias has shape \(7,\), expected \(128,\)"),
        ("newer", "unknown configuration fields wings"),
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
