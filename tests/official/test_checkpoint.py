"""Checkpoints: recognised, loaded and converted; whatever else a file may be is said in one line, and runs nothing."""

from __future__ import annotations

import pickle
import resource
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
import torch
from detector import load_detector
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from transfiner_refine.errors import CheckpointError
from transfiner_refine.official import (
    Architecture,
    OfficialNetwork,
    convert_weights,
    load_official_network,
    read_tensors,
)
from transfiner_refine.official.checkpoint import KIND, fit, release_names
from transfiner_refine.official.read import TensorFile

Tensors = dict[str, Tensor]

VARIANTS = {
    "r50_fpn": ("R50-FPN", 375),
    "r101_fpn": ("R101-FPN", 630),
    "r50_fpn_dcn": ("R50-FPN-DCN", 401),
    "r101_fpn_dcn": ("R101-FPN-DCN", 690),
    "swint_fpn": ("Swin-T-FPN", 299),
    "swinb_fpn": ("Swin-B-FPN", 467),
}
DCN = (False, True, True, True)
PUBLISHED = {
    "R50-FPN": Architecture(),
    "R101-FPN": Architecture(depths=(3, 4, 23, 3)),
    "R50-FPN-DCN": Architecture(deformable=DCN),
    "R101-FPN-DCN": Architecture(depths=(3, 4, 23, 3), deformable=DCN),
    "Swin-T-FPN": Architecture("swin", (2, 2, 6, 2), 96),
    "Swin-B-FPN": Architecture("swin", (2, 2, 18, 2), 128),
}


def in_memory(tensors: Tensors) -> TensorFile:
    return TensorFile(Path("memory.pth"), "PyTorch checkpoint", tensors)


@pytest.mark.parametrize("variant", VARIANTS)
def test_published_variants_are_recognised_by_their_keys(variant: str, reference: Any) -> None:
    name, count = VARIANTS[variant]
    keys = reference.keys(variant)
    assert len(keys) == count
    with torch.device("meta"):
        found = fit(in_memory({key: torch.empty(shape) for key, shape in keys.items()}))
    assert found.architecture == PUBLISHED[name]
    assert found.architecture.name == name
    assert found.misfit == ([], [], [])
    assert len(found.used) + len(found.unused) == count
    constants = sum(key.endswith("relative_position_index") for key in keys)
    counted = Counter(found.unused.values())
    assert counted.pop("constants", 0) == constants
    assert counted == {"RPN": 6, "box head": 8, "boundary predictor": 4, "semantic predictor": 2}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_tensor_of_a_network_has_a_name_in_the_release(name: str) -> None:
    with torch.device("meta"):
        network = OfficialNetwork(PUBLISHED[name])
    ours = [key for keys in release_names(network).values() for key in keys]
    expected = [key for key in network.state_dict() if not key.endswith("relative_position_index")]
    assert sorted(ours) == sorted(expected)


def test_a_small_network_is_recognised_whatever_its_sizes(
    tensors: Tensors, small: Architecture, small_swin: Architecture, make_tensors: Callable[..., Tensors]
) -> None:
    assert fit(in_memory(tensors)).architecture == small
    assert fit(in_memory(make_tensors(small_swin))).architecture == small_swin
    lvis = replace(small, classes=1230)
    assert fit(in_memory(make_tensors(lvis))).architecture == lvis


def saved(kind: str, tensors: Tensors, folder: Path) -> Path:
    """A checkpoint file as each of the frameworks writes it."""
    path = (
        folder / f"weights.{'safetensors' if kind == 'safetensors' else 'pkl' if 'pickle' in kind else 'pth'}"
    )
    arrays = {name: value.numpy() for name, value in tensors.items()}
    training = {"model": tensors, "optimizer": {"state": {0: {"step": 3}}}, "iteration": 7}
    if kind == "training":
        torch.save(training, path)
    elif kind == "bare":
        torch.save(tensors, path)
    elif kind == "legacy":
        torch.save(training, path, _use_new_zipfile_serialization=False)
    elif kind == "distributed":
        torch.save({"state_dict": {f"module.{name}": value for name, value in tensors.items()}}, path)
    elif kind == "safetensors":
        save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    else:
        protocol = int(kind[-1])
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "someone"}, protocol))
    return path


KINDS = ["training", "bare", "legacy", "distributed", "safetensors", "pickle 2", "pickle 4", "pickle 5"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_is_read(kind: str, tensors: Tensors, tmp_path: Path) -> None:
    tensors["roi_heads.mask_head.predictor.bias"] = torch.arange(10.0)[::2]  # not contiguous
    read = read_tensors(saved(kind, tensors, tmp_path)).tensors
    assert set(read) == set(tensors)
    for name, value in tensors.items():
        assert torch.equal(read[name], value), name


def test_arrays_of_other_types_and_orders_come_out_of_a_pickle(tmp_path: Path) -> None:
    arrays = {
        "big endian": np.arange(6, dtype=">f4").reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "half": np.ones(3, np.float16),
        "counter": np.array(5),
        "empty": np.zeros((0, 4), np.float32),
    }
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "scalar": np.float32(1.5)}, 2))
    read = read_tensors(path).tensors
    for name, value in arrays.items():
        assert np.array_equal(read[name].numpy(), value), name
        assert read[name].shape == value.shape


