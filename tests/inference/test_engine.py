"""The engine against the model that it was made from, which computes every step by itself."""

import copy
import itertools
from pathlib import Path
from typing import Any

import peers
import pytest
import torch
from torch import Tensor, nn
from variants import variant

from ccnet_cli import config
from ccnet_cli.errors import InputError
from ccnet_cli.inference import engine
from ccnet_cli.models import network as models
from ccnet_cli.models.network import CCNet, build
from ccnet_cli.ops import convolution
from ccnet_cli.ops.cpu import convolution as kernels
from ccnet_cli.weights.recognise import recognise

CPU = torch.device("cpu")
PAPER = config.load("cityscapes-r2").model
SMALL = variant(PAPER, **{"width": 8, "channels": 16, "query_channels": None, "auxiliary_channels": 8})
TINY = variant(SMALL, **{"backbone": "tiny", "width": 16})
MMSEG = {"stem": "v1c", "dilation": "contracted", "pool": "floor", "activation": "relu", "align_corners": False}
VARIANTS = {
    "paper": {"backbone": "resnet50"},
    "resnet101": {"backbone": "resnet101", "width": 4, "channels": 24, "query_channels": 5},
    "basic blocks": {"backbone": "resnet18", "stem": "7x7"},
    "deeper basic blocks": {"backbone": "resnet34", "width": 4, "activation": "relu"},
    "mmseg": {"backbone": "resnet50", **MMSEG},
    "without attention": {"backbone": "resnet18", "recurrence": 0},
    "one pass": {"backbone": "resnet18", "recurrence": 1, "auxiliary": False},
    "three passes": {"backbone": "tiny", "width": 16, "recurrence": 3},
    "reference": {"backbone": "tiny", "width": 16, "implementation": "reference"},
    # 3x3 convolutions that are computed as sums
    "wide": {"backbone": "tiny", "width": 300, "channels": 520},
}


def network(**changes: object) -> CCNet:
    """Statistics, scales and gamma away from where they begin, negative and zero scales among them."""
    torch.manual_seed(0)
    model = build(variant(SMALL, **changes), 5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.3, 3)
            module.weight.data.uniform_(-1, 1.5)
            module.weight.data[0] = 0
            module.bias.data.normal_(0, 0.3)
            module.eps = 1e-3
    if model.recurrence:
        model.head.rcca.attention.gamma.data.fill_(-0.7)
    return model.eval()


def image(B: int, H: int, W: int) -> Tensor:
    return 50 * torch.randn(B, 3, H, W, generator=torch.Generator().manual_seed(H))


