"""Makes the example photos, their true masks and the coarse masks of an imagined detector.

The photos come from scikit-image (see ATTRIBUTION.md). The outlines below were drawn by hand on enlarged
photos, points as (x, y) in pixels; where that helps, GrabCut then moves them by a few pixels to the photo's edges.
The coarse masks are what a Mask R-CNN head would make of the truth: a 28×28 grid in a box that does not quite
fit, and bumps where such a head hesitates. Everything is deterministic.

    pip install scikit-image
    python examples/make_examples.py
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import skimage.data
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as rle

HERE = Path(__file__).resolve().parent
GRID = 28  # cells a side of a mask head's output
QUALITY = 92  # of the JPEG files
CATEGORIES = {"person": 1, "helmet": 2, "cup": 3, "spoon": 4, "rocket": 5}

Points = list[tuple[float, float]]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Example:
    """One object in one photo.

    Attributes:
        photo: name of the photo, a function of ``skimage.data``.
        category: a key of ``CATEGORIES``.
        score: the imagined detector's confidence.
        snap: pixels the outline may move to meet an edge of the photo; 0 where object and background look alike.
        outline: closed polygons whose union is the object.
        without: closed polygons that are not the object: holes, and things in front of it.
        box_error: what the detector's box is off by at its left, top, right and bottom, as shares of its sides;
            positive is to the right and downwards. A box that is too small cuts the object.
        bumps: ellipses (x, y, half width, half height, added?) the head adds or misses.
    """

    photo: str
    category: str
    score: float
    snap: int
    outline: list[Points]
    without: list[Points]
    box_error: tuple[float, float, float, float]
    bumps: list[tuple[float, float, float, float, bool]]


# fmt: off
_HELMET: Points = [
    (366, 349.6), (373, 347.3), (383, 344.7), (396, 343.5), (409, 343.7), (420, 345.3), (432, 349.1),
    (444.5, 354.5), (456, 362), (467, 371.5), (475, 379.7), (482.5, 391), (488.7, 405.6), (493, 421),
    (495.5, 437.3), (496.5, 444), (496.9, 450.1), (503.3, 455.2), (503.3, 460.3), (507.1, 470.5),
    (508.4, 485.8), (512, 485.8), (512, 512), (280.4, 512), (278, 496), (276.4, 484), (276.4, 468),
    (278, 452), (281, 438), (285, 426), (290, 414), (292.6, 406), (294.4, 398), (298, 391.6), (304, 388),
    (310, 382), (316, 375), (322, 369.6), (330, 363.6), (340, 359), (350, 355), (360, 351.6),
]
_ASTRONAUT: Points = [
    (110, 207.5), (113.5, 204), (112, 197), (113, 187), (116, 185), (123, 180), (125.4, 173.7),
    (130.6, 166), (138.5, 158), (149, 152.3), (162, 149), (175, 148), (183, 148.4), (182, 141),
    (182, 131.4), (177.6, 130.6), (173, 125.4), (170.3, 119.4), (167, 113.6), (162, 107.6),
    (157.5, 101.4), (155.4, 94), (154.6, 86), (153.3, 77), (153.3, 69.2), (155.4, 61.4), (162, 53.5),
    (169.8, 47), (180, 41.3), (188, 36.6), (193.3, 30.8), (199.8, 25.6), (210.3, 20.9), (222, 17.8),
    (232.5, 15.7), (243, 17.2), (253.4, 20.9), (263.8, 25.6), (275.6, 31.9), (286, 39.2), (292.6, 49.6),
    (297.3, 61.4), (299.9, 73.1), (301.7, 84.9), (300.4, 98), (297, 109.7), (290, 118.9), (282.1, 125.4),
    (280, 129.3), (276.9, 133.7), (272.2, 136.4), (267.8, 135.8), (265.9, 142.4), (262.5, 150.2),
    (259.1, 156.7), (256, 167.2), (255.5, 173.7), (263.8, 178.9), (274.3, 186), (283.4, 194.6),
    (292.6, 206.4), (299.1, 218.1), (303, 229.9), (304, 233.3), (314.1, 239.2), (323.1, 245.6),
    (329.5, 250.2), (337.1, 256.3), (341, 262.2), (344.8, 269.8), (347.4, 278.8), (351.7, 285.2),
    (354.3, 296.7), (356.6, 308.2), (357.6, 317.1), (360.1, 325.3), (363.2, 331.2), (360.9, 335),
    (361.4, 341.4), (366, 349.6), *_HELMET[:22:-1], (38.8, 512), (33.8, 500), (27.5, 485), (23.8, 470),
    (23, 452.5), (23.8, 440), (23.8, 428.8), (20.5, 412.5), (19.3, 397.5), (21.3, 386.3), (25.3, 380),
    (25.3, 360), (26.3, 338.8), (30.5, 331.3), (33.8, 317.5), (40, 305), (40.5, 295), (43.8, 285),
    (48.8, 275), (53.8, 263.8), (61.3, 251.3), (68.8, 242.5), (77.5, 236.3), (87.5, 227.5), (100, 217),
]
_CUP: Points = [
    (173.2, 98.5), (175.5, 88.3), (180.4, 76.7), (187.6, 65.2), (197.8, 52.1), (209.4, 41.1),
    (222.4, 31.9), (236.9, 25.2), (251.4, 21.1), (265.8, 18.8), (280.3, 17.7), (297.7, 18.2),
    (315.1, 20.8), (329.5, 24.9), (344, 31), (358.5, 39.1), (373, 49.2), (384, 59), (391, 67), (397, 76),
    (401, 84), (405, 93), (407.6, 102), (409, 112), (409, 124), (408.4, 136), (406, 148), (403, 160),
    (400, 172), (396, 184), (392, 191), (388, 198), (383, 208), (380, 213), (376, 220), (372, 230),
    (369, 237), (360, 244), (350, 247), (340, 252), (333, 260), (329, 261), (320, 272.5), (310, 278),
    (300, 282.5), (292, 285), (282, 286), (270, 285), (258, 282), (256, 279), (247, 290), (236, 300),
    (230, 305), (223, 309), (212, 306), (203, 301), (198, 295), (195.6, 288), (196.6, 278), (199, 268),
    (203, 259), (208, 251), (213, 244), (215, 235), (206, 227), (198, 218), (190, 205), (184, 194),
    (179, 178), (176, 164), (174, 144), (173.2, 120),
]
_SPOON_BOWL: Points = [
    (369, 237), (360, 244), (350, 247), (340, 252.5), (332, 261), (328, 270), (326, 282), (327, 292),
    (330, 303), (336, 314), (343, 321), (351, 324.6), (360, 325.6), (370, 324), (380, 319), (390, 311),
    (398, 301), (404, 289), (406, 278), (405, 269), (401, 260), (394, 252), (388, 247), (384, 239),
    (382.4, 233), (383.6, 224), (386, 214), (389, 203), (392, 192), (388, 198), (383, 208), (380, 213),
    (376, 220), (372, 230),
]
_SPOON_HANDLE: Points = [
    (397, 75), (399, 70), (406, 67.4), (414, 67.4), (420, 69.6), (424, 75), (423.6, 81), (420, 93),
    (416, 110), (411, 126), (409, 134), (409, 120), (408.4, 108), (406, 97), (402.4, 86),
]
_ROCKET: Points = [
    (322.5, 126.3), (317.5, 131.3), (313.8, 138.8), (311.3, 150), (311.3, 172.5), (312.5, 178.8),
    (314.5, 180.8), (314.3, 235), (314.3, 360), (313, 407.5), (331.8, 407.5), (331.3, 360), (330.5, 235),
    (330, 180.8), (333, 178.8), (334.3, 172.5), (334.3, 150), (332, 138.8), (328, 131.3),
]
_PHOTOGRAPHER: Points = [
    (0, 260.3), (6, 250.7), (15, 238.4), (20.5, 226.1), (27.3, 222), (31.4, 209.8), (38.2, 198.8),
    (49.2, 183.8), (56, 171.5), (61.4, 159.2), (69.6, 149.7), (81.9, 140.1), (101, 130.6), (117.4, 125.4),
    (131.1, 124.5), (136.5, 118.3), (144.7, 110.9), (151.6, 106.3), (161.7, 106), (163.8, 99.2),
    (168.8, 91), (174.8, 81.4), (185.7, 73.2), (199.3, 66.4), (210.3, 66.9), (226.7, 70.5), (240.3, 76.8),
    (251.2, 86.9), (259.4, 95.1), (269, 107.3), (270.3, 116.9), (267.6, 127.8), (260.8, 129.2),
    (256.7, 137.4), (252.6, 144.2), (251.2, 152.4), (254.5, 164.7), (253.4, 169.6), (247.1, 171.5),
    (245.8, 177), (242, 181.7), (242, 190), (239.2, 199.2), (240, 205), (243, 205.8), (243, 210),
    (244.2, 215), (242, 220), (244.2, 231.7), (248.3, 246.7), (253.3, 240.8), (261.7, 231.7),
    (262.5, 229.2), (261.3, 223.3), (263.3, 215), (269.2, 208.3), (275, 204.2), (281, 202), (280, 210.5),
    (286.7, 214.2), (288, 216), (288, 287), (270, 300), (258.3, 307.5), (246.7, 312.5), (241.7, 311.7),
    (230, 304.2), (218.3, 299.2), (207.2, 293.8), (200, 306.3), (190, 318.8), (175, 340), (162.5, 352.5),
    (150, 367.5), (140.8, 380.5), (145, 402.5), (149.3, 425), (150, 450), (150.8, 487.5), (151.3, 512),
    (0, 512),
]
_GLOVE: Points = [
    (292, 202), (295, 199), (297, 194), (300, 188), (305, 184), (318, 183), (318, 178), (321, 170),
    (326, 168), (331, 176), (331.7, 190), (330, 200), (324.7, 201.7), (323.3, 211.7), (319.2, 220.8),
    (314.2, 226.7), (306.7, 231.7), (303, 231), (298, 228), (297, 216), (291, 206),
]
_CUFF: Points = [(297, 250), (305, 272), (302.5, 274.2), (299.2, 280), (297, 280)]
_STRAP: Points = [(307, 180), (309, 180), (304.5, 231), (302, 231)]
_BETWEEN_LEGS: Points = [
    (99.5, 447), (110, 460), (120, 475), (130, 490), (137.5, 506), (139.3, 512), (90, 512), (93.8, 487.5),
    (97.5, 462.5),
]

EXAMPLES = [
    Example("astronaut", "person", 0.99, 3, [_ASTRONAUT], [], (-0.02, 0.04, 0.05, 0.0),
            [(300, 140, 22, 30, True), (24, 400, 16, 44, False), (148, 152, 22, 14, False), (92, 222, 18, 12, True),
             (352, 270, 14, 24, False), (295, 420, 24, 30, True)]),
    Example("astronaut", "helmet", 0.87, 0, [_HELMET], [], (-0.06, -0.05, 0.02, 0.0),
            [(470, 365, 22, 18, False), (300, 390, 16, 14, True), (500, 440, 12, 14, True), (278, 490, 12, 18, False)]),
    Example("coffee", "cup", 0.98, 1, [_CUP], [], (0.03, -0.05, 0.08, 0.03),
            [(238, 294, 22, 15, True), (198, 290, 14, 16, False), (396, 70, 22, 16, True), (180, 180, 12, 20, False),
             (330, 262, 20, 14, True), (225, 28, 18, 9, False)]),
    Example("coffee", "spoon", 0.81, 1, [_SPOON_BOWL, _SPOON_HANDLE], [], (-0.10, 0.05, 0.06, 0.04),
            [(334, 262, 12, 10, True), (398, 300, 10, 10, False)]),
    Example("rocket", "rocket", 0.95, 1, [_ROCKET], [], (-0.25, -0.03, 0.30, 0.02),
            [(338, 386, 10, 18, True), (308, 240, 6, 22, True), (336, 215, 5, 20, True), (322, 128, 8, 6, False)]),
    Example("camera", "person", 0.99, 3, [_PHOTOGRAPHER, _GLOVE, _CUFF], [_STRAP, _BETWEEN_LEGS],
            (0.0, -0.04, 0.03, 0.0),
            [(160, 430, 18, 40, True), (236, 72, 30, 14, False), (66, 158, 24, 16, False), (296, 176, 26, 22, True),
             (232, 318, 28, 14, True), (110, 480, 14, 30, True), (12, 236, 14, 12, True)]),
]
# fmt: on


def load_photo(name: str) -> NDArray[np.uint8]:
    """H×W×3 uint8 RGB."""
    photo = np.asarray(getattr(skimage.data, name)())
    return photo if photo.ndim == 3 else np.repeat(photo[:, :, None], 3, 2)


def fill(polygons: list[Points], height: int, width: int) -> Mask:
    """Pixels whose centre lies in one of the polygons."""
    canvas = np.zeros((height, width), np.uint8)
    for polygon in polygons:
        # fillPoly counts pixel centres as whole numbers; shift=4 gives it sixteenths
        points = np.rint((np.array(polygon) - 0.5) * 16).astype(np.int32)
        cv2.fillPoly(canvas, [points], 1, shift=4)
    return canvas.astype(bool)


def true_mask(photo: NDArray[np.uint8], example: Example) -> Mask:
    """The hand-drawn outline, moved to the photo's edges."""
    height, width = photo.shape[:2]
    drawn = fill(example.outline, height, width) & ~fill(example.without, height, width)
    if example.snap == 0:
        return drawn
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * example.snap + 1, 2 * example.snap + 1))
    inner = cv2.erode(drawn.astype(np.uint8), disc, borderValue=1).astype(bool)
    outer = cv2.dilate(drawn.astype(np.uint8), disc).astype(bool)
    labels = np.where(drawn, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[inner], labels[~outer] = cv2.GC_FGD, cv2.GC_BGD
    cv2.setRNGSeed(0)
    bgr = np.ascontiguousarray(photo[:, :, ::-1])
    cv2.grabCut(bgr, labels, None, np.zeros((1, 65)), np.zeros((1, 65)), 3, cv2.GC_INIT_WITH_MASK)
    snapped = ((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)).astype(np.uint8)
    return cv2.medianBlur(snapped, 5).astype(bool) | inner


def coarse_mask(truth: Mask, example: Example) -> tuple[Mask, list[float]]:
    """What a mask head with a ``GRID``×``GRID`` output makes of it, and its box as [x, y, width, height]."""
    height, width = truth.shape
    seen = truth.astype(np.uint8)
    for x, y, half_width, half_height, added in example.bumps:
        cv2.ellipse(
            seen, (round(x), round(y)), (round(half_width), round(half_height)), 0, 0, 360, int(added), -1
        )
    rows, columns = np.flatnonzero(truth.any(1)), np.flatnonzero(truth.any(0))
    edges = np.array((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1), np.float64)
    sides = np.tile(edges[2:] - edges[:2], 2)
    moved = np.rint(edges + np.array(example.box_error) * sides)
    x0, y0, x1, y1 = (int(v) for v in np.clip(moved, 0, (width, height, width, height)))
    cells = cv2.resize(seen[y0:y1, x0:x1].astype(np.float32), (GRID, GRID), interpolation=cv2.INTER_AREA)
    cells = cv2.GaussianBlur(cells, (0, 0), 1.0)  # a head's output is smoother than the truth
    # a head's output is pasted with zeros around it, so that it fades at the box's border
    cell_width, cell_height = (x1 - x0) / GRID, (y1 - y0) / GRID
    xs = np.tile(((np.arange(x1 - x0) + 0.5) / cell_width - 0.5).astype(np.float32), (y1 - y0, 1))
    ys = np.tile(((np.arange(y1 - y0) + 0.5) / cell_height - 0.5).astype(np.float32)[:, None], (1, x1 - x0))
    back = cv2.remap(cells, xs, ys, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    coarse = np.zeros_like(truth)
    coarse[y0:y1, x0:x1] = back >= 0.5
    return coarse, [x0, y0, x1 - x0, y1 - y0]


def encode(mask: Mask) -> dict[str, Any]:
    """Compressed RLE with string counts."""
    coded = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(n) for n in coded["size"]], "counts": coded["counts"].decode()}


