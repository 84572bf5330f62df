"""What tools export becomes the label maps that were exported."""

import json
import shutil
from pathlib import Path

import exports
import numpy as np
import pytest
from bad_inputs import jpeg, png, read_png

from ccnet_cli import config
from ccnet_cli.cli.entry import main
from ccnet_cli.commands.convert import ConvertRequest, convert
from ccnet_cli.datasets.report import check_all
from ccnet_cli.datasets.source import load_pair, open_source
from ccnet_cli.errors import VERBOSITY, InputError

LABELS = {name: exports.scene(index) for index, name in enumerate(("a", "b", "c"))}
SPREAD = {"0": "sky", "9000": "road", "18000": "tree", "27000": "car", "36000": "pole", "rest": None}
CASES = [(name, writer) for name, writers in exports.FORMATS.items() for writer in writers]


@pytest.fixture(autouse=True)
def verbosity(monkeypatch):
    """The command line sets it for its process, which here is that of other tests too."""
    monkeypatch.setenv(VERBOSITY, "")


@pytest.mark.parametrize(("name", "writer"), CASES, ids=[writer.__name__ for _, writer in CASES])
def test_every_format_gives_back_the_labels(tmp_path, name, writer):
    writer(tmp_path / "export", LABELS)
    labels = SPREAD if writer is exports.spread else None
    done = convert(ConvertRequest(tmp_path / "export", tmp_path / "new", labels=labels))
    assert (done.format, sum(done.images.values())) == (name, 3)
    assert sorted(done.classes) == sorted(exports.NAMES)
    preset = config.load(str(tmp_path / "new/preset.yaml"))
    sources = {split: open_source(preset.data, split) for split in ("train", "val")}
    wanted = np.array([done.classes.index(name) for name in exports.NAMES] + [255] * 251, np.uint8)
    seen = set()
    for source in sources.values():
        for sample in source.samples:
            stem = next(part for part in Path(sample.name).parts if part[0] in LABELS)[0]
            seen.add(stem)
            image, label = load_pair(source, sample)
            np.testing.assert_array_equal(image, exports.image_of(LABELS[stem]))
            np.testing.assert_array_equal(label, wanted[LABELS[stem]])
    assert seen == set(LABELS)
    assert all(report.problems == () for report in check_all(sources).values())


def test_labels_are_palette_pngs_in_the_export_s_colours(tmp_path):
    exports.pascal(tmp_path / "export", LABELS)
    convert(ConvertRequest(tmp_path / "export", tmp_path / "new"))
    assert (tmp_path / "new/val.lst").read_text() == "images/JPEGImages/a.png\tlabels/JPEGImages/a.png\n"
    _, palette, values = read_png((tmp_path / "new/labels/JPEGImages/b.png").read_bytes())
    assert palette[: 3 * len(exports.COLOURS)] == bytes(value for colour in exports.COLOURS for value in colour)
    np.testing.assert_array_equal(values, LABELS["b"])


