"""Attention over clips against all pairs of positions, of which those on a common cross count."""

import pytest
import torch

from ccnet_cli import config
from ccnet_cli.inference import engine
from ccnet_cli.models import clips
from ccnet_cli.models.attention import CrissCrossAttention
from ccnet_cli.models.clips import RecurrentClips
from ccnet_cli.models.heads.rcca3d import build, first
from ccnet_cli.models.heads.settings import RCCA3D as Settings
from ccnet_cli.models.network import build as build_network

SIZES = [(1, 1, 1), (1, 4, 5), (3, 1, 5), (2, 3, 4), (5, 4, 3)]


def drawn(recurrence):
    torch.manual_seed(0)
    rcca = RecurrentClips(CrissCrossAttention(6, 3), recurrence).double()
    with torch.no_grad():
        for parameter in rcca.parameters():
            parameter.normal_()
    return rcca


def by_pairs(attention, x):
    """One pass as a dense attention whose mask says which positions share two of their three coordinates."""
    size = x.shape[2:]
    flat = x.flatten(2)[..., None]
    query, key, value = (
        conv(flat)[..., 0] for conv in (attention.query_conv, attention.key_conv, attention.value_conv)
    )
    places = torch.cartesian_prod(*(torch.arange(side) for side in size)).view(-1, 3)
    seen = (places[:, None] == places[None]).sum(2) >= 2
    assert seen.sum(1).unique().tolist() == [sum(size) - 2]
    weights = (query.transpose(1, 2) @ key).masked_fill(~seen, float("-inf")).softmax(2)
    return attention.gamma * (value @ weights.transpose(1, 2)).view(x.shape) + x


@pytest.mark.parametrize("recurrence", [1, 2, 3])
@pytest.mark.parametrize("size", SIZES)
def test_passes_equal_all_pairs_with_their_gradients(size, recurrence):
    rcca = drawn(recurrence)
    x = torch.randn(2, 6, *size, dtype=torch.double, requires_grad=True)
    expected = x
    for _ in range(recurrence):
        expected = by_pairs(rcca.attention, expected)
    frame = size[0] - 1
    seen, maps = rcca.attend(x)
    for got in (rcca(x), seen):
        assert (got - expected).abs().max() <= 1e-12 * expected.abs().max()
    own = rcca.at(x, frame)
    assert (own - expected[:, :, frame]).abs().max() <= 1e-12 * expected.abs().max()
    assert len(maps) == recurrence
    assert (maps[-1].sum(1) - 1).abs().max() <= 1e-12
    factor = torch.randn_like(own)
    inputs = (x, *rcca.parameters())
    for mine, theirs in zip(
        torch.autograd.grad((own * factor).sum(), inputs),
        torch.autograd.grad((expected[:, :, frame] * factor).sum(), inputs),
        strict=True,
    ):
        assert (mine - theirs).abs().max() <= 1e-10 * max(1.0, float(theirs.abs().max()))


def test_three_passes_reach_every_position_and_two_do_not():
    for recurrence, whole in ((3, True), (2, False)):
        rcca = drawn(recurrence)
        x = torch.randn(1, 6, 2, 3, 4, dtype=torch.double, requires_grad=True)
        rcca.at(x, 1)[0, :, 2, 3].sum().backward()
        assert bool((x.grad.abs().amax(dim=1) > 0).all()) is whole


def make_head(**settings):
    own = Settings(kind="rcca3d", channels=8, query_channels=4, **settings)
    torch.manual_seed(0)
    head = build(own, (12, 10), 3, first(own)).eval()
    with torch.no_grad():
        head.rcca.attention.gamma.fill_(0.7)
    return head


@torch.no_grad()
def test_scores_are_those_of_the_labelled_frame():
    head = make_head()
    maps = [torch.randn(2, 4, 10, 5, 6)]
    every = head.score_frames(maps)
    assert every.shape == (2, 4, 3, 5, 6)
    for frame in range(4):
        head.labelled = frame
        assert (head(maps) - every[:, frame]).abs().max() <= 1e-5
        assert (head.attend(maps)[0] - every[:, frame]).abs().max() <= 1e-5


