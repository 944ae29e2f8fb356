"""Refiners that take their process down; other processes import them from this folder."""

import os
from pathlib import Path

import quick_run


class Crashing(quick_run.Stripes):
    """Takes its process down at an image of one colour; with "spares" only once, and leaves that file behind."""

    def __init__(self, batch_size=4, spares=None):
        super().__init__(batch_size)
        self.spares = spares

    def refine_windows(self, images, masks, image_index):
        is_spared = self.spares is not None and Path(self.spares).exists()
        if any((image == 7).all() for image in images) and not is_spared:
            if self.spares is not None:
                Path(self.spares).touch()
            os.kill(os.getpid(), 9)
        return super().refine_windows(images, masks, image_index)


class Broken:
    batch_size = 4

    def refine_windows(self, images, masks, image_index):  # noqa: ARG002
        raise RuntimeError("the device is gone")
