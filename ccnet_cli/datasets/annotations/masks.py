"""Mask files: one for each image, of values (grey, 16 bits, palette) or of colours, as Pascal, Roboflow and others."""

import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from unicodedata import normalize

import numpy as np

from ccnet_cli.datasets import tables
from ccnet_cli.datasets.annotations.tree import (
    VOID,
    Annotations,
    Colour,
    Picture,
    Tree,
    refuse_other,
    require_classes,
    split_of,
)
from ccnet_cli.datasets.tables import MAX_VALUES, REST, Table, pack, parse_table, refuse_swapped
from ccnet_cli.errors import InputError, notice
from ccnet_cli.media.images import Pixels, is_one_channel, read_bytes, read_colours, read_label

WORDS = (
    "masks?|labels?|l|gt|annotations?|annot|ann|segmentations?|seg|segmentationclass(?:aug|png)?|targets?|semantics?"
)
WORDS += "|gtfine(?:_color|_labelids)?"
# a folder or the end of a name that makes a file a mask
FOLDER = re.compile(rf"(?:^|.*[/_. -])(?:{WORDS}|\w+annot|\w+_masks?|\w+_labels?)(?:[/_. -].*)?", re.IGNORECASE)
BEGINNING = re.compile(rf"(?:{WORDS}|images?|imgs?)[_. -]", re.IGNORECASE)
ENDING = re.compile(rf"(.+?)[_. -](?:{WORDS})", re.IGNORECASE)
# pictures that lie beside masks: which object a pixel belongs to, and colours over the image
OTHERS = re.compile(
    r"(?:.*/)?(?:SegmentationObject\w*|\w+Visualization|instance)/.*|.*_(?:instance|labelTrain)Ids\.\w+", re.IGNORECASE
)
# of the names of Cityscapes' images
IMAGE = "_leftImg8bit"
# of a file without loss beside a photograph of its name
LOSSLESS = (".png", ".bmp", ".gif", ".tif", ".tiff")
# text files that say what values or colours mean, lines of a name and three numbers, one or none
TABLES = re.compile(
    r"labelmap\.txt|label_colou?rs?\.txt|colou?r_?map\.(txt|csv)|palette\.txt|class_dict(_seg)?\.csv|_?classes\.(csv|txt)"
    r"|labels\.(csv|txt)|class_?names\.txt|names\.txt|obj\.names",
    re.IGNORECASE,
)
HEX = re.compile(r"#([0-9a-fA-F]{6})\b")
# the outlines in Pascal's masks
BORDER = "#e0e0c0"
IGNORED = 255
KEY = "--labels"
EXAMPLE = f"{KEY} '{{0: background, 1: car}}'"


def recognise(tree: Tree) -> bool:
    """Whether an image has a mask, by the names."""
    return bool(_pair(tree)[0])


def read(tree: Tree) -> Annotations:
    """Every image that has a mask; what its values mean is said by --labels, a text file, or the values themselves."""
    masks, lonely = _pair(tree)
    if not masks:
        fix = "name masks as the images, in a folder masks or labels or with an ending such as _mask"
        raise InputError(f"folder {tree.top}", "holds no image with a mask", fix)
    folders = {posixpath.dirname(mask) for mask in masks.values()}
    if missing := [mask for mask in lonely if posixpath.dirname(mask) in folders]:
        why = f"has no image of its name ({len(missing)} of {len(masks) + len(missing)} masks have none)"
        raise InputError(f"mask {tree.top / missing[0]}", why, "put the images there, or take the masks away")
    labels, source = (tree.labels, KEY) if tree.labels else read_table(tree)
    if labels is None:
        labels, source = _discover(tree, masks), "what the other masks hold"
    try:
        table = parse_table(labels)
    except ValueError as error:
        raise InputError(source, str(error), "correct it") from None
    names = require_classes(table.names, source)
    reader = _reader(table, names, source)
    splits = _read_splits(tree)
    pictures = [
        Picture(
            tree.top / image,
            (),
            splits.get(posixpath.splitext(posixpath.basename(image))[0]) or split_of(posixpath.dirname(image)),
        )
        for image in masks
    ]
    others = len({*tree.images} - {*masks} - {*masks.values()})
    maps = [partial(_read_map, reader, tree.top / image, tree.top / mask) for image, mask in masks.items()]
    return Annotations(names, pictures, _colours(table, names), maps=maps, others=others)


def _pair(tree: Tree) -> tuple[dict[str, str], list[str]]:
    """The mask of each image that has one, and masks without an image; InputError for an image with two."""
    pairs, lonely = _pair_by(tree, _plain_stem)
    return (pairs, lonely) if pairs else _pair_by(tree, _numbered_stem)


def _plain_stem(name: str) -> str:
    return name


def _numbered_stem(name: str) -> str:
    """What image_001 and mask_001 have in common."""
    return BEGINNING.sub("", name)


