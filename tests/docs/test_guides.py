"""The guides do what they say: every code block of them is run, in order."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from click.testing import CliRunner
from PIL import Image

from transfiner_refine.cli import main

ROOT = Path(__file__).parents[2]
GUIDES = ROOT / "docs" / "guides"
KEPT = {2: "coffee.jpg", 3: "rocket.jpg"}  # the examples by image id; two are enough


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples under the names the guides use, at half their size."""
    work = tmp_path_factory.mktemp("guides")
    for folder in ("photos", "masks", "annotations", "inference"):
        (work / folder).mkdir()
    for name in KEPT.values():
        photo = Image.open(ROOT / "examples" / "images" / name)
        photo.resize((photo.width // 2, photo.height // 2)).save(work / "photos" / name)
        for mask in (ROOT / "examples" / "masks").glob(f"{Path(name).stem}_*.png"):
            small = Image.open(mask).resize((photo.width // 2, photo.height // 2), Image.Resampling.NEAREST)
            small.save(work / "masks" / mask.name)
    shutil.copytree(work / "photos", work / "val2017")
    shutil.copytree(work / "masks", work / "truth")
    records = [
        r for r in json.loads((ROOT / "examples" / "detections.json").read_text()) if r["image_id"] in KEPT
    ]
    truth = json.loads((ROOT / "examples" / "truth.json").read_text())
    truth["images"] = [image for image in truth["images"] if image["id"] in KEPT]
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] in KEPT]
    for image in truth["images"]:
        image["height"], image["width"] = image["height"] // 2, image["width"] // 2
    for record in [*records, *truth["annotations"]]:
        record["segmentation"] = halved(record["segmentation"])
        record["bbox"] = [side / 2 for side in record["bbox"]]
    (work / "annotations" / "instances_val2017.json").write_text(json.dumps(truth))
    for name in ("inference/coco_instances_results.json", "results.segm.json", "detections.json"):
        (work / name).write_text(json.dumps(records))
    return work


def halved(segmentation: dict[str, Any]) -> dict[str, Any]:
    """A mask at half its size."""
    from pycocotools import mask as codec

    pixels = codec.decode(segmentation)
    height, width = (side // 2 * 2 for side in pixels.shape)
    small = codec.encode(np.asfortranarray(pixels[:height:2, :width:2]))
    return {"size": list(small["size"]), "counts": small["counts"].decode()}


@pytest.fixture
def work(examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(examples, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def follow(guide: str) -> dict[str, Any]:
    """Runs the guide's blocks: commands of ours in this process, Python in one namespace, which is returned."""
    names: dict[str, Any] = {"__name__": guide}
    text = (GUIDES / guide).read_text()
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if language == "python":
            exec(compile(block, guide, "exec"), names)
        elif language == "bash":
            for line in block.replace("\\\n", " ").splitlines():
                program, *arguments = shlex.split(line)
                assert program == "transfiner-refine"
                done = CliRunner().invoke(main, arguments, catch_exceptions=False)
                assert done.exit_code == 0, f"{line}\n{done.output}"
        else:
            assert language == "text", f"a block of {language} is never run"
    return names


def test_the_guide_for_png_folders(work: Path) -> None:
    follow("png-folder.md")
    assert sorted(path.name for path in (work / "refined").iterdir()) == [
        "coffee_cup.png", "coffee_spoon.png", "rocket_rocket.png",
    ]  # fmt: skip
    assert (work / "spoon.png").is_file()
    assert (work / "overlays" / "coffee_after.png").is_file()
    assert (work / "report_again" / "index.html").is_file()


def test_the_guide_for_detectron2_and_mmdetection(work: Path) -> None:
    names = follow("detectron2-and-mmdet.md")
    before = json.loads((work / "results.segm.json").read_text())
    after = json.loads((work / "refined_mmdet.json").read_text())
    assert [record["score"] for record in after] == [record["score"] for record in before]
    photo = np.asarray(Image.open("photos/coffee.jpg"))
    mask = torch.from_numpy(np.asarray(Image.open("masks/coffee_spoon.png")) > 0)[None]
    # objects with the fields the guide speaks of; the two libraries are no dependencies
    instances = SimpleNamespace(pred_masks=mask.clone())
    instances.to = lambda _: instances
    outputs = names["refine_outputs"](photo[:, :, ::-1], {"instances": instances})
    sample = SimpleNamespace(pred_instances=SimpleNamespace(masks=mask.clone()))
    names["refine_sample"](photo, sample)
    assert torch.equal(outputs["instances"].pred_masks, sample.pred_instances.masks)
    assert not torch.equal(sample.pred_instances.masks, mask)


def test_the_guide_to_coco_evaluation(work: Path) -> None:
    pytest.importorskip("faster_coco_eval", reason="the eval extra is not installed")
    names = follow("coco-evaluation.md")
    assert names["scores"].matched.summary["all"].count == 3
    assert json.loads((work / "scores.json").read_text())["images"] == 2
    assert (work / "report" / "index.html").is_file()


@pytest.mark.usefixtures("work")
def test_the_guide_for_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """With random weights, for a test downloads nothing, and a smaller backbone; biases make it sure of itself."""
    models = torchvision.models.detection

    def random_model(weights: str) -> torch.nn.Module:
        assert weights == "DEFAULT"
        torch.manual_seed(0)
        backbone = models.backbone_utils.mobilenet_backbone(
            backbone_name="mobilenet_v3_small", weights=None, fpn=True
        )
        anchors = models.rpn.AnchorGenerator(((32,), (64,), (128,)), ((0.5, 1.0, 2.0),) * 3)
        model = models.MaskRCNN(
            backbone,
            91,
            min_size=128,
            max_size=192,
            box_detections_per_img=2,
            rpn_anchor_generator=anchors,
        )
        with torch.no_grad():
            model.roi_heads.box_predictor.cls_score.bias[3] += 20
            model.roi_heads.mask_predictor.mask_fcn_logits.bias += 3
        return model

    monkeypatch.setattr(models, "maskrcnn_resnet50_fpn_v2", random_model)
    names = follow("torchvision.md")
    assert names["masks"].dtype == np.float32
    assert names["refined"].shape == names["masks"].shape
    records = json.loads(Path("refined.json").read_text())
    assert len(records) == len(names["refined"]) > 0
    assert {record["category_id"] for record in records} == {3}
    assert names["full_size"].shape == names["image"].shape[:2]


@pytest.mark.parametrize(
    ("guide", "to", "given", "refined"),
    [
        ("cvat.md", "cvat", "annotations.xml", "refined.xml"),
        ("label-studio.md", "label-studio", "project.json", "refined.json"),
    ],
)
def test_the_guides_for_annotation_tools(work: Path, guide: str, to: str, given: str, refined: str) -> None:
    truth = json.loads((work / "annotations" / "instances_val2017.json").read_text())
    truth["annotations"] = [
        {key: value for key, value in each.items() if key not in ("bbox", "area")}
        for each in truth["annotations"]
    ]  # whose boxes are of the whole size
    (work / "annotations" / "instances_val2017.json").write_text(json.dumps(truth))
    (work / "images.json").write_text(json.dumps({**truth, "annotations": []}))
    made = CliRunner().invoke(
        main,
        ["convert-masks", "annotations/instances_val2017.json", "-o", given, "--to", to],
        catch_exceptions=False,
    )
    assert made.exit_code == 0, made.output
    if to == "cvat":  # the second command of the guide takes a detector's results
        records = json.loads((work / "detections.json").read_text())
        found = [{key: value for key, value in each.items() if key != "bbox"} for each in records]
        (work / "refined.json").write_text(json.dumps(found))
    follow(guide)
    assert (work / refined).read_text() != (work / given).read_text()


def test_the_guide_for_fiftyone(work: Path) -> None:
    names = follow("fiftyone.md")
    photo = np.asarray(Image.open(work / "photos" / "coffee.jpg").convert("RGB"))
    mask = np.asarray(Image.open(work / "masks" / "coffee_cup.png")) > 0
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    y0, y1, x0, x1 = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    height, width = mask.shape
    box = [x0 / width, y0 / height, (x1 - x0) / width, (y1 - y0) / height]
    found, inside, expected = names["refined_detection"](photo, box, mask[y0:y1, x0:x1])
    assert inside.shape == (round(found[3] * height), round(found[2] * width))
    assert inside[0].any()
    assert inside[:, 0].any()
    assert 0.5 < expected <= 1