def refused(tmp_path, capsys, *words):
    """The one line that a conversion is refused with; nothing is left of it, and the export is as it was."""
    before = {path: path.read_bytes() for path in (tmp_path / "export").rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as stop:
        main(["data", "convert", str(tmp_path / "export"), str(tmp_path / "new"), "-q", *words])
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and line.startswith("ccnet: error: ") and "; " in line
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    assert before == {path: path.read_bytes() for path in (tmp_path / "export").rglob("*") if path.is_file()}
    return line


def rewrite(path, change):
    value = json.loads(path.read_text())
    changed = change(value)
    path.write_text(json.dumps(value if changed is None else changed))


def first(value, **keys):
    value["annotations"][0].update(keys)


def one_label():
    return {"a": LABELS["a"]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v["annotations"][0].pop("image_id"), "annotations.0.image_id: field required"),
        (lambda v: v["annotations"][0].pop("category_id"), "annotations.0.category_id: field required"),
        (lambda v: first(v, image_id=99), "no image has id 99"),
        (lambda v: first(v, category_id=2), "no category has id 2"),
        (lambda v: first(v, segmentation=[[1, 2, 3]]), "a polygon of 3 numbers"),
        (lambda v: first(v, segmentation=[[1, 2, 3, 4]]), "a polygon of 2 points"),
        (lambda v: first(v, segmentation=[[500, 500, 510, 500, 510, 510]]), "lies outside of the picture (81 x 60)"),
        (lambda v: first(v, segmentation=[[0, 0, 1e300, 0, 5, 5]]), "leads far out of the picture"),
        (lambda v: first(v, segmentation={"size": [60, 81], "counts": [10]}), "do not fill 81 x 60"),
        (lambda v: first(v, segmentation={"size": [60, 81], "counts": [-10, 4870]}), "do not fill 81 x 60"),
        (lambda v: first(v, segmentation={"size": [10**9, 10**9], "counts": [10**18]}), "a mask of 1000000000 x"),
        (lambda v: first(v, segmentation={"size": [60, 81], "counts": "o" * 50}), "packed runs"),
        (lambda v: first(v, segmentation={"size": [60, 81], "counts": "\u20ac"}), "packed runs are damaged"),
        (lambda v: v["images"][0].update(file_name="../../etc/passwd"), "image ../../etc/passwd is no image below"),
        (lambda v: v["images"][0].update(width=10**12), "its annotation 1000000000000 x 60"),
        (lambda v: v["categories"][0].update(name=""), "has no printable name"),
        (
            lambda v: [annotation.update(segmentation=[]) for annotation in v["annotations"]],
            "boxes alone outline nothing",
        ),
        (
            lambda v: [annotation.update(segmentation=[[0, 0, "x", 1, 1, 1]]) for annotation in v["annotations"]],
            "number",
        ),
    ],
)
def test_a_wrong_coco_file_is_one_line(tmp_path, capsys, change, words):
    exports.coco_polygons(tmp_path / "export", one_label())
    rewrite(tmp_path / "export/annotations/instances.json", lambda value: (change(value), None)[1])
    assert words in refused(tmp_path, capsys, "--format", "coco")


@pytest.mark.parametrize(
    ("writer", "file", "old", "new", "words"),
    [
        (exports.labelme, "a.json", '"imagePath": "a.png"', '"imagePath": "/etc/b.png"', "is no image below"),
        (exports.labelme, "a.json", '"points": [[', '"points": [[9], [', "shapes.0.points.0"),
        (exports.labelme, "a.json", '"imageWidth": 81', '"imageWidth": 60', "its annotation 60 x 60"),
        (exports.labelme, "a.json", "{", "[" * 5000, "invalid JSON"),
        (exports.cvat_masks, "annotations.xml", "<annotations>", "<!DOCTYPE a><annotations>", "document type"),
        (exports.cvat_masks, "annotations.xml", ' rle="', ' rle="99999999999,', "do not fill"),
        (exports.cvat_masks, "annotations.xml", ' rle="', ' rle="a,', "is no number"),
        (exports.cvat_masks, "annotations.xml", ' left="', ' left="77', "outside of the picture"),
        (exports.cvat_masks, "annotations.xml", ' top="', ' up="', "a mask without top"),
        (exports.cvat_masks, "annotations.xml", "</annotations>", "", "is no XML"),
        (exports.cvat_polygons, "annotations.xml", ' points="', ' points="1,2,3;', "a polygon of"),
        (exports.supervisely, "set/ann/a.png.json", '"data": "', '"data": "!', "no base64 text"),
        (exports.supervisely, "set/ann/a.png.json", '"data": "', '"data": "AAAA', "bitmap is damaged"),
        (exports.supervisely, "set/ann/a.png.json", '"classTitle": "sky"', '"classTitle": "sea"', "sea is not in"),
        (exports.supervisely, "set/ann/a.png.json", '"origin": [', '"origin": [700, ', "origin"),
        (exports.labelstudio, "export.json", '"original_width": 81', '"original_width": 810000000', "pixels"),
        (exports.labelstudio, "export.json", '"rle": [', '"rle": [255, ', "its brush has"),
        (exports.labelstudio, "export.json", '"rle": [', '"rle": [300, ', "no list of bytes"),
        (exports.pascal, "labelmap.txt", "car:64,0,128", "car:64,0,129", "colour #400080 is not in"),
        (exports.roboflow_masks, "train/_classes.csv", "4, pole", "40, pole", "value 4 is not in file"),
    ],
)  # fmt: skip
def test_a_wrong_export_is_one_line(tmp_path, capsys, writer, file, old, new, words):
    writer(tmp_path / "export", one_label() if "labelme" in writer.__name__ else LABELS)
    path = tmp_path / "export" / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    name = next(name for name, writers in exports.FORMATS.items() if writer in writers)
    assert words in refused(tmp_path, capsys, "--format", name)


