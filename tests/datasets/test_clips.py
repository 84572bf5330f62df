"""Clips: the built-in ones, the frames around an image in every layout, and one augmentation for all of them."""

import dataclasses

import numpy as np
import pytest
import torch
from bad_inputs import photograph, png
from dataset_files import STREET, picture, put, settings

from ccnet_cli import config
from ccnet_cli.datasets import toyclips
from ccnet_cli.datasets.source import load_frames, load_pair, open_source
from ccnet_cli.datasets.training import Augmentation, TrainingSet, collate, to_device
from ccnet_cli.errors import InputError
from ccnet_cli.media import video

VEHICLES = set(toyclips.CLASSES.values())


def draw(seed, **options):
    return toyclips.clip(np.random.default_rng(seed), **options)


@pytest.mark.parametrize("seed", range(6))
def test_only_lit_signs_of_a_toy_clip_know_the_class(seed):
    clips = {truth: draw(seed, truth=truth) for truth in toyclips.CLASSES}
    first, labels, facts = next(iter(clips.values()))
    signs = np.zeros((5, *labels.shape), bool)
    for vehicle in facts.vehicles:
        for number in range(vehicle.lit):
            x = vehicle.x - facts.speed * (4 - number)
            signs[number, vehicle.y - 11 : vehicle.y + 5, max(x - 20, 0) : max(x + 20, 0)] = True
    assert signs[0].any() and not signs[4].any()
    for truth, (frames, ids, own) in clips.items():
        assert (own.truth, dataclasses.replace(own, truth=facts.truth)) == (truth, facts)
        assert set(np.unique(ids).tolist()) & VEHICLES == {toyclips.CLASSES[truth]}
        assert ((ids == toyclips.CLASSES[truth]) == (labels == toyclips.CLASSES[facts.truth])).all()
        if truth != facts.truth:
            differs = (np.array(frames) != np.array(first)).any(axis=3)
            assert differs[signs].mean() > 0.9 and not differs[~signs].any()


def test_the_traffic_of_a_toy_clip_moves_apart_and_is_seen_whole():
    speeds, lit = set(), set()
    for seed in range(60):
        _, labels, facts = draw(seed)
        speeds.add(facts.speed)
        lit.add(facts.vehicles[1].lit)
        assert facts.vehicles[0].lit == 4
        assert abs(facts.vehicles[0].x - facts.vehicles[1].x) >= 52
        assert all(26 <= vehicle.x < 128 - 24 for vehicle in facts.vehicles)
        assert (labels == toyclips.CLASSES[facts.truth]).sum() > 1800
    assert speeds == set(range(-3, 4)) and lit == {0, 4}


def test_toy_clips_are_written_whole_and_the_same_again(tmp_path):
    one, two = (toyclips.make(tmp_path / name, train=3, val=2) for name in ("one", "two"))
    names = [path.relative_to(one) for path in sorted(one.rglob("*.png"))]
    assert len(names) == 5 * (5 + 2)
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)
    with pytest.raises(InputError, match="is not empty"):
        toyclips.make(one)
    with pytest.raises(InputError, match="too small"):
        toyclips.make(tmp_path / "three", size=(72, 128))


def number_of(frames):
    """Which frame of a made video each is, by its colour."""
    return [int(frame[0, 0, 0]) for frame in frames]


def put_frames(folder, name, numbers):
    for number in numbers:
        put(folder / name.format(number), png(np.full((3, 4, 3), number, np.uint8), colour=2))


def clip_of(data, split="train", index=0):
    source = open_source(data, split)
    sample = source.samples[index]
    image, _ = load_pair(source, sample)
    return number_of(load_frames(source, sample, image))


@pytest.fixture
def sequences(tmp_path):
    """One Cityscapes image, the 20th of 30 frames."""
    name = "ulm/ulm_000003_{:06d}_leftImg8bit.png"
    put_frames(tmp_path / "leftImg8bit/train", name, [19])
    put_frames(tmp_path / "leftImg8bit_sequence/train", name, range(30))
    put(tmp_path / "gtFine/train/ulm/ulm_000003_000019_gtFine_labelIds.png", png(np.full((3, 4), 7)))
    return tmp_path


