"""Linear layers that read the same input, as one product; on a CPU in oneDNN's weight layout.

torch's own float32 product of a few rows with a large matrix goes through MKL; on some CPUs two rows take
twice as long as one, and eight as long as thirty-two. Layers that read the same input become one product,
because a small matrix streams from memory more slowly than a large one. In a compiled step a few rows are not
multiplied by oneDNN: a plain loop over the weights takes hardly longer than reading them.

On CUDA the weights of one product are concatenated in memory (`joined`), because a small product takes
several times as long as reading its weights.

Shapes: I inputs, O outputs, N outputs of all layers of one product.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from itertools import count
from typing import Any, Literal
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from harness.runtime.cuda_graphs import can_capture
from harness.system.tensor_parallel import is_shared

_ROWS_HINT = 16
"""The number of rows that oneDNN chooses its layout for; no other was faster for one to hundreds of rows."""
_STREAMED = 8
"""Up to this many rows a compiled step multiplies in a loop over the weights; for more oneDNN is faster."""
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

    def __init__(self, layers: Sequence[nn.Linear], packed: bool = True) -> None:
        super().__init__()
        self._sizes = [layer.out_features for layer in layers]
        weight = torch.cat([layer.weight.detach() for layer in layers])
        biases = [layer.bias for layer in layers if layer.bias is not None]
        self._bias = torch.cat([bias.detach() for bias in biases]) if biases else None
        self._num_bytes, self._joined = weight.nbytes, None
        if packed:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_HINT)
        else:
            self._num_bytes, self._joined = 0, weight
            for layer, part in zip(layers, weight.split_with_sizes(self._sizes), strict=True):
                layer.weight.data = part
        self._number = next(_NUMBERS)
        _PRODUCTS[self._number] = self
        self._rows: Tensor | None = None
        self._parts: Sequence[Tensor] = ()
        self._given = set[int]()

    @property
    def is_packed(self) -> bool:
        """Whether the weights are a copy in oneDNN's layout."""
        return self._joined is None

    @property
    def num_bytes(self) -> int:
        """Bytes of the packed copy; 0 where the weights are joined, which needs no copy."""
        return self._num_bytes

    def multiply(self, rows: Tensor) -> Tensor:
        """Outputs [..., N] of all layers for rows [..., I]."""
        product: Tensor
        if self._joined is not None:
            return nn.functional.linear(rows, self._joined, self._bias)
        if torch.compiler.is_compiling():
            product = torch.ops.specbench.packed_product(rows, self._number, sum(self._sizes))
        else:
            product = torch.ops.mkldnn._linear_pointwise(rows, self._packed, self._bias, "none", [], "")
        return product

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


# A compiled program cannot hold a tensor in oneDNN's own layout, so it names the product by its number.
_NUMBERS = count()
_PRODUCTS: WeakValueDictionary[int, Product] = WeakValueDictionary()


_OPERATORS = torch.library.Library("specbench", "DEF")  # type: ignore[no-untyped-call]
_OPERATORS.define(  # type: ignore[no-untyped-call]
    "packed_product(Tensor rows, int number, int num_outputs) -> Tensor"
)


@torch.library.impl(_OPERATORS, "packed_product", "CPU")
def _multiply(rows: Tensor, number: int, num_outputs: int) -> Tensor:
    return _PRODUCTS[number].multiply(rows)


@torch.library.register_fake("specbench::packed_product", lib=_OPERATORS)  # type: ignore[untyped-decorator]
def _shape(rows: Tensor, number: int, num_outputs: int) -> Tensor:
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

    def forward(self, rows: Tensor) -> Tensor:
        """Outputs [..., O] of rows [..., I]; multiplied as torch does where a gradient is needed."""
        if self.plain or (torch.is_grad_enabled() and rows.requires_grad):
            return nn.functional.linear(rows, self.weight, self.bias)
        streams = self.product.is_packed and torch.compiler.is_compiling()
        if streams and rows.shape[:-1].numel() <= _STREAMED:
            product = streamed(rows, self.weight)
            return product if self.bias is None else product + self.bias
        return self.product.part(rows, self._index)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Linear:
        """A plain layer, because copies are made to be changed."""
        copy = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
        copy.weight, copy.bias = deepcopy(self.weight, memo), deepcopy(self.bias, memo)
        return copy


def streamed(rows: Tensor, weight: Tensor) -> Tensor:
    """Products [..., O] of a few rows [..., I] as reductions; compiled, one loop over the weights."""
    count = rows.shape[:-1].numel()
    # Without the view the compiler would compute the rows anew for every output.
    flat = rows.reshape(count, -1).as_strided((count, rows.shape[-1]), (rows.shape[-1], 1))
    products = torch.stack([(flat[row] * weight).sum(-1) for row in range(count)])
    return products.view(*rows.shape[:-1], -1)


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


def pack(module: nn.Module) -> list[PackedLinear]:
    """Replace the linear layers below `module` by packed or joined ones, as its `layout` says.

    Packed: all of them, which takes their memory once more. Joined: those that share a product.
    """
    packs = layout(module) == "packed"
    packed = [layer for layer in module.modules() if isinstance(layer, PackedLinear)]
    for parent in list(module.modules()):
        children = {name: child for name, child in parent.named_children() if type(child) is nn.Linear}
        for names in _groups(children):
            if len(names) == 1 and not packs:
                continue
            product = Product([children[name] for name in names], packs)
            for index, name in enumerate(names):
                layer = PackedLinear(children[name], product, index).train(children[name].training)
                setattr(parent, name, layer)
                packed.append(layer)
    return packed


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
