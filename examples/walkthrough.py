"""A walk through the Python API, cell by cell.

Editors that know ``# %%`` run it like a notebook; ``python examples/walkthrough.py`` runs it from start to end.
``walkthrough.ipynb`` has the same cells (``python examples/make_notebook.py``).
Pictures go into the folder ``walkthrough``, where you are.
"""

# %% [markdown]
# # Sharp masks from coarse ones
#
# An image is an array H×W×3 uint8 RGB, masks are N×H×W bool. That is all a refiner wants to know.

# %%
from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

EXAMPLES = (
    Path(globals().get("__file__", "walkthrough.ipynb")).resolve().parent
)  # a notebook runs in its folder
PICTURES = Path("walkthrough")
PICTURES.mkdir(exist_ok=True)

image = np.asarray(Image.open(EXAMPLES / "images" / "coffee.jpg").convert("RGB"))
names = ["cup", "spoon"]
coarse = np.stack([np.asarray(Image.open(EXAMPLES / "masks" / f"coffee_{name}.png")) > 0 for name in names])
print(f"image {image.shape}, masks {coarse.shape}")

# %% [markdown]
# ## Refine
#
# `load_refiner` reads the weights once; `device="auto"` takes a GPU where there is one.

# %%
from transfiner_refine import load_refiner  # noqa: E402

refiner = load_refiner()
refined = refiner.refine(image, coarse)
for name, before, after in zip(names, coarse, refined, strict=True):
    print(f"{name}: {before.sum()} → {after.sum()} pixels, {np.count_nonzero(before != after)} changed")

# %% [markdown]
# ## Look at it
#
# `paint_masks` tints and outlines masks on a photo. Masks travel as windows: their pixels, and where these lie.

# %%
from transfiner_refine.refiner import window_of  # noqa: E402
from transfiner_refine.report import paint_masks  # noqa: E402

for title, masks in (("before", coarse), ("after", refined)):
    painted = paint_masks(image, [window_of(mask) for mask in masks])
    Image.fromarray(painted).save(PICTURES / f"{title}.png")

# %% [markdown]
# ## Soft masks
#
# Detectors often give probabilities. They may be passed on, and asked for: the result's threshold is at 0.5.

# %%
probability = refiner.refine(image, coarse, soft=True)  # N×H×W float32
unsure = np.count_nonzero((probability > 0.1) & (probability < 0.9), axis=(1, 2))
print("pixels the network is unsure of:", dict(zip(names, unsure.tolist(), strict=True)))

# %% [markdown]
# ## How it came about
#
# A trace keeps the stages of the method: the region of interest, what the detector took to be wrong, the quadtree's
# nodes and their labels, and the mask level by level. Only PyTorch keeps one.

# %%
from transfiner_refine.trace import trace  # noqa: E402

spoon = trace(load_refiner(engine="torch"), image, coarse[1])
step = spoon.passes[0]
print(f"region of interest: {step.roi.width}×{step.roi.height} pixels, {len(spoon.passes)} pass(es)")
for level in step.levels:
    share = len(level) / level.grid**2
    print(f"  {level.grid:>3}×{level.grid:<3}: {len(level):>5} nodes, {100 * share:4.1f} % of the cells")

# %% [markdown]
# The same as one picture:

# %%
from transfiner_refine.explain import Names, explain  # noqa: E402

sheet = explain(image, spoon, Names("coffee.jpg", "coffee_spoon.png", "lite"))
sheet.save(PICTURES / "explain.png")

# %% [markdown]
# ## Is it better?
#
# With the truth at hand, IoU, boundary IoU and mean boundary accuracy of a mask are one call.

# %%
import json  # noqa: E402

from transfiner_refine.evaluation import mask_scores  # noqa: E402
from transfiner_refine.formats import mask_from_segmentation  # noqa: E402

truth_file = json.loads((EXAMPLES / "truth.json").read_text())
categories = {category["id"]: category["name"] for category in truth_file["categories"]}
coffee = next(entry["id"] for entry in truth_file["images"] if entry["file_name"] == "coffee.jpg")
size = (image.shape[0], image.shape[1])
for annotation in truth_file["annotations"]:
    if annotation["image_id"] != coffee:
        continue
    name = categories[annotation["category_id"]]
    truth = mask_from_segmentation(annotation["segmentation"], lambda: size).decode()
    scores = [mask_scores(truth, masks[names.index(name)]) for masks in (coarse, refined)]
    print(f"{name}: boundary IoU {100 * scores[0].boundary_iou:.1f} → {100 * scores[1].boundary_iou:.1f}")

# %% [markdown]
# ## Files
#
# What the command line does is one call each: `refine_files`, `evaluate`, `build_report`.

# %%
from transfiner_refine.pipeline import refine_files  # noqa: E402
from transfiner_refine.report import build_report  # noqa: E402

summary = refine_files(
    EXAMPLES / "images",
    EXAMPLES / "detections.json",
    PICTURES / "refined.json",
    image_info=EXAMPLES / "image_info.json",
    refiner=refiner,
    overwrite=True,
)
print("\n".join(summary.lines()))
report = build_report(
    EXAMPLES / "images",
    EXAMPLES / "detections.json",
    PICTURES / "refined.json",
    PICTURES / "report",
    annotations=EXAMPLES / "truth.json",
    overwrite=True,
)
print(f"open {report.page} in a browser")