def test_a_mask_in_the_wrong_format_is_explained(tmp_path, capsys):
    exports.colours(tmp_path / "export", LABELS)
    (tmp_path / "export/masks/a.png").unlink()
    exports.put(tmp_path / "export/masks/a.jpg", jpeg(exports.image_of(LABELS["a"])))
    assert "masks/a.jpg: not a PNG: other formats change or cannot hold class" in refused(tmp_path, capsys)


@pytest.mark.parametrize(
    ("writer", "change", "words"),
    [
        (exports.cvat_masks, ("annotations.xml", lambda text: text.replace("annotations>", "dataset>")),
         "begins with <dataset>, and CVAT's files with <annotations>"),
        (exports.coco_runs, ("annotations/instances.json", lambda text: text[:999]), "invalid JSON: EOF"),
        (exports.coco_runs, ("annotations/instances.json", lambda text: text.replace('"images"', '"pictures"')),
         "has the keys info, pictures, annotations, categories, as none of"),
        (exports.labelme, ("a.json", lambda text: text[:99]), "a.json: invalid JSON: EOF"),
        (exports.supervisely, ("meta.json", None), "holds no meta.json; give the folder of the whole"),
        (exports.roboflow_masks, ("train/_classes.csv", None), "has no _classes.csv, which says what the values"),
        (exports.beside, ("a.png", None), "a_L.png: has no image of its name (1 of 3 masks have none)"),
    ],
)  # fmt: skip
def test_what_is_not_recognised_is_explained(tmp_path, capsys, writer, change, words):
    writer(tmp_path / "export", LABELS)
    name, edit = change
    path = tmp_path / "export" / name
    if edit is None:
        path.unlink()
    else:
        path.write_text(edit(path.read_text()))
    assert words in refused(tmp_path, capsys)


def test_folders_without_annotations_are_explained(tmp_path, capsys):
    exports.write_images(tmp_path / "export", one_label())
    exports.put(tmp_path / "export/labels/a.npy", b"x")
    assert "holds 1 images, and nothing but .npy files that labels them" in refused(tmp_path, capsys)
    (tmp_path / "export/images/a.png").unlink()
    assert "holds no image but 1 .npy files; give the folder of the images" in refused(tmp_path, capsys)


def test_a_document_type_cannot_hide_in_another_encoding(tmp_path, capsys):
    exports.cvat_masks(tmp_path / "export", one_label())
    path = tmp_path / "export/annotations.xml"
    text = (
        path.read_text()
        .replace("<annotations>", '<!DOCTYPE a [<!ENTITY b "c">]><annotations>')
        .replace("utf-8", "utf-16")
    )
    path.write_bytes(text.encode("utf-16"))
    assert "annotations.xml: is not UTF-8 text" in refused(tmp_path, capsys)


def test_other_xml_of_cvat_and_of_others_is_not_read_as_images(tmp_path, capsys):
    exports.cvat_masks(tmp_path / "export", one_label())
    path = tmp_path / "export/annotations.xml"
    text = path.read_text()
    path.write_text(text.replace("</annotations>", '<track id="0" label="car"/></annotations>'))
    assert 'is CVAT for video, where CVAT for images is expected; export it as "CVAT' in refused(tmp_path, capsys)
    path.write_text(text.replace("annotations>", "dataset>"))
    assert "begins with <dataset>, where CVAT" in refused(tmp_path, capsys, "--format", "cvat")


def test_an_export_in_which_nothing_is_outlined_is_refused(tmp_path, capsys):
    exports.coco_runs(tmp_path / "export", LABELS)
    rewrite(tmp_path / "export/annotations/instances.json", lambda value: value.update(annotations=[]))
    assert "nothing is outlined in its 3 images; outline something" in refused(tmp_path, capsys)


def test_a_polygon_is_cut_at_the_border_and_refused_far_beyond(tmp_path, capsys):
    exports.coco_polygons(tmp_path / "export", LABELS)
    file = tmp_path / "export/annotations/instances.json"
    rewrite(file, lambda value: first(value, segmentation=[[70, 10, 95, 10, 95, 50, 70, 50]]))
    convert(ConvertRequest(tmp_path / "export", tmp_path / "export/new", "coco"))
    rewrite(file, lambda value: first(value, segmentation=[[70, 10, 110, 10, 110, 50, 70, 50]]))
    shutil.rmtree(tmp_path / "export/new")
    capsys.readouterr()
    words = "a polygon of sky, from 70,10 to 110,50, lies outside of the picture (81 x 60)"
    assert words in refused(tmp_path, capsys)