def _pair_by(tree: Tree, stem: Callable[[str], str]) -> tuple[dict[str, str], list[str]]:
    images: dict[tuple[str | None, str], list[str]] = {}
    masks: dict[tuple[str | None, str], list[str]] = {}
    known = set(tree.images)
    for path in [*tree.images, *tree.ending(".gif")]:
        folder, name = posixpath.split(posixpath.splitext(path)[0].removesuffix(IMAGE))
        # Cityscapes' masks say the same in colours and in numbers
        if OTHERS.fullmatch(path) or ("_labelIds." in path and path.replace("_labelIds.", "_color.") in known):
            continue
        ending = ENDING.fullmatch(name)
        is_mask = ending is not None or (folder and FOLDER.fullmatch(folder) is not None)
        key = (split_of(folder), stem(normalize("NFC", ending[1] if ending else name)))
        if is_mask or not path.lower().endswith(".gif"):
            (masks if is_mask else images).setdefault(key, []).append(path)
    pairs: dict[str, str] = {}
    for key, paths in images.items():
        pairs |= _match(paths, masks.get(key, []))
    pairs = pairs or _pair_beside(tree)
    return pairs, sorted({mask for paths in masks.values() for mask in paths} - set(pairs.values()))


def _pair_beside(tree: Tree) -> dict[str, str]:
    """The file without loss of each JPEG, where they differ in their endings alone."""
    stems = {posixpath.splitext(path): path for path in [*tree.images, *tree.ending(".gif")]}
    plain = {stem: path for (stem, suffix), path in stems.items() if suffix.lower() in LOSSLESS}
    jpegs = ((stem, path) for (stem, suffix), path in stems.items() if suffix.lower() in (".jpg", ".jpeg"))
    return {path: plain[stem] for stem, path in jpegs if stem in plain}


def _match(images: Sequence[str], masks: Sequence[str]) -> dict[str, str]:
    """The mask of each image, all of one name: the one whose folders are most alike; InputError where two are."""
    pairs: dict[str, str] = {}
    for image in images if masks else ():
        best = max(_likeness(image, mask) for mask in masks)
        chosen = [mask for mask in masks if _likeness(image, mask) == best]
        if len(chosen) > 1:
            raise InputError(f"masks {chosen[0]}", f"has the same name as {chosen[1]}", "rename one of them")
        if other := next((each for each, mask in pairs.items() if mask == chosen[0]), None):
            raise InputError(f"images {other}", f"has the same name as {image}", "rename one of them")
        pairs[image] = chosen[0]
    return pairs


def _likeness(one: str, other: str) -> int:
    """How many folders two paths share, from the top and from the bottom."""
    above, below = (posixpath.dirname(path).split("/") for path in (one, other))
    top = len(posixpath.commonprefix([above, below]))
    return top + len(posixpath.commonprefix([above[top:][::-1], below[top:][::-1]]))


def _read_splits(tree: Tree) -> dict[str, str]:
    """The split of each name in ImageSets' lists."""
    splits: dict[str, str] = {}
    for path in tree.ending(".txt"):
        if "imagesets/" in path.lower() and (split := split_of(posixpath.splitext(posixpath.basename(path))[0])):
            text = read_bytes(tree.top / path, "list").decode("utf-8-sig", "replace")
            splits |= {posixpath.basename(line.strip()): split for line in text.splitlines() if line.strip()}
    return splits


def _read_map(reader: Callable[[Path], Pixels], image: Path, mask: Path) -> Pixels:
    try:
        return reader(mask)
    except InputError:
        refuse_swapped(image, mask, "exchange the two folders")
        raise


def _discover(tree: Tree, masks: Mapping[str, str]) -> dict[str, str | None]:
    """The table of masks that no file explains; InputError where one ought to."""
    if any(".rf." in mask for mask in masks.values()):
        why = "has no _classes.csv, which says what the values of Roboflow's masks mean"
        raise InputError(f"folder {tree.top}", why, f"export it again, or say it by {EXAMPLE}")
    try:
        table = discover_table([tree.top / mask for mask in masks.values()])
    except InputError:
        image, mask = next(iter(masks.items()))
        refuse_swapped(tree.top / image, tree.top / mask, "exchange the two folders")
        raise
    notice(f"no file says what the values of the masks mean: classes are named after them; {EXAMPLE} names them")
    return table


def read_table(tree: Tree) -> tuple[dict[str, str | None] | None, str]:
    """The meaning of values or colours in the first text file that says it; files in several folders must agree."""
    tables: dict[str, dict[str, str | None]] = {}
    for path in tree.ending(".txt", ".csv", ".names"):
        if TABLES.fullmatch(posixpath.basename(path)) and "imagesets/" not in path.lower():
            where = f"file {tree.top / path}"
            tables[path] = _parse_lines(_decode(read_bytes(tree.top / path, "file"), where), where)
    tables = {path: table for path, table in tables.items() if table}
    if not tables:
        return None, ""
    (first, table), *others = tables.items()
    for path, other in others:
        if posixpath.basename(path) == posixpath.basename(first) and other != table:
            raise InputError(f"file {tree.top / path}", f"says something else than {tree.top / first}", "make them one")
    return table, f"file {tree.top / first}"


