"""Evaluation against a score computed the plain way, and what it writes and refuses."""

import copy
import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import calls
import cv2
import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from calls import class_scores
from torch.utils.data import DistributedSampler

from ccnet_cli import config, devices
from ccnet_cli.commands import evaluate as evaluation
from ccnet_cli.datasets.source import open_source
from ccnet_cli.errors import InputError, NonFiniteError
from ccnet_cli.inference import engine, scoring
from ccnet_cli.inference.artifact import load_model
from ccnet_cli.inference.views import Views
from ccnet_cli.media import outputs
from ccnet_cli.parallel.group import Group
from ccnet_cli.runs import checkpoint

SIZES = [(40, 56), (56, 40), (17, 23), (48, 48), (9, 64)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return tiny.save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make_camvid(tmp_path_factory.mktemp("camvid"), SIZES)


def evaluate(saved, data, **options):
    return calls.evaluate(saved, data, device="cpu", **options)


def plain_answer(model, image):
    """Train ids of one image, whole: the network, torch's upsampling, the largest score."""
    pixels = ((image - np.array(model.normalisation.mean)) / model.normalisation.std).astype(np.float32)
    with torch.no_grad():
        logits = model(torch.from_numpy(pixels.transpose(2, 0, 1)[None]))
        return F.interpolate(logits, size=image.shape[:2], mode="bilinear", align_corners=True)[0].argmax(0).numpy()


def plain_figures(saved, data, split="val"):
    """IoU per class, pixel accuracy and pixels of a whole split, each class's pixels collected as sets."""
    model = load_model(saved).network
    truth, answer = set(), set()
    for path in sorted((data / split).glob("*.png")):
        image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
        label = cv2.imdecode(np.frombuffer((data / f"{split}annot" / path.name).read_bytes(), np.uint8), 0)
        ids = plain_answer(model, image)
        for y, x in np.argwhere(label < 11):
            truth.add((path.name, y, x, label[y, x]))
            answer.add((path.name, y, x, ids[y, x]))
    ious = []
    for number in range(11):
        t, a = ({pixel for pixel in every if pixel[3] == number} for every in (truth, answer))
        ious.append(len(t & a) / len(t | a) if t | a else None)
    return ious, len(truth & answer) / len(truth), len(truth)


def test_figures_match_the_plain_way(saved, data):
    result = evaluate(saved, data)
    ious, accuracy, pixels = plain_figures(saved, data)
    assert sum(iou not in (None, 0) for iou in ious) >= 3, "a model with one answer would prove nothing"
    assert list(result.classes.values()) == [None if iou is None else pytest.approx(iou, abs=1e-12) for iou in ious]
    present = [iou for iou in ious if iou is not None]
    assert result.miou == pytest.approx(sum(present) / len(present), abs=1e-12)
    assert result.pixel_accuracy == pytest.approx(accuracy, abs=1e-12)
    assert (result.images, result.pixels) == (len(SIZES), pixels)


def test_the_mapping_is_json_without_nan(saved, data):
    mapping = evaluate(saved, data, mode="sliding", scales=[0.5, 1.0], flip=True).to_mapping()
    assert json.loads(json.dumps(mapping, allow_nan=False)) == mapping
    assert set(mapping) == {
        *("miou", "pixel_accuracy", "mean_accuracy", "classes", "images", "pixels", "checkpoint", "settings"),
        *("measures", "per_image", "calibration_error"),
    }
    settings = mapping["settings"]
    assert (settings["mode"], settings["tile"], settings["scales"], settings["flip"]) == (
        *("sliding", [24, 40], [0.5, 1.0]),
        True,
    )
    assert (settings["precision"], settings["split"], settings["data"]) == ("fp32", "val", str(data))


@pytest.mark.parametrize("native", [True, False])
def test_precision_auto_is_settled_told_and_kept_in_the_settings(saved, data, monkeypatch, capsys, native):
    seen = []
    prepare = engine.prepare
    monkeypatch.setattr(devices, "computes_bf16", lambda device: native)
    monkeypatch.setattr(engine, "prepare", lambda *given: seen.append(given[2:]) or prepare(*given))
    taken = "bf16" if native else "fp32"
    result = evaluate(saved, data, precision="auto", compile="auto")
    assert seen == [(taken, False, result.images)] and result.settings["precision"] == taken
    assert capsys.readouterr().err.count(f"precision {taken}") == 1


@pytest.mark.parametrize("capable", [True, False])
def test_tf32_is_off_unless_asked_and_said_where_a_device_has_it(saved, data, monkeypatch, capsys, capable):
    asked = []
    monkeypatch.setattr(devices, "use_tf32", lambda device, wanted: asked.append(wanted) or (wanted and capable))
    assert "tf32" not in evaluate(saved, data).settings and "TF32" not in capsys.readouterr().err
    assert evaluate(saved, data, tf32=True).settings["tf32"] is True and asked == [False, True]
    said = capsys.readouterr().err
    assert ("rounded to TF32 (--tf32)" in said, "cpu has no TF32" in said) == (capable, not capable)


def test_labels_that_are_all_void_give_null(saved, tmp_path):
    mapping = evaluate(saved, tiny.make_camvid(tmp_path, [(16, 16)], void=2)).to_mapping()
    assert (mapping["miou"], mapping["pixel_accuracy"], mapping["mean_accuracy"], mapping["pixels"]) == (
        *(None, None, None),
        0,
    )
    assert set(mapping["classes"].values()) == {None}
    json.dumps(mapping, allow_nan=False)


def test_modes_change_the_score_and_overrides_reach_it(saved, data):
    whole = evaluate(saved, data)
    sliding = evaluate(saved, data, mode="sliding")
    assert whole.miou != sliding.miou
    assert evaluate(saved, data, overrides=["eval.mode=sliding"]).miou == sliding.miou
    # tiles that hold every image whole pad it, so they are compared with themselves only
    assert evaluate(saved, data, mode="sliding", tile=(16, 16)).miou != sliding.miou
    assert evaluate(saved, data, limit=2).images == 2


def in_ranks(world, work):
    """Run work(group) in `world` threads that reduce with each other as processes would; what each returned."""
    meeting = threading.Barrier(world, timeout=60)
    parts, results = {}, [None] * world

    class Threads(Group):
        def all_reduce_sum(self, tensor):
            parts[self.rank] = tensor
            meeting.wait()
            total = sum(parts[rank] for rank in range(world))
            meeting.wait()
            return total

        def largest(self, number):
            return number

    def run(rank):
        results[rank] = work(Threads(rank=rank, world_size=world))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.fixture(scope="module")
def thirteen(tmp_path_factory):
    # runs of one size, which the network sees together, and others
    sides = [0, 0, 0, 3, 4, 4, 6, 6, 6, 6, 6, 11, 12]
    return tiny.make_camvid(tmp_path_factory.mktemp("thirteen"), [(9 + 2 * n, 30 - n) for n in sides])


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 8, 13])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_any_number_of_processes_and_any_batch_give_the_same_matrix(saved, thirteen, world, count, batch):
    restored = load_model(saved)
    source = open_source(restored.preset.data.model_copy(update={"root": str(thirteen)}), "val")
    source = replace(source, samples=source.samples[:count])
    views = Views.of(restored.preset.eval, source.classes)
    alone = scoring.score_network(restored.network, source, views, Group())
    models = [copy.deepcopy(restored.network) for _ in range(world)]
    views = replace(views, batch=batch)
    found = in_ranks(world, lambda group: scoring.score_network(models[group.rank], source, views, group))
    assert all(torch.equal(confusion.matrix, alone.matrix) for confusion in found)


