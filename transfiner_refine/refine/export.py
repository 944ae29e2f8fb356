"""Exported programs of the refine step: ``torch.export``, then ONNX, for every size class.

A program in fp32 holds no weights: it refers to those in the weights file beside it, which are in half precision
(ONNX's external data). Programs in int8 share one file of weights among them.
"""

from __future__ import annotations

import copy
import json
import logging
import random
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tqdm import tqdm

from transfiner_refine.errors import InputError, OutputError
from transfiner_refine.model.checkpoint import load_network
from transfiner_refine.model.config import ATTENTION_GRIDS, RefinerConfig
from transfiner_refine.model.network import MaskTransfiner, RefineStep, StepOutput
from transfiner_refine.model.weights import find_weights, read_config, weights_digest
from transfiner_refine.output import atomic_binary_file
from transfiner_refine.refine.engine import SizeClass, program_path
from transfiner_refine.refine.instance import Look, StepInput, refine_instance
from transfiner_refine.refine.torch_engine import TorchEngine
from transfiner_refine.training.datasets import open_dataset

_OPSET = 20
_MAX_BATCH = 1024
_LOOKED_AT, _CALIBRATED, _SEED = 300, 16, 1
_INLINE, _ALIGNMENT = 1024, 64  # bytes: smaller tensors stay in the program
_LAST_IN_FLOATS = ".backbone.stages.1.0."
_ON_MAPS = {"Conv", "Clip", "Relu", "Add", "Concat", "Resize", "MaxPool", "AveragePool", "Mul"}


def size_classes(config: RefinerConfig) -> list[SizeClass]:
    """All programs that refining with a configuration may ask for."""
    shallow = len(ATTENTION_GRIDS)
    with_nodes = [SizeClass(depth, True) for depth in range(shallow, config.max_depth + 1)]
    return with_nodes + [SizeClass(depth, False) for depth in (shallow, shallow + 1)]


def export_program(
    network: MaskTransfiner, size: SizeClass, *, strict: bool = True
) -> torch.export.ExportedProgram:
    """The step of one size class as one graph, for any batch size.

    ``strict`` traces the Python code rather than run it, so that nothing that depends on data can slip in.
    """
    step = RefineStep(copy.deepcopy(network).eval(), size.depth, nodes=size.nodes)
    side = size.side(network.config)
    pixels = torch.zeros(2, 3, side, side, dtype=torch.uint8)
    coarse = torch.zeros(2, 1, side, side)
    batch = torch.export.Dim("batch", min=1, max=_MAX_BATCH)
    shapes = {"pixels": {0: batch}, "coarse": {0: batch}}
    with torch.no_grad():
        return torch.export.export(step, (pixels, coarse), dynamic_shapes=shapes, strict=strict)


def export_files(
    weights: str | Path,
    output: Path | None = None,
    *,
    grids: Sequence[int] = (),
    calibrate: Sequence[Path] = (),
    overwrite: bool = False,
) -> list[Path]:
    """Writes the programs of a weights file: ``transfiner-refine export``. Returns the files.

    Args:
        weights: built-in name or path of a native weights file.
        output: folder, that of the weights file by default; another one gets a copy of that file.
        grids: only the size classes with these finest grids; all by default, and where the network has none of them.
        calibrate: data sets (see ``training.datasets``) for programs in int8.
        overwrite: replace programs that exist.

    Raises:
        CheckpointError: the weights cannot be used.
        InputError: a data set cannot be read, or has no RoI of some size class; or packages are missing.
        OutputError: there are programs already.
    """
    if any(find_spec(name) is None for name in ("onnx", "onnxscript")):
        remedy = 'pip install "transfiner-refine[export]"'
        raise InputError("exporting needs the packages onnx and onnxscript", remedy=remedy)
    path = find_weights(weights)
    config = read_config(path)
    folder = output or path.parent
    folder.mkdir(parents=True, exist_ok=True)
    existing = sorted(folder.glob(f"{path.stem}.*.onnx"))
    if existing and not overwrite:
        raise OutputError("exists already", file=existing[0], remedy="use --overwrite")
    if folder.resolve() != path.parent.resolve():
        shutil.copyfile(path, folder / path.name)
    network, classes = load_network(path), size_classes(config)
    classes = [size for size in classes if size.grid in grids] or classes
    inputs = _calibration(network, classes, calibrate) if calibrate else {}
    programs = {}
    for size in classes:
        raw = _onnx(network, size)
        programs["fp32", size] = _with_weights_of(_optimised(raw, fold=False), path)
        if calibrate:
            programs["int8", size] = _quantised(_optimised(raw, fold=True), inputs[size])
    written, shared = [], folder / f"{path.stem}.int8.bin"
    if calibrate:
        int8 = (model for (precision, _), model in programs.items() if precision == "int8")
        with atomic_binary_file(shared) as file:
            file.write(_shared_data(int8, shared.name))
        written.append(shared)
    for (precision, size), model in programs.items():
        model.metadata_props.add(key="weights", value=weights_digest(path))
        written.append(program_path(folder / path.name, precision, size))
        with atomic_binary_file(written[-1]) as file:
            file.write(model.SerializeToString(deterministic=True))
        if precision == "int8":
            _fuse(written[-1])
    return written


