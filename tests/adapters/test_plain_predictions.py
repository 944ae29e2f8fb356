"""SAM, transformers and MMDetection: masks come out, and refined ones go back into the same kind of object."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from transfiner_refine import Mask, MaskWindow, masks_of, refine_predictions, with_masks
from transfiner_refine.errors import InputError

SIZE = (24, 32)
IMAGE = np.zeros((*SIZE, 3), np.uint8)
COARSE = np.zeros((2, *SIZE), bool)
COARSE[0, 4:10, 5:15], COARSE[1, 12:20, 3:9] = True, True
GROWN = np.zeros_like(COARSE)
GROWN[0, 3:11, 4:16], GROWN[1, 11:21, 2:10] = True, True


class Growing:
    """A refiner that adds a pixel all around."""

    def refine(self, image: np.ndarray, masks: np.ndarray) -> np.ndarray:
        assert image.shape == (*masks.shape[1:], 3)
        assert np.array_equal(masks >= 0.5, COARSE[: len(masks)])
        return GROWN[: len(masks)]


def rle(mask: np.ndarray) -> dict[str, Any]:
    return {"size": list(SIZE), "counts": Mask.from_window(MaskWindow(mask, 0, 0, SIZE)).counts}


@pytest.mark.parametrize("kind", ["array", "rle", "bytes", "runs"])
def test_sams_automatic_masks_keep_what_sam_said_of_them(kind: str) -> None:
    encoded = {
        "array": COARSE[0],
        "rle": rle(COARSE[0]),
        "bytes": {**rle(COARSE[0]), "counts": rle(COARSE[0])["counts"].encode()},
    }
    encoded["runs"] = {
        "size": list(SIZE),
        "counts": Mask.from_window(MaskWindow(COARSE[0], 0, 0, SIZE)).runs.tolist(),
    }
    records = [
        {
            "segmentation": encoded[kind],
            "area": 60,
            "bbox": [5, 4, 9, 5],
            "predicted_iou": 0.9,
            "crop_box": [0, 0, 32, 24],
        }
    ]
    (refined,) = refine_predictions(Growing(), IMAGE, records)
    assert np.array_equal(masks_of([refined])[0], GROWN[0])
    assert type(refined["segmentation"]) is type(records[0]["segmentation"])
    assert (refined["area"], refined["bbox"]) == (96, [4, 3, 12, 8])
    assert (refined["predicted_iou"], refined["crop_box"]) == (0.9, [0, 0, 32, 24])
    assert records[0]["area"] == 60


def test_the_image_segmentation_pipeline_of_transformers() -> None:
    records = [
        {"label": "cat", "score": 0.9, "mask": Image.fromarray(mask.astype(np.uint8) * 255)}
        for mask in COARSE
    ]
    refined = refine_predictions(Growing(), IMAGE, records)
    assert [record["label"] for record in refined] == ["cat", "cat"]
    assert all(isinstance(record["mask"], Image.Image) for record in refined)
    assert np.array_equal(np.stack([np.asarray(record["mask"]) > 0 for record in refined]), GROWN)


@pytest.mark.parametrize("as_maps", [False, True])
def test_mask2former_after_its_own_post_processing(as_maps: bool) -> None:
    transformers = pytest.importorskip("transformers")
    # two queries, each sure of one class and of one mask
    classes = torch.full((1, 2, 4), -9.0)
    classes[0, 0, 1] = classes[0, 1, 2] = 9.0
    logits = torch.where(torch.from_numpy(COARSE), 9.0, -9.0)[None]
    outputs = SimpleNamespace(class_queries_logits=classes, masks_queries_logits=logits)
    processor = transformers.Mask2FormerImageProcessor()
    (given,) = processor.post_process_instance_segmentation(
        outputs, target_sizes=[SIZE], return_binary_maps=as_maps
    )
    order = [int(np.argmax([(mask & true).sum() for true in COARSE])) for mask in masks_of(given)]
    assert sorted(order) == [0, 1]

    class InOrder(Growing):
        def refine(self, image: np.ndarray, masks: np.ndarray) -> np.ndarray:  # noqa: ARG002
            return GROWN[order]

    refined = refine_predictions(InOrder(), IMAGE, given)
    assert np.array_equal(masks_of(refined), GROWN[order])
    assert refined["segments_info"] == given["segments_info"]
    assert (refined["segmentation"].dtype, refined["segmentation"].shape) == (
        given["segmentation"].dtype, given["segmentation"].shape
    )  # fmt: skip


def test_a_pixel_that_two_segments_claim_goes_to_the_higher_score() -> None:
    ids = torch.full(SIZE, -1)
    ids[4:10, 5:15], ids[12:20, 3:9] = 0, 1
    given = {"segmentation": ids, "segments_info": [{"id": 0, "score": 0.5}, {"id": 1, "score": 0.9}]}
    both = GROWN.copy()
    both[0, 11:14, 4:10] = True  # over the other
    refined = with_masks(given, both)
    assert np.array_equal(masks_of(refined)[1], both[1])
    assert np.array_equal(masks_of(refined)[0], both[0] & ~both[1])


def test_sams_masks_of_prompts_are_a_tensor_of_any_shape() -> None:
    given = torch.from_numpy(COARSE)[
        :, None
    ]  # [prompts, masks of each, H, W], as post_process_masks gives it
    refined = refine_predictions(Growing(), IMAGE, given)
    assert (refined.shape, refined.dtype) == (given.shape, torch.bool)
    assert np.array_equal(refined[:, 0].numpy(), GROWN)
    generated = {"masks": list(COARSE), "scores": torch.tensor([0.9, 0.8])}  # the mask-generation pipeline
    again = refine_predictions(Growing(), IMAGE, generated)
    assert np.array_equal(np.stack(again["masks"]), GROWN)
    assert again["scores"] is generated["scores"]


@pytest.mark.parametrize("alone", [False, True])
def test_mmdetections_samples(alone: bool) -> None:
    structures = pytest.importorskip("mmengine.structures")
    instances = structures.InstanceData(
        masks=torch.from_numpy(COARSE),
        bboxes=torch.tensor([[5, 4, 15, 10], [3, 12, 9, 20]]).float(),
        scores=torch.tensor([0.9, 0.8]),
        labels=torch.tensor([3, 1]),
    )
    given: Any = instances
    if not alone:  # DetDataSample is such an element with this field
        given = structures.BaseDataElement(metainfo={"img_id": 7})
        given.pred_instances = instances
    refined = refine_predictions(Growing(), IMAGE[..., ::-1], given, bgr=True)
    assert type(refined) is type(given)
    found = refined if alone else refined.pred_instances
    assert np.array_equal(found.masks.numpy(), GROWN)
    assert found.bboxes.tolist() == [[4, 3, 16, 11], [2, 11, 10, 21]]
    assert found.scores.tolist() == instances.scores.tolist()
    assert instances.bboxes.tolist() == [[5, 4, 15, 10], [3, 12, 9, 20]]


def test_several_images_take_a_list_of_predictions() -> None:
    one = [{"segmentation": COARSE[0], "area": 60}]
    refined = refine_predictions(Growing(), [IMAGE, IMAGE], [one, one])
    assert [each[0]["area"] for each in refined] == [96, 96]
    with pytest.raises(InputError, match="2 images, and not as many predictions"):
        refine_predictions(Growing(), [IMAGE, IMAGE], [one])