@pytest.mark.parametrize(
    ("clip", "numbers"),
    [
        ({}, [15, 16, 17, 18, 19]),
        ({"frames": 3, "stride": 4, "labelled": 1}, [15, 19, 23]),
        ({"frames": 3, "stride": 8, "labelled": 0}, [19, 27, 27]),
        ({"frames": 4, "stride": 10}, [9, 9, 9, 19]),
    ],
)
def test_the_frames_of_cityscapes_lie_in_its_sequences(sequences, clip, numbers, capsys):
    assert clip_of(settings(sequences, "cityscapes", clip=clip)) == numbers
    repeats = len(numbers) - len(set(numbers))
    said = capsys.readouterr().err
    assert (f"{repeats} of {len(numbers) - 1} neighbouring frames are missing" in said) is (repeats > 0)


def test_a_list_names_images_of_sequences_too(sequences):
    name = "ulm/ulm_000003_000019"
    line = f"leftImg8bit/train/{name}_leftImg8bit.png gtFine/train/{name}_gtFine_labelIds.png\n"
    put(sequences / "train.lst", line.encode())
    assert clip_of(settings(sequences, "cityscapes", clip={"frames": 2}, train_list="train.lst")) == [18, 19]


def test_the_frames_of_camvid_are_found_by_number(tmp_path):
    put_frames(tmp_path / "train", "0001TP_{:06d}.png", [60])
    put(tmp_path / "trainannot/0001TP_000060.png", png(np.zeros((3, 4), int)))
    put_frames(tmp_path / "all", "0001TP_{:06d}.png", [57, 59, 61])
    data = settings(tmp_path, "camvid", clip={"frames": 5, "labelled": 3, "folder": "all"})
    # frame 58 is missing: 59, on the way to the labelled one, takes its place
    assert clip_of(data) == [57, 59, 59, 60, 61]
    assert open_source(data, "train").clips.missing == 1
    with pytest.raises(InputError, match=r"none of the frames around 0001TP_000060 lies there"):
        open_source(settings(tmp_path, "camvid", clip={}), "train")


def test_frames_of_your_own_lie_beside_the_labelled_ones(tmp_path):
    put_frames(tmp_path / "images/train", "film-{}.png", [8, 9, 10, 11])
    put(tmp_path / "labels/train/film-10.png", png(np.zeros((3, 4), int)))
    put(tmp_path / "train.lst", b"images/train/film-10.png labels/train/film-10.png\n")
    for options in ({}, {"train_list": "train.lst"}):
        data = settings(tmp_path, clip={"frames": 4, "labelled": 2}, **options)
        assert len(open_source(data, "train").samples) == 1
        assert clip_of(data) == [8, 9, 10, 11]
    with pytest.raises(InputError, match="has no label"):
        open_source(settings(tmp_path), "train")


def test_clips_that_begin_before_their_videos_repeat_the_first_frame(tmp_path, capsys):
    """Where frames are missing inside of the video, something is wrong."""
    put_frames(tmp_path / "images/train", "film-{}.png", [10, 11, 12])
    put(tmp_path / "labels/train/film-10.png", png(np.zeros((3, 4), int)))
    put(tmp_path / "train.lst", b"images/train/film-10.png labels/train/film-10.png\n")
    assert clip_of(settings(tmp_path, clip={"frames": 3}, train_list="train.lst")) == [10, 10, 10]
    assert "2 of 2 neighbouring frames are missing" in capsys.readouterr().err
    assert clip_of(settings(tmp_path, clip={"frames": 2, "labelled": 0, "stride": 3}, train_list="train.lst")) == [
        10,
        10,
    ]
    (tmp_path / "images/train/film-11.png").unlink()
    with pytest.raises(InputError, match="none of the frames around film-10 lies there"):
        clip_of(settings(tmp_path, clip={"frames": 2, "labelled": 0}, train_list="train.lst"))


def test_a_video_of_one_frame_is_a_clip_of_equal_frames(tmp_path, monkeypatch):
    monkeypatch.setenv("CCNET_CACHE", str(tmp_path / "cache"))
    (tmp_path / "images/train").mkdir(parents=True)
    with video.open_writer(tmp_path / "images/train/film.mp4", 10, (32, 48)) as write:
        write(np.full((32, 48, 3), 100, np.uint8))
    put(tmp_path / "labels/train/film_0.png", png(np.zeros((32, 48), int)))
    source = open_source(settings(tmp_path, clip={"frames": 3}), "train")
    assert source.clips.missing == 2 and len(set(source.clips.frames[source.samples[0].image])) == 1


