"""The Numba kernels for the CPU against the definition in float64: odd sizes, layouts, poisoned memory, threads."""

import ctypes
from itertools import pairwise
from math import prod

import numpy as np
import pytest
import torch
from tensors import LAYOUTS, assert_equal, assert_near, by_threads, poison
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ccnet_cli import ops
from ccnet_cli.errors import InputError
from ccnet_cli.models.attention import CrissCrossAttention
from ccnet_cli.ops import cpu

# (B, c, C, *S): beyond and below a tile's rows, a vector, a panel and what is packed at once; lines of one pixel
SHAPES = [
    (1, 1, 1, 1, 1),
    (2, 3, 5, 1, 7),
    (2, 3, 5, 7, 1),
    (1, 8, 16, 5, 6),
    (2, 17, 33, 15, 31),
    (1, 4, 65, 33, 29),
    (1, 3, 161, 5, 9),
    # three axes and four
    (2, 3, 5, 1, 1, 1),
    (1, 3, 5, 5, 4, 3),
    (2, 9, 35, 3, 17, 1),
    (1, 17, 33, 3, 15, 33),
    (1, 2, 3, 2, 3, 2, 4),
]
GAMMA = 0.7
RESULTS = "out d_projected d_x d_gamma"
# of the largest entry, or of this
NEAR = {"relative": 2e-5, "smallest": 0.1}


def inputs(B: int, c: int, C: int, *S: int, seed: int = 0) -> list[Tensor]:
    """Projected, x and the gradient of the result, channels last."""
    random = torch.Generator().manual_seed(seed)
    shapes = ((B, channels, *S) for channels in (2 * c + C, C, C))
    return [torch.randn(shape, generator=random).movedim(1, -1).contiguous().movedim(-1, 1) for shape in shapes]


def step(projected: Tensor, x: Tensor, grad: Tensor, c: int, implementation: str = "numba") -> list[Tensor]:
    """The result of ops.residual and its three gradients."""
    leaves = [projected.detach().requires_grad_(), x.detach().requires_grad_()]
    leaves.append(torch.tensor([GAMMA], dtype=x.dtype, requires_grad=True))
    out = ops.residual(*leaves, c, implementation)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_sum_with_the_input_is_the_definition_and_so_are_its_gradients(shape):
    tensors = inputs(*shape)
    exact = step(*(x.double() for x in tensors), shape[1], "reference")
    assert_near(RESULTS, step(*tensors, shape[1]), exact, **NEAR)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_operator_is_the_definition_and_so_are_its_gradients(shape):
    B, c, _, *S = shape
    projected, _, value = inputs(*shape)
    query, key = projected[:, :c], projected[:, c : 2 * c]
    weights = torch.randn(B, sum(S), *S, generator=torch.Generator().manual_seed(3))
    for name in ("affinity", "aggregate", "scatter", "criss_cross"):
        given = {"affinity": (query, key), "criss_cross": (query, key, value)}.get(name, (weights, value))
        results = []
        for implementation, dtype in (("numba", torch.float32), ("reference", torch.float64)):
            leaves = [x.detach().to(dtype).requires_grad_() for x in given]
            out = getattr(ops, name)(*leaves, implementation)
            # the masked entry is -inf
            finite = out.masked_fill(out.isinf(), 0.5)
            results.append([finite.detach(), *torch.autograd.grad(finite.square().sum(), leaves)])
            assert name != "affinity" or out.isinf().sum() == B * prod(S) * (len(S) - 1)
        names = ["out", *(f"gradient_{number}" for number in range(len(given)))]
        assert_near(" ".join(names), *results, **NEAR)


