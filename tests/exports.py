"""Annotations as tools export them, written from label maps by code that shares nothing with the readers."""

import base64
import itertools
import json
import zlib
from xml.sax.saxutils import quoteattr

import cv2
import numpy as np
from bad_inputs import png

NAMES = ("sky", "road", "tree", "car", "pole")
COLOURS = ((128, 128, 128), (128, 64, 128), (128, 128, 0), (64, 0, 128), (192, 192, 128))
VOID = 255


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def scene(index, height=60, width=81):
    """A label map that is covered whole: sky above a road, trees with gaps, a car before a pole; a corner is void."""
    random = np.random.default_rng(index)
    label = np.zeros((height, width), np.uint8)
    label[height // 2 :] = 1
    cv2.circle(label, (int(random.integers(10, 40)), 25), 14, 2, -1)
    cv2.circle(label, (int(random.integers(10, 40)), 25), 4, 0, -1)
    left = int(random.integers(30, 60))
    cv2.rectangle(label, (left, 36), (left + 14, 46), 3, -1)
    label[5:50, 70:73] = 4
    label[-3:, :4] = VOID
    return label


def image_of(label):
    return np.array([*(colour[::-1] for colour in COLOURS), *[(9, 9, 9)] * 251], np.uint8)[label]


def write_images(folder, labels, place="images/{}.png"):
    for name, label in labels.items():
        put(folder / place.format(name), png(image_of(label)[..., ::-1].astype(int), colour=2))


def regions(label):
    """Class name and mask of each class of a map, connected or not."""
    return [(name, label == value) for value, name in enumerate(NAMES) if (label == value).any()]


def outlines(mask):
    """Outer contours, through the centres of the pixels on the border: what lies inside them is drawn after them."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    # a polygon has three points at least
    return [np.concatenate([each[:, 0]] * 3)[: max(len(each), 3)].tolist() for each in contours]


def corners(mask):
    """Rectangles, a row each, whose points are corners of pixels."""
    rings = []
    for y, row in enumerate(mask):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(int), [0]])))
        rings += [[[a, y], [b, y], [b, y + 1], [a, y + 1]] for a, b in edges.reshape(-1, 2).tolist()]
    return rings


def runs(flat):
    """Lengths of runs, off first."""
    counts, value = [0], False
    for pixel in np.asarray(flat, bool).tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return counts


def packed(counts):
    """COCO's text of run lengths."""
    text = ""
    for index, count in enumerate(counts):
        value = count - counts[index - 2] if index > 2 else count
        while True:
            bits, value = value & 31, value >> 5
            more = not ((value == 0 and not bits & 16) or (value == -1 and bits & 16))
            text += chr(bits + (32 if more else 0) + 48)
            if not more:
                break
    return text


def coco(folder, labels, segment, crowd=0, place="images/{}.png", file="annotations/instances.json", extra=()):
    write_images(folder, labels, place)
    categories = [
        *extra,
        *({"id": 10 * value + 1, "name": name, "supercategory": "things"} for value, name in enumerate(NAMES)),
    ]
    images, annotations = [], []
    for number, (name, label) in enumerate(labels.items()):
        height, width = label.shape
        images.append(
            {"id": number, "file_name": place.format(name).rpartition("/")[2], "height": height, "width": width}
        )
        for title, mask in regions(label):
            entry = {
                "image_id": number,
                "category_id": 10 * NAMES.index(title) + 1,
                "iscrowd": crowd,
                "id": len(annotations),
            }
            annotations.append({**entry, "segmentation": segment(mask), "bbox": [0, 0, 1, 1]})
    put(
        folder / file,
        json.dumps({"info": {}, "images": images, "annotations": annotations, "categories": categories}).encode(),
    )


def flat(rings):
    return [[value for point in ring for value in point] for ring in rings]


def coco_polygons(folder, labels):
    coco(folder, labels, lambda mask: flat(outlines(mask)))


def coco_corners(folder, labels):
    coco(folder, labels, lambda mask: flat(corners(mask)))


def coco_runs(folder, labels):
    coco(folder, labels, lambda mask: {"size": list(mask.shape), "counts": runs(mask.T.ravel())})


def coco_crowd(folder, labels):
    coco(folder, labels, lambda mask: {"size": list(mask.shape), "counts": packed(runs(mask.T.ravel()))}, crowd=1)


def roboflow_coco(folder, labels):
    things = {"id": 0, "name": "things", "supercategory": "none"}
    coco(folder, labels, lambda mask: {"size": list(mask.shape), "counts": packed(runs(mask.T.ravel()))},
         place="train/{}_jpg.rf.0a1b.png", file="train/_annotations.coco.json", extra=[things])  # fmt: skip


def roboflow_masks(folder, labels):
    write_images(folder, labels, "train/{}_jpg.rf.0a1b.png")
    for name, label in labels.items():
        put(folder / f"train/{name}_jpg.rf.0a1b_mask.png", png(label))
    lines = "".join(f" {value}, {name}\n" for value, name in enumerate(NAMES))
    put(folder / "train/_classes.csv", f"Pixel Value, Class\n{lines}".encode())


def labelme(folder, labels):
    write_images(folder, labels, "{}.png")
    for name, label in labels.items():
        shapes = [
            {"label": title, "points": ring, "shape_type": kind, "group_id": None, "flags": {}}
            for (title, mask), kind in zip(regions(label), itertools.cycle(("polygon", "rotation")))
            for ring in outlines(mask)
        ]
        shapes.append({"label": "car", "points": [[1, 1]], "shape_type": "point"})
        height, width = label.shape
        content = {"version": "5.0", "imagePath": f"{name}.png", "imageData": None, "shapes": shapes}
        put(folder / f"{name}.json", json.dumps({**content, "imageHeight": height, "imageWidth": width}).encode())


def cvat(folder, labels, shape):
    write_images(folder, labels)
    meta = "".join(
        f"<label><name>{name}</name><color>#{red:02x}{green:02x}{blue:02x}</color></label>"
        for name, (red, green, blue) in zip(NAMES, COLOURS, strict=True)
    )
    text = f'<?xml version="1.0" encoding="utf-8"?>\n<annotations><meta><job><labels>{meta}</labels></job></meta>'
    for number, (name, label) in enumerate(labels.items()):
        height, width = label.shape
        shapes = "".join(shape(title, mask) for title, mask in regions(label))
        text += f'<image id="{number}" name={quoteattr(name)}.png width="{width}" height="{height}">'.replace(
            '".png', '.png"'
        )
        text += shapes + '<points label="car" points="1,2;3,4"/></image>'
    put(folder / "annotations.xml", f"{text}</annotations>".encode())


def cvat_polygons(folder, labels):
    def shape(title, mask):
        rings = (";".join(f"{x}.00,{y}.00" for x, y in ring) for ring in outlines(mask))
        return "".join(
            f'<polygon label="{title}" source="manual" occluded="0" points="{ring}" z_order="0"/>' for ring in rings
        )

    cvat(folder, labels, shape)


def cvat_masks(folder, labels):
    def shape(title, mask):
        y, x = np.nonzero(mask)
        box = mask[y.min() : y.max() + 1, x.min() : x.max() + 1]
        counts = ", ".join(map(str, runs(box.ravel())))
        place = f'left="{x.min()}" top="{y.min()}" width="{box.shape[1]}" height="{box.shape[0]}"'
        return f'<mask label="{title}" rle="{counts}" {place} z_order="0"/>'

    cvat(folder, labels, shape)


def supervisely(folder, labels):
    write_images(folder, labels, "set/img/{}.png")
    classes = [
        {"title": name, "shape": "bitmap", "color": "#{:02X}{:02X}{:02X}".format(*colour)}
        for name, colour in zip(NAMES, COLOURS, strict=True)
    ]
    put(folder / "meta.json", json.dumps({"classes": classes, "tags": []}).encode())
    for name, label in labels.items():
        objects = []
        for title, mask in regions(label):
            y, x = np.nonzero(mask)
            box = mask[y.min() : y.max() + 1, x.min() : x.max() + 1]
            data = base64.b64encode(zlib.compress(png(box.astype(int), 1))).decode()
            bitmap = {"data": data, "origin": [int(x.min()), int(y.min())]}
            objects.append({"classTitle": title, "geometryType": "bitmap", "bitmap": bitmap})
        content = {"size": {"height": label.shape[0], "width": label.shape[1]}, "objects": objects, "tags": []}
        put(folder / f"set/ann/{name}.png.json", json.dumps(content).encode())


def brush(mask):
    """Label Studio's code of RGBA bytes: blocks of runs and of literals, in turn."""
    values = np.where(mask[..., None], 255, 0).astype(np.uint8).repeat(4, 2).ravel()
    sizes = (3, 4, 8, 16)
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in sizes)
    edges = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    for number, (start, end) in enumerate(itertools.pairwise(edges)):
        while start < end:
            # some runs are written as literals, which may end within them
            literal = number % 3 == 1
            length = min(end - start, 7 if literal else 1 << 16)
            kind = next(kind for kind, size in enumerate(sizes) if length <= 1 << size)
            bits += f"{0 if literal else 1}{kind:02b}{length - 1:0{sizes[kind]}b}"
            bits += "".join(
                f"{value:08b}" for value in values[start : start + length if literal else start + 1].tolist()
            )
            start += length
    bits += "0" * (-len(bits) % 8)
    return [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]


