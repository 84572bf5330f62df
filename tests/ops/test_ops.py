"""The operators against loops over single pixels, and what torch asks of an operator."""

import subprocess
import sys
from itertools import product

import pytest
import torch
from tensors import assert_near
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from ccnet_cli import ops
from ccnet_cli.errors import InputError
from ccnet_cli.ops import composed, gemm, reference

SHAPES = [(1, 1), (1, 7), (7, 1), (2, 3), (5, 6)]
OPERATORS = {name: getattr(ops, name) for name in ("affinity", "aggregate", "scatter", "criss_cross")}
# the kernels of "numba" are for float32 alone, see test_cpu_kernels
every_implementation = pytest.mark.parametrize("implementation", ("reference", "gemm"))


def cross(i: int, j: int, H: int, W: int) -> list[tuple[int, int]]:
    return [(y, j) for y in range(H)] + [(i, x) for x in range(W)]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def qkv(H: int, W: int, B: int = 2, Cq: int = 3, C: int = 4, seed: int = 0) -> tuple[torch.Tensor, ...]:
    return random(B, Cq, H, W, seed=seed), random(B, Cq, H, W, seed=seed + 1), random(B, C, H, W, seed=seed + 2)


def arguments(name: str, H: int, W: int) -> tuple[torch.Tensor, ...]:
    query, key, value = qkv(H, W)
    weights = random(2, H + W, H, W, seed=9)
    return {"affinity": (query, key), "criss_cross": (query, key, value)}.get(name, (weights, value))


@every_implementation
@pytest.mark.parametrize(("H", "W"), SHAPES)
def test_affinity_is_the_dot_product_with_each_pixel_of_the_cross(H, W, implementation):
    query, key, _ = qkv(H, W)
    energy = ops.affinity(query, key, implementation)
    assert energy.shape == (2, H + W, H, W)
    for b, i, j in product(range(2), range(H), range(W)):
        for position, (y, x) in enumerate(cross(i, j, H, W)):
            own = position == i
            expected = float("-inf") if own else sum(query[b, c, i, j] * key[b, c, y, x] for c in range(3))
            torch.testing.assert_close(energy[b, position, i, j].item(), float(expected), rtol=0, atol=1e-12)


@every_implementation
@pytest.mark.parametrize(("H", "W"), SHAPES)
def test_aggregate_gathers_and_scatter_spreads_along_the_cross(H, W, implementation):
    weights, value = random(2, H + W, H, W), random(2, 4, H, W, seed=1)
    gathered, spread = torch.zeros_like(value), torch.zeros_like(value)
    for i, j in product(range(H), range(W)):
        for position, (y, x) in enumerate(cross(i, j, H, W)):
            weight = weights[:, position, i, j, None]
            gathered[:, :, i, j] += weight * value[:, :, y, x]
            spread[:, :, y, x] += weight * value[:, :, i, j]
    torch.testing.assert_close(ops.aggregate(weights, value, implementation), gathered, rtol=0, atol=1e-12)
    torch.testing.assert_close(ops.scatter(weights, value, implementation), spread, rtol=0, atol=1e-12)


@every_implementation
def test_criss_cross_is_affinity_softmax_and_aggregate(implementation):
    query, key, value = qkv(5, 6)
    parts = ops.aggregate(ops.affinity(query, key, implementation).softmax(dim=1), value, implementation)
    torch.testing.assert_close(ops.criss_cross(query, key, value, implementation), parts, rtol=0, atol=1e-12)


@every_implementation
@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize(("H", "W"), [(1, 1), (1, 4), (3, 1), (2, 3)])
def test_gradients_and_their_gradients_match_finite_differences(H, W, name, implementation):
    def run(*inputs):
        # the masked entry is -inf, which finite differences cannot use
        return OPERATORS[name](*inputs, implementation).masked_fill(own, 0.0)

    inputs = tuple(x[:1].requires_grad_() for x in arguments(name, H, W))
    own = torch.eye(H + W, H, dtype=torch.bool)[..., None] if name == "affinity" else torch.tensor(False)
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


