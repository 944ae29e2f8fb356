"""Serves the refiner of another checkout to speed.py, over this process's standard input and output.

Started with that checkout in PYTHONPATH. It says ready with the folder of the package that was imported; then, for each
image or mask it is sent, an image is kept and a mask is answered with the refined one and the CPU seconds it took.
Arrays and numbers alone are exchanged, because the classes of two checkouts may differ.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
from pathlib import Path

import cv2
import torch

import transfiner_refine
from transfiner_refine import load_refiner
from transfiner_refine.types import MaskWindow


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # so that nothing printed gets among the answers
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    refiner = load_refiner(device="cpu")
    pickle.dump(str(Path(transfiner_refine.__file__).parent.parent), answers)
    answers.flush()
    image = None
    while True:
        try:
            name, values = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        if name == "image":
            image = values
            continue
        mask = MaskWindow(*values)
        begin = time.process_time()
        (after,) = refiner.refine_windows([image], [mask], [0])
        seconds = time.process_time() - begin
        pickle.dump(((after.values, after.x, after.y, after.image_size), seconds), answers)
        answers.flush()


if __name__ == "__main__":
    main()