def test_the_network_sees_pictures_and_tiles_of_one_size_together(saved, thirteen):
    model = load_model(saved).network
    source = open_source(config.load("camvid", [f"data.root={thirteen}"]).data, "val")
    seen = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    scoring.score_network(model, source, Views(batch=2), Group())
    # runs of 3, 1, 2, 5, 1 and 1
    assert seen == [2, 1, 1, 2, 2, 2, 1, 1, 1]
    seen.clear()
    # two rows of three tiles
    picture = torch.zeros(1, 3, 40, 56)
    class_scores(model.eval(), picture, mode="sliding", tile=(24, 30), batch=4)
    assert seen == [4, 2]


def test_a_sampler_that_repeats_images_is_noticed(saved, data, monkeypatch):
    # as torch's DistributedSampler does to give every rank equally many
    parts = [DistributedSampler(range(5), 2, rank, shuffle=False) for rank in range(2)]
    monkeypatch.setattr(Group, "shard", lambda self, count: [index for part in parts for index in part])
    with pytest.raises(AssertionError, match="6 of 5 images"):
        evaluate(saved, data)


def bare(folder, sizes=SIZES[:3]):
    """A split test of images alone."""
    data = tiny.make_camvid(folder, sizes, "test")
    shutil.rmtree(data / "testannot")
    return data