def _decode(content: bytes, where: str) -> str:
    refuse_other(content, where)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(where, f"byte {error.start} is not UTF-8", "save it as plain UTF-8 text") from None


def _parse_lines(text: str, where: str) -> dict[str, str | None]:
    """Lines of a name and R, G, B, or of a name and a value, or of names alone, as the key data.labels has them."""
    entries: list[tuple[list[str], str]] = []
    for line in text.splitlines()[:4096]:
        line = HEX.sub(lambda match: "{},{},{}".format(*bytes.fromhex(match[1])), line)
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        words = [word for word in re.split(r"[,;:\t]+|\s{2,}|(?<=\d)\s+|\s+(?=\d)", line.strip()) if word.strip()]
        numbers = [word.strip() for word in words if re.fullmatch(r"\s*\d{1,5}\s*", word)]
        name = " ".join(word.strip() for word in words if not re.fullmatch(r"\s*\d{1,5}\s*", word))
        entries.append((numbers[:3], name))
    counts = [len(numbers) for numbers, _ in entries]
    size = 3 if 3 in counts else 1 if 1 in counts else 0
    chosen = [entry for entry in entries if len(entry[0]) == size and entry[1]]
    # LabelMe's lists of names begin with what counts nowhere, and has no number
    first = -1 if not size and chosen and chosen[0][1] == "__ignore__" else 0
    keys = [",".join(numbers) if size else str(index) for index, (numbers, _) in enumerate(chosen, first)]
    labels: dict[str, str | None] = {}
    for key, (_, name) in zip(keys, chosen, strict=True):
        if labels.setdefault(key, _meaning(name)) != _meaning(name):
            why = f"{key} belongs to two classes, {labels[key] or 'void'} and {name}"
            raise InputError(where, why, "correct it")
    labels.pop("-1", None)
    if not labels:
        return {}
    ignored: dict[str, str | None] = {BORDER if size == 3 else str(IGNORED): None}
    return {**ignored, **labels}


def _meaning(name: str) -> str | None:
    return None if name.lower() in VOID else name


def discover_table(masks: Sequence[Path]) -> dict[str, str | None]:
    """A table of the values or colours that occur, each a class named after it; 255 is ignored beside others."""
    values: set[int] = set()
    colours: set[int] = set()
    for path in masks:
        if is_one_channel(path):
            values |= set(np.unique(read_label(path)).tolist())
        else:
            colours |= set(np.unique(pack(read_colours(path))).tolist())
        if len(values) > MAX_VALUES or len(colours) > MAX_VALUES:
            why = f"holds more than {MAX_VALUES} values or colours, as a picture or a smoothed mask does"
            raise InputError(
                f"mask {path}", why, "say what they mean with --labels, or give the masks as they were drawn"
            )
    if colours:
        # grey masks among coloured ones
        colours |= {value << 16 | value << 8 | value for value in values}
        grey = all(colour >> 16 == colour & 255 == colour >> 8 & 255 for colour in colours)
        if not grey:
            return {f"#{colour:06x}": f"#{colour:06x}" for colour in sorted(colours)}
        values = {colour & 255 for colour in colours}
    named: dict[str, str | None] = {str(value): f"value {value}" for value in sorted(values)}
    if values != {0, IGNORED} and IGNORED in values:
        named[str(IGNORED)] = None
    return named


def _colours(table: Table, names: Sequence[str]) -> dict[str, Colour]:
    colours = table.colours_of(names)
    return dict(zip(names, colours, strict=True)) if colours else {}


def _reader(table: Table, names: Sequence[str], source: str) -> Callable[[Path], Pixels]:
    """A reader of masks as indices of names, 255 ignored; InputError for what the table does not name."""
    if table.colours:
        return tables.colour_reader(table, names, IGNORED, source, KEY)
    plain = tables.value_reader(KEY)
    known = np.full(65536, -1, np.int16)
    for name in table.rest:
        known[:] = IGNORED if name is None else names.index(name)
    for value, name in table.values.items():
        known[value] = IGNORED if name is None else names.index(name)

    def read(path: Path) -> Pixels:
        values = plain(path)
        if (unknown := np.unique(values[known[values] < 0])).size:
            listed = ", ".join(map(str, unknown[:8].tolist()))
            there = "" if source == KEY else "correct it there, or "
            fix = f"{there}add it to {KEY}, or ignore what is not named with {REST}: null"
            raise InputError(f"mask {path}", f"value {listed} is not in {source}", fix)
        return np.asarray(known[values], np.uint8)

    return read