def _calibration(
    network: MaskTransfiner, classes: Sequence[SizeClass], folders: Sequence[Path]
) -> dict[SizeClass, list[StepInput]]:
    """Inputs of the step on a data set's coarse masks, ``_CALIBRATED`` for each size class."""
    sets = [open_dataset(folder) for folder in folders]
    chosen = [(data, instance) for data in sets for instance in data.instances if instance.coarse]
    random.Random(_SEED).shuffle(chosen)
    found: dict[SizeClass, list[StepInput]] = {size: [] for size in classes}
    engine = TorchEngine(network, "cpu", "fp32")
    bar = tqdm(chosen[:_LOOKED_AT], "calibrating", unit=" instances", leave=False, disable=None)
    for number, (data, instance) in enumerate(bar):
        mask, looks = instance.coarse[0].decode(), list[Look]()
        if mask.area:
            tiles = number % 2 == 0  # where they follow nothing reaches the 448 level
            refine_instance(engine, data.photo(instance.image), mask, tiles=tiles, looks=looks)
        for look in looks:
            if look.size in found and len(found[look.size]) < _CALIBRATED:
                found[look.size].append(look.given)
        if all(len(inputs) >= _CALIBRATED for inputs in found.values()):
            break
    for size, inputs in found.items():  # second passes over small objects are rare: their first ones do, too
        others = [
            each for other in classes if other.depth == size.depth and other != size for each in found[other]
        ]
        inputs += others[: _CALIBRATED - len(inputs)]
    if lacking := [size.label for size, inputs in found.items() if not inputs]:
        raise InputError(
            f"the data to calibrate on has no object of the size that program {lacking[0]} is for",
            remedy="add images with smaller and larger objects",
        )
    return found


def _onnx(network: MaskTransfiner, size: SizeClass) -> Any:
    """The step of a size class as an ONNX model, as PyTorch translates it."""
    program = torch.onnx.export(
        export_program(network, size, strict=False),
        dynamo=True,
        optimize=False,
        opset_version=_OPSET,
        input_names=["pixels", "coarse"],
        output_names=list(StepOutput._fields),
        verbose=False,
    )
    assert program is not None
    return program.model_proto


def _optimised(model: Any, *, fold: bool) -> Any:
    """A copy of a model without what is superfluous; ``fold`` computes beforehand what depends on weights alone."""
    import onnx_ir
    import onnxscript.optimizer

    copied = onnx_ir.from_proto(model)
    inputs = len(copied.graph.inputs)
    if not fold:  # the optimiser does not fold what might come from outside
        copied.graph.inputs.extend(copied.graph.initializers.values())
    with _only_errors("onnx_ir"):  # it warns of each of these inputs
        onnxscript.optimizer.optimize_ir(copied, input_size_limit=1 << 30, output_size_limit=1 << 30)
    while len(copied.graph.inputs) > inputs:
        copied.graph.inputs.pop()
    optimised = onnx_ir.to_proto(copied)
    for node in optimised.graph.node:  # where in the Python code each came from
        del node.metadata_props[:]
    del optimised.graph.value_info[:]
    return optimised