def test_converting_leaves_out_what_refining_does_not_read_and_keeps_the_rest(
    tensors: Tensors, tmp_path: Path
) -> None:
    target = tmp_path / "new" / "small.safetensors"
    found = convert_weights(saved("training", tensors, tmp_path), target)
    with safe_open(target, framework="pt") as file:
        assert file.metadata() == {"kind": KIND, "variant": found.architecture.name}
        kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert set(kept) == set(found.used)
    assert set(tensors) == set(found.used) | set(found.unused)
    assert all(torch.equal(kept[name], tensors[name]) for name in kept)
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    before, after = (load_official_network(read_tensors(path)) for path in (tmp_path / "weights.pth", target))
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(before.features(image).semantic, after.features(image).semantic)
    with pytest.raises(CheckpointError, match="a converted one refines given boxes only"):
        load_detector(read_tensors(target))


class Hostile:
    """Leaves a file behind when it is unpickled by something that runs code."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.trace,))


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle", "builtins", "persistent"])
def test_a_hostile_file_runs_nothing(kind: str, tensors: Tensors, tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / f"weights.{'pth' if kind in ('zip', 'legacy') else 'pkl'}"
    content = {"model": tensors, "extra": Hostile(trace)}
    if kind in ("zip", "legacy"):
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"model": {}, "extra": Hostile(trace)}))
    elif kind == "builtins":
        path.write_bytes(b"\x80\x02cbuiltins\neval\nX\x0c\x00\x00\x00print('hi!')\x85R.")
    else:
        path.write_bytes(b"\x80\x02Pname\n.")
    with pytest.raises(CheckpointError, match="could run code from the file") as error:
        read_tensors(path)
    assert not trace.exists()
    assert "\n" not in str(error.value)


def test_a_pickle_with_an_array_of_objects_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"model": {"a": np.array([{}, []], dtype=object)}}, 2))
    with pytest.raises(CheckpointError, match="array of type 'O8'"):
        read_tensors(path)


def broken(kind: str, tensors: Tensors, folder: Path) -> Path:  # noqa: C901  a flat list of cases
    path = folder / "weights.pth"
    if kind == "truncated":
        whole = saved("training", tensors, folder).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "truncated pickle":
        path = saved("pickle 2", tensors, folder)
        path.write_bytes(path.read_bytes()[:5000])
    elif kind == "empty":
        path.touch()
    elif kind == "page":
        path.write_text("<!DOCTYPE html><title>Google Drive - Virus scan warning</title>")
    elif kind == "pointer":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00")
    elif kind == "text":
        path.write_text("these are not weights")
    elif kind == "list":
        torch.save([1, 2, 3], path)
    elif kind == "mask r-cnn":
        kept = {k: v for k, v in tensors.items() if "uncertain" not in k and "encoder" not in k}
        torch.save({"model": {k: v for k, v in kept.items() if "semantic" not in k}}, path)
    elif kind == "torchvision":
        torch.save(
            {"backbone.body.conv1.weight": torch.zeros(1), "roi_heads.mask_head.0.0.weight": torch.zeros(1)},
            path,
        )
    elif kind == "backbone":
        torch.save({"layer1.0.conv1.weight": torch.zeros(1)}, path)
    elif kind == "other":
        torch.save({"some.tensor": torch.zeros(1)}, path)
    elif kind == "resnext":
        tensors["backbone.bottom_up.res2.0.conv2.weight"] = torch.zeros(8, 1, 3, 3)
        torch.save(tensors, path)
    elif kind == "modulated":
        tensors["backbone.bottom_up.res3.0.conv2_offset.weight"] = torch.zeros(27, 16, 3, 3)
        torch.save(tensors, path)
    elif kind == "missing":
        del tensors["roi_heads.mask_head.encoder.layers.1.norm2.bias"]
        torch.save(tensors, path)
    elif kind == "misshapen":
        tensors["roi_heads.mask_head.encoder.conv_fuse.weight"] = torch.zeros(32, 40, 1, 1)
        torch.save(tensors, path)
    elif kind in ("nan", "infinite", "zeros"):
        values = tensors["roi_heads.mask_head.encoder.conv_r1.0.weight"]
        values[:] = 0 if kind == "zeros" else values
        values[0, 0] = {"nan": torch.nan, "infinite": -torch.inf, "zeros": 0.0}[kind]
        torch.save(tensors, path)
    elif kind == "expanded":
        tensors["roi_heads.mask_head.predictor.weight"] = torch.zeros(1, 32, 1, 1).expand(60_000, 32, 1, 1)
        torch.save(tensors, path)
    elif kind == "wide":
        tensors["backbone.fpn_output2.weight"] = torch.zeros(0).reshape(2**40, 0, 3, 3)
        torch.save(tensors, path)
    elif kind == "deep":
        tensors["backbone.bottom_up.res2.9999.conv1.weight"] = torch.zeros(1)
        torch.save(tensors, path)
    elif kind == "unknown":
        tensors["roi_heads.mask_head.wings.weight"] = torch.zeros(2)
        torch.save(tensors, path)
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("absent", "no such weights file"),
        ("truncated", "a damaged or cut off PyTorch checkpoint"),
        ("truncated pickle", "a damaged or cut off detectron2 pickle"),
        ("empty", "the file is empty"),
        ("page", "a web page, not weights"),
        ("pointer", "a Git LFS pointer"),
        ("text", "not a weights file"),
        ("list", "without tensors"),
        (
            "mask r-cnn",
            "a Mask R-CNN checkpoint of detectron2, without Transfiner's.*expected a checkpoint of the official",
        ),
        ("torchvision", "a Mask R-CNN checkpoint of torchvision"),
        ("backbone", "a ResNet backbone alone"),
        ("other", "an unknown checkpoint of 1 tensors, the first: some.tensor"),
        ("resnext", "ResNeXt"),
        ("modulated", "modulated"),
        ("missing", r"lacks roi_heads.mask_head.encoder.layers.1.norm2.bias"),
        ("misshapen", r"conv_fuse.weight: \(32, 40, 1, 1\), expected \(32, 33, 1, 1\)"),
        ("nan", "tensor roi_heads.mask_head.encoder.conv_r1.0.weight holds values that are not finite"),
        ("infinite", "tensor roi_heads.mask_head.encoder.conv_r1.0.weight holds values that are not finite"),
        ("zeros", "tensor roi_heads.mask_head.encoder.conv_r1.0.weight holds nothing but zeros"),
        ("expanded", "tensor roi_heads.mask_head.predictor.weight claims more numbers than the file holds"),
        ("wide", "tensor backbone.fpn_output2.weight has shape"),
        ("deep", r"10000 parts named backbone.bottom_up.res2.\*"),
        ("unknown", "with unknown tensors: roi_heads.mask_head.wings.weight"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_name(
    kind: str, reason: str, tensors: Tensors, tmp_path: Path
) -> None:
    path = broken(kind, tensors, tmp_path)
    with pytest.raises(CheckpointError, match=reason) as error:
        load_official_network(read_tensors(path))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def archive(kind: str, path: Path, tensors: Tensors) -> None:
    """A file of PyTorch's format that unpacks to far more than it is long."""
    if kind == "compressed":  # 64 MB of zeros
        with ZipFile(path, "w", ZIP_DEFLATED) as file:
            file.writestr("archive/data.pkl", bytes(1 << 26))
            file.writestr("archive/version", "3\n")
        return
    torch.save({"model": tensors}, path)
    whole = bytearray(path.read_bytes())
    with ZipFile(path) as file:
        first, second = file.infolist()[1:3]
    place = whole.rindex(second.filename.encode()) - 46  # of its entry in the directory
    whole[place + 20 : place + 28] = (1 << 30).to_bytes(4, "little") * 2
    assert first.header_offset < second.header_offset
    path.write_bytes(whole)


@pytest.mark.parametrize("kind", ["compressed", "overlapping"])
def test_an_archive_is_refused_before_it_is_unpacked(
    kind: str, tensors: Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bomb.pth"
    archive(kind, path, tensors)
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(CheckpointError, match="whose records are compressed or overlap") as error:
        read_tensors(path)
    assert "\n" not in str(error.value)


def test_a_pickle_that_stores_an_object_at_a_huge_index_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "memo.pkl"
    path.write_bytes(b"\x80\x02K\x01r\xff\xff\xff\x7f.")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match="without tensors"):
        read_tensors(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 18  # KiB


def test_loading_leaves_the_random_state_of_the_caller_alone(tensors: Tensors) -> None:
    before = torch.random.get_rng_state()
    load_official_network(in_memory(tensors))
    assert torch.equal(before, torch.random.get_rng_state())


def test_settings_that_older_versions_stored_are_ignored(tensors: Tensors) -> None:
    tensors["pixel_mean"] = torch.zeros(3, 1, 1)
    tensors["proposal_generator.anchor_generator.cell_anchors.0"] = torch.zeros(3, 4)
    load_official_network(in_memory(tensors))
