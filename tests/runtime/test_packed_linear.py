"""Packed layers: one product for those that read one input; right also where they read several."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import Tensor, nn

from harness.runtime.packed_linear import PackedLinear, kernel_problem, pack, panels, refresh


class Attention(nn.Module):
    """Names as a decoder's attention and feed-forward layer have them."""

    def __init__(self, bias: bool = False, other: int = 6) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(6, 4, bias=bias), nn.Linear(6, 2, bias=bias)
        self.v_proj, self.o_proj = nn.Linear(other, 2, bias=bias), nn.Linear(6, 5)


@pytest.fixture
def rows() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(3, 6)


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
def test_layers_of_one_input_are_multiplied_once(
    rows: Tensor, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = Attention(bias)
    names = ("q_proj", "k_proj", "v_proj")
    expected = [getattr(module, name)(rows) for name in names]
    pack(module)
    product = module.q_proj.product
    assert product is module.k_proj.product is module.v_proj.product is not module.o_proj.product
    calls = []
    multiply = product.multiply
    monkeypatch.setattr(product, "multiply", lambda given: calls.append(given) or multiply(given))
    for _ in range(2):
        torch.testing.assert_close([getattr(module, name)(rows) for name in names], expected)
    assert len(calls) == 2


@torch.no_grad()
def test_what_was_multiplied_is_never_given_twice_nor_for_another_input(rows: Tensor) -> None:
    module, plain = Attention(), Attention()
    plain.load_state_dict(module.state_dict())
    pack(module)
    first = module.q_proj(rows)
    other = rows + 1
    torch.testing.assert_close(module.k_proj(other), plain.k_proj(other))
    torch.testing.assert_close(module.q_proj(rows), first)
    rows.add_(1)
    torch.testing.assert_close(module.q_proj(rows), plain.q_proj(rows))


def test_layers_that_cannot_share_a_product_have_their_own() -> None:
    module = Attention(other=3)
    packed = pack(module)
    assert all(isinstance(layer, PackedLinear) for layer in packed)
    assert len({layer.product for layer in packed}) == len(packed) == 4


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
def test_joined_layers_share_their_memory(rows: Tensor, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.runtime.packed_linear.can_capture", lambda device: True)
    module = Attention(bias)
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    expected = [getattr(module, name)(rows) for name in names]
    pack(module)
    torch.testing.assert_close([getattr(module, name)(rows) for name in names], expected)
    assert type(module.o_proj) is nn.Linear
    assert module.q_proj.product is module.k_proj.product is module.v_proj.product
    assert module.q_proj.product.num_bytes == 0
    storages = {getattr(module, name).weight.untyped_storage().data_ptr() for name in names[:3]}
    assert len(storages) == 1


@torch.no_grad()
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="needs a C++ compiler")
@pytest.mark.parametrize("num_inputs", [70, 96, 230])
@pytest.mark.parametrize("num_outputs", [1, 31, 32, 100])
def test_the_kernel_multiplies_as_torch_does_and_every_row_as_if_it_were_alone(
    num_outputs: int, num_inputs: int
) -> None:
    """The same bits whatever rows are beside it, so a draft's width changes no logits of a product."""
    assert kernel_problem() is None
    torch.manual_seed(0)
    weight = torch.randn(num_outputs, num_inputs)
    multiply = torch.ops.specbench.few_rows
    for count in range(1, 20):
        rows = torch.randn(2, count, num_inputs)
        products = multiply(rows, panels(weight), num_outputs)
        torch.testing.assert_close(products, rows @ weight.T, atol=1e-4, rtol=1e-4)
        alone = [multiply(row[None], panels(weight), num_outputs) for row in rows.view(-1, num_inputs)]
        assert torch.equal(products.view(-1, num_outputs), torch.cat(alone))
    with pytest.raises(RuntimeError, match="rows do not fit the panels"):
        multiply(torch.randn(3, num_inputs + 1), panels(weight), num_outputs)


@torch.no_grad()
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="needs a C++ compiler")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("num_inputs", [70, 230])
def test_weights_in_16_bits_give_the_same_bits(dtype: torch.dtype, num_inputs: int) -> None:
    assert kernel_problem() is None
    torch.manual_seed(0)
    short = (torch.randn(100, num_inputs) * torch.logspace(-6, 2, num_inputs)).to(dtype)
    multiply = torch.ops.specbench.few_rows
    for count in range(1, 20):
        rows = torch.randn(count, num_inputs)
        assert torch.equal(multiply(rows, panels(short), 100), multiply(rows, panels(short.float()), 100))


@torch.no_grad()
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="needs a C++ compiler")
@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="needs AVX2")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_are_packed_in_16_bits_only_where_these_say_them_exactly(
    rows: Tensor, dtype: torch.dtype
) -> None:
    module = Attention()
    module.q_proj.weight.copy_(module.q_proj.weight.to(dtype))
    module.o_proj.weight.copy_(module.o_proj.weight.to(dtype))
    pack(module, compiled=True)
    assert module.o_proj.product.matrix.dtype == dtype
    assert module.o_proj.product.num_bytes == 2 * 32 * 6
    assert module.q_proj.product.matrix.dtype == torch.float32, "k_proj has others"
    weight = module.o_proj.weight
    weight += 1e-6
    refresh(module)
    assert module.o_proj.product.matrix.dtype == dtype, "programs hold its address"
    torch.testing.assert_close(
        module.o_proj(rows), nn.functional.linear(rows, weight, module.o_proj.bias), atol=0.02, rtol=0
    )


@torch.no_grad()
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="needs a C++ compiler")
def test_layers_for_compiled_steps_have_biases_and_share_products(rows: Tensor) -> None:
    module = Attention(bias=True)
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    expected = [getattr(module, name)(rows) for name in names]
    pack(module, compiled=True)
    torch.testing.assert_close([getattr(module, name)(rows) for name in names], expected)
    assert module.q_proj.product is module.k_proj.product
