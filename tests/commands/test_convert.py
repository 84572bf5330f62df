"""What tools export becomes the label maps that were exported."""

import json
import shutil
from pathlib import Path

import cv2
import exports
import numpy as np
import pytest
from bad_inputs import jpeg, png, read_png, with_exif
from PIL import Image

from ccnet_cli import config
from ccnet_cli.cli.entry import main
from ccnet_cli.commands.convert import ConvertRequest, convert
from ccnet_cli.datasets.report import check_all
from ccnet_cli.datasets.source import load_pair, open_source
from ccnet_cli.errors import VERBOSITY, InputError
from ccnet_cli.media.images import read_size

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
    capsys.readouterr()
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
        (lambda v: v["annotations"][0].pop("category_id"), "annotation 0: names no category, and no PNG of segments"),
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
        (lambda v: v["categories"][1].update(id=1), "category 1 is sky and road"),
        (
            lambda v: [annotation.update(segmentation=[[0, 0, 0.5, 0, 0.5, 1]]) for annotation in v["annotations"]],
            "outlines lie between 0 and 1, as parts of the sides; export them in pixels",
        ),
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
        (exports.pascal, "labelmap.txt", "car:64,0,128", "car:128,64,128", "belongs to two classes, road and car"),
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


PAGE = b"\n<!DOCTYPE html>\n<html><body>Log in</body></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize(
    ("writer", "file", "content", "words"),
    [
        (exports.coco_runs, "annotations/instances.json", PAGE, "is a web page, as of a download that asked to log in"),
        (exports.coco_runs, "annotations/instances.json", POINTER, "is a Git LFS pointer (run git lfs pull), where"),
        (exports.cvat_masks, "annotations.xml", PAGE, "annotations.xml: is a web page"),
        (exports.roboflow_masks, "train/_classes.csv", PAGE, "_classes.csv: is a web page"),
        (exports.beside, "a_L.png", POINTER, "a_L.png: not an image but a Git LFS pointer"),
        (exports.beside, "a_L.png", b"PK\x03\x04" + bytes(99), "a_L.png: not an image but a ZIP archive (unpack it)"),
    ],
)
def test_what_a_download_left_in_the_place_of_a_file_is_named(tmp_path, capsys, writer, file, content, words):
    writer(tmp_path / "export", LABELS)
    (tmp_path / "export" / file).write_bytes(content)
    assert words in refused(tmp_path, capsys)


def test_folders_without_annotations_are_explained(tmp_path, capsys):
    exports.write_images(tmp_path / "export", one_label())
    exports.put(tmp_path / "export/labels/a.npy", b"x")
    line = refused(tmp_path, capsys)
    assert "holds 1 image, and nothing but .npy files that labels them" in line and "save the arrays as PNGs" in line
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
    assert 'no frame whose shapes are all written down; export it as "CVAT' in refused(tmp_path, capsys)
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


@pytest.mark.parametrize("kind", ["tif", "bmp", "gif", "webp"])
def test_masks_may_be_other_files_without_loss(tmp_path, kind):
    exports.pascal(tmp_path / "export", LABELS)
    for name in LABELS:
        path = tmp_path / f"export/SegmentationClass/{name}.png"
        with Image.open(path) as mask:
            picture = mask.convert("RGB") if kind == "webp" else mask.copy()
            picture.save(path.with_suffix(f".{kind}"), **({"lossless": True} if kind == "webp" else {}))
        path.unlink()
    done = convert(ConvertRequest(tmp_path / "export", tmp_path / "new"))
    for split, count in done.images.items():
        source = open_source(config.load(str(tmp_path / "new/preset.yaml")).data, split)
        assert len(source.samples) == count
        for sample in source.samples:
            label = LABELS[Path(sample.name).name]
            np.testing.assert_array_equal(load_pair(source, sample)[1], label)


def test_a_mask_may_differ_from_its_photograph_in_the_ending_alone(tmp_path):
    for name, label in LABELS.items():
        exports.put(tmp_path / f"export/{name}.jpg", jpeg(exports.image_of(label)))
        exports.put(tmp_path / f"export/{name}.png", png(label))
    (tmp_path / "export/classes.txt").write_text("\n".join(exports.NAMES))
    assert sum(convert(ConvertRequest(tmp_path / "export", tmp_path / "new")).images.values()) == 3
    np.testing.assert_array_equal(read_png((tmp_path / "new/labels/b.png").read_bytes())[2], LABELS["b"])


def test_smoothed_masks_are_refused(tmp_path, capsys):
    label = {name: np.where(label == 255, 0, 2 * label).astype(np.uint8) for name, label in LABELS.items()}
    soft = {name: cv2.GaussianBlur(each, (0, 0), 1.0) for name, each in label.items()}
    write_masks(tmp_path / "export", soft)
    assert "the labels look smoothed" in refused(tmp_path, capsys)
    write_masks(tmp_path / "export", label)
    assert convert(ConvertRequest(tmp_path / "export", tmp_path / "new")).classes[:3] == (
        "value 0",
        "value 2",
        "value 4",
    )


