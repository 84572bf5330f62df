"""Convolutions by Winograd's filtering against float64: odd sizes, layouts, types, poisoned memory, threads."""

import os
import subprocess
import sys
import threading
from itertools import pairwise

import pytest
import torch
from tensors import LAYOUTS, assert_equal, assert_near, by_threads, features_of_this_cpu, path_of_tests, poison
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from ccnet_cli import ops
from ccnet_cli.ops import convolution
from ccnet_cli.ops.cpu import convolution as kernels

# (B, C, K, H, W, dilation): less than a tile, unequal grids, dilations beyond the image, channels beyond a block
SHAPES = [
    (1, 32, 32, 1, 1, 1),
    (2, 32, 64, 5, 7, 1),
    (1, 64, 32, 1, 40, 3),
    (2, 64, 32, 13, 9, 2),
    (1, 32, 32, 3, 2, 4),
    (2, 288, 96, 17, 21, 4),
    (1, 544, 32, 9, 10, 1),
    (1, 32, 544, 9, 10, 2),
]
SLOPE = 0.25
RESULTS = "out d_x d_weight d_bias"


def inputs(B: int, C: int, K: int, H: int, W: int, dilation: int, seed: int = 0) -> list[Tensor]:
    """x, weight, bias and the gradient of the result, channels last."""
    random = torch.Generator().manual_seed(seed)
    shapes = ((B, C, H, W), (K, C, 3, 3), (B, K, H, W))
    x, weight, grad = (torch.randn(s, generator=random).to(memory_format=torch.channels_last) for s in shapes)
    return [x, weight / (3 * C**0.5), torch.randn(K, generator=random), grad]


def step(x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor, dilation: int) -> list[Tensor]:
    """The kernels' result and gradients."""
    leaves = [tensor.detach().requires_grad_() for tensor in (x, weight, bias)]
    out = torch.ops.ccnet.convolution(*leaves, dilation)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def definition(x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor, dilation: int) -> list[Tensor]:
    """The same by torch in float64."""
    leaves = [tensor.detach().double().requires_grad_() for tensor in (x, weight, bias)]
    out = F.conv2d(*leaves, padding=dilation, dilation=dilation)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.double())]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernels_are_torchs_convolution_and_so_are_their_gradients(shape):
    tensors = inputs(*shape)
    assert_near(RESULTS, step(*tensors, shape[-1]), definition(*tensors, shape[-1]))


@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_is_rounded_once_at_the_end_and_the_filters_gradient_never(shape):
    x, weight, bias, grad = inputs(*shape)
    x, grad = x.bfloat16(), grad.bfloat16()
    got, expected = step(x, weight, bias, grad, shape[-1]), definition(x, weight, bias, grad, shape[-1])
    assert [tensor.dtype for tensor in got] == [torch.bfloat16] * 2 + [torch.float32] * 2
    assert_near("d_weight d_bias", got[2:], expected[2:])
    for mine, wanted in zip(got[:2], expected[:2], strict=True):
        # half a unit in the last place, and what float32 adds
        room = wanted.abs() / 2**8 + 1e-5 * wanted.abs().max()
        assert bool(((mine.double() - wanted).abs() <= room).all())


