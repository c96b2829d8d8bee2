"""Linear layers on a CPU: weights laid out once for oneDNN, which multiplies a few rows several times faster.

torch's own float32 product of a few rows with a large matrix goes through MKL; on some CPUs two rows take
twice as long as one, and eight as long as thirty-two. torch.compile packs weights the same way (`freezing`).

Shapes: I inputs, O outputs.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from harness.parallel import is_shared

_ROWS_HINT = 16
"""Rows that the layout is chosen for; from one to hundreds of rows no other was faster."""


class PackedLinear(nn.Linear):
    """An `nn.Linear` that shares its weight [O, I] with the one it stands for, and has a packed copy of it.

    plain: multiply as torch does, as somebody else's loop would have it.
    """

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.plain = False
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS_HINT)

    def forward(self, rows: Tensor) -> Tensor:
        """Outputs [..., O] of rows [..., I]; as torch does where a gradient is asked for."""
        if self.plain or (torch.is_grad_enabled() and rows.requires_grad):
            return nn.functional.linear(rows, self.weight, self.bias)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._packed, self.bias, "none", [], "")
        return product

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Linear:
        """A copy is made to be changed: a plain layer."""
        copy = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
        copy.weight, copy.bias = deepcopy(self.weight, memo), deepcopy(self.bias, memo)
        return copy


def can_pack(module: nn.Module) -> bool:
    """Whether oneDNN is there, and the weights are float32 on a CPU, all of them here."""
    first = next(module.parameters(), None)
    return (
        first is not None
        and not any(map(is_shared, module.parameters()))
        and first.device.type == "cpu"
        and first.dtype == torch.float32
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


def pack(module: nn.Module) -> list[PackedLinear]:
    """Put packed layers in the place of all linear ones below `module`; needs their memory once more."""
    packed = [layer for layer in module.modules() if isinstance(layer, PackedLinear)]
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                layer = PackedLinear(child).train(child.training)
                setattr(parent, name, layer)
                packed.append(layer)
    return packed
