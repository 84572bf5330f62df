"""`ccnet data convert` of less common exports, and of what people's files have beside the shapes."""

import json
import unicodedata
from pathlib import Path

import exports
import numpy as np
import pytest
from bad_inputs import png

from ccnet_cli import config
from ccnet_cli.commands.convert import ConvertRequest, convert
from ccnet_cli.datasets.source import load_pair, open_source
from ccnet_cli.errors import InputError

LABELS = {name: exports.scene(index) for index, name in enumerate(("a", "b", "c"))}
COCO = "annotations/instances.json"


def converted(folder, names=exports.NAMES):
    """Convert an export, and require the labels it was written from."""
    new = folder.parent / "new"
    done = convert(ConvertRequest(folder, new))
    assert set(done.classes) == set(names)
    wanted = np.array([done.classes.index(name) for name in exports.NAMES] + [255] * 251, np.uint8)
    preset, seen = config.load(str(new / "preset.yaml")), set()
    for split in ("train", "val"):
        source = open_source(preset.data, split)
        for sample in source.samples:
            name = Path(sample.name).stem[-1]
            seen.add(name)
            np.testing.assert_array_equal(load_pair(source, sample)[1], wanted[LABELS[name]])
    assert seen == set(LABELS)
    return done


def rewrite(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def panoptic(folder):
    """COCO's panoptic files, of images that have the names of their PNGs."""
    exports.coco_runs(folder, LABELS)
    value = json.loads((folder / COCO).read_text())
    (folder / COCO).unlink()
    value["annotations"] = []
    for image, (name, label) in zip(value["images"], LABELS.items(), strict=True):
        colours, segments = np.zeros((*label.shape, 3), int), []
        for index, (title, mask) in enumerate(exports.regions(label)):
            red, green, blue = (7 * index + 3) % 256, 200 - index, index
            colours[mask] = red, green, blue
            number = red + 256 * green + 65536 * blue
            segments.append({"id": number, "category_id": 10 * exports.NAMES.index(title) + 1, "iscrowd": 0})
        exports.put(folder / f"annotations/panoptic/{name}.png", png(colours, colour=2))
        record = {"image_id": image["id"], "file_name": f"{name}.png", "segments_info": segments}
        value["annotations"].append(record)
    exports.put(folder / "annotations/panoptic.json", json.dumps(value).encode())


def test_segments_of_panoptic_files_are_read(tmp_path):
    panoptic(tmp_path / "export")
    converted(tmp_path / "export")


def test_pngs_of_other_segments_are_refused(tmp_path):
    panoptic(tmp_path / "export")
    path = tmp_path / "export/annotations/panoptic.json"
    rewrite(path, lambda value: value["annotations"][1]["segments_info"][2].update(id=5))
    with pytest.raises(InputError, match=r"annotation 1: b.png: no pixel is of segment 5; give the PNGs"):
        convert(ConvertRequest(tmp_path / "export", tmp_path / "new"))
    rewrite(path, lambda value: value["annotations"][1]["segments_info"][2].update(category_id=5))
    with pytest.raises(InputError, match="no category has id 5"):
        convert(ConvertRequest(tmp_path / "export", tmp_path / "new"))


def test_joints_beside_instances_are_passed_over_and_second_outlines_refused(tmp_path):
    exports.coco_runs(tmp_path / "export", LABELS)
    value = json.loads((tmp_path / "export" / COCO).read_text())
    value["annotations"] = value["annotations"][:1]
    other = tmp_path / "export/annotations/others.json"
    other.write_text(json.dumps({**value, "categories": [{"id": 1, "name": "person", "keypoints": ["nose"]}]}))
    converted(tmp_path / "export")
    other.write_text(json.dumps(value))
    with pytest.raises(
        InputError, match=r"annotates images of annotations/instances\.json again, such as a\.png; give"
    ):
        convert(ConvertRequest(tmp_path / "export", tmp_path / "other"))
    rewrite(other, lambda value: value["images"][1].update(id=0))
    with pytest.raises(InputError, match="several images have the id 0; export it again"):
        convert(ConvertRequest(tmp_path / "export", tmp_path / "other", "coco"))


def via(folder, key="class", numbered=False):
    exports.write_images(folder, LABELS, "{}.png")
    images = {}
    for name, label in LABELS.items():
        regions = [
            {
                "shape_attributes": {
                    "name": "polygon",
                    "all_points_x": [x for x, _ in ring],
                    "all_points_y": [y for _, y in ring],
                },
                "region_attributes": {key: title, "note": ""},
            }
            for title, mask in exports.regions(label)
            for ring in exports.corners(mask)
        ]
        regions.append({"shape_attributes": {"name": "point", "cx": 3, "cy": 4}, "region_attributes": {}})
        image = {"filename": f"{name}.png", "size": 99, "file_attributes": {}}
        images[f"{name}.png99"] = {
            **image,
            "regions": {str(i): r for i, r in enumerate(regions)} if numbered else regions,
        }
    return images


@pytest.mark.parametrize("way", ["export", "version 1", "project", "both"])
def test_files_of_via_are_read(tmp_path, way):
    images = via(tmp_path / "export", "kind of thing", way == "version 1")
    if way != "project":
        exports.put(tmp_path / "export/via.json", json.dumps(images).encode())
    if way in ("project", "both"):
        project = {"_via_settings": {}, "_via_img_metadata": images, "_via_attributes": {}}
        exports.put(tmp_path / "export/project.json", json.dumps(project).encode())
    assert converted(tmp_path / "export").format == "via"


def shapes_of_via(tmp_path, *regions):
    exports.write_images(tmp_path / "export", {"a": LABELS["a"], "b": LABELS["b"]})
    images = {
        name: {
            "filename": f"{name}.png",
            "regions": [{"shape_attributes": shape, "region_attributes": own} for shape, own in regions],
        }
        for name in "ab"
    }
    exports.put(tmp_path / "export/via.json", json.dumps(images).encode())
    return convert(ConvertRequest(tmp_path / "export", tmp_path / "new"))


def test_other_shapes_of_via_are_drawn(tmp_path):
    rectangle = {"name": "rect", "x": 50, "y": 10, "width": 10, "height": 20}
    circle = {"name": "circle", "cx": 20, "cy": 20, "r": 10}
    ellipse = {"name": "ellipse", "cx": 40, "cy": 45, "rx": 12, "ry": 4, "theta": np.pi / 2}
    done = shapes_of_via(tmp_path, *((each, {}) for each in (rectangle, circle, ellipse)))
    assert done.classes == ("background", "object")
    preset = config.load(str(tmp_path / "new/preset.yaml"))
    source = open_source(preset.data, "train")
    label = load_pair(source, source.samples[0])[1]
    y, x = np.mgrid[:60, :81]
    near = {
        "rect": (np.abs(x - 55) < 5) & (np.abs(y - 20) < 10),
        "circle": np.hypot(x - 20, y - 20) < 9,
        "ellipse": np.hypot((x - 40) / 4, (y - 45) / 12) < 0.8,
    }
    assert all((label[inside] == 1).all() for inside in near.values())
    assert (label == 1).sum() == pytest.approx(11 * 21 + np.pi * (100 + 48), rel=0.12)


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        (({"colour": "red", "size": "L"}, {}), r"several attributes \(colour, size\), and none is called class or"),
        (({"class": "car"}, {}), "image a.png: region 1: has no class; say its class in VIA"),
    ],
)
def test_regions_without_a_class_are_refused(tmp_path, attributes, words):
    square = {"name": "rect", "x": 5, "y": 5, "width": 9, "height": 9}
    with pytest.raises(InputError, match=words):
        shapes_of_via(tmp_path, *((square, each) for each in attributes))