def write_json(name: str, content: Any) -> None:
    (HERE / name).write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    """Writes images/, masks/, detections.json, image_info.json and truth.json beside this script."""
    (HERE / "images").mkdir(exist_ok=True)
    (HERE / "masks").mkdir(exist_ok=True)
    names = list(dict.fromkeys(example.photo for example in EXAMPLES))
    photos = {name: load_photo(name) for name in names}
    images = []
    for number, (name, photo) in enumerate(photos.items(), 1):
        Image.fromarray(photo).save(HERE / "images" / f"{name}.jpg", quality=QUALITY, subsampling=0)
        images.append(
            {"id": number, "file_name": f"{name}.jpg", "height": photo.shape[0], "width": photo.shape[1]}
        )
    detections, annotations = [], []
    for number, example in enumerate(EXAMPLES, 1):
        truth = true_mask(photos[example.photo], example)
        coarse, box = coarse_mask(truth, example)
        file_name = f"{example.photo}_{example.category}.png"
        Image.fromarray(coarse.astype(np.uint8) * 255).save(HERE / "masks" / file_name, optimize=True)
        about = {"image_id": names.index(example.photo) + 1, "category_id": CATEGORIES[example.category]}
        detections.append({**about, "segmentation": encode(coarse), "bbox": box, "score": example.score})
        annotation = {
            "id": number,
            **about,
            "segmentation": encode(truth),
            "area": int(truth.sum()),
            "iscrowd": 0,
        }
        annotation["bbox"] = rle.toBbox(encode(truth)).tolist()
        annotations.append(annotation)
    categories = [{"id": number, "name": name} for name, number in CATEGORIES.items()]
    write_json("detections.json", detections)
    write_json("image_info.json", {"images": images, "categories": categories})
    write_json("truth.json", {"images": images, "categories": categories, "annotations": annotations})


if __name__ == "__main__":
    main()