@pytest.mark.parametrize("implementation", ops.implementations())
def test_own_column_entries_have_no_gradient_whatever_arrives_there(implementation):
    query, key, _ = (x.float().requires_grad_() for x in qkv(3, 4))
    own = torch.zeros(2, 7, 3, 4)
    for i, j in product(range(3), range(4)):
        own[:, i, i, j] = 1
    energy = ops.affinity(query, key, implementation)
    assert torch.equal(energy.isneginf(), own.bool())
    for grad in (own, own * 1e30, torch.zeros_like(own).masked_fill(own.bool(), float("nan"))):
        gradients = torch.autograd.grad(energy, (query, key), grad, retain_graph=True)
        for name, found in zip(("query", "key"), gradients, strict=True):
            assert found.abs().max() == 0, f"gradient of {name}: {found.abs().max()} from the pixels themselves"
    # the row's own entries are not masked
    row = torch.zeros_like(own)
    for i, j in product(range(3), range(4)):
        row[:, 3 + j, i, j] = 1
    d_query, d_key = torch.autograd.grad(energy, (query, key), row)
    assert torch.equal(d_query, key) and torch.equal(d_key, query)


@pytest.mark.parametrize("implementation", ops.implementations())
@pytest.mark.parametrize("offset", [1000.0, -1000.0])
def test_an_offset_of_all_energies_changes_no_weight(offset, implementation):
    query, key, value = (x.float() for x in qkv(4, 5))
    # one more channel adds the same number to every energy
    query = torch.cat([query, torch.full((2, 1, 4, 5), abs(offset) ** 0.5)], dim=1)
    key = torch.cat([key, torch.full((2, 1, 4, 5), offset / abs(offset) ** 0.5)], dim=1)
    inputs = [x.requires_grad_() for x in (query, key, value)]
    exact = [x.detach().double()[:, :3].requires_grad_() if x is not value else x.detach().double() for x in inputs]
    out, expected = ops.criss_cross(*inputs, implementation), ops.criss_cross(*exact, "reference")
    d_query, d_key = torch.autograd.grad(out.square().sum(), inputs[:2])
    exact_gradients = torch.autograd.grad(expected.square().sum(), exact[:2])
    # float32 rounds energies of 1000 to 6e-5
    got = [out, d_query[:, :3], d_key[:, :3]]
    assert_near("out d_query d_key", got, [expected, *exact_gradients], 2e-3)


@every_implementation
def test_torch_accepts_them_as_operators(implementation):
    def opcheck(operator, *args):
        outcome = torch.library.opcheck(operator.default, (*args, implementation))
        assert set(outcome.values()) == {"SUCCESS"}

    query, key, value = (x.requires_grad_() for x in qkv(2, 3))
    weights = random(2, 5, 2, 3).requires_grad_()
    opcheck(torch.ops.ccnet.affinity, query, key, False)
    opcheck(torch.ops.ccnet.aggregate, weights, value)
    opcheck(torch.ops.ccnet.scatter, weights, value)
    opcheck(torch.ops.ccnet.criss_cross, query, key, value)
    # it is for the backward pass alone, which has no gradient for it
    assert not torch.ops.ccnet.criss_cross(query, key, value, implementation)[1].requires_grad
    attention = torch.ops.ccnet.criss_cross(query, key, value, implementation)[1]
    opcheck(torch.ops.ccnet.criss_cross_backward, *(x.detach() for x in (value, query, key, value, attention)))