@pytest.fixture
def filmed(tmp_path, monkeypatch):
    """A video of 9 grey frames, each 20 brighter than the one before, of which two have labels."""
    monkeypatch.setenv("CCNET_CACHE", str(tmp_path / "cache"))
    (tmp_path / "images/train/day").mkdir(parents=True)
    with video.open_writer(tmp_path / "images/train/day/film.mp4", 10, (32, 48)) as write:
        for number in range(9):
            write(np.full((32, 48, 3), 20 * number, np.uint8))
    for name in ("film_1", "film_0007"):
        put(tmp_path / f"labels/train/day/{name}.png", png(np.zeros((32, 48), int)))
    return tmp_path


def test_labelled_frames_of_a_video_and_their_clips_are_decoded_once(filmed, capsys):
    data = settings(filmed, clip={"frames": 4, "stride": 2, "labelled": 2})
    source = open_source(data, "train")
    assert [sample.name for sample in source.samples] == ["day/film_000001", "day/film_000007"]
    # frames -3, -1 and 9 do not exist: the next one towards the labelled takes their place
    assert source.clips.missing == 3
    for index, numbers in enumerate(([1, 1, 1, 3], [3, 5, 7, 7])):
        assert np.abs(np.array(clip_of(data, index=index)) / 20 - numbers).max() < 0.4
    said = capsys.readouterr().err
    assert "3 of 6 neighbouring frames are missing" in said and said.count("decoding 5 frames of 1 videos") == 1
    # frames beside the video count too, wherever data.clip.folder is
    put_frames(filmed / "images/train", "walk_{}.png", [4, 5])
    put(filmed / "labels/train/walk_5.png", png(np.zeros((3, 4), int)))
    assert clip_of(settings(filmed, clip={"frames": 2}), index=2) == [4, 5]
    apart = settings(filmed, clip={"frames": 2, "folder": "images/train"})
    assert np.abs(np.array(clip_of(apart, index=1)) / 20 - [6, 7]).max() < 0.4


def test_a_label_of_a_frame_that_the_video_does_not_have_is_refused(filmed):
    put(filmed / "labels/train/day/film_9.png", png(np.zeros((32, 48), int)))
    with pytest.raises(
        InputError, match=r"film_9.png: is of frame 9, and .*film.mp4 has 9 frames; count frames from 0"
    ):
        open_source(settings(filmed, clip={}), "train")
    assert not any(path.name.startswith(".") for path in (filmed / "cache").rglob("*"))


def test_two_videos_of_the_same_labels_are_refused(filmed):
    twin = filmed / "images/train/day/film.avi"
    twin.write_bytes((filmed / "images/train/day/film.mp4").read_bytes())
    with pytest.raises(InputError, match=r"film.mp4: label .*film_1.png could be of day/film.avi too; rename"):
        open_source(settings(filmed, clip={}), "train")
    # of a video without labels, whatever its name, no frame is read
    twin.rename(twin.with_name("films.avi"))
    assert len(open_source(settings(filmed, clip={"frames": 2}), "train").samples) == 2


def test_a_frame_of_another_size_and_names_without_number_are_refused(tmp_path):
    put_frames(tmp_path / "images/train", "film-{}.png", [9])
    put(tmp_path / "images/train/film-8.png", png(photograph(5, 5), colour=2))
    for name in ("film-8", "film-9"):
        put(tmp_path / f"labels/train/{name}.png", png(np.zeros((5, 5) if name == "film-8" else (3, 4), int)))
    with pytest.raises(InputError, match=r"film-8.png: is 5 x 5 pixels, the labelled one 4 x 3"):
        clip_of(settings(tmp_path, clip={"frames": 2}), index=1)
    put(tmp_path / "images/train/still.png", png(photograph(3, 4), colour=2))
    put(tmp_path / "labels/train/still.png", png(np.zeros((3, 4), int)))
    with pytest.raises(InputError, match="no number at the end of its name"):
        open_source(settings(tmp_path, clip={"frames": 2}), "train")