def labelstudio(folder, labels):
    write_images(folder, labels)
    tasks = []
    for number, (name, label) in enumerate(labels.items()):
        results = [
            {
                "type": "brushlabels", "original_width": label.shape[1], "original_height": label.shape[0],
                "value": {"format": "rle", "rle": brush(mask), "brushlabels": [title]},
            }
            for title, mask in regions(label)
        ]  # fmt: skip
        data = {"image": f"/data/upload/1/0a1b2c3d-{name}.png"}
        tasks.append({"id": number, "data": data, "annotations": [{"result": results, "was_cancelled": False}]})
    put(folder / "export.json", json.dumps(tasks).encode())


def labelstudio_min(folder, labels):
    """JSON-MIN: the same values, without the records around them."""
    labelstudio(folder, labels)
    tasks = json.loads((folder / "export.json").read_text())
    (folder / "export.json").unlink()
    plain = []
    for task in tasks:
        results = task["annotations"][0]["result"]
        tag = [
            {**each["value"], **{key: each[key] for key in ("original_width", "original_height")}} for each in results
        ]
        plain.append({"image": task["data"]["image"], "id": task["id"], "tag": tag, "annotator": 1, "annotation_id": 7})
    put(folder / "export-min.json", json.dumps(plain).encode())


def labelstudio_rectangles(folder, labels):
    """Every run of a row is a rectangle, turned by a half or a quarter about its first corner."""
    write_images(folder, labels)
    tasks = []
    for name, label in labels.items():
        height, width = label.shape
        results = []
        for title, mask in regions(label):
            for number, ring in enumerate(corners(mask)):
                (left, top), (right, bottom) = np.min(ring, 0), np.max(ring, 0)
                x, y, w, h, turn = [
                    (left, top, right - left, bottom - top, 0),
                    (right, bottom, right - left, bottom - top, 180),
                    # its sides are exchanged where it is turned by a quarter
                    (right, top, bottom - top, right - left, 90),
                ][number % 3]
                value = {"x": x / width, "y": y / height, "width": w / width, "height": h / height}
                value = {key: 100 * float(part) for key, part in value.items()}
                value |= {"rotation": turn, "rectanglelabels": [title]}
                sizes = {"original_width": width, "original_height": height}
                results.append({"type": "rectanglelabels", "value": value, **sizes})
        task = {"data": {"image": f"/data/{name}.png"}, "annotations": [{"result": results}]}
        tasks.append(task)
    put(folder / "export.json", json.dumps(tasks).encode())