def write_masks(folder, labels):
    exports.write_images(folder, {name: np.zeros_like(label) for name, label in labels.items()})
    for name, label in labels.items():
        exports.put(folder / f"masks/{name}.png", png(label))


@pytest.mark.parametrize("orientation", [1, 2, 3, 6, 8])
@pytest.mark.parametrize("sized", [True, False])
def test_outlines_lie_on_images_as_their_exif_data_turn_them(tmp_path, orientation, sized):
    upright = cv2.GaussianBlur(exports.image_of(LABELS["a"]), (0, 0), 1.0)
    back = {1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 6: np.rot90, 8: lambda x: np.rot90(x, -1)}
    stored = np.ascontiguousarray(back[orientation](upright))
    exports.labelme(tmp_path / "export", one_label())
    (tmp_path / "export/a.png").unlink()
    exports.put(tmp_path / "export/a.jpg", with_exif(jpeg(stored, cv2.IMWRITE_JPEG_QUALITY, 100), orientation))
    sizes = {} if sized else {"imageHeight": None, "imageWidth": None}
    rewrite(tmp_path / "export/a.json", lambda value: value.update(imagePath="a.jpg", **sizes))
    shutil.copytree(tmp_path / "export", tmp_path / "export/second")
    done = convert(ConvertRequest(tmp_path / "export", tmp_path / "new", unlabelled="ignore"))
    (sample,) = (source := open_source(config.load(str(tmp_path / "new/preset.yaml")).data, "val")).samples
    image, label = load_pair(source, sample)
    assert image.shape == upright.shape and np.abs(image.astype(int) - upright).mean() < 3
    wanted = np.array([*(done.classes.index(name) for name in exports.NAMES), *[255] * 251], np.uint8)
    np.testing.assert_array_equal(label, wanted[LABELS["a"]])
    assert sample.image.suffix == (".jpg" if orientation == 1 else ".png")


def test_masks_of_turned_images_lie_where_their_size_says(tmp_path, capsys):
    image = exports.image_of(LABELS["a"])
    for name, mask in (("sensor", LABELS["a"]), ("upright", np.rot90(LABELS["a"], -1))):
        exports.put(tmp_path / f"export/images/{name}.jpg", with_exif(jpeg(image), 6))
        exports.put(tmp_path / f"export/masks/{name}.png", png(mask))
    convert(ConvertRequest(tmp_path / "export", tmp_path / "new"))
    preset = config.load(str(tmp_path / "new/preset.yaml"))
    (one,), (two,) = (open_source(preset.data, split).samples for split in ("train", "val"))
    shapes = {Path(each.name).name: read_size(each.image) for each in (one, two)}
    assert shapes == {"sensor": (60, 81), "upright": (81, 60)}
    shutil.rmtree(tmp_path / "new")
    exports.put(tmp_path / "export/images/sensor.jpg", with_exif(jpeg(image), 3))
    assert "nothing says whether its mask is turned too" in refused(tmp_path, capsys)


def test_a_byte_order_mark_and_packed_files_are_met(tmp_path, capsys):
    exports.coco_runs(tmp_path / "export", LABELS)
    path = tmp_path / "export/annotations/instances.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    convert(ConvertRequest(tmp_path / "export", tmp_path / "new"))
    shutil.rmtree(tmp_path / "new")
    path.rename(tmp_path / "export/annotations.zip")
    assert "annotations.zip: is packed, and nothing beside it is annotations; unpack it" in refused(tmp_path, capsys)
    with pytest.raises(InputError, match="is not a folder; unpack it, and give the folder"):
        convert(ConvertRequest(tmp_path / "export/annotations.zip", tmp_path / "new"))


def video(tracks):
    def shape(frame, ring, outside):
        points = ";".join(f"{x},{y}" for x, y in ring)
        return f'<polygon frame="{frame}" keyframe="1" outside="{outside}" points="{points}" z_order="0"/>'

    texts = (f'<track label="{name}">{"".join(shape(*each) for each in shapes)}</track>' for name, shapes in tracks)
    return f"<annotations>{''.join(texts)}</annotations>".encode()


