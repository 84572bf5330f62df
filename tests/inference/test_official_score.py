"""The score against Cityscapes' own scorer, cityscapesscripts: of random maps, and of the folders that eval writes."""

import copy
import json
from pathlib import Path

import bad_inputs
import numpy as np
import pytest
import tiny
import torch
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as scorer

from ccnet_cli import cli
from ccnet_cli.datasets import Data, cityscapes
from ccnet_cli.datasets.source import load_label, open_source
from ccnet_cli.inference.metrics import Confusion

SIZES = [(40, 56), (56, 41), (17, 23), (1, 37), (33, 1), (1, 1), (9, 64)]
LABEL_IDS = np.array([7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33], np.uint8)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return tiny.save_cityscapes_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def official(results, truth):
    """Class IoU, nan where there is none, and mean IoU of a results folder, every prediction found by the scorer."""
    args = copy.copy(scorer.args)
    args.predictionPath, args.predictionWalk, args.evalLabels = str(results), None, []
    args.evalInstLevelScore, args.JSONOutput, args.quiet = False, False, True
    labels = sorted(str(path) for path in truth.rglob("*_labelIds.png"))
    found = scorer.evaluateImgLists([scorer.getPrediction(args, path) for path in labels], labels, args)
    ious = [found["classScores"][name] for name in cityscapes.CLASSES.names]
    return np.array(ious, float), found["averageScoreClasses"]


def evaluated(*words):
    """What `ccnet eval` leaves as JSON, in the form that official gives."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(["eval", *map(str, words), "--json", "figures.json", "--device", "cpu"])
    assert stopped.value.code == 0
    return json.loads(Path("figures.json").read_text())


def same(figures, results, truth):
    ious, mean = official(results, truth)
    np.testing.assert_allclose(np.array(list(figures["classes"].values()), float), ious, rtol=0, atol=1e-12)
    assert figures["miou"] == pytest.approx(mean, rel=0, abs=1e-12)
    return ious


@pytest.mark.parametrize("seed", range(3))
def test_random_maps_are_scored_alike(seed, tmp_path):
    tiny.make_cityscapes(tmp_path, SIZES, "val", tmp_path)
    source = open_source(Data(dataset="cityscapes", root=str(tmp_path), crop=(8, 8)), "val")
    random = np.random.default_rng(seed)
    confusion = Confusion(19)
    for sample in source.samples:
        truth = load_label(source, sample)
        # right half of the time, no answer of the last three classes
        answer = np.where((truth < 19) & (random.random(truth.shape) < 0.5), truth, random.integers(0, 16, truth.shape))
        confusion.update(torch.from_numpy(answer), torch.from_numpy(truth))
        tiny.write(tmp_path / "results" / f"{sample.name}.png", LABEL_IDS[answer])
    ious, mean = official(tmp_path / "results", tmp_path / "gtFine")
    np.testing.assert_allclose(confusion.iou().numpy(), ious, rtol=0, atol=1e-12)
    assert confusion.miou() == pytest.approx(mean, rel=0, abs=1e-12)
    assert np.isnan(ious[16:]).all()
    assert (ious[[0, 2, 13]] > 0.3).all()
    assert (ious[[1, *range(3, 13), 14, 15]] == 0).all()


@pytest.mark.parametrize("by", ["folders", "list", "several formats"])
def test_the_folder_that_eval_writes_is_scored_alike_as_it_is(by, saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = tiny.make_cityscapes(tmp_path / "data", SIZES, "val", tmp_path / "data")
    words, results = ["--format", "label-id"], tmp_path / "out"
    if by == "list":
        pairs = zip(*(sorted(data.glob(f"{folder}/*/*/*")) for folder in ("leftImg8bit", "gtFine")), strict=True)
        lines = [f"{image.relative_to(data)}\t{label.relative_to(data)}\n" for image, label in pairs]
        Path("mine.lst").write_text("".join(lines))
        words += ["--list", "mine.lst"]
    elif by == "several formats":
        words, results = [*words, "--format", "color"], results / "label-id"
    figures = evaluated(saved, "--data", data, "--save", "out", *words)
    ious = same(figures, results, data / "gtFine")
    # of every kind: a class hit, one that is answered but not there, one that is neither
    assert (ious > 0.01).any()
    assert (ious == 0).any()
    assert np.isnan(ious).any()
    assert (figures["images"], figures["settings"]["list"]) == (len(SIZES), "mine.lst" if by == "list" else None)
    maps = sorted(results.rglob("*.png"))
    assert len(maps) == len(SIZES)
    for path in maps:
        header, _, ids = bad_inputs.read_png(path.read_bytes())
        # eight bits, grey
        assert header[8:10] == b"\x08\x00"
        assert np.isin(ids, LABEL_IDS).all()


@pytest.mark.parametrize("by", ["folders", "list"])
def test_a_test_set_without_labels_is_written_for_the_scorer(by, saved, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    data = tiny.make_cityscapes(tmp_path / "data", SIZES, "test", tmp_path / "hidden")
    words, listing = [], None
    if by == "list":
        listing = str(data / "test.lst")
        images = sorted(path.relative_to(data) for path in data.rglob("*.png"))
        (data / "test.lst").write_text("".join(f"{path}\n" for path in images))
        words = ["-s", "data.test_list=test.lst"]
    figures = evaluated(saved, "--data", data, "--split", "test", "--save", "out", "--format", "label-id", *words)
    assert {figures[key] for key in ("miou", "pixel_accuracy", "mean_accuracy")} == {None}
    assert set(figures["classes"].values()) == {None}
    assert (figures["images"], figures["pixels"], figures["settings"]["list"]) == (len(SIZES), 0, listing)
    told = capfd.readouterr()
    assert told.err == "ccnet: split test has no labels: its images are segmented into out, not scored\n"
    assert told.out == f"{len(SIZES)} images, {saved}: not scored\n"
    # what the scorer says who has the labels is what eval says once it has them too
    with_labels = tiny.make_cityscapes(tmp_path / "other", SIZES, "test", tmp_path / "other")
    same(evaluated(saved, "--data", with_labels, "--split", "test"), tmp_path / "out", tmp_path / "hidden")
