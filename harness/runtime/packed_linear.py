"""Linear layers that read the same input, as one product; on a CPU in a layout for few rows.

torch's own float32 product of a few rows with a large matrix goes through MKL; on some CPUs two rows take
twice as long as one, and eight as long as thirty-two. Layers that read the same input become one product,
because a small matrix streams from memory more slowly than a large one. The weights are packed for oneDNN,
or, for a target whose steps are compiled, for our own kernel (`few_rows.cpp`), which fetches weights in
advance and reads 16 bits of each where they say it exactly; where that cannot be built, such a target
multiplies as torch does.

On CUDA the weights of one product are concatenated in memory (`joined`), because a small product takes
several times as long as reading its weights.

Shapes: I inputs, O outputs, N outputs of all layers of one product.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, Literal

import filelock
import torch
from torch import Tensor, nn
from torch.utils import cpp_extension

from harness.runtime.cuda_graphs import can_capture
from harness.runtime.torch_internals import machine_facts, programs_folder
from harness.system.progress import waiting
from harness.system.tensor_parallel import is_shared

_ROWS_HINT = 16
"""The number of rows that oneDNN chooses its layout for; no other was faster for one to hundreds of rows."""
_PANEL = 32
"""Outputs whose weights lie together in a panel, see `few_rows.cpp`."""
_FLAGS = ["-O3", "-march=native", "-ffp-contract=fast", "-fopenmp"]
_USUAL_S = 15
Way = Literal["onednn", "kernel", "joined"]
"""How a product multiplies."""
_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Siblings that read the same input, as transformers and the EAGLE heads name them. Where they turn out to
read different inputs, the results are right all the same."""


class Product(nn.Module):
    """Rows times the weights of one or several sibling layers, computed once for all of them.

    The siblings are called one after the other with the same tensor, as the model's own code does; the first
    call computes the product, every call takes its layer's part, and the last one drops it:

        q_proj(x) -> part(x, 0)   x is new: multiply, split into q, k, v; return q     given {0}
        k_proj(x) -> part(x, 1)   x is the same object: return k                       given {0, 1}
        v_proj(x) -> part(x, 2)   return v; all were given: forget x and the parts     given {}

    Any other order is correct too, only slower: another tensor, or a layer that asks twice, multiplies anew.
    Tensors are compared by identity, which is safe because the product holds `x` until its parts are dropped,
    and no model changes a linear layer's input in place between siblings.
    The weights are a packed copy, or, joined, the layers' own memory.
    """

    def __init__(self, layers: Sequence[nn.Linear], way: Way) -> None:
        super().__init__()
        self._sizes = [layer.out_features for layer in layers]
        self._num_outputs = sum(self._sizes)
        weight = torch.cat([layer.weight.detach() for layer in layers])
        biases = [layer.bias for layer in layers if layer.bias is not None]
        self.bias = torch.cat([bias.detach() for bias in biases]) if biases else None
        self._way = way
        if way == "onednn":
            self.matrix = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_HINT)
        elif way == "kernel":
            self.matrix = panels(_shortest(weight))
        else:
            self.matrix = weight
            for layer, part in zip(layers, weight.split_with_sizes(self._sizes), strict=True):
                layer.weight.data = part
        self.num_bytes = 0 if way == "joined" else self.matrix.nbytes
        """Bytes of the packed copy; 0 where the weights are joined, which needs no copy."""
        self._rows: Tensor | None = None
        self._parts: Sequence[Tensor] = ()
        self._given = set[int]()

    @torch.no_grad()
    def refresh(self, layers: Sequence[nn.Linear]) -> None:
        """Take over weights that have changed in place; `layers` as at the construction.

        Where the matrix has 16 bits, they are rounded, which only drafts can see: a target's do not change.
        """
        if self.bias is not None:
            self.bias.copy_(torch.cat([layer.bias for layer in layers if layer.bias is not None]))
        if self._way == "joined":
            return  # the layers' memory is the product's
        weight = torch.cat([layer.weight for layer in layers])
        if self._way == "kernel":
            # In place, because programs hold the address.
            self.matrix.copy_(panels(weight))
        else:
            self.matrix = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_HINT)

    @property
    def weight_names(self) -> tuple[str, ...]:
        """The attributes that the product multiplies with."""
        return ("matrix",) if self.bias is None else ("matrix", "bias")

    def multiply(self, rows: Tensor) -> Tensor:
        """Outputs [..., N] of all layers for rows [..., I]."""
        product: Tensor
        if self._way == "joined":
            return nn.functional.linear(rows, self.matrix, self.bias)
        if self._way == "onednn":
            product = torch.ops.mkldnn._linear_pointwise(rows, self.matrix, self.bias, "none", [], "")
            return product
        product = torch.ops.specbench.few_rows(rows, self.matrix, self._num_outputs)
        return product if self.bias is None else product + self.bias

    def part(self, rows: Tensor, index: int) -> Tensor:
        """Outputs [..., O] of layer `index` for rows [..., I]; see the class for the order of calls."""
        if rows is not self._rows or index in self._given:
            self._rows, self._parts = rows, torch.split(self.multiply(rows), self._sizes, -1)
            self._given = set()
        part = self._parts[index]
        self._given.add(index)
        if len(self._given) == len(self._sizes):
            self._rows, self._parts = None, ()
        return part


