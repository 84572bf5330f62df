"""The engine in integers against floats: convolutions to the last rounding, networks within what eight bits allow."""

import copy
import dataclasses
import importlib

import calls
import numpy as np
import pytest
import tiny
import torch
from torch import nn
from torch.nn import functional as F
from variants import variant

from ccnet_cli import cli, config
from ccnet_cli.errors import CCNetError, InputError
from ccnet_cli.inference import calibration, engine, int8
from ccnet_cli.inference.calibration import Example
from ccnet_cli.inference.engine import Convolution
from ccnet_cli.inference.int8 import Floated, Int8Convolution, Levels, Quantised, Ranges
from ccnet_cli.inference.runtime import Runtime
from ccnet_cli.inference.views import upsample
from ccnet_cli.media import images
from ccnet_cli.models.network import build
from ccnet_cli.ops.cpu import integer_convolution as kernels

CPU = torch.device("cpu")
PAPER = config.load("cityscapes-r2").model


def _has_integers():
    try:
        int8.check_support(CPU)
    except CCNetError:
        return False
    return True


pytestmark = pytest.mark.skipif(not _has_integers(), reason="no products of 8-bit integers on this processor")


def folded(inputs, outputs, kernel=3, act=None, widths=None, **geometry):
    torch.manual_seed(inputs + outputs)
    return Convolution(nn.Conv2d(inputs, outputs, kernel, **geometry), act=act, widths=widths)


def rounded(x, levels):
    return ((x / levels.scale).round() + levels.zero).clamp(0, 255).sub(levels.zero) * levels.scale


def direct(conv, inputs, levels, onto=None):
    """In float64, of the numbers that the integers stand for."""
    weight = torch.cat(list(conv.weights), dim=1)
    scale = weight.abs().amax(dim=(1, 2, 3), keepdim=True) / 127
    weight = (weight / scale).round().double() * scale.double()
    x = torch.cat([own.quantise(part).dequantise() for part, own in zip(inputs, levels, strict=True)], dim=1).double()
    out = F.conv2d(x, weight, conv.bias.double(), conv.stride, conv.padding, conv.dilation)
    out = out if onto is None else out + onto
    return out if conv.slope is None else F.leaky_relu(out, conv.slope)


def made(conv, inputs):
    ranges = Ranges([(float(x.min()), float(x.max())) for x in inputs], (0.0, 1.0))
    return Int8Convolution(conv, ranges)