def clip_network(*overrides):
    size = ("model.backbone.width=8", "model.head.channels=8", "model.head.query_channels=4")
    preset = config.load("toyclips-t5", [*size, *overrides])
    torch.manual_seed(0)
    network = build_network(preset.model, 3).eval()
    network.labelled = preset.data.labelled
    with torch.no_grad():
        network.head.rcca.attention.gamma.fill_(0.7)
    return network


@torch.no_grad()
@pytest.mark.parametrize("overrides", [(), ("data.clip.labelled=1",), ("model.head.recurrence=1",)])
def test_the_engine_answers_as_the_network_does(overrides):
    network = clip_network(*overrides)
    clip = 50 * torch.randn(2, 5, 3, 33, 41)
    wanted = network(clip)
    got = engine.prepare(network, torch.device("cpu"))(clip)
    assert wanted.shape == (2, 3, 5, 6)
    assert (got - wanted).abs().max() <= 1e-5 * (wanted.max() - wanted.min())
    # the other frames count
    assert (network(clip.flip(3)) - wanted).abs().max() > 1e-3 * (wanted.max() - wanted.min())


@torch.no_grad()
@pytest.mark.parametrize("limit", [0, clips.MAX_NUMBERS])
@pytest.mark.parametrize("implementation", ["auto", "gemm", "flash"])
def test_every_way_to_pass_over_a_clip_gives_the_same(limit, implementation, monkeypatch):
    network = clip_network("model.head.recurrence=3", f"model.head.implementation={implementation}")
    clip = 50 * torch.randn(2, 4, 3, 33, 41)
    wanted = network(clip)
    monkeypatch.setattr(clips, "MAX_NUMBERS", limit)
    got = engine.prepare(network, torch.device("cpu"))(clip)
    assert (got - wanted).abs().max() <= 1e-5 * (wanted.max() - wanted.min())


@torch.no_grad()
def test_a_clip_of_one_frame_is_an_image_of_the_network_for_images():
    images = clip_network("model.head.kind=rcca", "data.clip=null")
    network = clip_network()
    network.load_state_dict(images.state_dict())
    images.recurrence = network.recurrence
    x = 50 * torch.randn(2, 3, 33, 41)
    for given in (x, x[:, None]):
        assert (network(given) - images(x)).abs().max() <= 1e-5 * images(x).abs().max()


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 1), (3, 5)])
@pytest.mark.parametrize("recurrence", [1, 2, 3])
@pytest.mark.parametrize("limit", [0, clips.MAX_NUMBERS])
def test_folded_passes_equal_the_passes_to_float32_with_energies_far_apart(size, recurrence, limit, monkeypatch):
    """Some columns, rows and frames have weights that are 0 in float32, whose logarithms are infinite."""
    monkeypatch.setattr(clips, "MAX_NUMBERS", limit)
    rcca = drawn(recurrence).float()
    rcca.attention.query_conv.weight.mul_(12)
    folded = rcca.fold(engine.Convolution)
    x = torch.randn(2, 6, 4, *size)
    frames = [folded.encode(each) for each in x.unbind(2)]
    wanted = rcca.double().at(x.double(), 2)
    assert (folded.at(frames, 2) - wanted).abs().max() <= 2e-4 * wanted.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["auto", "gemm"])
@pytest.mark.parametrize("recurrence", [1, 2, 3])
def test_a_frame_stands_for_a_clip_that_repeats_it(recurrence, implementation):
    rcca = drawn(recurrence).float()
    rcca.attention.implementation = implementation
    folded = rcca.fold(engine.Convolution)
    x = torch.randn(2, 6, 3, 5)
    for repeats in (1, 4):
        wanted = rcca.double().at(x.double()[:, :, None].expand(-1, -1, repeats, -1, -1), repeats - 1)
        got = folded.at([folded.encode(x)], 0, repeats)
        assert (got - wanted).abs().max() <= 2e-5 * wanted.abs().max()
        rcca.float()