def error(got: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to what lies between the least and the greatest."""
    assert got.shape == expected.shape and got.dtype == torch.float32
    return float((got - expected).abs().max() / (expected.max() - expected.min()))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_the_engine_answers_what_the_model_does(variant, fused, monkeypatch):
    if not fused:
        monkeypatch.setattr(engine, "fuses", lambda dtype: False)
    model = network(**VARIANTS[variant])
    fast = engine.prepare(model, CPU)
    for x in (image(1, 65, 41), image(2, 24, 40), image(1, 9, 64)):
        given = x.clone()
        assert error(fast(x), model(x)) < 1e-5
        assert torch.equal(x, given)
    assert (fast.normalisation, fast.align_corners) == (model.normalisation, model.align_corners)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "changes",
    [
        {"backbone": "resnet50", "width": 32, "channels": 32},
        {"backbone": "resnet18", "width": 32, "channels": 64, "activation": "relu"},
        {"backbone": "resnet50", "width": 32, "channels": 32, **MMSEG},
        {"backbone": "tiny", "width": 32, "channels": 544, "recurrence": 0},
    ],
)
@torch.no_grad()
def test_winograds_filtering_answers_the_same_chosen_by_size_and_number_alone(changes, precision, monkeypatch):
    monkeypatch.setattr(convolution, "MIN_CHANNELS", dict.fromkeys(convolution.MIN_CHANNELS, 32))
    if not convolution.is_faster(models.PRECISIONS[precision], 32):
        pytest.skip("the kernels are not used on this processor")
    model, seen = network(**changes), []
    fast = engine.prepare(model, CPU, precision, images=7)
    worth = sum(conv.worth for conv in fast.convolutions)
    assert worth > 0.5 * sum(p.numel() for p in fast.parameters())
    monkeypatch.setattr(engine, "MIN_MACS_FOR_WINOGRAD", 7 * (40 * 48 // 64) * worth)
    plain = kernels.convolve_transformed
    monkeypatch.setattr(kernels, "convolve_transformed", lambda *given: seen.append(given) or plain(*given))
    for x, quick in ((image(1, 40, 47), False), (image(1, 40, 48), True), (image(2, 40, 47), False)):
        assert error(fast(x), model(x)) < (1e-5 if precision == "fp32" else 0.05)
        assert bool(seen) is quick
        seen.clear()
    engine.prepare(model, CPU, precision, images=6)(image(1, 40, 48))
    assert not seen


@pytest.mark.parametrize(("H", "W"), [(1, 1), (1, 33), (33, 1), (2, 3)])
@torch.no_grad()
def test_maps_of_one_line_or_one_pixel_are_no_exception(H, W):
    for model in (network(backbone="resnet18"), network(backbone="tiny", width=16)):
        x = image(2, H, W)
        assert error(engine.prepare(model, CPU)(x), model(x)) < 1e-5


@torch.no_grad()
def test_the_engine_is_the_authors_network():
    """An independent network over a state dict in the authors' layout."""
    state = peers.authors(width=4, channels=16, classes=5, depth=50)
    found = recognise(state, Path("authors.pth"))
    changes = {"backbone": "resnet50", "width": 4, "channels": 16}
    model = build(variant(PAPER, **{**changes, "query_channels": None, "auxiliary_channels": 16}), 5)
    model.load_state_dict(model.state_dict() | dict(found.weights))
    x = image(1, 41, 57)
    expected = peers.authors_forward(state, x.double(), passes=2)[0]
    fast = engine.prepare(model.eval(), CPU)
    assert error(fast(x), expected.float()) < 1e-5
    assert (expected - peers.authors_forward(state, x.double(), passes=1)[0]).abs().max() > 1e-3
    # pixels of ordinary size: larger energies leave the attention of a random network all or nothing
    x, half = x / 50, engine.prepare(model, CPU, "bf16")
    expected, half = peers.authors_forward(state, x.double(), passes=2)[0], half(x)
    assert error(half, expected.float()) < 0.05
    assert (half.argmax(1) == expected.argmax(1)).double().mean() > 0.95


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("fused", [True, False])
@torch.no_grad()
def test_half_precision_is_near_and_ends_in_float32(precision, fused, monkeypatch):
    if not fused:
        monkeypatch.setattr(engine, "fuses", lambda dtype: False)
    model, x = network(backbone="resnet18"), image(2, 65, 41)
    fast = engine.prepare(model, CPU, precision)
    expected = model(x)
    assert 1e-5 < error(fast(x), expected) < (0.05 if precision == "bf16" else 0.01)
    halves = {p.dtype for name, p in fast.named_parameters() if "classify" not in name}
    assert halves == {models.PRECISIONS[precision]}
    # class scores of different pixels are not rounded to the same few numbers
    assert len(fast(x).unique()) > 0.9 * expected.numel()


@torch.no_grad()
def test_the_model_is_left_as_it_was():
    """A bit of a weight, a mode, a layout or a drawn number would change the training that goes on with it."""
    model = network(backbone="resnet18").train()
    model.head.rcca.attention.register_forward_hook(lambda *_: None)
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    random = torch.get_rng_state()
    fast = engine.prepare(model, CPU)
    x = image(1, 33, 33)
    first = fast(x)
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model.modules()] == modes
    assert len(model.head.rcca.attention._forward_hooks) == 1
    after = model.state_dict()
    assert list(after) == list(before)
    for key, tensor in before.items():
        assert torch.equal(after[key], tensor) and after[key].stride() == tensor.stride()
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in fast.parameters()}
    assert not shared
    # nor does the engine follow the model
    for parameter in model.parameters():
        parameter.zero_()
    assert torch.equal(fast(x), first)
    assert not any(module.training for module in fast.modules())
    assert not {id(module) for module in model.modules()} & {id(module) for module in fast.modules()}


@torch.no_grad()
def test_the_auxiliary_head_and_what_needs_gradients_stay_out():
    model = network(backbone="tiny", width=16)
    fast = engine.prepare(model, CPU)
    assert not any(parameter.requires_grad for parameter in fast.parameters())
    with torch.enable_grad():
        assert not fast(image(1, 24, 24).requires_grad_()).requires_grad
    # of the backbone, the head, and the projections
    biases = 8 + 16 + 32 + 32 + 3 * 16 + 5 + 2 + 2 + 16
    weights = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 4 and "auxiliary" not in name)
    assert sum(p.numel() for p in fast.parameters()) == weights + biases


@torch.no_grad()
def test_a_fused_operator_runs_where_it_can(monkeypatch):
    """The plain path would be right too, and slower."""
    assert engine.fuses(torch.float32)
    monkeypatch.setattr(engine.F, "conv2d", None)
    engine.prepare(network(backbone="resnet18"), CPU)(image(1, 24, 24))
    engine.prepare(network(backbone="resnet18"), CPU, "bf16")(image(1, 24, 24))