@pytest.mark.parametrize("world", [2, 4])
def test_any_number_of_processes_writes_every_image_once(saved, tmp_path, world, monkeypatch):
    data = bare(tmp_path / "data")
    options = {"split": "test", "formats": ["train-id"]}
    alone = evaluate(saved, data, save=tmp_path / "alone", **options)
    written, write = [], outputs.write
    monkeypatch.setattr(outputs, "write", lambda path, *rest: (written.append(path.name), write(path, *rest)))
    results = in_ranks(world, lambda group: evaluate(saved, data, save=tmp_path / "out", group=group, **options))
    assert results == [alone] * world
    assert sorted(written) == ["000.png", "001.png", "002.png"]
    read = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("out", "alone")]
    assert read[0] == read[1]


@pytest.mark.parametrize(
    ("world", "count"),
    [(2, 5), *(pytest.param(*each, marks=pytest.mark.slow) for each in [(2, 1), (2, 13), (3, 2), (3, 7), (4, 3)])],
)
def test_real_processes_give_the_same_result(saved, thirteen, world, count):
    alone = evaluate(saved, thirteen, limit=count)
    assert calls.evaluate(saved, thirteen, processes=world, limit=count) == alone


def test_the_command_line_scores_with_several_processes(saved, data, ccnet):
    done = ccnet("eval", saved, "--data", data, "--processes", 2, "--json", "-")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == evaluate(saved, data).to_mapping()


def test_images_are_scored_at_the_size_they_fit_and_with_sides_exchanged(saved, data):
    model = load_model(saved).network
    source = open_source(config.load("camvid", [f"data.root={data}"]).data, "val")
    views, group = Views(fit=(64, 40), flip=True, mirrored=((0, 1), (2, 5))), Group()
    answers = {}

    def keep(sample, image, ids, _):
        answers[sample.name] = (image, ids)

    scoring.score_network(model, source, views, group, keep)
    for image, ids in answers.values():
        height, width = image.shape[:2]
        factor = min(64 / max(height, width), 40 / min(height, width))
        size = [max(1, int(side * factor + 0.5)) for side in (height, width)]
        pixels = ((image - np.array(model.normalisation.mean)) / model.normalisation.std).astype(np.float32)
        picture = torch.from_numpy(pixels.transpose(2, 0, 1)[None])
        picture = F.interpolate(picture, size=size, mode="bilinear", align_corners=True)
        with torch.no_grad():
            both = [model(picture), model(picture.flip(3))]
        scores = [F.interpolate(view, size=(height, width), mode="bilinear", align_corners=True)[0] for view in both]
        # left is right in the mirror: as a class and as a side
        scores[1] = scores[1][[1, 0, 5, 3, 4, 2, *range(6, 11)]].flip(2)
        assert ((scores[0] + scores[1]).argmax(0).numpy() != ids).mean() < 0.002
    paired, unpaired = (
        scoring.score_network(model, source, each, group) for each in (views, replace(views, mirrored=()))
    )
    assert not torch.equal(unpaired.matrix, paired.matrix)
    assert evaluate(saved, data, overrides=["eval.fit=64,40"]).settings["fit"] == [64, 40]


def test_the_modes_of_the_model_are_kept(saved, data):
    model = load_model(saved).network.train()
    model.backbone.eval()
    before = [module.training for module in model.modules()]
    with pytest.raises(ZeroDivisionError), scoring.evaluation_mode(model):
        assert not any(module.training for module in model.modules())
        raise ZeroDivisionError
    assert [module.training for module in model.modules()] == before
    assert any(before)
    assert not all(before)


