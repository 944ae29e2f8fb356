"""The exported programs beside the shipped weights, and the engine that runs them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from transfiner_refine import load_refiner
from transfiner_refine.errors import CheckpointError, DeviceError, OutputError
from transfiner_refine.model.weights import find_weights, read_config, weights_digest
from transfiner_refine.refine import engine as engines
from transfiner_refine.refine.engine import SizeClass, engine_name, program_path
from transfiner_refine.refine.export import export_files, size_classes
from transfiner_refine.refine.onnx_engine import OnnxEngine

WEIGHTS = find_weights("lite")
MIB = 1 << 20


def scene(seed: int, scale: float) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A bright star on a dark ground, and a coarse mask of it: a disc."""
    rng = np.random.default_rng(seed)
    size = round(180 * scale)
    angles = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    radius = scale * (50 + 14 * np.sin(7 * angles))
    outline = (
        (size / 2 + np.stack((np.cos(angles), np.sin(angles)), 1) * radius[:, None]).round().astype(np.int32)
    )
    image = rng.integers(20, 60, (size, size, 3)).astype(np.uint8)
    cv2.fillPoly(image, [outline], (200, 170, 140))
    coarse = cv2.circle(np.zeros((size, size), np.uint8), (size // 2, size // 2), round(50 * scale), 1, -1)
    return image, coarse > 0


def test_the_shipped_programs_are_all_there_small_enough_and_of_the_shipped_weights() -> None:
    import onnx

    for precision in ("fp32", "int8"):
        for size in size_classes(read_config(WEIGHTS)):
            path = program_path(WEIGHTS, precision, size)
            model = onnx.load(path, load_external_data=False)
            assert {prop.key: prop.value for prop in model.metadata_props}["weights"] == weights_digest(
                WEIGHTS
            )
            assert [value.name for value in model.graph.output] == [
                "probability",
                "relabelled",
                "cells",
                "valid",
            ]
    assert all(file.stat().st_size <= 16 * MIB for file in WEIGHTS.parent.iterdir())


@pytest.mark.parametrize(("precision", "most"), [("fp32", 1e-4), ("int8", 0.01)])
def test_masks_are_those_of_pytorch(precision: str, most: float) -> None:
    exact = load_refiner(device="cpu", engine="torch", precision="fp32")
    onnx = load_refiner(device="cpu", engine="onnx", precision=precision)
    assert (onnx.engine, onnx.precision) == ("onnx", precision)
    for seed, scale in enumerate((0.4, 1.0, 2.6)):
        image, coarse = scene(seed, scale)
        expected, found = (refiner.refine(image, coarse[None]) for refiner in (exact, onnx))
        assert np.count_nonzero(expected != coarse) > 0
        assert np.count_nonzero(found != expected) <= most * np.count_nonzero(expected)


def test_refining_files_on_a_cpu_does_not_load_pytorch(tmp_path: Path) -> None:
    image, coarse = scene(0, 0.5)
    for folder, picture in (("images", image), ("masks", coarse.astype(np.uint8) * 255)):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "a.png"), picture)
    program = (
        "import sys; from transfiner_refine.cli import main; "
        f"main(['refine', '--images', r'{tmp_path / 'images'}', '--masks', r'{tmp_path / 'masks'}', "
        f"'--output', r'{tmp_path / 'out'}', '--device', 'cpu'], standalone_mode=False); "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Refined 1 of 1 instance" in done.stdout


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The shipped weights and their programs in another folder."""
    for file in WEIGHTS.parent.glob(f"{WEIGHTS.stem}*"):
        shutil.copy(file, tmp_path)
    return tmp_path / WEIGHTS.name


def test_programs_of_other_weights_are_refused(copied: Path) -> None:
    data = bytearray(copied.read_bytes())
    data[-1] ^= 1
    copied.write_bytes(data)
    image, coarse = scene(0, 0.5)
    with pytest.raises(CheckpointError, match=r"was exported from other weights .* transfiner-refine export"):
        load_refiner(copied, device="cpu").refine(image, coarse[None])


def test_a_damaged_program_is_one_line(copied: Path) -> None:
    program = program_path(copied, "fp32", SizeClass(3, True))
    program.write_bytes(program.read_bytes()[:1000])
    image, coarse = scene(0, 0.5)
    with pytest.raises(CheckpointError, match=r"112\.onnx: not a program that onnxruntime can run"):
        load_refiner(copied, device="cpu", precision="fp32").refine(image, coarse[None])


def test_without_programs_a_cpu_takes_pytorch_and_onnx_is_refused(copied: Path) -> None:
    for program in copied.parent.glob("*.onnx"):
        program.unlink()
    assert load_refiner(copied, device="cpu").engine == "torch"
    with pytest.raises(CheckpointError, match=r"there is no fp32 program .* transfiner-refine export"):
        load_refiner(copied, engine="onnx", precision="fp32")


def test_precisions_and_devices_that_do_not_fit_the_engine_are_refused() -> None:
    with pytest.raises(DeviceError, match="does not compute in bf16"):
        OnnxEngine(WEIGHTS, read_config(WEIGHTS), "bf16")
    with pytest.raises(DeviceError, match="the onnx engine does not run on cuda"):
        load_refiner(engine="onnx", device="cuda")
    with pytest.raises(DeviceError, match="unknown engine 'tensorrt'; known: auto, torch, onnx"):
        load_refiner(engine="tensorrt")


def test_the_engine_follows_from_device_and_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine_name("auto", "cpu", "auto", WEIGHTS) == "onnx"
    assert engine_name("auto", "cpu", "bf16", WEIGHTS) == "torch"
    assert engine_name("auto", "cuda", "auto", WEIGHTS) == "torch"
    assert engine_name("auto", "cpu", "int8", Path("elsewhere.safetensors")) == "onnx"
    monkeypatch.setattr(engines, "find_spec", lambda _: None)  # as where PyTorch is not installed
    assert engine_name("auto", "auto", "auto", WEIGHTS) == "onnx"
    for asked in (("torch", "auto", "auto"), ("auto", "cuda", "auto"), ("auto", "cpu", "bf16")):
        with pytest.raises(DeviceError, match="needs PyTorch, which is not installed"):
            engine_name(*asked, WEIGHTS)


def test_programs_that_exist_are_not_replaced_unasked(copied: Path) -> None:
    before = {file: file.read_bytes() for file in copied.parent.iterdir()}
    with pytest.raises(OutputError, match="exists already; use --overwrite"):
        export_files(copied)
    assert {file: file.read_bytes() for file in copied.parent.iterdir()} == before