def _with_weights_of(model: Any, weights: Path) -> Any:
    """The model with its weights read from a safetensors file in half precision."""
    from onnx import TensorProto, helper

    with weights.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(start - 8))
    casts = []
    for tensor in model.graph.initializer:
        stored = header.get(tensor.name.removeprefix("network."))
        if stored is None or stored["dtype"] != "F16" or tensor.data_type != TensorProto.FLOAT:
            continue
        first, last = stored["data_offsets"]
        half = f"{tensor.name}.half"
        casts.append(helper.make_node("Cast", [half], [tensor.name], to=TensorProto.FLOAT))
        tensor.name, tensor.data_type = half, TensorProto.FLOAT16
        _refer(tensor, weights.name, start + first, last - first)
    casts.extend(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(casts)
    return model


def _quantised(model: Any, inputs: Sequence[StepInput]) -> Any:
    """The model with weights and activations in 8 bits, wherever that is faster."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        rest = iter([{"pixels": pixels, "coarse": coarse} for pixels, coarse in inputs])

        def get_next(self) -> dict[str, Any] | None:
            return next(self.rest, None)

    with TemporaryDirectory() as folder:
        before, after = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, before)
        with _only_errors(None):  # it advises a step that has been made
            quantize_static(
                before,
                after,
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=True,  # 7-bit weights: without VNNI, sums of 8-bit products would saturate
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_quantize=_worth_quantising(model),
            )
        return onnx.load(after)


@contextmanager
def _only_errors(logger: str | None) -> Iterator[None]:
    """Silences a library's warnings."""
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _worth_quantising(model: Any) -> list[str]:
    """Names of the operators to run in 8 bits: those that make the feature maps.

    Labels stay in floats, for at the threshold of 0.5 they must be exact. So do the first layers, whose rounding
    doubles the share of pixels that differ for a twentieth of the time, and the nodes, which would not be faster.
    """
    nodes = model.graph.node  # in the order of computing
    last = max(i for i, node in enumerate(nodes) if any(_LAST_IN_FLOATS in name for name in node.input))
    labels: set[str] = set()
    chosen = []
    for node in nodes[last + 1 :]:
        is_label = node.op_type == "Conv" and ".classify" in node.input[1]
        if is_label or labels.intersection(node.input):
            labels.update(node.output)
        elif node.op_type in _ON_MAPS:
            chosen.append(node.name)
    return chosen


def _shared_data(models: Iterable[Any], name: str) -> bytes:
    """Moves the large tensors of models into one file, where equal ones are stored once: its bytes."""
    data, places = bytearray(), {}
    for model in models:
        for tensor in model.graph.initializer:
            raw = tensor.raw_data
            if len(raw) < _INLINE:
                continue
            if raw not in places:
                places[raw] = len(data)
                data += raw + bytes(-len(raw) % _ALIGNMENT)
            _refer(tensor, name, places[raw], len(raw))
    return bytes(data)


def _fuse(path: Path) -> None:
    """Makes onnxruntime's fusions beforehand, those that suit every processor: the program loads in half the time.

    Not for fp32, where it would fold the weights into the program.
    """
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    fused = path.with_name(f".{path.name}.fused")
    options.optimized_model_filepath = str(fused)
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    model = onnx.load(fused, load_external_data=False)
    fused.unlink()
    used = {node.domain for node in model.graph.node}
    for i in reversed(range(len(model.opset_import))):
        if model.opset_import[i].domain not in used:
            del model.opset_import[i]
    path.write_bytes(model.SerializeToString(deterministic=True))


def _refer(tensor: Any, location: str, offset: int, length: int) -> None:
    """Makes a tensor of a model refer to bytes of another file."""
    from onnx.external_data_helper import set_external_data

    set_external_data(tensor, location, offset, length)
    tensor.ClearField("raw_data")
