"""A network of clips through what a user does: training in every way, resumption, scoring, videos, figures."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from calls import evaluate, predict
from runs import kill_three_times, outcome, start, steps, train, wait_until

from ccnet_cli import config
from ccnet_cli.commands.explore import ExploreRequest, explore
from ccnet_cli.commands.export import export
from ccnet_cli.commands.visualize import VisualizeRequest, visualize
from ccnet_cli.datasets import toyclips
from ccnet_cli.errors import InputError
from ccnet_cli.media import images, video
from ccnet_cli.media.images import read_image

SMALL = (
    *("model.backbone.width=8", "model.head.channels=8", "model.head.query_channels=4", "data.workers=0"),
    *("train.batch=4", "schedule.warmup=0", "checkpoint.every=2", "log.every=1", "eval.every=0"),
    *("model.auxiliary={kind: fcn, channels: 4}", "loss.auxiliary.kind=cross_entropy"),
    *("loss.auxiliary.output=auxiliary", "loss.category_consistent={}", "data.clip.frames=3"),
)


EVERY_TERM = ("loss.cross_entropy={label_smoothing: 0.1}", "loss.lovasz={}", "loss.dice={}", "loss.focal={}")
RICH = (*EVERY_TERM, "train.ema=0.9", "train.micro_batch=2", "train.precision=bf16", "data.photometric=true")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return toyclips.make(tmp_path_factory.mktemp("clips") / "data", train=6, val=3)


def preset(data, steps, *more):
    return config.load("toyclips-t5", [f"data.root={data}", *SMALL, f"schedule.steps={steps}", *more])


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    train(preset(data, 3), folder)
    return folder


def losses_of(run):
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def test_a_run_goes_on_bit_for_bit_with_every_term_ema_accumulation_and_bf16(data, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(preset(data, 4, *RICH), whole)
    shutil.copytree(whole, parts)
    for path in (parts / "checkpoints").glob("step_00000004.*"):
        path.unlink()
    train(preset(data, 4, *RICH), parts, resume="auto")
    assert not np.array_equal(losses_of(parts)[2], losses_of(parts)[3])
    assert losses_of(parts) == losses_of(whole)
    assert all(np.isfinite(losses_of(whole)))


@pytest.mark.slow
def test_two_processes_that_are_killed_go_on_bit_for_bit(data, tmp_path):
    settings = (f"data.root={data}", *SMALL, *RICH, "schedule.steps=8", "checkpoint.every=1")

    def words(run):
        options = [word for setting in settings for word in ("-s", setting)]
        return ["train", "--preset", "toyclips-t5", "-o", str(run), "--processes", "2", *options]

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    with start(words(whole)) as process:
        assert process.wait(300) == 0, process.communicate()[1]
    with start(words(parts)) as process:
        wait_until(lambda: steps(parts)[:1] >= [3], process)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
    assert 3 <= (at := steps(parts)[0]) < 8
    with start([*words(parts), "--resume"]) as process:
        assert process.wait(300) == 0, process.communicate()[1]
    assert outcome(parts, after=at) == outcome(whole, after=at)


@pytest.fixture(scope="module")
def disturbed(data):
    """Rows of the log and checkpoints fall on different steps."""
    return preset(data, 24, *RICH, "checkpoint.every=5", "log.every=3", "eval.every=12", "data.workers=1")


@pytest.fixture(scope="module")
def undisturbed(disturbed, tmp_path_factory, forked_workers):
    return outcome(train(disturbed, tmp_path_factory.mktemp("undisturbed") / "run", processes=2, device="cpu"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_three_kills_of_two_processes_change_nothing(disturbed, tmp_path, undisturbed, seed):
    assert kill_three_times(disturbed, tmp_path / "run", seed) == undisturbed


def test_the_other_frames_count_in_a_score(run, tmp_path):
    content = torch.load(run / "checkpoints/step_00000003.pt", weights_only=False)
    content["model"]["head.rcca.attention.gamma"].fill_(2)
    content["model"]["head.bottleneck.4.bias"].zero_()
    torch.save(content, tmp_path / "stirred.pt")
    for word in ("false", "true"):
        overrides = (f"data.clip.shuffle={word}",)
        assert evaluate(tmp_path / "stirred.pt", overrides=overrides, save=tmp_path / word).images == 3
    names = [path.relative_to(tmp_path / "false") for path in (tmp_path / "false").rglob("*.png")]
    assert len(names) == 3
    assert any((tmp_path / "false" / name).read_bytes() != (tmp_path / "true" / name).read_bytes() for name in names)
    views = ("eval.mode=sliding", "eval.tile=64,96", "eval.scales=[0.75, 1.0]", "eval.flip=true", "eval.batch=2")
    assert 0 <= evaluate(run, overrides=views).miou <= 1


def film(path, count=6):
    frames, _, _ = toyclips.clip(np.random.default_rng(0))
    with video.open_writer(path, 10, toyclips.SIZE) as write:
        for index in range(count):
            write(frames[index % 5])
    return path


def test_a_video_is_segmented_and_one_of_a_frame_is_a_picture(run, tmp_path, capfd):
    source = film(tmp_path / "film.mp4")
    predict((source,), tmp_path / "mask.mp4", run)
    assert video.inspect(tmp_path / "mask.mp4").frames == 6
    assert "equal frames" not in capfd.readouterr().err
    still = tmp_path / "still.png"
    images.write_image(still, next(video.frames(source)))
    predict((still,), tmp_path / "still-mask.png", run)
    assert "the network takes clips: an image is seen as 3 equal frames" in capfd.readouterr().err


def test_attention_is_drawn_frame_by_frame(run, data, tmp_path):
    source = film(tmp_path / "film.mp4")
    request = VisualizeRequest(source, ((30, 60), (100, 20)), tmp_path / "a.png", run, maps=tmp_path / "m.npz", frame=3)
    summary = visualize(request).to_mapping()
    assert (summary["frames"], summary["place"], summary["recurrence"]) == (3, 2, 2)
    with np.load(tmp_path / "m.npz") as maps:
        for number, point in ((number, point) for number in (1, 2) for point in range(2)):
            own, shares = maps[f"r{number}"][point], summary["points"][point][f"r{number}"]
            assert own.shape == (3, *summary["grid"]) and own.sum() == pytest.approx(1, abs=1e-9)
            assert shares["frames"] == pytest.approx(own.sum(axis=(1, 2)), abs=1e-12)
            assert shares["on_cross"] + shares["off_cross"] == pytest.approx(1, abs=1e-9)
            x, y = summary["points"][point]["cell"]
            if number == 1:
                assert shares["off_cross"] == pytest.approx(0, abs=1e-12)
                assert np.count_nonzero(own[0]) == np.count_nonzero(own[1]) == 1 and own[0, y, x] > 0
    picture = read_image(tmp_path / "a.png")
    assert picture.shape[0] > 4 * 200 and picture.shape[1] > 3 * 300
    with pytest.raises(InputError, match="has 6 frames"):
        visualize(VisualizeRequest(source, ((3, 4),), tmp_path / "b.png", run, frame=6))
    explore(ExploreRequest((source,), tmp_path / "a.html", checkpoint=run, frame=3))
    assert '"frames": 3' in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_two_networks_of_one_clip_are_compared(run, tmp_path, capsys):
    source, other = film(tmp_path / "film.mp4"), tmp_path / "other.pt"
    content = torch.load(run / "checkpoints/step_00000003.pt", weights_only=False)
    content["model"]["head.rcca.attention.key_conv.weight"].neg_()
    torch.save(content, other)
    request = VisualizeRequest(source, ((30, 60),), tmp_path / "a.png", run, compare=other, maps=tmp_path / "m.npz")
    summary = visualize(request).to_mapping()
    alone = visualize(VisualizeRequest(source, ((30, 60),), tmp_path / "b.png", other)).to_mapping()
    assert summary["compared"]["points"] == alone["points"] != summary["points"]
    assert summary["compared"]["checkpoint"] == str(other)
    with np.load(tmp_path / "m.npz") as maps:
        assert maps["compared_r2"].shape == maps["r2"].shape and not np.array_equal(maps["compared_r2"], maps["r2"])
    # two rows of panels for each model
    assert read_image(tmp_path / "a.png").shape[0] > 1.8 * read_image(tmp_path / "b.png").shape[0]
    for clip, why in (
        ({"frames": 4}, r"takes clips \(4 frames\), that of"),
        ({"frames": 3, "stride": 2}, "another stride"),
    ):
        content["preset"]["data"]["clip"] = clip
        torch.save(content, other)
        with pytest.raises(InputError, match=why):
            visualize(VisualizeRequest(source, ((30, 60),), tmp_path / "c.png", run, compare=other))


def test_the_clip_of_an_image_is_of_the_frames_beside_it(run, data, tmp_path):
    folder = data / "leftImg8bit_sequence/val/hillside"
    last = folder / "hillside_000001_000004_leftImg8bit.png"
    alone = tmp_path / "alone.png"
    images.write_image(alone, read_image(last))
    shares = []
    for image in (last, alone):
        request = VisualizeRequest(image, ((30, 60),), tmp_path / f"of-{image.stem}.png", run)
        (point,) = visualize(request).to_mapping()["points"]
        shares.append(point["r2"]["frames"])
    assert shares[0] != shares[1]


def test_a_network_of_clips_is_handed_on_as_weights_alone(run, tmp_path):
    assert export(run / "checkpoints/step_00000003.pt", tmp_path / "model.pt").is_file()
    with pytest.raises(InputError, match="its head takes clips"):
        export(run / "checkpoints/step_00000003.pt", tmp_path / "model.onnx", "onnx")
