"""The CUDA kernels where there is a CUDA device: what no simulation can tell."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from ccnet_cli import ops

pytestmark = pytest.mark.gpu

SHAPES = [
    (1, 64, 512, 97, 97),
    (2, 8, 16, 5, 7),
    (1, 5, 7, 33, 20),
    (1, 3, 4, 1, 19),
    (1, 1, 1, 1, 1),
    (1, 8, 24, 129, 257),
    (1, 64, 512, 5, 33, 65),
    (2, 3, 5, 2, 7, 3),
]
# relative to the largest entry
ROUNDING = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def channels_last(B: int, c: int, C: int, *S: int, dtype=torch.float32, device="cuda:0") -> list[torch.Tensor]:
    """Query, key and value as slices of one channels-last tensor, as after one convolution."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(B, *S, 2 * c + C, generator=generator) / c**0.25
    return list(whole.to(device, dtype).movedim(-1, 1).split([c, c, C], dim=1))


def step(inputs: list[torch.Tensor], implementation: str = "numba") -> list[torch.Tensor]:
    """Output and gradients, with a gradient that is no multiple of the output."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = ops.criss_cross(*leaves, implementation)
    weight = torch.linspace(-1, 1, out.numel(), dtype=torch.float64, device=out.device).to(out.dtype).view_as(out)
    return [out.detach(), *torch.autograd.grad(out, leaves, weight)]


def agree(got: list[torch.Tensor], inputs: list[torch.Tensor]) -> None:
    expected = step([x.detach().double().cpu() for x in inputs], "reference")
    for mine, exact in zip(got, expected, strict=True):
        error = (mine.double().cpu() - exact).abs().max()
        assert error <= ROUNDING[mine.dtype] * exact.abs().max() + 1e-7


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_and_gradients_are_the_definition(shape, dtype):
    inputs = channels_last(*shape, dtype=dtype)
    agree(step(inputs), inputs)


def test_two_runs_are_equal_to_the_bit():
    inputs = channels_last(*SHAPES[0])
    for first, second in zip(step(inputs), step(inputs), strict=True):
        assert torch.equal(first, second)


def test_work_follows_the_current_stream():
    inputs = channels_last(*SHAPES[0])
    expected = step(inputs)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # what the kernels read is only ready after this
        torch.cuda._sleep(10_000_000)
        late = [x.clone(memory_format=torch.preserve_format) for x in inputs]
        got = step(late)
    torch.cuda.current_stream().wait_stream(stream)
    for mine, wanted in zip(got, expected, strict=True):
        assert torch.equal(mine, wanted)


def test_a_thread_that_has_done_nothing_yet_can_launch():
    inputs = channels_last(*SHAPES[1])
    expected = step(inputs)
    with ThreadPoolExecutor(1) as pool:
        got = pool.submit(step, inputs).result()
    for mine, wanted in zip(got, expected, strict=True):
        assert torch.equal(mine, wanted)


def test_a_cuda_graph_holds_it():
    inputs = channels_last(*SHAPES[0])
    step(inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        out = ops.criss_cross(*inputs, "numba")
    with torch.no_grad():
        for x in inputs:
            x.mul_(0.5)
        expected = ops.criss_cross(*inputs, "numba")
        graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_devices_in_one_process():
    for index in (1, 0, 1):
        inputs = channels_last(*SHAPES[1], device=f"cuda:{index}")
        got = step(inputs)
        assert {x.device.index for x in got} == {index}
        agree(got, inputs)


def test_memory_is_the_attention_the_output_and_nothing_else():
    inputs = channels_last(*SHAPES[0])
    with torch.no_grad():
        ops.criss_cross(*inputs, "numba")
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        out = ops.criss_cross(*inputs, "numba")
        torch.cuda.synchronize()
    pixels = 97 * 97
    # both buffers are rounded up by the allocator, to 2 MiB at most
    assert torch.cuda.max_memory_allocated() - before <= 4 * pixels * (512 + 208) + 2 * 2**21
    assert out.shape == (1, 512, 97, 97)


def test_channels_last_tensors_are_not_copied():
    inputs = channels_last(*SHAPES[0])
    step(inputs)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile, torch.no_grad():
        ops.criss_cross(*inputs, "numba")
        torch.cuda.synchronize()
    on_gpu = [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    assert all(name.startswith("ccnet_") for name in on_gpu) and 0 < len(on_gpu) <= 5


def test_autocast_leaves_the_energies_in_float32():
    query, key, value = channels_last(*SHAPES[1])
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert ops.affinity(query.bfloat16(), key.bfloat16(), "numba").dtype == torch.float32
        inside = ops.criss_cross(query, key, value, "numba")
    assert torch.equal(inside, ops.criss_cross(query, key, value, "numba"))


def test_torch_accepts_it_as_an_operator():
    inputs = [x.requires_grad_() for x in channels_last(*SHAPES[1])]
    outcome = torch.library.opcheck(torch.ops.ccnet.criss_cross.default, (*inputs, "numba"))
    assert set(outcome.values()) == {"SUCCESS"}
    compiled = torch.compile(lambda *x: ops.criss_cross(*x, "numba"), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), ops.criss_cross(*inputs, "numba"), rtol=0, atol=0)