def test_bfloat16_results_halfway_between_two_numbers_are_rounded_to_even():
    ties = [sign * (1 + n * 2**-8) * 2.0**e for sign in (1, -1) for n in (1, 3, 5, 127) for e in (0, -20, 100)]
    special = [float("nan"), float("inf"), 3.4e38, 2.0**-133, 2.0**-134, 3 * 2.0**-134, 0.0, -0.0]
    bias = torch.tensor([*ties, *special])
    x, weight = torch.zeros(1, 32, 5, 6, dtype=torch.bfloat16), torch.ones(32, 32, 3, 3)
    # nothing else than the bias, which no product rounds
    out = torch.ops.ccnet.convolution(x, weight, bias, 1)
    assert_equal("out", [out], [bias.bfloat16()[:, None, None].expand(1, 32, 5, 6)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_filters_are_kept_and_the_result_added_bent_and_written_in_place(shape, dtype):
    x, weight, bias, onto = inputs(*shape)
    x, onto = x.to(dtype), onto.to(dtype)
    dilation = shape[-1]
    kept = kernels.transform_filters(weight)
    plain = definition(x, weight, bias, onto, dilation)[0]
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    alone = kernels.convolve_transformed(x, kept, dilation)
    assert_near("out", [alone], [plain - bias[:, None, None].double()], tolerance)
    expected = F.leaky_relu(plain + onto.double(), SLOPE)
    got = kernels.convolve_transformed(x, kept, dilation, bias, onto, SLOPE)
    assert got.data_ptr() == onto.data_ptr() and got.dtype == dtype
    assert_near("out", [got], [expected], tolerance)


def test_what_cannot_be_added_to_in_place_is_refused():
    x, weight, _, onto = inputs(*SHAPES[1])
    with pytest.raises(ValueError, match="innermost"):
        kernels.convolve_transformed(x, kernels.transform_filters(weight), 1, onto_BKHW=onto.contiguous())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_layout_is_read_right(layout):
    tensors = inputs(*SHAPES[3])
    changed = [LAYOUTS[layout](x) if x.dim() == 4 else x for x in tensors]
    # the bias's gradient is torch's
    assert_equal("out d_x d_weight", step(*changed, 2)[:3], step(*tensors, 2)[:3])


@pytest.mark.parametrize("wanted", range(3))
def test_a_gradient_may_be_wanted_of_one_input_alone(wanted):
    tensors = inputs(*SHAPES[3])
    leaves = [tensor.clone() for tensor in tensors[:3]]
    leaves[wanted].requires_grad_()
    (got,) = torch.autograd.grad(torch.ops.ccnet.convolution(*leaves, 2), leaves[wanted], tensors[3])
    assert torch.equal(got, step(*tensors, 2)[1 + wanted])


def test_results_are_the_same_to_the_bit_for_any_number_of_threads(monkeypatch):
    # tiles in several groups, and the gradient's sum in several parts
    monkeypatch.setattr(kernels, "MAX_TILES", 5)
    monkeypatch.setattr(kernels, "MAX_SPREAD", 36 * 32 * 20)
    tensors = inputs(*SHAPES[3])
    assert_near(RESULTS, step(*tensors, 2), definition(*tensors, 2))
    found = list(by_threads(lambda: step(*tensors, 2), monkeypatch))
    for one, other in pairwise(found):
        assert_equal(RESULTS, one, other)


def test_a_thread_does_not_write_to_the_memory_of_another(monkeypatch):
    tensors, others, main = inputs(*SHAPES[1]), inputs(*SHAPES[1], seed=1), threading.get_ident()
    expected, plain = step(*tensors, 1), kernels.run_threads

    def interrupted(*arguments: int) -> None:
        if threading.get_ident() == main:
            other = threading.Thread(target=step, args=(*others, 1))
            other.start()
            other.join()
        plain(*arguments)

    monkeypatch.setattr(kernels, "run_threads", interrupted)
    assert_equal(RESULTS, step(*tensors, 1), expected)


def test_an_image_is_the_same_to_the_bit_in_any_batch():
    x, weight, bias, _ = inputs(*SHAPES[5])
    together = torch.ops.ccnet.convolution(x, weight, bias, 4)
    for index in range(len(x)):
        alone = torch.ops.ccnet.convolution(x[index : index + 1], weight, bias, 4)
        assert torch.equal(alone[0], together[index])


def test_nothing_is_read_before_it_is_written(monkeypatch):
    tensors = inputs(*SHAPES[6])
    expected = step(*tensors, 1)
    monkeypatch.setattr(kernels, "_memory", type("Kept", (), {})())
    poison(monkeypatch)
    assert_equal(RESULTS, step(*tensors, 1), expected)


def test_what_is_no_number_stays_none_and_reaches_no_pixel_that_is_far():
    for dtype in (torch.float32, torch.bfloat16):
        for bad in (float("nan"), float("inf")):
            x, weight, bias, grad = inputs(1, 32, 32, 16, 16, 1)
            x[0, 3, 5, 6] = bad
            out = step(x.to(dtype), weight, bias, grad.to(dtype), 1)[0][0].isfinite().all(dim=0)
            assert not out[4:7, 5:8].any()
            # the tiles whose input it is in
            assert out[8:].all() and out[:, 8:].all() and not out.all()


def test_gradients_of_gradients_are_torchs():
    tensors = [tensor.double() for tensor in inputs(1, 32, 32, 4, 5, 1)]
    found = []
    for convolve, dtype in (
        (lambda *given: torch.ops.ccnet.convolution(*given, 1), torch.float32),
        (_plain, torch.float64),
    ):
        leaves = [tensor.to(dtype).requires_grad_() for tensor in tensors[:3]]
        first = torch.autograd.grad(convolve(*leaves), leaves, tensors[3].to(dtype), create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first[:2]), leaves[:2]))
    assert_near("d_x d_weight", *found)