def panels(weight: Tensor) -> Tensor:
    """The layout of `few_rows.cpp`, [ceil(O / 32), I, 32], of a weight [O, I]; missing outputs are zeros."""
    missing = -len(weight) % _PANEL
    whole = nn.functional.pad(weight, (0, 0, 0, missing))
    return whole.view(-1, _PANEL, weight.shape[1]).transpose(1, 2).contiguous()


def _shortest(weight: Tensor) -> Tensor:
    """The same float32 numbers in 16 bits, which are read in half the time, if these can say them all."""
    # Only these processors have an instruction that our kernel reads float16 with.
    halves = (torch.float16,) if torch.backends.cpu.get_cpu_capability().startswith("AVX") else ()
    for dtype in (torch.bfloat16, *halves):
        short = weight.to(dtype)
        if torch.equal(short.to(weight.dtype), weight):
            return short
    return weight


@cache
def kernel_problem() -> str | None:
    """Why our kernel cannot be used here; None where it can, as `torch.ops.specbench.few_rows`.

    The first call on a machine compiles it, in about 15 s; later processes find it on disk.
    """
    source = Path(__file__).with_name("few_rows.cpp")
    compiler = cpp_extension.get_cxx_compiler()  # type: ignore[no-untyped-call]
    facts = (source.read_bytes(), _FLAGS, compiler, machine_facts())
    name = f"few_rows_{hashlib.sha256(repr(facts).encode()).hexdigest()[:24]}"
    folder = programs_folder() / name
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.with_suffix(".lock")), _scripts_on_path():
        # torch's own lock: left by a process that was killed, it would make us wait for ever.
        (folder / "lock").unlink(missing_ok=True)
        try:
            with waiting("compiling the kernel for few rows (once)", usual_s=_USUAL_S):
                cpp_extension.load(
                    name, str(source), _FLAGS, build_directory=str(folder), is_python_module=False
                )
        except (RuntimeError, OSError) as error:
            return str(error).strip().splitlines()[0]
    torch.library.register_fake("specbench::few_rows", _few_rows_shape)
    return None


@contextmanager
def _scripts_on_path() -> Iterator[None]:
    """Within it programs that pip installed (ninja) are found, even where no environment is activated."""
    known = os.environ.get("PATH", "")
    os.environ["PATH"] = f"{sysconfig.get_path('scripts')}{os.pathsep}{known}"
    try:
        yield
    finally:
        os.environ["PATH"] = known


def _few_rows_shape(rows: Tensor, matrix: Tensor, num_outputs: int) -> Tensor:
    return rows.new_empty((*rows.shape[:-1], num_outputs))