def test_images_alone_have_no_clips(tmp_path):
    put(tmp_path / "images/training/a1.jpg", picture(STREET))
    put(tmp_path / "annotations/training/a1.png", png(STREET))
    with pytest.raises(InputError, match=r"data.clip: ade20k has images alone"):
        open_source(settings(tmp_path, "ade20k", clip={}), "train")


def test_shuffled_clips_keep_their_labelled_frame_alone(tmp_path):
    root = toyclips.make(tmp_path / "toys", train=6, val=2)
    own, mixed = (
        open_source(settings(root, "toyclips", clip={"shuffle": shuffle}), "train") for shuffle in (False, True)
    )
    donors = []
    for sample in own.samples:
        frames, others = own.clips.frames[sample.image], mixed.clips.frames[sample.image]
        assert others[-1] == frames[-1] == sample.image
        assert not set(others[:-1]) & set(frames)
        donors.append(others[0])
    assert len(set(donors)) == len(own.samples)


def test_shuffled_clips_are_of_one_size_each(tmp_path):
    """Two videos of 3 x 4 pixels and two of 5 x 4; a third size has no other clip to take frames from."""
    for name, height in (("a", 3), ("b", 5), ("c", 3), ("d", 5)):
        for number in (1, 2):
            put(tmp_path / f"images/train/{name}-{number}.png", png(photograph(height, 4, number), colour=2))
        put(tmp_path / f"labels/train/{name}-2.png", png(np.zeros((height, 4), int)))
    mixed = settings(tmp_path, clip={"frames": 2, "shuffle": True})
    for index, others in enumerate(("c-1", "d-1", "a-1", "b-1")):
        source = open_source(mixed, "train")
        sample = source.samples[index]
        first, last = source.clips.frames[sample.image]
        assert (first.stem, last) == (others, sample.image)
        assert load_frames(source, sample, load_pair(source, sample)[0])[0].shape == ((3, 5)[index % 2], 4, 3)
    for name in ("labels/train/d-2.png", "images/train/d-1.png", "images/train/d-2.png"):
        (tmp_path / name).unlink()
    with pytest.raises(InputError, match=r"shuffle: no other image has the size of .*b-2.png"):
        open_source(mixed, "train")


def test_a_clip_gets_one_augmentation(tmp_path):
    """Frames that are equal stay equal, as an image in their place would be."""
    image = photograph(20, 30, 1)
    for number in range(3):
        put(tmp_path / f"images/train/film-{number}.png", png(image, colour=2))
        put(tmp_path / f"labels/train/film-{number}.png", png(image[:, :, 0] // 86))
    recipe = Augmentation((16, 18), photometric=True, category_ratio=0.8)
    images, clips = (
        TrainingSet(open_source(settings(tmp_path, clip=clip), "train"), recipe, "rgb", seed=5)
        for clip in (None, {"frames": 3})
    )
    for epoch in range(8):
        alone, whole = images[epoch, 2], clips[epoch, 2]
        assert whole.image.shape == (3, 16, 18, 3) and whole.extent == alone.extent
        assert all(np.array_equal(frame, alone.image) for frame in whole.image)
        assert np.array_equal(whole.label, alone.label)
        device, channels = torch.device("cpu"), ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
        ((clip, _, _),) = to_device([collate([whole, whole])], *channels, device)
        ((one, _, _),) = to_device([collate([alone])], *channels, device)
        assert clip.shape == (2, 3, 3, 16, 18)
        assert torch.equal(clip, one[:, None].expand_as(clip))


def test_keys_of_clips_are_checked():
    preset = config.load("toyclips-t5", ["data.clip.labelled=2", "data.clip.stride=3"])
    assert (preset.data.clip.place, preset.data.clip.stride, preset.data.frames) == (2, 3, 5)
    assert config.load("toyclips-t5", ["data.clip=null"]).data.frames == 1
    assert config.load("quickstart", ["model.head.kind=rcca3d", "data.clip.frames=3"]).data.frames == 3
    for words, why in (
        (["data.clip.labelled=5"], "no place in a clip of 5 frames"),
        (["data.clip.frames=0"], "data.clip.frames"),
        (["data.clip.frame=3"], "data.clip.frame"),
        (["model.head.kind=rcca"], "model.head.kind rcca takes 1: use rcca3d"),
        (["model.head.recurrence=0"], "model.head.recurrence"),
    ):
        with pytest.raises(InputError, match=why):
            config.load("toyclips-t5", words)
