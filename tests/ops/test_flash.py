"""Criss-cross attention by torch's own attention, against loops over the positions of each cross in float64."""

import math

import pytest
import torch
from torch import Tensor

from ccnet_cli import ops

# batch, channels of query and key, channels of value, height, width
SHAPES = [(1, 4, 10, 5, 6), (2, 8, 64, 3, 7), (1, 3, 3, 1, 6), (1, 3, 5, 6, 1), (1, 2, 7, 1, 1), (2, 1, 1, 3, 4)]


def inputs(shape: tuple[int, ...], strength: float = 1.0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    B, reduced, C, H, W = shape
    generator = torch.Generator().manual_seed(sum(shape))
    made = [torch.randn(B, n, H, W, generator=generator, dtype=torch.float64) for n in (reduced, reduced, C)]
    return [(x * m).to(dtype).requires_grad_() for x, m in zip(made, (strength, strength, 1.0), strict=True)]


def by_loops(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Each position looks at the others of its row and column, and at itself once."""
    B, _, H, W = query.shape
    out = torch.zeros_like(value)
    for b in range(B):
        for y in range(H):
            for x in range(W):
                cross = [(i, x) for i in range(H) if i != y] + [(y, j) for j in range(W)]
                energy = torch.stack([query[b, :, y, x] @ key[b, :, i, j] for i, j in cross])
                seen = torch.stack([value[b, :, i, j] for i, j in cross])
                out[b, :, y, x] = energy.softmax(0) @ seen
    return out


def gradients(out: Tensor, tensors: list[Tensor]) -> tuple[Tensor, ...]:
    weight = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).view(out.shape).to(out.dtype)
    return torch.autograd.grad((out * weight).sum(), tensors)


def difference(got: Tensor, wanted: Tensor) -> float:
    return ((got.double() - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30)).item()


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 2e-5), (torch.bfloat16, 4e-2)])
@pytest.mark.parametrize("shape", SHAPES)
def test_output_and_gradients_are_those_of_the_loops(shape, dtype, limit):
    tensors = inputs(shape, dtype=dtype)
    exact = [x.detach().double().requires_grad_() for x in tensors]
    got, wanted = ops.criss_cross(*tensors, "flash"), by_loops(*exact)
    assert got.dtype == dtype
    found = {"output": (got, wanted)}
    if shape[3:] != (1, 1):
        names = ("query", "key", "value")
        pairs = zip(gradients(got, tensors), gradients(wanted, exact), strict=True)
        found |= dict(zip(names, pairs, strict=True))
    differences = {name: difference(*pair) for name, pair in found.items()}
    assert max(differences.values()) <= limit, differences


def test_energies_of_a_thousand_neither_overflow_nor_lose_the_own_position():
    """The own energy towers over the others, or lies as far below: both ends of what taking it out once must bear."""
    for sign in (1.0, -1.0):
        query, key, value = (torch.zeros(1, 2, 4, 5, dtype=torch.float64) for _ in range(3))
        value += torch.arange(20.0).view(4, 5)
        query[:, 0], key[:, 0] = 1.0, 0.0
        key[0, 0, 2, 3] = sign * 1000
        out = ops.criss_cross(query, key, value, "flash")
        wanted = by_loops(query, key, value)
        assert out.isfinite().all()
        torch.testing.assert_close(out, wanted, rtol=1e-10, atol=1e-10)


def test_gradients_are_those_of_finite_differences():
    assert torch.autograd.gradcheck(lambda *x: ops.criss_cross(*x, "flash"), inputs((1, 3, 4, 3, 4)))
    assert torch.autograd.gradgradcheck(lambda *x: ops.criss_cross(*x, "flash"), inputs((1, 2, 3, 2, 3)))


def test_the_operator_keeps_torch_s_rules():
    """Layout promised by the fake kernel, no aliases, autograd's registration."""
    torch.library.opcheck(torch.ops.ccnet.criss_cross.default, (*inputs((1, 4, 6, 3, 5)), "flash"))


def test_nothing_is_saved_for_the_backward_pass_but_the_inputs():
    saved = []
    tensors = inputs((1, 8, 16, 20, 24))
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        ops.criss_cross(*tensors, "flash")
    own = {x.data_ptr() for x in tensors}
    others = [x for x in saved if x.data_ptr() not in own and x.numel()]
    assert others == [], [tuple(x.shape) for x in others]


@pytest.mark.parametrize("shape", [(0, 2, 3, 4, 5), (1, 2, 0, 3, 4), (1, 0, 3, 3, 4)])
def test_empty_batches_and_channels(shape):
    tensors = inputs(shape)
    out = ops.criss_cross(*tensors, "flash")
    torch.testing.assert_close(out, by_loops(*tensors))
    assert [x.shape for x in torch.autograd.grad(out.sum(), tensors)] == [x.shape for x in tensors]


def test_attention_to_draw_comes_from_another_implementation():
    query, key, value = inputs((1, 3, 4, 3, 4))
    attention = ops.affinity(query, key, "flash").softmax(1)
    torch.testing.assert_close(ops.aggregate(attention, value, "flash"), ops.criss_cross(query, key, value, "flash"))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 8, 32, 5, 6), (2, 64, 512, 33, 17)])
def test_on_the_gpu(shape, dtype):
    tensors = inputs(shape, strength=1 / math.sqrt(shape[1]), dtype=dtype)
    there = [x.detach().cuda().requires_grad_() for x in tensors]
    exact = [x.detach().double().requires_grad_() for x in tensors]
    limit = 1e-4 if dtype == torch.float32 else 5e-2
    got, wanted = ops.criss_cross(*there, "flash"), ops.criss_cross(*exact, "gemm")
    pairs = [(got.cpu(), wanted), *zip(gradients(got.cpu(), there), gradients(wanted, exact), strict=True)]
    assert max(difference(one.cpu(), other) for one, other in pairs) <= limit