def cityscapes(folder, labels):
    """Outlines, the hindmost first; what is not outlined is ignored."""
    write_images(folder, labels, "leftImg8bit/train/town/{}_leftImg8bit.png")
    for name, label in labels.items():
        shapes = [{"label": title, "polygon": ring} for title, mask in regions(label) for ring in corners(mask)]
        behind = {"label": "road", "polygon": [[0, 0], [label.shape[1], 0], [3, 9]], "deleted": 1}
        height, width = label.shape
        content = {"imgHeight": height, "imgWidth": width, "objects": [behind, *shapes]}
        put(folder / f"gtFine/train/town/{name}_gtFine_polygons.json", json.dumps(content).encode())


def coloured(label):
    return np.where((label == VOID)[..., None], 0, image_of(label)[..., ::-1]).astype(int)


def cityscapes_masks(folder, labels):
    """As CVAT writes them: colours, ids and instances beside each other."""
    write_images(folder, labels, "imgsFine/leftImg8bit/default/{}_leftImg8bit.png")
    for name, label in labels.items():
        put(folder / f"gtFine/default/{name}_gtFine_color.png", png(coloured(label), colour=2))
        for kind in ("labelIds", "instanceIds"):
            put(folder / f"gtFine/default/{name}_gtFine_{kind}.png", png(label))
    lines = "".join(f"{' '.join(map(str, colour))} {name}\n" for name, colour in zip(NAMES, COLOURS, strict=True))
    put(folder / "label_colors.txt", f"{lines}0 0 0 void\n".encode())