class PackedLinear(nn.Linear):
    """An `nn.Linear` that shares its weight [O, I] with the original layer and multiplies by a `Product`.

    plain: multiply as torch does, for loops other than ours.
    """

    def __init__(self, linear: nn.Linear, product: Product, index: int) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.plain = False
        # In a tuple, so that it is no submodule: several layers share it.
        self._products, self._index = (product,), index

    @property
    def product(self) -> Product:
        """The product that computes this layer's outputs."""
        return self._products[0]

    @property
    def index(self) -> int:
        """The layer's place among those of its product."""
        return self._index

    def forward(self, rows: Tensor) -> Tensor:
        """Outputs [..., O] of rows [..., I]; multiplied as torch does where a gradient is needed."""
        if self.plain or (torch.is_grad_enabled() and rows.requires_grad):
            return nn.functional.linear(rows, self.weight, self.bias)
        return self.product.part(rows, self._index)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Linear:
        """A plain layer, because copies are made to be changed."""
        copy = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
        copy.weight, copy.bias = deepcopy(self.weight, memo), deepcopy(self.bias, memo)
        return copy


def layout(module: nn.Module) -> Literal["packed", "joined", "plain"]:
    """The layout that is possible: packed for float32 weights on a CPU with oneDNN, joined on CUDA.

    All weights must be on one device and belong to this process alone; otherwise plain.
    """
    parameters = list(module.parameters())
    devices = {parameter.device for parameter in parameters}
    if len(devices) != 1 or any(map(is_shared, parameters)):
        return "plain"
    if can_capture(devices.pop()):
        return "joined"
    onednn = torch.backends.mkldnn.is_available() and hasattr(  # type: ignore[no-untyped-call]
        torch.ops.mkldnn, "_reorder_linear_weight"
    )
    on_cpu = parameters[0].device.type == "cpu" and parameters[0].dtype == torch.float32
    return "packed" if onednn and on_cpu else "plain"


def pack(module: nn.Module, compiled: bool = False) -> list[PackedLinear]:
    """Replace the linear layers below `module` by packed or joined ones, as its `layout` says.

    Packed: all of them, which takes their memory once more. Joined: those that share a product.
    compiled: pack for our own kernel, because programs cannot take weights in oneDNN's layout; where there is
    none (`kernel_problem`), the layers stay as they are.
    """
    packs = layout(module) == "packed"
    if packs and compiled and kernel_problem():
        return []
    packed = [layer for layer in module.modules() if isinstance(layer, PackedLinear)]
    for parent in list(module.modules()):
        children = {name: child for name, child in parent.named_children() if type(child) is nn.Linear}
        for names in _groups(children):
            if len(names) == 1 and not packs:
                continue
            way: Way = ("kernel" if compiled else "onednn") if packs else "joined"
            product = Product([children[name] for name in names], way)
            for index, name in enumerate(names):
                layer = PackedLinear(children[name], product, index).train(children[name].training)
                setattr(parent, name, layer)
                packed.append(layer)
    return packed


def _place(layer: PackedLinear) -> int:
    return layer.index


def refresh(module: nn.Module) -> None:
    """Have the products below `module` take over weights that have changed in place since `pack`."""
    shared: dict[Product, list[PackedLinear]] = {}
    for layer in module.modules():
        if isinstance(layer, PackedLinear):
            shared.setdefault(layer.product, []).append(layer)
    for product, layers in shared.items():
        order: list[PackedLinear] = sorted(layers, key=_place)
        product.refresh(order)


def _groups(children: dict[str, nn.Linear]) -> list[tuple[str, ...]]:
    """Groups of layer names that share a product; every name is in exactly one group."""
    groups = []
    for names in _TOGETHER:
        found = [children[name] for name in names if name in children]
        alike = {(layer.in_features, layer.bias is None) for layer in found}
        if len(found) == len(names) and len(alike) == 1:
            groups.append(names)
    together = {name for names in groups for name in names}
    return [*groups, *((name,) for name in children if name not in together)]