def test_maps_are_saved_in_every_format(saved, data, tmp_path):
    formats = ["color", "train-id", "label-id", "overlay"]
    out = tmp_path / "out"
    evaluate(saved, data, save=out, formats=formats)
    names = [f"{number:03}.png" for number in range(len(SIZES))]
    assert {folder.name: sorted(path.name for path in folder.iterdir()) for folder in out.iterdir()} == dict.fromkeys(
        formats, names
    )
    model = load_model(saved).network
    path = next((data / "val").glob("000.png"))
    image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    ids = plain_answer(model, image)
    read = {
        format: cv2.imdecode(np.frombuffer((out / format / "000.png").read_bytes(), np.uint8), -1) for format in formats
    }
    np.testing.assert_array_equal(read["train-id"], ids)
    colors = np.array(load_model(saved).classes.palette)[ids][:, :, ::-1]
    np.testing.assert_array_equal(read["color"], colors)
    np.testing.assert_array_equal(read["overlay"], (image.astype(int) + colors) // 2)


def test_label_ids_are_the_data_sets_own(tmp_path):
    from ccnet_cli.media.classes import Classes

    classes = Classes(("road", "sky"), ((1, 2, 3), (4, 5, 6)), (7, 23))
    outputs.write(tmp_path / "a.png", "label-id", np.array([[0, 1], [1, 1]], np.uint8), np.zeros((2, 2, 3)), classes)
    read = cv2.imdecode(np.frombuffer((tmp_path / "a.png").read_bytes(), np.uint8), -1)
    assert read.tolist() == [[7, 23], [23, 23]]


def test_saved_files_are_kept_unless_asked(saved, data, tmp_path):
    evaluate(saved, data, save=tmp_path, limit=1)
    (tmp_path / "000.png").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"000\.png: exists; pass --overwrite"):
        evaluate(saved, data, save=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000.png"]
    assert (tmp_path / "000.png").read_bytes() == b"mine"
    evaluate(saved, data, save=tmp_path, overwrite=True)
    assert (tmp_path / "000.png").read_bytes() != b"mine"
    assert len(list(tmp_path.iterdir())) == len(SIZES)


@pytest.mark.parametrize(
    "name", ["../out", "a/../../out", "/etc/out", "a\\..\\..\\out", "link/out", "loop/out", "nul\0"]
)
@pytest.mark.parametrize("several", [False, True])
def test_names_cannot_leave_the_folder(name, several, tmp_path):

    folder = tmp_path / "save"
    for base in (folder, folder / "color"):
        base.mkdir()
        (base / "link").symlink_to(tmp_path, target_is_directory=True)
        (base / "loop").symlink_to(base / "loop")
    formats = ["color", "overlay"] if several else ["color"]
    assert outputs.destinations(folder, "city/a.b", formats)["color"].name == "a.b.png"
    with pytest.raises(InputError, match="outside"):
        outputs.destinations(folder, name, formats)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "slidng"}, "eval.mode"),
        ({"tile": (0, 5)}, "eval.tile"),
        ({"scales": []}, "eval.scales"),
        ({"scales": [float("nan")]}, "eval.scales"),
        ({"overrides": ["eval.mod=whole"]}, "did you mean eval.mode"),
        ({"precision": "fp8"}, "precision fp8"),
        ({"compile": "on"}, "option --compile on"),
        ({"compile": "yes"}, "option --compile yes"),
        ({"formats": ["colour"]}, "format colour"),
        ({"confusion": Path("matrix.jpg")}, "PNG"),
        ({"split": "nope"}, "nope"),
    ],
)
def test_bad_options_are_refused(saved, data, options, message):
    with pytest.raises(InputError, match=message):
        evaluate(saved, data, **options)


def test_a_missing_label_is_refused_before_the_first_image(saved, tmp_path, monkeypatch):
    data = tiny.make_camvid(tmp_path / "data", SIZES[:3])
    (data / "valannot" / "002.png").unlink()
    monkeypatch.setattr(scoring, "batch_scores", lambda *_: pytest.fail("an image was segmented"))
    with pytest.raises(InputError, match=r"002\.png"):
        evaluate(saved, data, save=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_without_labels_and_nowhere_to_go_are_refused(saved, tmp_path, monkeypatch):
    data = bare(tmp_path)
    monkeypatch.setattr(scoring, "batch_scores", lambda *_: pytest.fail("an image was segmented"))
    with pytest.raises(InputError, match="split test: has no labels, so there is nothing to score; add --save DIR"):
        evaluate(saved, data, split="test", confusion=tmp_path / "matrix.png")


def test_images_without_labels_are_segmented_as_any(saved, data, tmp_path, capfd):
    evaluate(saved, data, save=tmp_path / "with", limit=3)
    assert capfd.readouterr().err == ""
    result = evaluate(saved, bare(tmp_path), split="test", save=tmp_path / "without")
    assert capfd.readouterr().err.count("\n") == 1
    assert (result.images, result.pixels, result.miou, set(result.classes.values())) == (3, 0, None, {None})
    read = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("with", "without")]
    assert read[0] == read[1]


