"""Predictions of other libraries: their masks come out at the image's size, refined ones go back where they were.

torchvision, supervision and ultralytics are the real libraries. detectron2 cannot be installed from PyPI, so a class
with the same few attributes and methods stands in for its ``Instances``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import supervision
import torch
from supervision.detection.compact_mask import CompactMask

os.environ.setdefault(
    "YOLO_OFFLINE", "true"
)  # ultralytics asks the network and writes settings when it is imported
os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.gettempdir())
from ultralytics.engine.results import Results
from ultralytics.utils.ops import scale_masks

from transfiner_refine.adapters import (
    from_detectron2,
    from_supervision,
    from_torchvision,
    from_ultralytics,
    masks_of,
    refine_predictions,
    with_masks,
)
from transfiner_refine.errors import InputError

SIZE = (24, 32)
IMAGE = np.zeros((*SIZE, 3), np.uint8)
COARSE = np.zeros((3, *SIZE), bool)
COARSE[0, 4:10, 5:15], COARSE[1, 12:20, 3:9] = True, True  # and one that is empty
GROWN = np.zeros_like(COARSE)
GROWN[0, 3:11, 4:16], GROWN[1, 11:21, 2:10] = True, True
EXCLUSIVE = [[4, 3, 16, 11], [2, 11, 10, 21], [7, 7, 9, 9]]
OLD_BOXES = [[5, 4, 15, 10], [3, 12, 9, 20], [7, 7, 9, 9]]


class Growing:
    """A refiner that adds a pixel all around, and remembers what it was given."""

    def __init__(self) -> None:
        self.given: list[np.ndarray] = []

    def refine(self, image: np.ndarray, masks: np.ndarray) -> np.ndarray:
        assert image.shape[:2] == masks.shape[1:]
        self.given.append(masks)
        return GROWN[: len(masks)]


class Instances:
    """Stands in for ``detectron2.structures.Instances``: the part of it that adapters use."""

    def __init__(self, image_size: tuple[int, int], **fields: Any) -> None:
        self.image_size, self._fields = image_size, fields

    def __getattr__(self, name: str) -> Any:
        return self.__dict__["_fields"][name]

    def __len__(self) -> int:
        return len(self._fields["scores"])

    def has(self, name: str) -> bool:
        return name in self._fields

    def get_fields(self) -> dict[str, Any]:
        return self._fields


class Boxes:
    """Stands in for ``detectron2.structures.Boxes``."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def torchvision_output(device: str = "cpu") -> dict[str, torch.Tensor]:
    soft = torch.from_numpy(COARSE).float()[:, None] * 0.9
    return {
        "boxes": torch.tensor(OLD_BOXES, dtype=torch.float32, device=device),
        "labels": torch.tensor([3, 1, 1], device=device),
        "scores": torch.tensor([0.9, 0.8, 0.1], device=device),
        "masks": soft.to(device),
    }


# torchvision


def test_torchvisions_soft_masks_go_in_soft_and_come_back_in_their_layout() -> None:
    refiner, output = Growing(), torchvision_output()
    refined = refine_predictions(refiner, IMAGE, output)
    assert np.allclose(refiner.given[0], COARSE * np.float32(0.9))
    assert refiner.given[0].dtype == np.float32
    assert refined["masks"].shape == output["masks"].shape
    assert refined["masks"].dtype == torch.float32
    assert np.array_equal(refined["masks"][:, 0].numpy() >= 0.5, GROWN)
    assert refined["boxes"].tolist() == EXCLUSIVE
    for key in ("labels", "scores"):
        assert refined[key] is output[key]
    assert output["boxes"].tolist() == OLD_BOXES  # the argument is as it was


def test_a_real_torchvision_detector() -> None:
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.backbone_utils import mobilenet_backbone

    torch.manual_seed(0)
    model = MaskRCNN(
        mobilenet_backbone(backbone_name="mobilenet_v3_small", weights=None, fpn=True),
        91,
        min_size=64,
        max_size=64,
        box_detections_per_img=3,
        box_score_thresh=0.0,
        rpn_anchor_generator=AnchorGenerator(((32,), (64,), (128,)), ((0.5, 1.0, 2.0),) * 3),
    ).eval()
    with torch.inference_mode():
        output = model([torch.rand(3, *SIZE)])[0]
    masks = from_torchvision(output)
    assert masks.shape == (len(output["boxes"]), *SIZE)
    assert len(masks)
    refined = with_masks(output, masks)
    assert torch.equal(refined["masks"], output["masks"])


def test_torchvision_soft_results_stay_soft() -> None:
    soft = np.linspace(0, 1, COARSE.size, dtype=np.float32).reshape(COARSE.shape)
    assert np.allclose(with_masks(torchvision_output(), soft)["masks"][:, 0].numpy(), soft)


# detectron2


@pytest.mark.parametrize("wrapped", [False, True])
def test_detectron2s_instances_come_back_as_instances(wrapped: bool) -> None:
    instances = Instances(
        SIZE,
        pred_masks=torch.from_numpy(COARSE),
        pred_boxes=Boxes(torch.tensor(OLD_BOXES, dtype=torch.float32)),
        scores=torch.tensor([0.9, 0.8, 0.1]),
        pred_classes=torch.tensor([2, 0, 0]),
    )
    predictions = {"instances": instances, "panoptic_seg": None} if wrapped else instances
    result: Any = refine_predictions(Growing(), IMAGE, predictions)
    refined = result["instances"] if wrapped else result
    assert type(refined) is Instances
    assert (refined.pred_masks.dtype, type(refined.pred_boxes)) == (torch.bool, Boxes)
    assert np.array_equal(refined.pred_masks.numpy(), GROWN)
    assert refined.pred_boxes.tensor.tolist() == EXCLUSIVE
    assert refined.scores is instances.scores
    assert np.array_equal(instances.pred_masks.numpy(), COARSE)