@every_implementation
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "slices", "channels_last slices", "transposed"])
@pytest.mark.parametrize(("Cq", "C"), [(3, 4), (1, 1)])
def test_the_memory_layout_changes_nothing(Cq, C, layout, implementation):
    def laid_out(query, key, value):
        memory_format = torch.channels_last if "channels_last" in layout else torch.contiguous_format
        if "slices" in layout:
            whole = torch.cat([query, key, value], dim=1).to(memory_format=memory_format)
            return whole.split([Cq, Cq, C], dim=1)
        if layout == "transposed":
            return tuple(x.transpose(2, 3).contiguous().transpose(2, 3) for x in (query, key, value))
        return tuple(x.to(memory_format=memory_format) for x in (query, key, value))

    def results(inputs):
        inputs = [x.requires_grad_() for x in inputs]
        out = ops.criss_cross(*inputs, implementation)
        return out, *torch.autograd.grad((out * factor).sum(), inputs)

    plain, factor = qkv(5, 6, Cq=Cq, C=C), random(2, C, 5, 6, seed=7)
    expected = results([x.clone() for x in plain])
    for got, wanted in zip(results([x.detach() for x in laid_out(*plain)]), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-13)


@every_implementation
def test_a_gradient_that_is_one_expanded_number_is_read_right(implementation):
    inputs = [x.requires_grad_() for x in qkv(4, 3)]
    out = ops.criss_cross(*inputs, implementation)
    expanded = torch.autograd.grad(out.sum(), inputs, retain_graph=True)
    dense = torch.autograd.grad(out, inputs, torch.ones_like(out).contiguous())
    for got, wanted in zip(expanded, dense, strict=True):
        torch.testing.assert_close(got, wanted)


@every_implementation
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [None, torch.float16], ids=["", "autocast"])
@pytest.mark.parametrize("size", [1e1, 1e2, 1e3, 1e4, 1e5, 1e6])
def test_large_energies_stay_finite_and_keep_their_winner(size, autocast, dtype, implementation):
    query, key, value = qkv(6, 7, Cq=8)
    largest = ops.affinity(query, key).masked_fill(torch.eye(13, 6, dtype=torch.bool)[..., None], 0).abs().max()
    scale = (size / largest).sqrt()
    inputs = [(query * scale).to(dtype), (key * scale).to(dtype), value.to(dtype)]
    context = torch.autocast("cpu", autocast, enabled=autocast is not None)
    with context:
        energy = ops.affinity(*inputs[:2], implementation)
    exact = ops.affinity(*(x.double() for x in inputs[:2]), "reference")
    assert energy.dtype == torch.float32
    assert (energy.argmax(1) == exact.argmax(1)).all()
    inputs = [x.requires_grad_() for x in inputs]
    with context:
        out = ops.criss_cross(*inputs, implementation)
    assert out.dtype == dtype
    for tensor in (out, *torch.autograd.grad(out.float().square().sum(), inputs)):
        assert tensor.isfinite().all()


def test_energies_in_half_precision_would_not_be_finite():
    """Teeth: the largest of them is beyond float16, and in bfloat16 the winner of a close race is lost."""
    query, key, _ = qkv(6, 7, Cq=8)
    energy = ops.affinity(query * 300, key * 300)
    assert energy.half().isposinf().any()
    close = energy.double() / 100
    assert (close.bfloat16().double().argmax(1) != close.argmax(1)).any() or (close.bfloat16() != close).any()


@every_implementation
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_reach_the_energies(dtype, implementation):
    query, key, value = (x.float() for x in qkv(5, 6))
    with torch.autocast("cpu", dtype=dtype):
        assert ops.affinity(query, key, implementation).dtype == torch.float32
        inside = ops.criss_cross(query, key, value, implementation)
    torch.testing.assert_close(inside, ops.criss_cross(query, key, value, implementation), rtol=0, atol=0)


@every_implementation
def test_compiled_they_are_one_graph_with_equal_results(implementation):
    def step(query, key, value):
        weights = ops.affinity(query, key, implementation).softmax(dim=1)
        return ops.criss_cross(query, key, ops.aggregate(weights, value, implementation), implementation)

    inputs = [x.requires_grad_() for x in qkv(3, 4)]
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    factor = random(2, 4, 3, 4, seed=5)
    expected = step(*inputs)
    got = compiled(*inputs)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)
    gradients = torch.autograd.grad((got * factor).sum(), inputs)
    for gradient, wanted in zip(gradients, torch.autograd.grad((expected * factor).sum(), inputs), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-13)