def test_any_split_but_train_and_val_may_do_without_labels(saved, tmp_path):
    data = bare(tmp_path)
    for split in ("holdout", "train", "val"):
        (data / split).symlink_to(data / "test")
        (data / f"{split}annot").mkdir()
    assert evaluate(saved, data, split="holdout", save=tmp_path / "out").images == 3
    for split in ("train", "val"):
        with pytest.raises(InputError, match=r"000\.png: has no label .*000\.png; give a label for every image"):
            evaluate(saved, data, split=split, save=tmp_path / "out", overwrite=True)


@pytest.mark.parametrize("limit", [None, 1])
def test_a_split_with_some_labels_is_refused(saved, tmp_path, limit):
    data = tiny.make_camvid(tmp_path / "data", SIZES[:3], "test")
    (data / "testannot" / "001.png").unlink()
    with pytest.raises(InputError, match=r"001\.png: has no label, as 1 of 3 images of split test; label every image"):
        evaluate(saved, data, split="test", save=tmp_path / "out", limit=limit)
    assert not (tmp_path / "out").exists()
    (data / "some.lst").write_text("".join(f"test/{name}.png testannot/{name}.png\n" for name in ("000", "002")))
    assert evaluate(saved, data, split="test", overrides=["data.test_list=some.lst"]).images == 2


def test_labels_that_are_all_void_are_told(saved, tmp_path, capfd):
    evaluate(saved, tiny.make_camvid(tmp_path, [(8, 8)], "test", void=2), split="test")
    before, after = capfd.readouterr().err.splitlines()
    assert before.startswith("ccnet: warning: split test: no labelled pixel: every one is ignored; ")
    assert after == "ccnet: the labels of split test are all void: there is no score"


def test_saved_files_never_replace_what_is_read(saved, data, tmp_path):
    copied = shutil.copytree(data, tmp_path / "data")
    before = {path: path.read_bytes() for path in copied.rglob("*.png")}
    lines = [f"val/{path.name} valannot/{path.name}\n" for path in (copied / "val").iterdir()]
    (copied / "val.lst").write_text("".join(lines))
    for save, overrides in ((copied, ["data.val_list=val.lst"]), (copied / "valannot", [])):
        with pytest.raises(InputError, match="is read by this command"):
            evaluate(saved, copied, save=save, overrides=overrides, overwrite=True)
    assert {path: path.read_bytes() for path in copied.rglob("*.png")} == before


def test_other_classes_than_the_checkpoints_are_refused(saved, data, tmp_path):
    content = checkpoint.read(saved)
    content["classes"]["names"][0] = "heaven"
    other = checkpoint.save(tmp_path, 1, content, keep=2)
    with pytest.raises(InputError, match="names its classes differently"):
        evaluate(other, data)


def test_scores_that_are_not_finite_are_refused(data, tmp_path):
    with pytest.raises(NonFiniteError):
        evaluate(tiny.save_checkpoint(tmp_path, spoil=True), data)


def test_a_report_is_written_by_the_process_that_has_all_figures(saved, data, tmp_path):
    result = evaluate(saved, data, report=tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"{100 * result.miou:.2f} %" in text and "Hardest images" in text and "ccnet" in text
    assert text.count("<figure>") == len(SIZES)
    # figures of single images are asked for by other means
    assert not result.per_image
    with pytest.raises(InputError, match=r"end the name in \.html"):
        evaluate(saved, data, report=tmp_path / "report.pdf")


def test_the_confusion_matrix_is_drawn(saved, data, tmp_path):
    evaluate(saved, data, confusion=tmp_path / "matrix.png")
    drawn = cv2.imdecode(np.frombuffer((tmp_path / "matrix.png").read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    assert min(drawn.shape[:2]) > 11 * 40


def test_progress_is_told_in_lines(saved, data, monkeypatch, capfd):
    monkeypatch.setattr(evaluation, "PROGRESS_IMAGES", 2)
    evaluate(saved, data)
    told = capfd.readouterr()
    assert (told.out, told.err) == ("", "ccnet: 2 of 5 images evaluated\nccnet: 4 of 5 images evaluated\n")
