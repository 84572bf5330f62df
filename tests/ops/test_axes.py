"""Criss-cross attention over three axes and more, against loops over single positions in float64."""

from itertools import product

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ccnet_cli import ops
from ccnet_cli.models.attention import CrissCrossAttention, RecurrentCrissCross, attention_map

SIZES = [(1, 1, 1), (1, 4, 5), (3, 1, 5), (2, 3, 4), (5, 4, 3)]
GAMMA = 0.7
every_implementation = pytest.mark.parametrize("implementation", ["reference", "gemm", "flash"])
every_size = pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def qkv(size: tuple[int, ...]) -> list[Tensor]:
    return [random(2, channels, *size, seed=seed) for seed, channels in enumerate((3, 3, 4))]


def cross(cell: tuple[int, ...], size: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The entries of a cell's cross in their order, an arm for each axis."""
    return [(*cell[:axis], i, *cell[axis + 1 :]) for axis, length in enumerate(size) for i in range(length)]


def entries(cell: tuple[int, ...], size: tuple[int, ...]) -> list[bool]:
    """Which of them count: all but the cell itself in every arm before the last."""
    before = sum(size[:-1])
    return [number >= before or other != cell for number, other in enumerate(cross(cell, size))]


def by_loops(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    size = tuple(query.shape[2:])
    cells = list(product(*map(range, size)))
    outputs = []
    for cell in cells:
        here = (slice(None), slice(None), *cell)
        others = {cell, *cross(cell, size)}
        energy = torch.stack([(query[here] * key[:, :, *other]).sum(1) for other in others])
        seen = torch.stack([value[:, :, *other] for other in others])
        outputs.append((energy.softmax(0)[..., None] * seen).sum(0))
    return torch.stack(outputs, dim=-1).view(value.shape)


def attention_of(size: tuple[int, ...], implementation: str = "auto", channels: int = 4) -> RecurrentCrissCross:
    torch.manual_seed(sum(size))
    attention = CrissCrossAttention(channels, 2, implementation).double()
    attention.gamma.data.fill_(GAMMA)
    return RecurrentCrissCross(attention)


@every_size
@every_implementation
@pytest.mark.parametrize("recurrence", [1, 2, 3])
def test_every_pass_and_its_gradients_are_those_of_the_loops(recurrence, implementation, size):
    module = attention_of(size, implementation)
    module.recurrence = recurrence
    leaves = [random(2, 4, *size, seed=5).requires_grad_(), *module.parameters()]
    out = module(leaves[0])
    wanted = leaves[0]
    for _ in range(recurrence):
        convs = (module.attention.query_conv, module.attention.key_conv, module.attention.value_conv)
        projected = (torch.einsum("bithw,oi->bothw", wanted, x.weight[..., 0, 0]) for x in convs)
        parts = [part + x.bias.view(-1, 1, 1, 1) for part, x in zip(projected, convs, strict=True)]
        wanted = module.attention.gamma * by_loops(*parts) + wanted
    got = [out, *torch.autograd.grad(out.square().sum(), leaves)]
    exact = [wanted, *torch.autograd.grad(wanted.square().sum(), leaves)]
    for number, (mine, other) in enumerate(zip(got, exact, strict=True)):
        scale = max(float(other.detach().abs().max()), 1.0)
        assert float((mine - other).detach().abs().max()) <= 1e-12 * scale, f"number {number}"


@pytest.mark.parametrize("size", [(3, 4), (2, 3, 2, 3)])
@every_implementation
def test_any_number_of_axes(implementation, size):
    inputs = [x.requires_grad_() for x in qkv(size)]
    out, wanted = ops.criss_cross(*inputs, implementation), by_loops(*inputs)
    torch.testing.assert_close(out, wanted, rtol=0, atol=1e-12)
    pairs = zip(*(torch.autograd.grad(x.square().sum(), inputs) for x in (out, wanted)), strict=True)
    for got, exact in pairs:
        torch.testing.assert_close(got, exact, rtol=0, atol=1e-12)


@every_size
@pytest.mark.parametrize("implementation", ["reference", "gemm"])
def test_the_three_operators_are_sums_over_the_cross(implementation, size):
    query, key, value = qkv(size)
    weights = random(2, sum(size), *size, seed=7)
    energy = ops.affinity(query, key, implementation)
    gathered, spread = torch.zeros_like(value), torch.zeros_like(value)
    for cell in product(*map(range, size)):
        counted = torch.tensor(entries(cell, size))
        own = energy[:, :, *cell]
        assert torch.equal(own.isneginf(), ~counted.expand_as(own))
        for number, other in enumerate(cross(cell, size)):
            if counted[number]:
                expected = (query[:, :, *cell] * key[:, :, *other]).sum(1)
                torch.testing.assert_close(own[:, number], expected, rtol=0, atol=1e-12)
            weight = weights[:, number, *cell][:, None]
            gathered[:, :, *cell] += weight * value[:, :, *other]
            spread[:, :, *other] += weight * value[:, :, *cell]
    torch.testing.assert_close(ops.aggregate(weights, value, implementation), gathered, rtol=0, atol=1e-12)
    torch.testing.assert_close(ops.scatter(weights, value, implementation), spread, rtol=0, atol=1e-12)


@every_size
@pytest.mark.parametrize("implementation", ["reference", "gemm"])
@torch.no_grad()
def test_weights_sum_to_one_and_count_the_position_once(implementation, size):
    _, passes = attention_of(size, implementation).attend(random(1, 4, *size))
    assert [tuple(x.shape) for x in passes] == [(1, sum(size), *size)] * 2
    for attention in passes:
        torch.testing.assert_close(attention.sum(1), torch.ones(1, *size, dtype=torch.float64), rtol=0, atol=1e-14)
        for cell in product(*map(range, size)):
            weights = attention[0, :, *cell]
            own = [weight for weight, other in zip(weights, cross(cell, size), strict=True) if other == cell]
            assert [float(weight) for weight in own[:-1]] == [0.0] * (len(size) - 1) and own[-1] > 0
            assert int((weights > 0).sum()) == sum(size) - len(size) + 1


@pytest.mark.parametrize("size", [(3, 4), (2, 3, 4), (5, 4, 3)])
@torch.no_grad()
def test_as_many_passes_as_axes_reach_every_position_from_every_other(size):
    module = attention_of(size)
    module.recurrence = len(size)
    passes = module.passes(random(1, 4, *size))
    for cell in product(*map(range, size)):
        for count in range(1, len(size) + 1):
            seen = attention_map(passes[:count], *cell)
            assert seen.shape == size
            assert abs(float(seen.sum()) - 1) <= 1e-13
            for other in product(*map(range, size)):
                # a pass changes one coordinate
                reached = sum(a != b for a, b in zip(cell, other, strict=True)) <= count
                assert (float(seen[other]) > 0) == reached, (cell, other, count)


@torch.no_grad()
def test_a_map_in_time_is_the_product_of_the_passes():
    """One attention matrix for each pass, spelled out, and their product."""
    size = (3, 2, 4)
    passes = attention_of(size).passes(random(1, 4, *size))
    cells = list(product(*map(range, size)))
    whole = torch.eye(len(cells), dtype=torch.float64)
    for attention in passes:
        matrix = torch.zeros(len(cells), len(cells), dtype=torch.float64)
        for row, cell in enumerate(cells):
            for number, other in enumerate(cross(cell, size)):
                matrix[row, cells.index(other)] += attention[0, number, *cell]
        whole = matrix @ whole
    for row, cell in enumerate(cells):
        torch.testing.assert_close(attention_map(passes, *cell).flatten(), whole[row], rtol=0, atol=1e-15)


@every_implementation
@pytest.mark.parametrize("size", [(1, 1, 1), (3, 1, 2), (2, 3, 2)])
def test_gradients_and_their_gradients_match_finite_differences(size, implementation):
    inputs = tuple(x[:1, :2].clone().requires_grad_() for x in qkv(size))
    assert torch.autograd.gradcheck(lambda *x: ops.criss_cross(*x, implementation), inputs)
    assert torch.autograd.gradgradcheck(lambda *x: ops.criss_cross(*x, implementation), inputs)


@every_implementation
def test_torch_accepts_them_as_operators(implementation):
    def opcheck(operator, *arguments):
        outcome = torch.library.opcheck(operator.default, (*arguments, implementation))
        assert set(outcome.values()) == {"SUCCESS"}

    query, key, value = (x.requires_grad_() for x in qkv((2, 3, 2)))
    weights = random(2, 7, 2, 3, 2).requires_grad_()
    if implementation != "flash":
        opcheck(torch.ops.ccnet.affinity, query, key, False)
        opcheck(torch.ops.ccnet.aggregate, weights, value)
        opcheck(torch.ops.ccnet.scatter, weights, value)
    opcheck(torch.ops.ccnet.criss_cross, query, key, value)
    attention = torch.ops.ccnet.criss_cross(query, key, value, implementation)[1]
    opcheck(torch.ops.ccnet.criss_cross_backward, *(x.detach() for x in (value, query, key, value, attention)))


@every_implementation
@pytest.mark.parametrize("layout", ["contiguous", "slices", "frames", "transposed"])
def test_the_memory_layout_changes_nothing(layout, implementation):
    size, channels = (3, 4, 5), (3, 3, 4)

    def laid_out(tensors):
        whole = torch.cat(tensors, dim=1)
        if layout == "slices":
            return whole.to(memory_format=torch.channels_last_3d).split(channels, dim=1)
        if layout == "frames":
            # as maps of frames that became a clip
            return whole.movedim(2, 1).contiguous().movedim(1, 2).split(channels, dim=1)
        if layout == "transposed":
            return whole.transpose(2, 4).contiguous().transpose(2, 4).split(channels, dim=1)
        return tensors

    def results(tensors):
        leaves = [x.detach().requires_grad_() for x in tensors]
        out = ops.criss_cross(*leaves, implementation)
        return [out, *torch.autograd.grad(out.square().sum(), leaves)]

    plain = qkv(size)
    for got, wanted in zip(results(laid_out(plain)), results(plain), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


@every_implementation
def test_one_frame_is_an_image(implementation):
    inputs = qkv((4, 5))
    clip = ops.criss_cross(*(x[:, :, None] for x in inputs), implementation)
    image = ops.criss_cross(*inputs, implementation)
    torch.testing.assert_close(clip[:, :, 0], image, rtol=0, atol=1e-13)


@every_implementation
def test_flops_are_a_dot_product_and_an_update_for_each_entry(implementation):
    query, key, value = (x.requires_grad_() for x in qkv((2, 3, 4)))
    with FlopCounterMode(display=False) as counter:
        out = ops.criss_cross(query, key, value, implementation)
    assert counter.get_total_flops() == 2 * 2 * 24 * 9 * (3 + 4)
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 2 * 2 * 2 * 24 * 9 * (3 + 4)


def test_an_exported_module_and_its_form_in_torch_s_own_operators_agree():
    module = attention_of((2, 3, 4)).float()
    x = random(1, 4, 2, 3, 4).float()
    with torch.no_grad():
        wanted = module(x)
        plain = module.attention.portable()
        torch.testing.assert_close(plain(plain(x)), wanted, rtol=0, atol=1e-5)
    frames, width = torch.export.Dim("frames", min=2, max=9), torch.export.Dim("width", max=9)
    sizes = {0: None, 1: None, 2: frames, 3: None, 4: width}
    for form in (module, torch.nn.Sequential(plain, plain)):
        with torch.no_grad():
            program = torch.export.export(form, (x,), dynamic_shapes=(sizes,)).module()
            other = random(1, 4, 5, 3, 6).float()
            torch.testing.assert_close(program(other), module(other), rtol=0, atol=1e-5)


def test_shapes_that_do_not_fit_are_refused():
    query, key, value = qkv((2, 3, 4))
    with pytest.raises(ValueError, match=r"one and the same shape \(B, C, H, W\).*\(B, C, T, H, W\)"):
        ops.affinity(query, key[:, :, :1])
    with pytest.raises(ValueError, match=r"\(B, T \+ H \+ W, T, H, W\) = \(2, 9, 2, 3, 4\)"):
        ops.aggregate(random(2, 8, 2, 3, 4), value)
    with pytest.raises(ValueError, match="grid of query"):
        ops.criss_cross(query, key, value[:, :, :1])
