"""The authors' checkpoints: loading them, their masks number for number, and refining any detector's masks."""

from transfiner_refine.official.checkpoint import (
    convert_official,
    load_detector,
    load_official_network,
)
from transfiner_refine.official.config import Architecture, FaithfulOptions, Preparation, RefineOptions
from transfiner_refine.official.faithful import FaithfulMasks, OfficialPredictor
from transfiner_refine.official.read import read_tensors
from transfiner_refine.official.refiner import OfficialRefiner, load_official_refiner

__all__ = [
    "Architecture",
    "FaithfulMasks",
    "FaithfulOptions",
    "OfficialPredictor",
    "OfficialRefiner",
    "Preparation",
    "RefineOptions",
    "convert_official",
    "load_detector",
    "load_official_network",
    "load_official_refiner",
    "read_tensors",
]