def test_a_class_file_in_another_encoding_and_unnamed_values_are_named(tmp_path, capsys):
    exports.beside(tmp_path / "export", LABELS)
    (tmp_path / "export/classes.txt").write_bytes("Tür\nroad".encode("latin-1"))
    assert "classes.txt: byte 1 is not UTF-8; save it" in refused(tmp_path, capsys)
    (tmp_path / "export/classes.txt").write_text("sky\nroad\ntree\ncar\nvoid\n")
    line = refused(tmp_path, capsys)
    assert "value 5 is not in file" in line and "correct it there, or add it to --labels, or ignore" in line
    assert "option --labels:1:" in refused(tmp_path, capsys, "--labels", "{0: a")


def test_masks_that_are_transparency_alone_are_refused(tmp_path, capsys):
    exports.write_images(tmp_path / "export", LABELS)
    for name, label in LABELS.items():
        hidden = np.dstack([np.zeros_like(label)] * 3 + [label % 255 * 20]).astype(int)
        exports.put(tmp_path / f"export/masks/{name}.png", png(hidden, colour=6))
    assert "has one colour alone, and shows its picture by transparency" in refused(tmp_path, capsys)


def photographs(count):
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (60, 81, 3)) for _ in range(count)]


@pytest.mark.parametrize("kind", ["values", "colours"])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_swapped_folders_are_called_so(tmp_path, capsys, kind, suffix):
    for (name, label), photograph in zip(LABELS.items(), photographs(3), strict=True):
        mask = png(label) if kind == "values" else png(exports.image_of(label)[..., ::-1].astype(int), colour=2)
        picture = png(photograph, colour=2) if suffix == "png" else jpeg(photograph.astype(np.uint8))
        exports.put(tmp_path / f"export/images/{name}.png", mask)
        exports.put(tmp_path / f"export/masks/{name}.{suffix}", picture)
    words = "looks like a picture, and its image"
    line = refused(tmp_path, capsys)
    assert words in line and line.endswith("the two are swapped; exchange the two folders")
    (tmp_path / "export/classes.txt").write_text("\n".join(exports.NAMES))
    assert words in refused(tmp_path, capsys)


def test_masks_that_nobody_names_are_named_after_their_values(tmp_path):
    for count, classes in ((256, ("value 0", "value 255")), (2, ("value 0", "value 1"))):
        export = tmp_path / f"export{count}"
        exports.write_images(export, LABELS)
        for name, label in LABELS.items():
            mask = np.where(label == 3, 255, 0) if count == 256 else np.where(label == 255, 255, label == 3)
            exports.put(export / f"labels/{name}.png", png(mask.astype(int)))
        assert convert(ConvertRequest(export, tmp_path / f"new{count}")).classes == classes


def test_what_is_not_outlined_is_background_or_ignored(tmp_path):
    only = {name: np.where(label == 3, 3, 255).astype(np.uint8) for name, label in LABELS.items()}
    exports.labelme(tmp_path / "export", only)
    assert convert(ConvertRequest(tmp_path / "export", tmp_path / "new")).classes == ("background", "car")
    done = convert(ConvertRequest(tmp_path / "export", tmp_path / "ignored", unlabelled="ignore"))
    assert done.classes == ("car",)


def test_groups_stay_together_and_nothing_is_replaced(tmp_path):
    labels = {f"{video}_{index}": LABELS["a"] for video in ("x", "y", "z") for index in range(4)}
    exports.labelme(tmp_path / "export", labels)
    done = convert(ConvertRequest(tmp_path / "export", tmp_path / "new", fraction=0.33, group="^._"))
    assert done.images == {"train": 8, "val": 4}
    assert len({line[7] for line in (tmp_path / "new/val.lst").read_text().splitlines()}) == 1
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="exists and is not an empty folder"):
        convert(ConvertRequest(tmp_path / "export", tmp_path / "new"))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_rare_class_is_in_both_parts(tmp_path):
    plain = np.where(LABELS["a"] == 3, 1, LABELS["a"])
    labels = {f"{index:02}": LABELS["a"] if index in (3, 7) else plain for index in range(20)}
    exports.labelme(tmp_path / "export", labels)
    for seed in range(4):
        convert(ConvertRequest(tmp_path / "export", tmp_path / f"new{seed}", seed=seed))
        names = [line[7:9] for line in (tmp_path / f"new{seed}/val.lst").read_text().splitlines()]
        assert len(names) == 4 and len({"03", "07"} & set(names)) == 1