def test_gradients_of_gradients_are_the_definition_s():
    projected, x, grad = inputs(1, 2, 3, 3, 4)
    results = []
    for implementation, dtype in (("numba", torch.float32), ("reference", torch.float64)):
        leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in (projected, x)]
        leaves.append(torch.tensor([GAMMA], dtype=dtype, requires_grad=True))
        out = ops.residual(*leaves, 2, implementation)
        first = torch.autograd.grad(out, leaves, grad.to(dtype), create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves, allow_unused=True))
        results[-1] = [torch.zeros(1) if found is None else found for found in results[-1]]
    assert_near("d_projected d_x d_gamma", *results, **NEAR)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_layout_is_read_right(layout):
    shape = (2, 3, 5, 4, 6)
    tensors = inputs(*shape)
    changed = [LAYOUTS[layout](x) for x in tensors]
    assert all(torch.equal(a, b) for a, b in zip(changed, tensors, strict=True))
    assert_equal(RESULTS, step(*changed, 3), step(*tensors, 3))


@pytest.mark.parametrize("numbers", [torch.tensor([0.5]), torch.linspace(-1, 1, 5)])
def test_a_gradient_of_few_expanded_numbers_is_read_right(numbers):
    projected, x, _ = inputs(1, 3, 5, 4, 6)
    expanded = numbers[:, None, None].expand(x.shape)
    exact = step(projected.double(), x.double(), expanded.double().contiguous(), 3, "reference")
    assert_near(RESULTS, step(projected, x, expanded, 3), exact, **NEAR)


@pytest.mark.parametrize("wanted", range(3))
def test_a_gradient_may_be_wanted_of_one_input_alone(wanted):
    tensors = inputs(1, 3, 5, 4, 6)
    leaves = [tensors[0].clone(), tensors[1].clone(), torch.tensor([GAMMA])]
    leaves[wanted].requires_grad_()
    out = ops.residual(*leaves, 3, "numba")
    (got,) = torch.autograd.grad(out, leaves[wanted], tensors[2])
    assert torch.equal(got, step(*tensors, 3)[1 + wanted])


def test_results_are_the_same_to_the_bit_for_any_number_of_threads(monkeypatch):
    tensors = inputs(2, 3, 5, 15, 17)
    found = list(by_threads(lambda: step(*tensors, 3), monkeypatch))
    for one, other in pairwise(found):
        assert_equal(RESULTS, one, other)


@pytest.mark.parametrize("shape", [*SHAPES[4:7], *SHAPES[9:]])
def test_a_thread_writes_to_its_own_scratch_memory_alone(shape, monkeypatch):
    from ccnet_cli.ops.cpu import kernels

    plain, changed = cpu.run_threads, []

    def run_second_of_three(function: int, argument: int, threads: int) -> None:
        plan = np.frombuffer((ctypes.c_ubyte * kernels.PLAN.itemsize).from_address(argument), kernels.PLAN)
        plan["threads"], size, start = 1, int(plan["scratch_whole"][0]), int(plan["scratch"][0])
        others = [np.frombuffer((ctypes.c_ubyte * size).from_address(start + n * size), np.uint8) for n in (0, 2)]
        for memory in others:
            memory[:] = 7
        plain(function, argument, 1)
        changed.extend(int((memory != 7).sum()) for memory in others)

    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(cpu, "run_threads", run_second_of_three)
    tensors = inputs(*shape)
    exact = step(*(x.double() for x in tensors), shape[1], "reference")
    assert_near(RESULTS, step(*tensors, shape[1]), exact, **NEAR)
    assert changed == [0] * 4 * (2 * len(shape) - 7), f"bytes that another thread's memory lost, by step: {changed}"


def test_nothing_is_read_before_it_is_written(monkeypatch):
    tensors = inputs(2, 3, 5, 6, 7)
    expected = step(*tensors, 3)
    poison(monkeypatch)
    assert_equal(RESULTS, step(*tensors, 3), expected)


def test_nan_and_infinity_reach_the_pixels_that_see_them_alone():
    for bad in (float("nan"), float("inf")):
        projected, x, _ = inputs(1, 3, 5, 6, 7)
        projected[0, :, 2, 4] = bad
        out = ops.residual(projected, x, torch.tensor([GAMMA]), 3, "numba")
        touched = torch.zeros(6, 7, dtype=torch.bool)
        touched[2] = touched[:, 4] = True
        assert torch.equal(out[0, 0].isnan(), touched)


