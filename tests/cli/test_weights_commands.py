"""``convert`` and ``weights``: what they say, what they write, what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open

from transfiner_refine.cli import main
from transfiner_refine.official import Architecture, OfficialNetwork
from transfiner_refine.official.checkpoint import release_names

SMALL = Architecture("resnet", (1, 1, 1, 1), 8, (False,) * 4, 5, 32, 48, 1)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A small checkpoint as the authors' trainer writes it."""
    network = OfficialNetwork(SMALL)
    state = network.state_dict()
    tensors = {}
    for name, ours in release_names(network).items():
        stacked = torch.cat([state[own] for own in ours])
        flat = ".encoder.conv_" in name and name.endswith("weight")
        tensors[name] = stacked[:, :, None, None] if flat else stacked
    for layer in (
        "proposal_generator.rpn_head.conv",
        "roi_heads.box_head.fc1",
        "roi_heads.box_predictor.cls_score",
    ):
        tensors |= {f"{layer}.weight": torch.zeros(2, 2), f"{layer}.bias": torch.zeros(2)}
    path = tmp_path / "small.pth"
    torch.save({"model": tensors, "iteration": 1}, path)
    return path


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_convert_writes_what_refining_reads_and_reports_the_rest(checkpoint: Path) -> None:
    target = checkpoint.with_name("small.safetensors")
    code, out, _ = run("convert-weights", checkpoint, "--output", target)
    assert code == 0
    assert "left out: RPN 2, box head 4" in out
    with safe_open(target, framework="pt") as file:
        assert not any("rpn" in name or "box_" in name for name in file.keys())  # noqa: SIM118
    code, _, err = run("convert-weights", checkpoint, "--output", target)
    assert code == 1
    assert "exists already" in err
    assert run("convert-weights", checkpoint, "--output", target, "--overwrite", "--quiet") == (0, "", "")


def test_convert_refuses_what_it_cannot_use(checkpoint: Path, tmp_path: Path) -> None:
    assert run("convert-weights", checkpoint, "--output", tmp_path / "x.pth")[0] == 2
    code, _, err = run("convert-weights", tmp_path / "none.pth", "--output", tmp_path / "x.safetensors")
    assert code == 1
    assert "no such weights file" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "x.safetensors").exists()


def test_a_renamed_command_and_a_renamed_option_still_work_with_a_notice(
    checkpoint: Path, tmp_path: Path
) -> None:
    code, _, err = run("convert", checkpoint, "--output", tmp_path / "x.safetensors")
    assert code == 0
    assert err.strip() == (
        "transfiner-refine: convert is now called convert-weights; the old name will go in the next version"
    )
    assert (tmp_path / "x.safetensors").exists()
    code, _, err = run("report", "--photo-side", "100", "--images", "a", "--before", "b", "--after", "c")
    assert "--photo-side is now called --image-side" in err
    assert "nothing to make" in err  # and the rest of the line was read
    for words in (("--from", "id-maps"), ("--png-kind=id-map",)):
        code, _, err = run(
            "convert-masks", *words, "--masks", tmp_path / "none", "--output", tmp_path / "out"
        )
        assert code == 1
        assert "is now called label-map" in err
    for old, new in (("--close-ups", "--tiles"), ("--no-close-ups", "--no-tiles")):
        code, _, err = run("refine", old, "--images", tmp_path / "none", "--masks", "m", "--output", "o")
        assert f"{old} is now called {new}" in err
        assert code == 1  # there are no images


def test_weights_lists_the_built_in_models() -> None:
    code, out, _ = run("weights")
    assert code == 0
    assert "transfiner-lite.safetensors" in out
    assert "native" in out
    assert "class-agnostic" in out


def test_weights_describes_a_checkpoint(checkpoint: Path) -> None:
    code, out, _ = run("weights", checkpoint)
    assert code == 0
    for fact in (
        "official Mask Transfiner",
        "5 classes",
        "PyTorch checkpoint",
        "sha256",
        "RPN 2, box head 4",
    ):
        assert fact in out


def test_weights_names_what_is_missing(checkpoint: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    del content["model"]["backbone.fpn_output3.bias"]
    content["model"]["backbone.fpn_output2.bias"] = torch.zeros(3)
    content["model"]["wings"] = torch.zeros(1)
    torch.save(content, checkpoint)
    code, out, _ = run("weights", checkpoint)
    assert code == 1
    assert "1: backbone.fpn_output3.bias" in out
    assert "backbone.fpn_output2.bias: (3,), expected (32,)" in out
    assert "wings" in out


def test_weights_says_what_else_a_file_is(tmp_path: Path) -> None:
    path = tmp_path / "page.pth"
    path.write_text("<html>Sign in</html>")
    code, _, err = run("weights", path)
    assert code == 1
    assert "a web page, not weights" in err