def test_detectron2s_unpasted_masks_are_refused() -> None:
    small = Instances(SIZE, pred_masks=torch.zeros(2, 1, 28, 28), scores=torch.zeros(2))
    with pytest.raises(InputError, match=r"masks of shape \(2, 1, 28, 28\) for an image of 24×32"):
        from_detectron2(small)


# supervision


@pytest.mark.parametrize("compact", [False, True])
def test_supervisions_detections_keep_their_columns(compact: bool) -> None:
    inclusive = np.array(OLD_BOXES, np.float32) - [0, 0, 1, 1]
    masks: Any = COARSE
    if compact:
        masks = CompactMask.from_dense(COARSE, inclusive, image_shape=SIZE)
    detections = supervision.Detections(
        xyxy=inclusive,
        mask=masks,
        confidence=np.array([0.9, 0.8, 0.1]),
        class_id=np.array([3, 1, 1]),
        data={"name": np.array(["a", "b", "c"])},
    )
    refined = refine_predictions(Growing(), IMAGE, detections)
    assert type(refined) is type(detections)
    assert type(refined.mask) is type(detections.mask)
    assert np.array_equal(np.asarray(refined.mask), GROWN)
    expected = np.array(EXCLUSIVE) - [0, 0, 1, 1]
    assert refined.xyxy.tolist() == [*expected[:2].tolist(), inclusive[2].tolist()]
    assert np.array_equal(supervision.mask_to_xyxy(GROWN[:2]), refined.xyxy[:2])
    assert refined.data["name"].tolist() == ["a", "b", "c"]
    assert np.array_equal(refined.confidence, detections.confidence)
    assert np.array_equal(np.asarray(detections.mask), COARSE)


def test_supervision_without_detections_or_without_masks() -> None:
    nothing = supervision.Detections.empty()
    assert refine_predictions(Growing(), IMAGE, nothing) is nothing
    with pytest.raises(InputError, match="boxes, but no masks"):
        from_supervision(supervision.Detections(xyxy=np.array([[0, 0, 3, 3]], float)))


# ultralytics


def letterboxed(masks: np.ndarray, side: int) -> np.ndarray:
    """Masks as a network of that input size has them: the photo in the middle, twice as large."""
    large = masks.repeat(2, axis=1).repeat(2, axis=2)
    framed = np.zeros((len(masks), side, side), np.uint8)
    top, left = (side - large.shape[1]) // 2, (side - large.shape[2]) // 2
    framed[:, top : top + large.shape[1], left : left + large.shape[2]] = large
    return framed


def ultralytics_result(data: torch.Tensor) -> Results:
    boxes = torch.tensor([[*box, 0.9, 2] for box in OLD_BOXES])
    return Results(IMAGE, path="a.jpg", names={2: "car"}, boxes=boxes, masks=data)


@pytest.mark.parametrize("at_network_size", [True, False])
def test_ultralytics_results_leave_the_networks_frame(at_network_size: bool) -> None:
    data = letterboxed(COARSE, 64) if at_network_size else COARSE.astype(np.uint8)
    result = ultralytics_result(torch.from_numpy(data))
    assert np.array_equal(from_ultralytics(result), COARSE)
    refined = refine_predictions(Growing(), IMAGE, result)
    assert type(refined) is type(result)
    assert refined.masks.data.dtype == torch.uint8
    assert np.array_equal(refined.masks.data.numpy(), GROWN)
    assert refined.boxes.data[:, :4].tolist() == EXCLUSIVE
    assert torch.equal(refined.boxes.data[:, 4:], result.boxes.data[:, 4:])
    assert result.masks.data.shape == data.shape


@pytest.mark.parametrize(
    ("shape", "size"), [((64, 64), (48, 33)), ((96, 128), (71, 99)), ((160, 160), (40, 500))]
)
def test_ultralytics_masks_are_scaled_as_it_scales_them(
    shape: tuple[int, int], size: tuple[int, int]
) -> None:
    data = (torch.rand(3, *shape, generator=torch.Generator().manual_seed(1)) > 0.5).to(torch.uint8)
    result = SimpleNamespace(orig_shape=size, masks=SimpleNamespace(data=data), boxes=None)
    expected = scale_masks(data[None].float(), size)[0] >= 0.5
    assert np.array_equal(from_ultralytics(result), expected.numpy())


def test_ultralytics_results_without_masks() -> None:
    result = SimpleNamespace(orig_shape=SIZE, masks=None, boxes=None, update=None)
    assert masks_of(result).shape == (0, *SIZE)
    assert refine_predictions(Growing(), IMAGE, result) is result
    result.boxes = [1, 2]
    with pytest.raises(InputError, match="boxes, but no masks"):
        masks_of(result)


# all


def test_what_is_none_of_them_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"predictions of type builtins\.int; give one of the kinds"):
        masks_of(3)
    with pytest.raises(InputError, match="a list of predictions; give those of one image, or lists"):
        masks_of([torchvision_output()])


def test_another_number_of_masks_is_refused() -> None:
    with pytest.raises(InputError, match=r"masks of shape \(2, 24, 32\) for 3 predictions"):
        with_masks(torchvision_output(), GROWN[:2])


def test_no_library_is_imported_for_it() -> None:
    names = ("torch", "torchvision", "supervision", "ultralytics", "detectron2")
    program = (
        f"import sys, transfiner_refine.adapters; print([name for name in {names} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