def test_operators_that_are_missing_or_refuse_are_not_used(monkeypatch):
    class Refuses:
        def __getattr__(self, name):
            raise self.error

    for error in (AttributeError("no such operator"), RuntimeError("unsupported")):
        refuses = Refuses()
        refuses.error = error
        with monkeypatch.context() as patch:
            patch.setattr(torch.ops, "mkldnn", refuses)
            assert not engine.fuses.__wrapped__(torch.float32)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not engine.fuses.__wrapped__(torch.float32)


def test_an_activation_that_the_engine_does_not_know_is_refused():
    model = network(backbone="tiny", width=16)
    model.head.convb[2] = nn.GELU()
    with pytest.raises(TypeError, match="GELU"):
        engine.prepare(model, CPU)


class Plain(nn.Module):
    """A part of another network, without fold; a head so wrapped takes all maps."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part
        self.channels, self.stride = getattr(part, "channels", None), 8

    def forward(self, x: Any) -> Any:
        return self.part(x)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("wrapped", [("backbone",), ("head",), ("backbone", "head")])
@torch.no_grad()
def test_a_part_that_cannot_fold_itself_runs_as_it_is(wrapped, dtype):
    model, x = network(backbone="resnet18"), image(2, 65, 41)
    expected = model(x)
    for name in wrapped:
        setattr(model, name, Plain(getattr(model, name)))
    scores = engine.prepare(model, CPU, dtype)(x)
    assert scores.dtype == torch.float32
    assert error(scores, expected) < (2e-5 if dtype == "fp32" else 0.1)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_auto_takes_bfloat16_where_the_device_has_it(kind, native, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native, "amx_bf16": False})
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation)
    told = []
    assert models.precision("auto", torch.device(kind), told.append) == ("bf16" if native else "fp32")
    assert len(told) == 1 and ("bf16" if native else "fp32") in told[0]
    assert [models.precision(name, CPU, told.append) for name in models.PRECISIONS] == list(models.PRECISIONS)
    assert len(told) == 1
    with pytest.raises(InputError, match="fp8"):
        models.precision("fp8", CPU)


def test_compilation_is_for_cuda_and_many_images(monkeypatch):
    cuda = torch.device("cuda")
    monkeypatch.setattr(engine, "find_spec", lambda name: object())
    monkeypatch.setattr(engine.shutil, "which", lambda name: f"/usr/bin/{name}")
    for images, choice in itertools.product((1, engine.MIN_IMAGES_TO_COMPILE), engine.COMPILE):
        assert engine.compiles(choice, cuda, images) == (choice == "on" or (choice == "auto" and images > 1))
        if choice != "on":
            assert not engine.compiles(choice, CPU, images)
    with pytest.raises(InputError, match="on the CPU"):
        engine.compiles("on", CPU, 1)
    with pytest.raises(InputError, match="yes"):
        engine.compiles("yes", cuda, 1)
    monkeypatch.setattr(engine.shutil, "which", lambda name: None)
    assert not engine.compiles("auto", cuda, 10000)
    with pytest.raises(InputError, match="C compiler"):
        engine.compiles("on", cuda, 1)
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    assert not engine.compiles("auto", cuda, 10000)
    with pytest.raises(InputError, match="Triton"):
        engine.compiles("on", cuda, 1)


def test_what_is_compiled_is_the_engine(monkeypatch):
    """Nothing is compiled here."""
    compiled = []
    monkeypatch.setattr(torch, "compile", compiled.append)
    engine.prepare(network(backbone="tiny", width=16), CPU, compiled=True)
    engine.prepare(network(backbone="tiny", width=16), CPU)
    assert [type(module) for module in compiled] == [engine.Engine]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@torch.no_grad()
def test_a_gpu_answers_as_the_cpu_does(precision):
    model, x = network(backbone="resnet18"), image(2, 65, 41)
    fast = engine.prepare(model, torch.device("cuda"), precision)
    assert error(fast(x.cuda()).cpu(), model(x)) < (1e-2 if precision == "fp32" else 0.05)


def test_few_images_do_without_the_kernels_that_take_time_to_start():
    for implementation, few in (("auto", "gemm"), ("reference", "reference")):
        model = network(backbone="tiny", width=16, implementation=implementation)
        least = engine.MIN_IMAGES_FOR_KERNELS
        assert engine.prepare(model, CPU, images=least - 1).head.rcca.implementation == few
        assert engine.prepare(model, CPU, images=least).head.rcca.implementation == implementation
        assert model.head.rcca.attention.implementation == implementation
    engine.prepare(network(backbone="tiny", width=16, recurrence=0), CPU, images=1)