def labelme_masks(folder, labels):
    """As labelme2voc writes them, with pictures of the labels beside them."""
    pascal(folder, labels)
    (folder / "SegmentationClass").rename(folder / "SegmentationClassPNG")
    for name, label in labels.items():
        put(folder / f"SegmentationClassVisualization/{name}.png", png(coloured(label), colour=2))
    (folder / "labelmap.txt").unlink()
    put(folder / "labels.txt", "\n".join(["__ignore__", *NAMES]).encode())


def sequences(folder, labels):
    """Frames of the same name in folders of their own, below the images and below the masks."""
    write_images(folder, labels, "images/{}/frame1.png")
    for name, label in labels.items():
        put(folder / f"masks/{name}/frame1.png", png(label))
    put(folder / "classes.txt", "\n".join(NAMES).encode())


def pascal(folder, labels):
    write_images(folder, labels, "JPEGImages/{}.png")
    palette = [*COLOURS, *[(0, 0, 0)] * 250, (224, 224, 192)]
    for name, label in labels.items():
        put(folder / f"SegmentationClass/{name}.png", png(label, colour=3, palette=palette))
    lines = "".join(f"{name}:{','.join(map(str, colour))}::\n" for name, colour in zip(NAMES, COLOURS, strict=True))
    put(folder / "labelmap.txt", f"# label:color_rgb:parts:actions\n{lines}".encode())
    names = list(labels)
    put(folder / "ImageSets/Segmentation/train.txt", "\n".join(names[1:]).encode())
    put(folder / "ImageSets/Segmentation/val.txt", names[0].encode())


def colours(folder, labels):
    write_images(folder, labels)
    for name, label in labels.items():
        put(folder / f"masks/{name}.png", png(coloured(label), colour=2))
    lines = "".join(f"{name},{','.join(map(str, colour))}\n" for name, colour in zip(NAMES, COLOURS, strict=True))
    put(folder / "class_dict.csv", f"name,r,g,b\n{lines}void,0,0,0\n".encode())


def beside(folder, labels):
    write_images(folder, labels, "{}.png")
    for name, label in labels.items():
        put(folder / f"{name}_L.png", png(np.where(label == VOID, 5, label)))
    put(folder / "classes.txt", "\n".join([*NAMES, "void"]).encode())


def spread(folder, labels):
    write_images(folder, labels)
    for name, label in labels.items():
        put(folder / f"labels/{name}.png", png(label.astype(int) * 9000 % 65536, 16))


def yolo(folder, labels):
    write_images(folder, labels)
    for name, label in labels.items():
        height, width = label.shape
        lines = [
            f"{NAMES.index(title)} " + " ".join(f"{x / width} {y / height}" for x, y in ring)
            for title, mask in regions(label)
            for ring in corners(mask)
        ]
        put(folder / f"labels/{name}.txt", "\n".join(lines).encode())
    put(folder / "data.yaml", f"train: images\nnc: {len(NAMES)}\nnames: [{', '.join(NAMES)}]\n".encode())


FORMATS = {
    "coco": [coco_polygons, coco_corners, coco_runs, coco_crowd, roboflow_coco],
    "labelme": [labelme],
    "cvat": [cvat_polygons, cvat_masks],
    "supervisely": [supervisely],
    "labelstudio": [labelstudio, labelstudio_min, labelstudio_rectangles],
    "cityscapes": [cityscapes],
    "masks": [roboflow_masks, pascal, colours, beside, spread, sequences, cityscapes_masks, labelme_masks],
    "yolo": [yolo],
}