def _plain(*given: Tensor) -> Tensor:
    return F.conv2d(*given, padding=1)


def test_torch_accepts_the_operators():
    x, weight, bias, grad = inputs(*SHAPES[1])
    leaves = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    for operator, arguments in (
        (torch.ops.ccnet.convolution, (*leaves, 1)),
        (torch.ops.ccnet.convolution_input, (grad, weight.detach(), 1)),
        (torch.ops.ccnet.convolution_weight, (x.detach(), grad, 1)),
    ):
        assert set(torch.library.opcheck(operator.default, arguments).values()) == {"SUCCESS"}


@pytest.mark.parametrize(
    ("changes", "taken"),
    [
        ({}, True),
        ({"dilation": 2, "padding": 2}, True),
        ({"bias": False}, True),
        ({"kernel_size": 1, "padding": 0}, False),
        ({"stride": 2}, False),
        ({"padding": 0}, False),
        ({"dilation": (1, 2), "padding": (1, 2)}, False),
        ({"groups": 2}, False),
        ({"padding_mode": "circular"}, False),
        ({"in_channels": 72}, False),
        ({"out_channels": 72}, False),
        ({"in_channels": 32}, False),
        ({"out_channels": 32}, False),
    ],
)
def test_the_module_is_torchs_whether_the_kernels_take_it_or_not(changes, taken, monkeypatch):
    if not convolution.is_faster(torch.float32, 64):
        pytest.skip("the kernels are not used on this processor")
    monkeypatch.setattr(kernels, "MIN_MACS", 1)
    given = {"in_channels": 64, "out_channels": 96, "kernel_size": 3, "padding": 1} | changes
    conv, seen = ops.Conv2d(**given), []
    plain = kernels.convolve
    monkeypatch.setattr(kernels, "convolve", lambda *inputs: seen.append(inputs) or plain(*inputs))
    x = torch.randn(1, given["in_channels"], 8, 9)
    torch.testing.assert_close(conv(x), torch.nn.Conv2d.forward(conv, x), atol=1e-5, rtol=1e-5)
    assert len(seen) == taken
    conv.implementation = "direct"
    assert torch.equal(conv(x), torch.nn.Conv2d.forward(conv, x)) and len(seen) == taken


def test_a_module_whose_weights_are_bfloat16_is_torchs_too():
    x, weight, bias, grad = (tensor.bfloat16() for tensor in inputs(*SHAPES[3]))
    got, expected = step(x, weight, bias, grad, 2), definition(x, weight, bias, grad, 2)
    assert {tensor.dtype for tensor in got} == {torch.bfloat16}
    assert_near(RESULTS, got, expected, 1e-2)


def test_small_convolutions_other_types_and_other_processors_keep_torchs(monkeypatch):
    def processor(vectors: str, **capabilities: bool) -> None:
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: vectors)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
        convolution._has_avx.cache_clear()
        convolution._has_amx.cache_clear()

    conv, x = ops.Conv2d(128, 128, 3, padding=1), torch.randn(1, 128, 8, 9)
    processor("AVX512", avx512_bf16=True)
    assert not convolution.pays_off(conv, x)
    monkeypatch.setattr(kernels, "MIN_MACS", 8 * 9 * 128 * 128 * 9)
    assert convolution.pays_off(conv, x) and not convolution.pays_off(conv, x[..., 1:])
    assert not convolution.pays_off(conv, x.double()) and not convolution.pays_off(conv, x.bfloat16())
    assert not convolution.pays_off(conv, x.to("meta"))
    assert convolution.pays_off(conv.bfloat16(), x.bfloat16())
    conv.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert convolution.pays_off(conv, x) and conv(x).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.float16):
        assert not convolution.pays_off(conv, x)
    assert convolution.is_faster(torch.float32, 64, 64) and not convolution.is_faster(torch.float32, 64, 63)
    assert not convolution.is_faster(torch.bfloat16, 96, 128)
    processor("AVX512", amx_bf16=True)
    assert convolution.pays_off(conv, x) and not convolution.is_faster(torch.bfloat16, 128)
    processor("DEFAULT")
    assert not convolution.pays_off(conv, x)
    monkeypatch.undo()
    convolution._has_avx.cache_clear()
    convolution._has_amx.cache_clear()