def test_ticked_boxes_of_via_are_classes(tmp_path):
    square = {"name": "rect", "x": 5, "y": 5, "width": 9, "height": 9}
    assert shapes_of_via(tmp_path, (square, {"type": {"car": True, "bus": False}})).classes == ("background", "car")


def test_what_label_studio_writes_beside_brushes_is_passed_over(tmp_path):
    exports.labelstudio(tmp_path / "export", LABELS)

    def extend(tasks):
        for task in tasks:
            name = task["data"]["image"].rpartition("-")[2]
            task["data"] = {"title": "Street 5.5", "picture": f"s3://bucket/folder/{name}?token=a.b"}
            point = {"x": 5, "y": 5, "width": 0.4, "keypointlabels": ["car"]}
            task["annotations"][0]["result"] += [
                {"type": "keypointlabels", "value": point, "original_width": 81, "original_height": 60},
                {"type": "relation", "from_id": "a", "to_id": "b", "direction": "right"},
                {"type": "choices", "value": {"choices": ["good"]}},
            ]

    rewrite(tmp_path / "export/export.json", extend)
    converted(tmp_path / "export")


def test_a_file_of_labelme_that_holds_its_image_itself_is_explained(tmp_path):
    exports.labelme(tmp_path / "export", LABELS)
    (tmp_path / "export/b.png").unlink()
    with pytest.raises(InputError, match="put it there, under the name"):
        convert(ConvertRequest(tmp_path / "export", tmp_path / "new"))
    rewrite(tmp_path / "export/b.json", lambda value: value.update(imageData="aGVsbG8="))
    with pytest.raises(InputError, match=r"its pixels are in the file alone \(imageData\); save it there"):
        convert(ConvertRequest(tmp_path / "export", tmp_path / "new"))