def test_frames_of_a_video_are_read_where_every_shape_is_written_down(tmp_path, capsys):
    square, other = [(2, 2), (9, 2), (9, 9), (2, 9)], [(20, 20), (30, 20), (30, 30)]
    exports.write_images(tmp_path / "export", dict.fromkeys([f"frame_{index:06}" for index in range(8)], LABELS["a"]))
    # frames 3 and 4 of the car lie between keyframes; the tree ends at 6
    tracks = [
        ("car", [(frame, square, 0) for frame in (0, 1, 2, 5, 6)] + [(7, square, 1)]),
        ("tree", [(frame, other, 0) for frame in (3, 4, 5)] + [(6, other, 1)]),
    ]
    exports.put(tmp_path / "export/annotations.xml", video(tracks))
    convert(ConvertRequest(tmp_path / "export", tmp_path / "new"))
    preset = config.load(str(tmp_path / "new/preset.yaml"))
    own = {}
    for split in ("train", "val"):
        source = open_source(preset.data, split)
        own |= {int(Path(each.name).name[-6:]): load_pair(source, each)[1] for each in source.samples}
    assert sorted(own) == [0, 1, 2, 5, 6]
    assert {frame for frame, label in own.items() if (label == preset.data.names.index("tree")).any()} == {5}
    assert all((label[2:10, 2:10] == preset.data.names.index("car")).all() for label in own.values())
    shutil.rmtree(tmp_path / "new")
    shutil.rmtree(tmp_path / "export/images")
    exports.write_images(tmp_path / "export", LABELS)
    assert "image frame_000000 is no image below" in refused(tmp_path, capsys)


def test_rectangles_of_four_corners_are_outlines(tmp_path):
    exports.labelme(tmp_path / "export", LABELS)
    corners = [[10, 10], [20, 10], [20, 30], [10, 30]]
    shapes = [{"label": "car", "points": corners, "shape_type": "rectangle"}]
    rewrite(tmp_path / "export/b.json", lambda value: value.update(shapes=shapes))
    done = convert(ConvertRequest(tmp_path / "export", tmp_path / "new", unlabelled="ignore"))
    label = read_png((tmp_path / "new/labels/b.png").read_bytes())[2]
    assert (label == done.classes.index("car")).sum() == 11 * 21 and set(np.unique(label)) == {0, 255}


def test_turned_boxes_and_ellipses_of_cvat_are_drawn(tmp_path):
    exports.write_images(tmp_path / "export", one_label())
    shapes = '<box label="car" xtl="20" ytl="25" xbr="60" ybr="35" rotation="90"/>'
    shapes += '<ellipse label="tree" cx="10" cy="10" rx="8" ry="4"/>'
    exports.write_images(tmp_path / "export", {"b": LABELS["a"]})
    own = (f'<image name="{name}.png" width="81" height="60">{shapes}</image>' for name in "ab")
    exports.put(tmp_path / "export/annotations.xml", f"<annotations>{''.join(own)}</annotations>".encode())
    convert(ConvertRequest(tmp_path / "export", tmp_path / "new"))
    preset = config.load(str(tmp_path / "new/preset.yaml"))
    source = open_source(preset.data, "train")
    label = load_pair(source, source.samples[0])[1]
    car, tree = (label == preset.data.names.index(name) for name in ("car", "tree"))
    rows, columns = (np.flatnonzero(car.any(axis)) for axis in (1, 0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (10, 50, 35, 45)
    y, x = np.mgrid[:60, :81]
    inside = ((x - 10) / 8) ** 2 + ((y - 10) / 4) ** 2
    assert tree[inside < 0.8].all() and not tree[inside > 1.4].any()


NAMES_OF_YOLO = {
    "list": "names: ['sky', \"road\", tree, car,\n  pole]\n",
    "numbers": "names: {0: sky, 1: road, 2: tree, 3: car, 4: pole}\nnc: 5\n",
    "lines": "names:\n- sky\n- road\n- 'tree'\n- car\n- pole\nnc: 5\n",
    "numbered lines": "nc: 5\nnames:\n  0: sky\n  1: road\n  2: tree\n  3: car\n  4: pole\n",
}


@pytest.mark.parametrize("form", NAMES_OF_YOLO)
def test_names_of_yolo_are_read_in_every_form(tmp_path, form):
    exports.yolo(tmp_path / "export", LABELS)
    (tmp_path / "export/data.yaml").write_text(f"path: ../x  # here\ntrain: images/train\n{NAMES_OF_YOLO[form]}")
    exports.put(tmp_path / "export/labels/c.txt", b"")
    assert convert(ConvertRequest(tmp_path / "export", tmp_path / "new")).classes[-5:] == exports.NAMES


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("1 0.5 0.5 0.2 0.2", "its text files have boxes alone; export outlines"),
        ("9 0.1 0.1 0.2 0.1 0.2 0.2", "line 1: class 9 has no name"),
        ("1 0.1 0.1 0.2 0.1 0.2", "line 1: an outline of 5 numbers"),
        ("1 0.1 0.1 9 0.1 0.2 0.2", "lies outside of the picture"),
    ],
)
def test_wrong_lines_of_yolo_are_refused(tmp_path, capsys, line, words):
    exports.yolo(tmp_path / "export", one_label())
    (tmp_path / "export/labels/a.txt").write_text(line)
    assert words in refused(tmp_path, capsys)
    (tmp_path / "export/data.yaml").unlink()
    assert "holds no data.yaml that names the classes" in refused(tmp_path, capsys)