def maps(*channels, size=(9, 12), signed=True):
    torch.manual_seed(sum(channels))
    drawn = [torch.randn(2, width, *size) + 0.4 for width in channels]
    return drawn if signed else [x.relu() for x in drawn]


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("act", [None, nn.ReLU(), nn.LeakyReLU()])
@pytest.mark.parametrize(
    "geometry", [{}, {"padding": 1}, {"padding": 2, "dilation": 2}, {"stride": 2, "padding": 1}], ids=str
)
def test_a_convolution_is_that_of_the_numbers_that_its_integers_stand_for(geometry, act, signed):
    conv, inputs = folded(32, 24, act=act, **geometry), maps(32, signed=signed)
    ours = made(conv, inputs)
    out = ours(*inputs)
    torch.testing.assert_close(out.double(), direct(conv, inputs, ours.levels), rtol=1e-4, atol=1e-5)
    # another size has weights of its own
    small = [x[..., :5, :7] for x in inputs]
    torch.testing.assert_close(ours(*small).double(), direct(conv, small, ours.levels), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("act", [None, nn.ReLU(), nn.LeakyReLU()])
def test_inputs_of_several_ranges_and_a_sum_are_one_convolution(act):
    conv, inputs = folded(48, 16, act=act, widths=[32, 16], padding=1), maps(32, 16)
    inputs[1] *= 20
    ours = made(conv, inputs)
    onto = torch.randn(2, 16, 9, 12).contiguous(memory_format=torch.channels_last)
    expected = direct(conv, inputs, ours.levels, onto.double())
    torch.testing.assert_close(ours(*inputs, onto=onto).double(), expected, rtol=1e-4, atol=1e-4)
    expected = direct(conv, inputs, ours.levels)
    torch.testing.assert_close(ours(*inputs).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("act", [None, nn.ReLU()])
def test_integers_are_handed_on_and_summed_by_their_own_levels(act):
    conv, inputs = folded(32, 16, kernel=1, act=act), maps(32)
    ours, own, after = made(conv, inputs), Levels.of(-3, 5), Levels.of(-2, 6)
    shortcut = torch.randn(2, 16, 9, 12)
    given = own.quantise(shortcut)
    expected = direct(conv, inputs, ours.levels, given.dequantise().double())
    # in float32 first, then in integers
    torch.testing.assert_close(ours(*inputs, onto=given).double(), expected, rtol=1e-4, atol=1e-4)
    ours.out = after
    out = ours(*inputs, onto=own.quantise(shortcut))
    assert isinstance(out, Quantised) and out.levels == after
    error = (out.dequantise() - rounded(expected, after)).abs()
    # a number between two levels may go to either
    assert error.max() < 1.01 * after.scale and (error > 1e-3).double().mean() < 0.01
    torch.testing.assert_close(
        ours(Quantised(ours.levels[0].quantise(inputs[0]).data, ours.levels[0])).data, ours(*inputs).data
    )


filtering = pytest.mark.skipif(not kernels.is_faster([64], 64), reason="no filtering of integers on this processor")


@filtering
@pytest.mark.parametrize("act", [None, nn.ReLU(), nn.LeakyReLU()])
@pytest.mark.parametrize("into", [None, Levels.of(-3, 5)])
def test_a_filtered_convolution_is_nearly_the_direct_one(into, act):
    conv, inputs = folded(160, 64, act=act, widths=[96, 64], padding=2, dilation=2), maps(96, 64)
    ranges = Ranges([(float(x.min()), float(x.max())) for x in inputs], (0.0, 1.0))
    direct, quick = Int8Convolution(conv, ranges), Int8Convolution(conv, dataclasses.replace(ranges, quick=True))
    before = torch.randn(2, 64, 9, 12).contiguous(memory_format=torch.channels_last)
    if into is not None and isinstance(act, nn.LeakyReLU):
        pytest.skip("no layer of this kind is given levels")
    direct.out = quick.out = into
    for onto in (None, before, Levels.of(-4, 3).quantise(before)):
        if isinstance(onto, torch.Tensor) and into is not None:
            continue
        answers = [own(*inputs, onto=copy.deepcopy(onto)) for own in (direct, quick)]
        exact, ours = map(int8.floats, answers)
        assert type(answers[0]) is type(answers[1])
        assert 0 < float((ours - exact).norm() / exact.norm()) < 0.05
    assert not direct.filters and not quick.packed
    # other levels than it was made for
    other = [Levels.of(-9, 9).quantise(x) for x in inputs]
    assert torch.equal(int8.floats(quick(*other)), int8.floats(direct(*other)))


@filtering
def test_a_network_with_much_to_do_filters_integers(monkeypatch, capfd):
    monkeypatch.setattr(engine, "MIN_MACS_FOR_WINOGRAD", 0)
    torch.manual_seed(1)
    model = build(variant(PAPER, backbone="resnet18", stem="7x7", width=64, channels=64, auxiliary=None), 5).eval()
    tiny.stir(model)
    picture = 50 * torch.randn(1, 3, 65, 49)
    exact = engine.prepare(model, CPU)
    ours = calibration.quantise(exact, [Example(picture)], search=False)
    convolutions = [module for module in ours.modules() if isinstance(module, Int8Convolution)]
    assert sum(module.filters is not None for module in convolutions) > len(convolutions) / 2
    scores, expected = ours(picture), exact(picture)
    assert (scores - expected).norm() < 0.15 * expected.norm()
    for module in convolutions:
        module.filters = None
    assert 0 < (ours(picture) - scores).norm() < 0.1 * expected.norm()


def test_levels_hold_a_range_and_zero_exactly():
    for low, high in ((0.0, 4.0), (-1.0, 3.0), (-7.0, -2.0), (1.0, 2.0), (0.0, 0.0)):
        levels = Levels.of(low, high)
        x = torch.tensor([min(low, 0.0), 0.0, max(high, 0.0)]).view(1, 3, 1, 1)
        assert (levels.quantise(x).dequantise() - x).abs().max() <= levels.scale / 2 + 1e-6
        assert levels.quantise(torch.zeros(1, 3, 2, 2)).dequantise().abs().max() == 0
    beyond = Levels.of(0.0, 1.0).quantise(torch.full((1, 1, 1, 1), 9.0))
    assert beyond.dequantise().item() == 1


def networks():
    small = {"width": 16, "channels": 32, "query_channels": 8, "auxiliary": None}
    yield "rcca", variant(PAPER, backbone="resnet50", **small)
    yield "basic blocks", variant(PAPER, backbone="resnet18", stem="7x7", **small | {"width": 32})
    yield "tiny", variant(PAPER, backbone="tiny", **small)
    for head in ("fcn", "psp", "danet", "upernet", "rcca3d"):
        yield head, config.load("toyscapes-r2", [f"model.head={{kind: {head}, channels: 32}}"]).model


@pytest.mark.parametrize("name", [name for name, _ in networks()])
def test_a_network_in_integers_answers_nearly_the_same(name, capfd):
    torch.manual_seed(1)
    model = build(dict(networks())[name], 5).eval()
    tiny.stir(model)
    pictures = [50 * torch.randn(1, 3, 65, 49), 50 * torch.randn(1, 3, 49, 65)]
    examples = [Example(picture) for picture in pictures]
    exact = engine.prepare(model, CPU)
    ours = calibration.quantise(copy.deepcopy(exact), examples, search=False)
    err = capfd.readouterr().err
    assert "calibrated on 2 images" in err
    integers = [module for module in ours.modules() if isinstance(module, Int8Convolution)]
    convolutions = exact.convolutions
    assert len(integers) >= len(convolutions) / 2
    # the first convolution stays what it was
    assert isinstance(next(iter(ours.modules())), engine.Engine)
    other = calibration.quantise(copy.deepcopy(exact), examples, search=False)
    for picture in pictures:
        scores, expected = ours(picture), exact(picture)
        assert scores.dtype == torch.float32
        assert (scores - expected).norm() < 0.15 * expected.norm()
        assert not torch.equal(scores, expected)
        assert torch.equal(scores, other(picture))


def test_what_integers_would_spoil_stays_in_float32(monkeypatch):
    model = build(dict(networks())["rcca"], 5).eval()
    tiny.stir(model)
    picture = 50 * torch.randn(1, 3, 49, 49)
    exact = engine.prepare(model, CPU)
    monkeypatch.setattr(calibration, "MAX_ERROR", -1.0)
    ours = calibration.quantise(copy.deepcopy(exact), [Example(picture)], search=False)
    assert not any(isinstance(module, Int8Convolution) for module in ours.modules())
    torch.testing.assert_close(ours(picture), exact(picture))
    # some blocks of the backbone alone: maps change between integers and floats
    monkeypatch.undo()
    suits = calibration._is_eligible
    monkeypatch.setattr(calibration, "_is_eligible", lambda own, conv: suits(own, conv) and conv.widths != [32])
    mixed = calibration.quantise(copy.deepcopy(exact), [Example(picture)], search=False)
    count = sum(isinstance(module, Int8Convolution) for module in mixed.modules())
    assert len(exact.convolutions) / 2 < count < len(exact.convolutions) - 10
    assert (mixed(picture) - exact(picture)).norm() < 0.1 * exact(picture).norm()


def spoil(engine, name):
    """Make one channel of a map far larger than all others, in a way that changes nothing in floats."""
    block = engine.get_submodule(name)
    first, second = [*block.first, block.last][:2]
    first.weights[0].data[0] *= 3e4
    first.bias.data[0] *= 3e4
    second.weights[0].data[:, 0] /= 3e4


@pytest.mark.parametrize("labelled", [False, True])
def test_a_layer_that_costs_too_much_is_found_and_stays_in_float32(labelled, monkeypatch, capfd):
    torch.manual_seed(1)
    model = build(dict(networks())["basic blocks"], 5).eval()
    tiny.stir(model)
    pictures = [50 * torch.randn(1, 3, 65, 49), 50 * torch.randn(1, 3, 49, 65)]
    exact = engine.prepare(model, CPU)
    truth = [upsample(exact(picture)[0], picture.shape[2:], model.align_corners).predict() for picture in pictures]
    examples = [Example(x, label if labelled else None) for x, label in zip(pictures, truth, strict=True)]
    spoil(exact, "backbone.trunk.4")
    expected = [exact(picture) for picture in pictures]
    # random weights give close scores: more changes than among those of a trained network
    monkeypatch.setattr(calibration, "MAX_CHANGED", 0.1)
    monkeypatch.setattr(calibration, "MAX_IOU_LOSS", 0.2)
    monkeypatch.setattr(calibration, "MAX_ERROR", 1e9)
    spoilt = calibration.quantise(copy.deepcopy(exact), examples, search=False)
    capfd.readouterr()
    ours = calibration.quantise(copy.deepcopy(exact), examples)
    err = capfd.readouterr().err
    assert err.count("backbone.") == 1 and "in fp32 stay backbone.trunk.4" in err
    assert ("mIoU" in err) == labelled
    assert isinstance(ours.get_submodule("backbone.trunk.4"), Floated)
    for module, limit in ((ours, 0.15), (spoilt, None)):
        error = max(float((module(x) - y).norm() / y.norm()) for x, y in zip(pictures, expected, strict=True))
        assert error < limit if limit else error > 0.15


def test_outliers_do_not_stretch_the_range():
    x = torch.rand(1, 16, 256, 256)
    x[0, 0, 0, :3] = 1000
    low, high = calibration.measure_range(x)
    assert 0 <= low < 0.01 and 0.99 < high < 1.01


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.save_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make_camvid(tmp_path_factory.mktemp("data"), [(40, 56)] * 5)


def masks(folder):
    return {path.name: images.read_label(path) for path in sorted(folder.iterdir())}


def test_predict_and_eval_compute_in_integers(checkpoint, data, tmp_path, capfd):
    words = ("--checkpoint", checkpoint, "--precision", "int8", "--format", "train-id")
    for name, more in (("one", ()), ("two", ("--processes", 2)), ("named", ("--calibrate", data / "val"))):
        arguments = ("predict", data / "val", "-o", tmp_path / name, *words, *more)
        run(*arguments)
    assert "int8: " in capfd.readouterr().err
    one = masks(tmp_path / "one")
    assert len(one) == 5
    for other in ("two", "named"):
        assert all(np.array_equal(mask, masks(tmp_path / other)[name]) for name, mask in one.items())
    result = calls.evaluate(checkpoint, data, precision="int8")
    plain = calls.evaluate(checkpoint, data)
    assert result.settings["precision"] == "int8"
    assert abs(result.pixel_accuracy - plain.pixel_accuracy) < 0.1


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(list(map(str, arguments)))
    assert not stop.value.code


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--calibrate", "photos"), "option --calibrate: precision fp32 measures no ranges; leave it out"),
        (("--precision", "int8", "--calibrate", "nowhere"), "nowhere: does not exist"),
        (("--precision", "int8", "--compile", "on"), "option --compile on"),
        (("--precision", "int8", "--calibrate", "bad.png"), "precision int8: no image to measure the ranges on"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options, words, checkpoint, data, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(SystemExit) as stop:
        cli.main(["predict", str(data / "val"), "-o", "masks", "--checkpoint", str(checkpoint), *options])
    assert stop.value.code == 2
    assert words in capfd.readouterr().err


def test_integers_are_for_the_cpu():
    with pytest.raises(InputError, match="is for the CPU"):
        int8.check_support(torch.device("cuda"))
    assert Runtime("cpu", "fp32").calibrate([tiny.__file__]).calibration == ()


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("size", [(9, 12), (1, 1), (2, 3), (10, 7)])
def test_pooled_integers_are_those_of_the_pooled_numbers(size, ceil):
    pool, levels = nn.MaxPool2d(3, 2, 1, ceil_mode=ceil), Levels.of(-2, 3)
    x = torch.randn(2, 16, *size).contiguous(memory_format=torch.channels_last)
    assert int8.Pool.takes(pool) and not int8.Pool.takes(nn.MaxPool2d(2)) and not int8.Pool.takes(nn.AvgPool2d(3, 2, 1))
    ours = int8.Pool(pool)(levels.quantise(x))
    assert ours.levels == levels and torch.equal(ours.data, levels.quantise(pool(x)).data)
    torch.testing.assert_close(int8.Pool(pool)(x), pool(x))


@filtering
@pytest.mark.parametrize("shape", [(2, 32, 70, 33), (1, 32, 1, 1), (1, 17, 5, 3)])
def test_numbers_are_rounded_to_the_same_integers_by_the_kernels(shape):
    x = 3 * torch.randn(shape).contiguous(memory_format=torch.channels_last)
    x.flatten()[:3] = torch.tensor([1e30, -1e30, 0.0])
    levels = Levels.of(-1, 3)
    expected = (x.double() / levels.scale + levels.zero + 0.5).clamp(0, 255).to(torch.uint8)
    integers = importlib.import_module("ccnet_cli.ops.cpu.integers")
    rounded = kernels.quantise(x, 1 / levels.scale, levels.zero + 0.5)
    assert integers and (rounded is None) == (x.numel() % 32 > 0)
    ours = levels.quantise(x).data
    assert ours.is_contiguous(memory_format=torch.channels_last)
    # a number between two integers may go to either
    assert (ours.int() - expected.int()).abs().max() <= 1 and (ours != expected).double().mean() < 0.01