def total_flops(function) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


@every_implementation
def test_flops_are_those_that_torch_counts_in_the_definition(implementation):
    query, key, value = qkv(5, 6)
    spelled_out = total_flops(lambda: composed.criss_cross(reference, query, key, value))
    assert spelled_out == 2 * 2 * 30 * 11 * (3 + 4)
    assert total_flops(lambda: ops.criss_cross(query, key, value, implementation)) == spelled_out
    parts = total_flops(lambda: ops.affinity(query, key, implementation)) + total_flops(
        lambda: ops.aggregate(random(2, 11, 5, 6), value, implementation)
    )
    assert parts == spelled_out


@every_implementation
def test_backward_flops_are_those_that_torch_counts_in_the_definition(implementation):
    query, key, value = qkv(5, 6)
    attention = composed.criss_cross(reference, query, key, value)[1]
    inputs = [x.requires_grad_() for x in (query, key, value)]
    out = ops.criss_cross(*inputs, implementation)
    counted = total_flops(lambda: out.backward(torch.ones_like(out)))
    assert counted == total_flops(lambda: composed.criss_cross_backward(reference, value, query, key, value, attention))


@every_implementation
@pytest.mark.parametrize("name", OPERATORS)
def test_shapes_are_known_without_computing(name, implementation):
    expected = OPERATORS[name](*arguments(name, 3, 4), implementation)
    shape_only = OPERATORS[name](*(x.to("meta") for x in arguments(name, 3, 4)), implementation)
    assert (shape_only.shape, shape_only.stride()) == (expected.shape, expected.stride())