@pytest.mark.parametrize(
    ("features", "whole"),
    [
        ("+avx2,+avx,+fma,+sse4.2,+ssse3", False),
        pytest.param("+avx2,+avx,+fma,+sse4.2,+ssse3", True, marks=pytest.mark.slow),
        pytest.param("+sse4.2,+ssse3", True, marks=pytest.mark.slow),
    ],
)
def test_narrower_vectors_and_no_cache_folder_give_the_same(features, whole):
    """In a process that compiles for another processor, and has no folder for Numba's cache."""
    if "avx2" in features and "avx2" not in features_of_this_cpu():
        pytest.skip("this processor has no such vectors")
    code = f"""
import test_convolution, test_cpu_kernels
from ccnet_cli.ops.cpu import simd
assert simd.LANES == {8 if "avx" in features else 4}
for shape in test_convolution.SHAPES[1:{6 if whole else 2}]:
    test_convolution.test_the_kernels_are_torchs_convolution_and_so_are_their_gradients(shape)
for shape in test_convolution.SHAPES[1:6] if {whole} else ():
    test_convolution.test_bfloat16_is_rounded_once_at_the_end_and_the_filters_gradient_never(shape)
for shape in test_cpu_kernels.SHAPES[3:] if {whole} else ():
    test_cpu_kernels.test_the_sum_with_the_input_is_the_definition_and_so_are_its_gradients(shape)
"""
    environment = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": os.devnull}
    environment["PYTHONPATH"] = path_of_tests()
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | environment)


def test_a_network_is_accelerated_in_place_without_another_random_number_or_key():
    def network() -> nn.Sequential:
        torch.manual_seed(3)
        layers = nn.Conv2d(64, 96, 3, padding=1), nn.BatchNorm2d(96), nn.Conv2d(96, 64, 1), Narrow(64, 64, 3, padding=1)
        return nn.Sequential(*layers, nn.Sequential(nn.Conv2d(64, 32, 3, padding=2, dilation=2, bias=False)))

    plain, fast = network(), network()
    convs, parameters, state = list(fast.modules()), list(fast.parameters()), torch.get_rng_state()
    fast[0].register_forward_hook(lambda *_: None)
    assert ops.accelerate(fast) is fast and torch.equal(torch.get_rng_state(), state)
    assert [type(module) for module in fast.modules() if isinstance(module, nn.Conv2d)] == [
        *(ops.Conv2d, nn.Conv2d, Narrow, ops.Conv2d)
    ]
    assert all(a is b for a, b in zip(fast.modules(), convs, strict=True))
    assert all(a is b for a, b in zip(fast.parameters(), parameters, strict=True)) and len(fast[0]._forward_hooks) == 1
    assert list(plain.state_dict()) == list(fast.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), fast.state_dict().values(), strict=True))
    assert type(ops.accelerate(nn.Conv2d(32, 32, 3, padding=1))) is ops.Conv2d


class Narrow(nn.Conv2d):
    """Somebody's own convolution."""


def test_flops_are_those_of_torchs_convolution_forward_and_backward():
    tensors = inputs(*SHAPES[3])
    counts = []
    for convolve in (lambda *x: torch.ops.ccnet.convolution(*x, 2), lambda *x: F.conv2d(*x, padding=2, dilation=2)):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors[:3]]
        with FlopCounterMode(display=False) as forward:
            out = convolve(*leaves)
        with FlopCounterMode(display=False) as backward:
            torch.autograd.grad(out, leaves, tensors[3])
        counts.append((forward.get_total_flops(), backward.get_total_flops()))
    assert counts[0] == counts[1] == (2 * 2 * 13 * 9 * 64 * 32 * 9, 4 * 2 * 13 * 9 * 64 * 32 * 9)