def test_large_energies_give_weights_of_one_and_zero():
    # a cross of several vectors, whose largest energy may lie in any; of integers, which no sum rounds
    projected, x, _ = inputs(1, 3, 5, 9, 40)
    projected[:, :6] = (projected[:, :6] * 30).round()
    got = ops.residual(projected, x, torch.tensor([GAMMA]), 3, "numba")
    exact = ops.residual(projected.double(), x.double(), torch.tensor([GAMMA]).double(), 3, "reference")
    assert_near("out", [got], [exact], **NEAR)


@pytest.mark.parametrize("size", [(2, 4), (2, 1, 3)])
def test_torch_accepts_the_operators(size):
    projected, x, grad = inputs(1, 3, 5, *size)
    gamma = torch.tensor([GAMMA], requires_grad=True)
    arguments = (projected.requires_grad_(), x.requires_grad_(), gamma, 3)
    assert set(torch.library.opcheck(torch.ops.ccnet.residual.default, arguments).values()) == {"SUCCESS"}
    attention = torch.ops.ccnet.residual(*arguments)[1]
    arguments = (grad, projected.detach(), attention.detach(), gamma.detach(), 3)
    assert set(torch.library.opcheck(torch.ops.ccnet.residual_backward.default, arguments).values()) == {"SUCCESS"}


def test_other_types_are_refused_in_one_line():
    projected, x, _ = (tensor.double() for tensor in inputs(1, 3, 5, 2, 4))
    with pytest.raises(InputError, match="float32") as caught:
        ops.residual(projected, x, torch.tensor([GAMMA]).double(), 3, "numba")
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_auto_takes_them_for_large_maps_in_float32_alone(monkeypatch):
    attention = CrissCrossAttention(16)
    attention.gamma.data.fill_(GAMMA)
    x = torch.randn(1, 16, 9, 8)
    seen = []
    plain = cpu.criss_cross
    monkeypatch.setattr(cpu, "criss_cross", lambda *inputs: seen.append(inputs[0].dtype) or plain(*inputs))
    attention(x)
    assert seen == []
    monkeypatch.setattr(cpu, "MIN_MACS", 9 * 8 * 17 * 18)
    attention(x)
    attention(x[..., :7])
    attention.double()(x.double())
    attention.float()
    with torch.autocast("cpu", torch.bfloat16):
        attention(x)
    assert seen == [torch.float32]


@pytest.mark.parametrize("other", ["x", "gamma"])
def test_of_unequal_types_gamma_and_x_keep_theirs(other):
    tensors = inputs(1, 3, 5, 4, 6)
    leaves = {"projected": tensors[0], "x": tensors[1], "gamma": torch.tensor([GAMMA])}
    leaves[other] = leaves[other].double()
    for leaf in leaves.values():
        leaf.requires_grad_()
    out = ops.residual(*leaves.values(), 3, "numba")
    assert out.dtype == (torch.float64 if other == "x" else torch.float32)
    gradients = torch.autograd.grad(out, list(leaves.values()), tensors[2].to(out.dtype))
    assert [x.dtype for x in gradients] == [x.dtype for x in leaves.values()]
    assert_near(RESULTS, [out, *gradients], step(*(x.double() for x in tensors), 3, "reference"), **NEAR)


def test_the_saved_attention_has_no_gradient():
    projected, x, _ = inputs(1, 3, 5, 2, 4)
    leaves = [projected.requires_grad_(), x.requires_grad_(), torch.tensor([GAMMA], requires_grad=True)]
    out, attention = torch.ops.ccnet.residual(*leaves, 3)
    assert out.requires_grad and not attention.requires_grad


def test_flops_are_those_of_the_criss_cross_operator():
    projected, x, grad = inputs(2, 3, 5, 4, 6)
    leaves = [projected.requires_grad_(), x.requires_grad_(), torch.tensor([GAMMA], requires_grad=True)]
    residual = ops.residual
    with FlopCounterMode(display=False) as forward:
        out = residual(*leaves, 3, "numba")
    with FlopCounterMode(display=False) as backward:
        torch.autograd.grad(out, leaves, grad)
    flops = 2 * 2 * 4 * 6 * (4 + 6) * (3 + 5)
    assert (forward.get_total_flops(), backward.get_total_flops()) == (flops, 2 * flops)