@every_implementation
def test_no_pixel_of_one_image_sees_another_image(implementation):
    query, key, value = qkv(4, 5, B=3)
    together = ops.criss_cross(query, key, value, implementation)
    for b in range(3):
        alone = ops.criss_cross(query[b : b + 1], key[b : b + 1], value[b : b + 1], implementation)
        torch.testing.assert_close(together[b : b + 1], alone, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("implementation", ["fastest", "vector"])
def test_what_is_not_available_is_refused_in_one_line(name, implementation):
    if implementation in ops.implementations():
        pytest.skip("available in this version")
    with pytest.raises(InputError) as caught:
        OPERATORS[name](*arguments(name, 2, 3), implementation)
    assert implementation in str(caught.value) and "reference" in str(caught.value)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_shapes_that_do_not_fit_are_refused():
    query, key, value = qkv(2, 3)
    with pytest.raises(ValueError, match="one and the same shape"):
        ops.affinity(query, key[..., :2])
    with pytest.raises(ValueError, match="one and the same shape"):
        ops.affinity(query[0], key[0])
    with pytest.raises(ValueError, match="H \\+ W"):
        ops.aggregate(random(2, 6, 2, 3), value)
    with pytest.raises(ValueError, match="grid of query"):
        ops.criss_cross(query, key, value.transpose(2, 3))


def test_the_implementations_do_not_call_each_other():
    assert "reference" not in vars(gemm) and "gemm" not in vars(reference)


def test_importing_the_operators_does_not_load_numba():
    code = "import sys, ccnet_cli.ops; assert not {'numba', 'cv2', 'scipy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.gpu
@pytest.mark.parametrize("implementation", ops.implementations("cuda"))
@pytest.mark.parametrize("shape", [(1, 8, 16, 5, 7), (2, 64, 512, 33, 20), (1, 8, 16, 1, 9)])
def test_a_gpu_agrees_with_the_definition(implementation, shape):
    B, c, C, H, W = shape
    inputs = [torch.randn(B, channels, H, W, dtype=torch.float64) / channels**0.5 for channels in (c, c, C)]
    found = []
    for device, dtype, name in (("cpu", torch.float64, "reference"), ("cuda", torch.float32, implementation)):
        parts = [part.to(device, dtype).requires_grad_() for part in inputs]
        out = ops.criss_cross(*parts, name)
        found.append([tensor.double().cpu() for tensor in (out, *torch.autograd.grad(out.square().sum(), parts))])
    for expected, got in zip(*found, strict=True):
        # TF32 is off unless asked for, so this is float32 rounding
        assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


# torch imports what it has marked as old for this
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("name", ["affinity", "aggregate", "scatter", "criss_cross"])
def test_forward_mode_is_refused_not_taken_for_0(name):
    query, key, value, weights = (torch.randn(1, n, 3, 4) for n in (2, 2, 5, 7))
    inputs = {"affinity": (query, key), "criss_cross": (query, key, value)}.get(name, (weights, value))
    operator = getattr(ops, name)
    with forward_ad.dual_level():
        for i, x in enumerate(inputs):
            dual = forward_ad.make_dual(x, torch.ones_like(x))
            with pytest.raises(NotImplementedError, match="reverse mode"):
                operator(*inputs[:i], dual, *inputs[i + 1 :], "gemm")
        # without tangents there is nothing to refuse
        operator(*inputs, "gemm")


def test_gradients_in_float16_whose_sums_are_beyond_its_range_are_right():
    random = torch.Generator().manual_seed(0)
    query, key, value, grad = (torch.randn(1, n, 4, 5, generator=random) for n in (2, 2, 64, 64))
    leaves = [query, key * 1e-3, (300 * value).half()]
    leaves = [x.requires_grad_() for x in leaves]
    grad = (200 * grad).half()
    got = torch.autograd.grad(ops.criss_cross(*leaves, "gemm"), leaves, grad)
    exact = [x.detach().double().requires_grad_() for x in leaves]
    wanted = torch.autograd.grad(ops.criss_cross(*exact, "reference"), exact, grad.double())
    assert reference.affinity(grad.double(), exact[2].detach(), False).abs().max() > 65504
    for one, other in zip(got, wanted, strict=True):
        assert (one.double() - other).abs().max() <= 5e-3 * other.abs().max()


@pytest.mark.parametrize("sizes", [(5, 7), (1, 1), (8, 16), (9, 16), (2, 3, 9)])
def test_padded_arms_of_gemm_are_the_same_attention_on_boundaries_of_16_bytes(sizes):
    from ccnet_cli.ops import gemm, padded

    inputs = [torch.randn(2, n, *sizes, dtype=torch.float64) for n in (3, 3, 6, 6)]
    *tensors, grad = inputs
    exact, attention = gemm.criss_cross(*tensors)
    out, wide = padded.criss_cross(*tensors)
    assert wide.shape[-1] == padded.attention_width(*sizes) and wide.shape[-1] % 8 == 0
    starts = [sum(-(-length // 8) * 8 for length in sizes[:axis]) for axis in range(len(sizes))]
    arms = [wide[..., start : start + length] for start, length in zip(starts, sizes, strict=True)]
    assert all(start % 8 == 0 for start in starts)
    torch.testing.assert_close(torch.cat(arms, -1), attention, rtol=1e-12, atol=1e-12)
    assert torch.equal(wide.count_nonzero(), attention.count_nonzero())
    torch.testing.assert_close(out, exact, rtol=1e-12, atol=1e-12)
    gradients = zip(
        padded.criss_cross_backward(grad, *tensors, wide),
        gemm.criss_cross_backward(grad, *tensors, attention),
        strict=True,
    )
    for one, other in gradients:
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_gemm_is_padded_on_cuda_alone():
    modules = {device: ops.IMPLEMENTATIONS["gemm"].on(device) for device in ("cpu", "cuda", "mps")}
    assert modules == {"cpu": "ccnet_cli.ops.gemm", "cuda": "ccnet_cli.ops.padded", "mps": "ccnet_cli.ops.gemm"}
