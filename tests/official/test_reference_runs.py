"""The release's own runs, number for number: features, logits, node lists, tokens, probabilities, masks."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from detector import load_detector
from faithful import FaithfulOptions, HeadOutput, OfficialPredictor, prepare_batch, run_head
from numpy.typing import NDArray
from torch import Tensor

from transfiner_refine.official import OfficialNetwork, Preparation, load_official_network
from transfiner_refine.official.features import ImageFeatures, box_level, network_size, prepare, tokens_of
from transfiner_refine.official.nodes import NODE_GRIDS, Nodes
from transfiner_refine.official.read import TensorFile

pytestmark = pytest.mark.slow

RUNS = (
    *(
        "r50_basic",
        "r50_one",
        "r50_many",
        "r50_tiny",
        "r50_huge",
        "r50_batch",
        "r50_nofinest",
        "r50_onlycoarsest",
    ),
    *(
        "r50_demo",
        "r50_classes3",
        "r50_upscaled",
        "r50_mixed56",
        "r50_nonodes",
        "r50_outside",
        "r50_limitbatch",
    ),
    *("r50_level5", "r50_dcn", "r101_basic", "r101_dcn", "swint_basic", "swint_odd", "swint_nodes"),
    *("swinb_basic", "swinb_nodes"),
)
TOLERANCE = 1e-4  # the README of the runs: features, logits, probabilities
DEFORMABLE_LOGITS = 4e-4  # learned offsets amplify rounding
MASK_PIXELS = 3
BOX_PIXELS = 2e-3
ROI_STEPS = {
    14: (32, 2),
    28: (32, 4),
    56: (32, 8),
    112: (32, 16),
}  # stored: every n-th channel, every m-th cell
SHOWN_TOKENS = 4  # stored of each group


@dataclass
class Run:
    """One run of the release and ours of the same."""

    arrays: dict[str, Any]
    meta: dict[str, Any]
    network: OfficialNetwork
    features: list[ImageFeatures]
    padded: tuple[int, ...]
    boxes: list[Tensor]
    output: HeadOutput
    images: list[NDArray[np.uint8]]

    @property
    def options(self) -> FaithfulOptions:
        return FaithfulOptions(self.meta["limit"], skip_empty_level=True, demo=self.meta["demo"])

    @property
    def logit_tolerance(self) -> float:
        return DEFORMABLE_LOGITS if "dcn" in self.meta["variant"] else TOLERANCE

    def each_box(self) -> list[tuple[ImageFeatures, Tensor]]:
        """Every box of the batch with the features of its image."""
        pairs = zip(self.features, self.boxes, strict=True)
        return [(image, box) for image, boxes in pairs for box in boxes]

    @property
    def preparation(self) -> Preparation:
        return replace(
            Preparation.of(self.network.architecture),
            short_side=self.meta["short_side"],
            max_side=self.meta["max_side"],
        )


@pytest.fixture(scope="module", params=RUNS)
def run(request: pytest.FixtureRequest, reference: Any) -> Run:
    arrays = reference.arrays(request.param)
    meta = json.loads(str(arrays["meta"]))
    weights = dict(reference.weights(meta["variant"], meta["classes"]))
    bias = "roi_heads.mask_head.predictor_uncertain.bias"
    weights[bias] = weights[bias] + np.float32(meta["incoherence_bias"])
    network = load_official_network(TensorFile(reference.folder, "generated", weights))
    count = sum(name.startswith("boxes_") and name[6:].isdigit() for name in arrays)
    images = [reference.image(arrays, meta, i) for i in range(count)]
    result = Run(arrays, meta, network, [], (), [], None, images)  # type: ignore[arg-type]
    with torch.inference_mode():
        inputs, scales = prepare_batch(images, result.preparation)
        result.padded = (count, *inputs[0].shape[1:])
        result.features = [network.features(each) for each in inputs]
        result.boxes = [torch.from_numpy(arrays[f"boxes_{i}"]) * scales[i] for i in range(count)]
        classes = torch.cat([torch.from_numpy(arrays[f"classes_{i}"]) for i in range(count)])
        result.output = run_head(network, result.features, result.boxes, classes, result.options)
    return result


def close(ours: Tensor, theirs: NDArray[Any], tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(ours, torch.from_numpy(theirs), atol=tolerance, rtol=0, equal_nan=True)


def test_the_images_have_the_same_size(run: Run) -> None:
    assert run.padded == tuple(run.arrays["padded_shape"])


def test_features_agree(run: Run) -> None:
    if "p2" not in run.arrays:
        pytest.skip("this run stores no features")
    for i, name in enumerate(("p2", "p3", "p4", "p5")):
        close(torch.cat([image.maps[i] for image in run.features])[:, ::16, ::4, ::4], run.arrays[name])
    close(torch.cat([image.semantic for image in run.features])[:, ::16, ::4, ::4], run.arrays["semantic"])
    for grid, (channels, step) in ROI_STEPS.items():
        theirs = run.arrays[f"roi{grid}"]
        stored = torch.zeros(grid, grid, dtype=torch.bool)
        stored[::step, ::step] = True
        cells = stored.flatten().nonzero().squeeze(1)
        ours = []
        for image, box in run.each_box()[: len(theirs)]:
            if grid == 14:
                ours.append(image.pooled(box)[0, ::channels, ::step, ::step])
                continue
            rows = image.at(box, Nodes(grid, cells, cells))
            ours.append(rows[:, ::channels].T.unflatten(1, (grid // step, grid // step)))
        close(torch.stack(ours), theirs)


def test_boxes_read_the_same_levels(run: Run) -> None:
    if "level" not in run.arrays:
        pytest.skip("this run stores no levels")
    assert [box_level(box) for box in torch.cat(run.boxes)] == run.arrays["level"].tolist()
    scaled = [run.arrays[name] for name in sorted(run.arrays) if name.startswith("boxes_net_")]
    close(torch.cat(run.boxes), np.concatenate(scaled), 0)


def test_coarse_masks_and_incoherence_agree(run: Run) -> None:
    close(run.output.coarse_logits, run.arrays["coarse_logits"], run.logit_tolerance)
    close(run.output.incoherence, run.arrays["incoherence"])


def test_the_same_cells_are_nodes(run: Run) -> None:
    for i, grid in enumerate(NODE_GRIDS):
        levels = [levels[i] for levels in run.output.levels]
        assert [len(level) for level in levels] == run.arrays[f"count_{grid}"].tolist()
        if f"nodes_{grid}" in run.arrays:
            ours = [torch.stack((torch.full_like(n.cell, box), n.y, n.x), 1) for box, n in enumerate(levels)]
            assert torch.cat(ours).tolist() == run.arrays[f"nodes_{grid}"].tolist()


def test_tokens_agree_before_and_after_the_encoder(run: Run) -> None:
    transformer = run.network.transformer
    stored = len(run.arrays.get("fused_first", run.arrays.get("fused_tokens")))
    for box, levels in enumerate(run.output.levels[:stored]):
        image, corners = run.each_box()[box]
        with torch.inference_mode():
            context = image.pooled(corners)[0]
            coarse = torch.sigmoid(run.output.coarse_logits[box])
            tokens, position = tokens_of(image, corners, context, coarse, levels)
            fused = transformer.fuse(tokens)
            encoded = transformer.encode(fused, position, 0)
            decoded = torch.sigmoid(transformer.decode(encoded)[:, 0])
        if "fused_first" in run.arrays:
            close(fused[:SHOWN_TOKENS], run.arrays["fused_first"][box])
            close(encoded[:SHOWN_TOKENS], run.arrays["encoded_first"][box])
            close(encoded[-2:], run.arrays["encoded_last"][box])
            continue
        close(decoded[:196:14], run.arrays["context_decoded"][box])
        first = 0
        for group, size in enumerate([196, *(len(level) for level in levels)]):
            shown = slice(first, first + min(size, SHOWN_TOKENS))
            for ours, name in ((fused, "fused_tokens"), (encoded, "encoded_tokens")):
                close(ours[shown], run.arrays[name][box, group, : min(size, SHOWN_TOKENS)])
            first += size


def test_labels_and_probabilities_agree(run: Run) -> None:
    stored = len(run.arrays["roi28"] if "roi28" in run.arrays else run.arrays["fused_tokens"])
    for i, grid in enumerate(NODE_GRIDS):
        close(torch.cat([labels[i] for labels in run.output.labels[:stored]]), run.arrays[f"refined_{grid}"])
    close(run.output.probability[torch.from_numpy(run.arrays["prob_index"])], run.arrays["prob"])
    if "prob_sparse" in run.arrays:
        close(run.output.probability[:, ::7, ::7], run.arrays["prob_sparse"])


def test_masks_agree_to_a_few_pixels(run: Run) -> None:
    predictor = OfficialPredictor(run.network, options=run.options, preparation=run.preparation)
    count = len(run.images)
    boxes = [run.arrays[f"boxes_{i}"] for i in range(count)]
    found = predictor.masks(run.images, boxes, [run.arrays[f"classes_{i}"] for i in range(count)])
    for i, ours in enumerate(found):
        shape = run.arrays[f"mask_shape_{i}"]
        theirs = np.unpackbits(run.arrays[f"mask_{i}"], axis=-1)[..., : shape[-1]].astype(bool)
        assert ours.masks.shape == theirs.shape
        assert (ours.masks != theirs).sum((1, 2)).max(initial=0) <= MASK_PIXELS
        if f"out_boxes_{i}" in run.arrays:
            close(torch.from_numpy(ours.boxes), run.arrays[f"out_boxes_{i}"])


def test_boxes_classes_and_masks_from_the_image_alone(reference: Any) -> None:
    arrays = reference.arrays("r50_pipeline")
    meta = json.loads(str(arrays["meta"]))
    file = TensorFile(reference.folder, "generated", reference.weights(meta["variant"], meta["classes"]))
    network, detector = load_official_network(file), load_detector(file)
    preparation = replace(Preparation.of(network.architecture), short_side=meta["short_side"])
    image = reference.image(arrays, meta, 0)
    with torch.inference_mode():
        features = network.features(prepare(image, preparation)[0])
        sizes = [network_size(*image.shape[:2], preparation)]
        logits, deltas = detector.rpn(features.maps)
        for level, (logit, delta) in enumerate(zip(logits, deltas, strict=True), 2):
            close(logit[:, :, ::4, ::4], arrays[f"rpn_logits_p{level}"])
            close(delta[:, :, ::8, ::8], arrays[f"rpn_deltas_p{level}"])
        (proposals,) = detector.rpn.propose(features.maps, sizes)
        assert len(proposals.boxes) == int(arrays["proposal_count"])
        close(proposals.boxes[:100], arrays["proposals"], BOX_PIXELS)
        close(proposals.logits[:100], arrays["proposal_logits"])
        hidden, scores, steps = detector.box(features, proposals.boxes[:50])
        close(hidden[:4], arrays["box_feature"])
        close(scores, arrays["class_logits"])
        close(steps.flatten(1)[:8], arrays["box_deltas"])
        found = detector.box.detect(features, proposals.boxes, sizes[0])
    # two late detections score within 7e-7 of each other, so the order beyond the first 20 is not compared
    close(found.scores, arrays["det_scores"], 1e-5)
    close(found.boxes[:20], arrays["det_boxes_net"][:20], BOX_PIXELS)
    assert found.classes[:20].tolist() == arrays["det_classes"][:20].tolist()
    options = FaithfulOptions(meta["limit"], skip_empty_level=True)
    (ours,) = OfficialPredictor(network, detector, options=options, preparation=preparation).detect([image])
    assert len(ours.masks) == len(arrays["det_boxes"])
    distance = np.abs(ours.boxes[:, None] - arrays["det_boxes"][None]).max(2)
    same_class = ours.classes[:, None] == arrays["det_classes"][None]
    assert ((distance < BOX_PIXELS) & same_class).any(1).all()
    shape = arrays["mask_shape_0"]
    masks = np.unpackbits(arrays["mask_0"], axis=-1)[..., : shape[-1]].astype(bool)
    assert (ours.masks[: len(masks)] != masks).sum((1, 2)).max() <= MASK_PIXELS
