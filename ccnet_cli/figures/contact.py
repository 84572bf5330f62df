"""A contact sheet of a data set: pictures with their labels over them, and how many pixels each class has."""

from collections.abc import Sequence

import numpy as np

from ccnet_cli.media.classes import Classes
from ccnet_cli.media.images import Pixels, ascii_text, colorize, cv2

# of a tile, its picture and its name; of a bar
WIDTH, NAME, GAP, BAR = 320, 22, 6, 300
LABEL_WEIGHT = 0.55


def draw_sheet(samples: Sequence[tuple[str, Pixels, Pixels]], classes: Classes, columns: int = 4) -> Pixels:
    """Tiles of (name, BGR image, label (H, W) of train ids) under their names; ignored pixels stay as they are."""
    tiles = [_draw_tile(*sample, classes) for sample in samples]
    columns = min(columns, len(tiles))
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    heights = [max(len(tile) for tile in row) for row in rows]
    sheet = np.full((sum(heights) + GAP * (len(rows) + 1), columns * (WIDTH + GAP) + GAP, 3), 255, np.uint8)
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            left = GAP + column * (WIDTH + GAP)
            sheet[top : top + len(tile), left : left + WIDTH] = tile
        top += height + GAP
    return sheet


def _draw_tile(name: str, image: Pixels, label: Pixels, classes: Classes) -> Pixels:
    height = min(max(round(image.shape[0] * WIDTH / image.shape[1]), 1), 3 * WIDTH)
    colours, known = colorize(label, classes.palette), (label < len(classes))[..., None]
    mixed = np.where(known, (1 - LABEL_WEIGHT) * image + LABEL_WEIGHT * colours, image).astype(np.uint8)
    tile = np.full((height + NAME, WIDTH, 3), 255, np.uint8)
    tile[NAME:] = cv2.resize(mixed, (WIDTH, height), interpolation=cv2.INTER_AREA)
    cv2.putText(tile, ascii_text(name)[-44:], (2, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (20, 20, 20), 1, cv2.LINE_AA)
    return tile


def draw_histogram(pixels: dict[str, int], ignored: int, classes: Classes) -> Pixels:
    """A bar for each class, and for ignored pixels, with its share of all pixels in percent."""
    rows = [*zip(classes.names, classes.palette, pixels.values(), strict=True), ("(ignored)", (0, 0, 0), ignored)]
    total = max(sum(count for *_, count in rows), 1)
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, 0.5
    left = 12 + max(cv2.getTextSize(ascii_text(name)[:40], font, scale, 1)[0][0] for name, *_ in rows)
    picture = np.full((24 * len(rows) + 12, left + BAR + 110, 3), 255, np.uint8)
    most = max(1, *(count for *_, count in rows))
    for index, (name, (red, green, blue), count) in enumerate(rows):
        top = 24 * index + 8
        cv2.putText(picture, ascii_text(name)[:40], (6, top + 14), font, scale, (20, 20, 20), 1, cv2.LINE_AA)
        right = left + max(round(BAR * count / most), count > 0)
        picture[top : top + 18, left:right] = (blue, green, red)
        text = f"{100 * count / total:.2f} %" if count else "none"
        colour = (20, 20, 20) if count else (0, 0, 200)
        cv2.putText(picture, text, (right + 6, top + 14), font, scale, colour, 1, cv2.LINE_AA)
    return picture


def stack(pictures: Sequence[Pixels]) -> Pixels:
    """Pictures above each other, on white."""
    width = max(picture.shape[1] for picture in pictures)
    return np.concatenate([np.pad(p, ((0, 0), (0, width - p.shape[1]), (0, 0)), constant_values=255) for p in pictures])
