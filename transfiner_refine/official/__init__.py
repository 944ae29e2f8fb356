"""The authors' checkpoints: loading them, and refining any detector's masks with their networks."""

from transfiner_refine.official.architecture import Architecture
from transfiner_refine.official.checkpoint import convert_weights, load_official_network
from transfiner_refine.official.features import Preparation
from transfiner_refine.official.network import OfficialNetwork
from transfiner_refine.official.read import read_tensors
from transfiner_refine.official.refiner import OfficialRefiner, RefineOptions, load_official_refiner

__all__ = [
    "Architecture",
    "OfficialNetwork",
    "OfficialRefiner",
    "Preparation",
    "RefineOptions",
    "convert_weights",
    "load_official_network",
    "load_official_refiner",
    "read_tensors",
]