def test_joints_of_a_skeleton_are_no_classes(tmp_path):
    exports.cvat_masks(tmp_path / "export", LABELS)
    path = tmp_path / "export/annotations.xml"
    joint = "<label><name>nose</name><type>points</type><parent>car</parent></label></labels>"
    path.write_text(path.read_text().replace("</labels>", joint))
    converted(tmp_path / "export")


def test_old_files_of_supervisely_lack_their_image_s_ending(tmp_path):
    exports.supervisely(tmp_path / "export", LABELS)
    for name in LABELS:
        (tmp_path / f"export/set/ann/{name}.png.json").rename(tmp_path / f"export/set/ann/{name}.json")
    converted(tmp_path / "export")


@pytest.mark.parametrize("line", ["#{:02X}{:02x}{:02x} {name}\n", "{name};#{:02X}{:02x}{:02x}\n"])
def test_colours_may_be_written_as_on_pages(tmp_path, line):
    exports.colours(tmp_path / "export", LABELS)
    (tmp_path / "export/class_dict.csv").unlink()
    table = [*zip(exports.NAMES, exports.COLOURS, strict=True), ("void", (0, 0, 0))]
    lines = "".join(line.format(*colour, name=name) for name, colour in table)
    (tmp_path / "export/palette.txt").write_text(f"# name and colour\n{lines}")
    converted(tmp_path / "export")


def test_letters_with_accents_may_be_one_character_or_two(tmp_path):
    exports.sequences(tmp_path / "export", LABELS)
    for name in LABELS:
        for folder, form in (("images", "NFC"), ("masks", "NFD")):
            file = tmp_path / f"export/{folder}/{name}/frame1.png"
            file.rename(tmp_path / "export" / folder / unicodedata.normalize(form, f"größe é {name}.png"))
            file.parent.rmdir()
    converted(tmp_path / "export")


def test_an_image_is_found_under_its_name_in_other_letters(tmp_path):
    exports.coco_runs(tmp_path / "export", LABELS)
    for name in LABELS:
        path = tmp_path / f"export/images/{name}.png"
        path.rename(path.with_name(unicodedata.normalize("NFD", f"É{name}.PNG")))
    path = tmp_path / "export" / COCO
    path.write_text(path.read_text().replace('"file_name": "', '"file_name": "C:\\\\set\\\\\\u00c9'))
    converted(tmp_path / "export")


def test_an_image_of_another_kind_is_not_called_missing(tmp_path):
    exports.labelme(tmp_path / "export", LABELS)
    (tmp_path / "export/b.png").rename(tmp_path / "export/B.HEIC")
    rewrite(tmp_path / "export/b.json", lambda value: value.update(imagePath="b.heic"))
    with pytest.raises(InputError, match=r"b\.heic is of a kind that is not read \(\.heic\); save it as JPEG or PNG"):
        convert(ConvertRequest(tmp_path / "export", tmp_path / "new"))


def test_images_and_masks_may_differ_in_how_their_names_begin(tmp_path):
    exports.write_images(tmp_path / "export", LABELS, "images/image_{}.png")
    for name, label in LABELS.items():
        exports.put(tmp_path / f"export/labels/label_{name}.png", png(label))
    (tmp_path / "export/classes.txt").write_text("\n".join(exports.NAMES))
    converted(tmp_path / "export")


def test_an_outline_that_leaves_the_picture_moves_no_other(tmp_path):
    """Points are centres of pixels as before: only those on the very border would say otherwise."""
    exports.coco_polygons(tmp_path / "export", LABELS)
    outside = {"image_id": 0, "category_id": 1, "segmentation": [[81.5, 20, 90, 20, 90, 40, 81.5, 40]]}
    rewrite(tmp_path / "export" / COCO, lambda value: value["annotations"].append(outside))
    with pytest.raises(InputError, match="lies outside of the picture"):
        convert(ConvertRequest(tmp_path / "export", tmp_path / "new"))
    outside["segmentation"] = [[79, -3, 90, -3, 90, -2, 79, 0.4]]
    rewrite(tmp_path / "export" / COCO, lambda value: value["annotations"].__setitem__(-1, outside))
    converted(tmp_path / "export")
