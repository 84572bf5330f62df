"""A video scored frame by frame against every clip scored by itself."""

from pathlib import Path

import pytest
import torch

from ccnet_cli import config
from ccnet_cli.datasets.clips import Clips
from ccnet_cli.datasets.settings import Clip
from ccnet_cli.inference import engine
from ccnet_cli.inference.clips import share_frames
from ccnet_cli.inference.segmenter import Segmenter
from ccnet_cli.inference.views import Views, batch_scores
from ccnet_cli.models.network import build

SIZE = (35, 50)
CLIPS = {
    "the last frame": {"frames": 3},
    "the first": {"frames": 3, "labelled": 0},
    "one between, every second frame": {"frames": 4, "labelled": 1, "stride": 2},
}
VIEWS = {
    "whole": Views(),
    "tiles, scales and flips": Views("sliding", (24, 32), (0.8, 1.0), True, None, 3),
}


def prepared(clip):
    size = ("model.backbone.width=8", "model.head.channels=8", "model.head.query_channels=4")
    torch.manual_seed(0)
    network = build(config.load("toyclips-t5", size).model, 3).eval()
    network.labelled = clip.place
    with torch.no_grad():
        network.head.rcca.attention.gamma.fill_(0.7)
        network.head.bottleneck[-1].weight.mul_(20)
    return engine.prepare(network, torch.device("cpu"))


def by_clips(network, clip, frames, views):
    """Each frame's scores, from its clip with the first and the last frame repeated."""
    for index in range(len(frames)):
        places = [index + (place - clip.place) * clip.stride for place in range(clip.frames)]
        chosen = [frames[min(max(place, 0), len(frames) - 1)] for place in places]
        yield batch_scores(network, torch.stack(chosen, dim=1), views, torch.device("cpu"))[0].dense()


@pytest.mark.parametrize("views", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("options", CLIPS.values(), ids=CLIPS)
@pytest.mark.parametrize("count", [1, 2, 7])
def test_every_frame_has_the_scores_of_its_clip(options, views, count, monkeypatch):
    clip = Clip(**options)
    network = prepared(clip)
    frames = [50 * torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(i)) for i in range(count)]
    wanted = list(by_clips(network, clip, frames, views))
    seen, encode = [], network.encode
    monkeypatch.setattr(network, "encode", lambda x: (seen.append(len(x)), encode(x))[1])
    segmenter = Segmenter(network, views, torch.device("cpu"), clip)
    got = list(segmenter.score_video(enumerate(frames)))
    assert [index for index, _ in got] == list(range(count))
    for (_, scores), expected in zip(got, wanted, strict=True):
        assert (scores.dense() - expected).abs().max() <= 1e-5 * expected.abs().max()
    views_of_a_frame = 1 if views.mode == "whole" else sum(seen) // count
    assert sum(seen) == count * views_of_a_frame
    if count == 7:
        assert (wanted[3] - wanted[4]).abs().max() > 1e-2 * wanted[3].abs().max()


def test_a_picture_is_a_clip_of_equal_frames():
    clip = Clip(frames=4, labelled=2)
    network = prepared(clip)
    image = 50 * torch.randn(1, 3, *SIZE)
    got = Segmenter(network, Views(), torch.device("cpu"), clip).score(image).dense()
    (expected,) = by_clips(network, clip, [image], Views())
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_no_more_frames_are_kept_than_a_clip_reaches_over():
    clip = Clip(frames=3, stride=2)
    network = prepared(clip)
    from ccnet_cli.inference.clips import VideoNetwork

    video = VideoNetwork(network, clip)
    for index in range(12):
        image = torch.full((1, 3, *SIZE), float(index))
        video.score(image, Views(), torch.device("cpu"))
        (kept,) = video.views
        # the deepest map is the largest by far: only the frame to be scored has it
        held = {id(deepest) for deepest, _ in kept if deepest is not None}
        assert len(kept) == 5 and (len(held) == 1 or index < 5)


@torch.no_grad()
def test_short_of_memory_a_frame_is_seen_again_from_its_first_view(monkeypatch):
    clip = Clip(frames=3)
    network = prepared(clip)
    frames = [50 * torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    views = VIEWS["tiles, scales and flips"]
    wanted = list(by_clips(network, clip, frames, views))
    decode, calls = network.decode, []

    def fail_now_and_then(*arguments):
        calls.append(1)
        if len(calls) in (3, 40):
            raise MemoryError
        return decode(*arguments)

    monkeypatch.setattr(network, "decode", fail_now_and_then)
    got = Segmenter(network, views, torch.device("cpu"), clip).score_video(enumerate(frames))
    for (_, scores), expected in zip(got, wanted, strict=True):
        assert (scores.dense() - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert len(calls) > 40


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("options", CLIPS.values(), ids=CLIPS)
def test_clips_that_overlap_compute_each_frame_once_to_the_same_bits(options, batch, monkeypatch):
    """The first clip repeats its first frame, as where frames are missing, and the last one has no neighbour."""
    clip = Clip(**options)
    network = prepared(clip)
    frames = [50 * torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(i)) for i in range(9)]
    steps = [(place - clip.place) * clip.stride for place in range(clip.frames)]
    names = [*(tuple(max(own + step, 0) for step in steps) for own in range(4)), (8,) * clip.frames]
    inputs = [torch.stack([frames[index] for index in each], dim=1) for each in names]
    groups = [torch.cat(inputs[begin : begin + batch]) for begin in range(0, len(inputs), batch)]
    seen, encode = [], network.encode
    monkeypatch.setattr(network, "encode", lambda x: (seen.append(len(x)), encode(x))[1])
    paths = {Path(f"{own}"): tuple(Path(f"{index}") for index in each) for own, each in enumerate(names)}
    clips = Clips(clip.place, paths, stride=clip.stride)
    assert share_frames(network, clips, [Path("0"), Path("4")]) is network
    for views in VIEWS.values():
        sharing = share_frames(network, clips, list(clips.frames))
        for group in groups:
            got = batch_scores(sharing, group, views, torch.device("cpu"))
            wanted = batch_scores(network, group, views, torch.device("cpu"))
            for one, other in zip(got, wanted, strict=True):
                assert torch.equal(one.dense(), other.dense())
        if views.mode == "whole":
            assert sum(seen) == len({index for each in names for index in each})
            assert len(sharing.kept) <= batch * clip.frames and len(sharing.before) <= clip.stride
        seen.clear()
