"""The step as a program: no operator whose shape or path depends on data, and none that a Mac's GPU lacks.

The whole proof is ``torch.export``, which takes minutes. A pass without any values takes seconds and stops at the same
operators.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torchgen
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from transfiner_refine.model.checkpoint import load_network, save_network
from transfiner_refine.model.config import RefinerConfig
from transfiner_refine.model.network import MaskTransfiner, RefineStep, StepOutput
from transfiner_refine.model.weights import find_weights, read_config
from transfiner_refine.refine.engine import SizeClass
from transfiner_refine.refine.export import export_files, export_program, size_classes

CONFIG = read_config(find_weights("lite"))
CLASSES = size_classes(CONFIG)

#: Operators whose path or shape depends on data.
DEPEND_ON_DATA = {
    *(
        "nonzero",
        "nonzero_static",
        "masked_select",
        "_local_scalar_dense",
        "item",
        "where.default",
        "unique_dim",
    ),
    *("_unique2", "unique_consecutive", "bincount", "equal", "is_nonzero", "allclose", "argwhere"),
    *(
        "repeat_interleave.Tensor",
        "repeat_interleave.self_Tensor",
        "sym_constrain_range_for_size",
        "_assert_async",
    ),
}

#: Operators without an MPS kernel in some or all of torch 2.4 to 2.11: a Mac's GPU stops at them.
WITHOUT_MPS_KERNEL = {
    *("adaptive_max_pool3d", "avg_pool3d", "fractional_max_pool2d", "max_pool3d_with_indices"),
    *("_embedding_bag", "embedding_bag", "grid_sampler_3d", "segment_reduce"),
    *("frexp", "heaviside", "kthvalue", "linalg_eig", "logspace", "mode", "ormqr"),
}


class Operators(TorchDispatchMode):
    """Keeps the names of all operators that are called: name and overload."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[tuple[str, str]] = set()

    def __torch_dispatch__(
        self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace == "aten":
            self.names.add((func.overloadpacket.__name__, func._overloadname))
        return func(*args, **(kwargs or {}))


def step_without_data(size: SizeClass, batch: int) -> tuple[StepOutput, set[tuple[str, str]]]:
    """A step whose tensors, weights and all, have a shape and no values, and the operators it called."""
    step = RefineStep(MaskTransfiner(CONFIG).eval(), size.depth, nodes=size.nodes)
    side = size.side(CONFIG)
    pixels = torch.empty(batch, 3, side, side, dtype=torch.uint8)
    with Operators() as called:
        output = step(pixels, torch.empty(batch, 1, side, side))
    return output, called.names


@lru_cache
def on_the_meta_device(size: SizeClass, batch: int) -> tuple[StepOutput, set[tuple[str, str]]]:
    """The way that a GPU takes."""
    with torch.no_grad(), torch.device("meta"):
        return step_without_data(size, batch)


@lru_cache
def on_a_fake_cpu(size: SizeClass, batch: int) -> tuple[StepOutput, set[tuple[str, str]]]:
    """The way that a CPU takes; operators that depend on data raise ``DataDependentOutputException`` and the like."""
    with torch.no_grad(), FakeTensorMode():
        return step_without_data(size, batch)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("size", CLASSES, ids=lambda size: size.label)
def test_shapes_are_known_before_there_is_any_data(size: SizeClass, batch: int) -> None:
    output, _ = on_the_meta_device(size, batch)
    assert output.probability.shape == (batch, size.grid, size.grid)
    assert output.relabelled.shape == (batch, 28, 28)
    places = sum(CONFIG.node_budget[: size.depth]) if size.nodes else 0
    assert output.cells.shape == output.valid.shape == (batch, places)


def test_on_a_cpu_they_are_known_as_well() -> None:
    (output, _), (same, _) = on_a_fake_cpu(CLASSES[0], 3), on_the_meta_device(CLASSES[0], 3)
    assert [part.shape for part in output] == [part.shape for part in same]
    assert [part.dtype for part in output] == [part.dtype for part in same]


@pytest.mark.parametrize(
    "depends",
    [
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.sum().item(),
        lambda x: x.repeat_interleave(x.long()),
        lambda x: x + 1 if x.sum() > 0 else x,
    ],
    ids=["nonzero", "mask", "item", "repeat", "branch"],
)
def test_an_operator_that_depends_on_data_would_be_noticed(depends: Callable[[torch.Tensor], Any]) -> None:
    with pytest.raises((RuntimeError, NotImplementedError)), torch.device("meta"):
        depends(torch.empty(5))
    with pytest.raises(RuntimeError), FakeTensorMode():
        depends(torch.empty(5))


@pytest.mark.parametrize("size", CLASSES, ids=lambda size: size.label)
def test_no_operator_is_among_those_that_a_macs_gpu_lacks(size: SizeClass) -> None:
    _, called = on_the_meta_device(size, 1)
    assert called
    assert not {name for name, _ in called} & WITHOUT_MPS_KERNEL


@pytest.mark.parametrize("size", CLASSES, ids=lambda size: size.label)
def test_every_operator_has_an_mps_kernel_in_pytorchs_own_table(size: SizeClass) -> None:
    _, called = on_the_meta_device(size, 1)
    table = kernels()
    assert {name for name, overload in called if not runs_on_mps(table, name, overload)} == set()


def test_the_table_is_read_rightly() -> None:
    table = kernels()
    assert all(runs_on_mps(table, name, "default") for name in ("topk", "linspace", "gather", "convolution"))
    # some of these may have one some day, but hardly all
    assert not all(runs_on_mps(table, name, "default") for name in ("logspace", "mode", "heaviside", "ormqr"))


@lru_cache
def kernels() -> dict[str, str]:
    """Operator → its entry in the table that PyTorch's dispatcher is generated from."""
    file = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"
    entries = re.split(r"^- func: ", file.read_text(), flags=re.MULTILINE)[1:]
    return {entry[: entry.index("(")]: entry for entry in entries}


def runs_on_mps(table: dict[str, str], name: str, overload: str) -> bool:
    """Whether an operator has a kernel for MPS, or is made of others."""
    own = name if overload in ("default", "") else f"{name}.{overload}"
    entry = table[own]
    delegate = re.search(r"structured_delegate: (\S+)", entry)
    if delegate:
        entry = table[delegate[1]]
    keys = set(re.findall(r"^    ([\w, ]+):", entry, flags=re.MULTILINE))
    backends = {key.strip() for each in keys for key in each.split(",")}
    if not backends or "CompositeImplicitAutograd" in backends or "MPS" in backends:
        return True
    if not any(key.startswith("Composite") for key in backends):
        return False
    # a composite may be a call of the variant that writes into a given tensor, which has kernels of its own
    into = table.get(f"{name}.out", "")
    return "CPU" not in into or "MPS" in into or "Composite" in into


class Exported(NamedTuple):
    """A size class of the shipped weights, and its program."""

    size: SizeClass
    program: torch.export.ExportedProgram


@pytest.fixture(scope="module", params=CLASSES, ids=lambda size: size.label)
def exported(request: pytest.FixtureRequest) -> Exported:
    return Exported(request.param, export_program(load_network(find_weights("lite")), request.param))


def operators(program: torch.export.ExportedProgram) -> Iterator[tuple[str, Any]]:
    """Name.overload and arguments of every operator of a program, those of submodules included."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                if node.op == "call_function":
                    yield str(node.target).removeprefix("aten."), node


@pytest.mark.slow
@torch.no_grad()
def test_an_exported_program_yields_what_the_step_yields_for_batches_of_any_size(exported: Exported) -> None:
    size, program = exported
    step = RefineStep(load_network(find_weights("lite")), size.depth, nodes=size.nodes)
    module = program.module()
    for batch in (1, 3):
        pixels, coarse = some_rois(size.side(CONFIG), batch)
        ours, theirs = step(pixels, coarse), module(pixels, coarse)
        assert ours.relabelled.any()
        assert ours.valid.any() == size.nodes
        for name, one, other in zip(StepOutput._fields, ours, theirs, strict=True):
            if one.is_floating_point():
                torch.testing.assert_close(other, one, atol=1e-6, rtol=0)
                assert torch.equal(other >= 0.5, one >= 0.5)
            else:
                assert torch.equal(other, one), name


@pytest.mark.slow
def test_no_operator_of_an_exported_program_depends_on_data(exported: Exported) -> None:
    names = {name for name, _ in operators(exported.program)}
    assert "conv2d.default" in names
    assert not {name for name in names if {name, name.split(".")[0]} & DEPEND_ON_DATA}


@pytest.mark.slow
def test_nothing_in_an_exported_program_is_chosen_by_a_mask(exported: Exported) -> None:
    for name, node in operators(exported.program):
        if name.startswith(("index.", "index_put")):
            chosen = [index.meta["val"].dtype for index in node.args[1] if index is not None]
            assert torch.bool not in chosen, node


@pytest.mark.slow
def test_the_batch_size_is_the_only_number_that_an_exported_program_does_not_know(exported: Exported) -> None:
    program = exported.program
    (batch,) = program.range_constraints
    values = [
        value
        for _, node in operators(program)
        for value in torch.utils._pytree.tree_leaves(node.meta["val"])
        if isinstance(value, torch.Tensor)
    ]
    assert values
    free = {
        symbol
        for value in values
        for number in (*value.shape, *value.stride())
        if isinstance(number, torch.SymInt)
        for symbol in number.node.expr.free_symbols
    }
    assert free == {batch}
    assert not str(batch).startswith("u")  # as numbers are called that are read from data


@pytest.mark.slow
def test_no_operator_of_an_exported_program_is_among_those_that_a_macs_gpu_lacks(exported: Exported) -> None:
    assert not {name.split(".")[0] for name, _ in operators(exported.program)} & WITHOUT_MPS_KERNEL


@pytest.mark.slow
def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = RefinerConfig(backbone="lite0", max_depth=3, node_budget=(20, 30, 40))
    save_network(MaskTransfiner(config), tmp_path / "small.safetensors")
    written = [
        {
            file.name: file.read_bytes()
            for file in export_files(tmp_path / "small.safetensors", tmp_path / name)
        }
        for name in ("first", "second")
    ]
    assert len(written[0]) == 3
    assert written[0] == written[1]


@pytest.mark.slow
def test_the_network_that_was_exported_is_left_as_it_was() -> None:
    network = load_network(find_weights("lite")).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    export_program(network, CLASSES[-1])
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def some_rois(side: int, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Bright boxes on noise, and masks of them that are moved."""
    generator = torch.Generator().manual_seed(batch)
    pixels = torch.randint(50, 90, (batch, 3, side, side), generator=generator, dtype=torch.uint8)
    coarse = torch.zeros(batch, 1, side, side)
    for i in range(batch):
        top, left, shift = side // 5 + 9 * i, side // 4, side // 40 * (i + 1)
        pixels[i, :, top : top + side // 2, left : left + side // 2] += 120
        coarse[i, :, top + shift : top + side // 2, left + shift : left + side // 2 + shift] = 1
    return pixels, coarse
