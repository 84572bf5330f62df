"""Draw the streets of toyscapes: sky, terraces of houses and trees, vehicles and the signal.

Every function draws into `image` uint8 (H, W, 3) BGR and `labels` uint8 (H, W), Cityscapes label ids, in place.
"""

from collections.abc import Sequence

import numpy as np

from ccnet_cli.media.images import Pixels, cv2

# pixels from one street down to the next
TERRACE = 80
ROAD = 34
SIGNAL_RADIUS = 12
# width, height
VEHICLE = (48, 24)
MARK = (24, 12)
SIGN = (40, 16)
# textures of a mark, by the side of their white and black cells, 0 for a cell as long as the mark
MARKS = {"plain": (0, 0), "upright": (4, 0), "level": (0, 4), "checks": (6, 6)}

# Cityscapes label ids; the signal's post has none
SKY, BUILDING, VEGETATION, STREET, POST = 23, 11, 21, 7, 0
FACADES = (
    (178, 208, 226),
    (190, 190, 222),
    (214, 206, 190),
    (182, 216, 200),
    (206, 190, 210),
    (168, 196, 232),
    (220, 220, 216),
)
ROOFS = ((72, 88, 150), (84, 96, 128), (96, 92, 100), (66, 78, 118))


def draw_streets(rng: np.random.Generator, size: tuple[int, int]) -> tuple[Pixels, Pixels, list[int]]:
    """Image and labels of size (H, W) with sky and terraces, and the rows of the lanes, from the top."""
    height, width = size
    image, labels = np.empty((height, width, 3), np.uint8), np.full((height, width), SKY, np.uint8)
    draw_sky(rng, image)
    terraces = height // TERRACE
    lowest = height - int(rng.integers(height - terraces * TERRACE + 1))
    bottoms = [lowest - TERRACE * i for i in reversed(range(terraces))]
    for index, bottom in enumerate(bottoms):
        draw_terrace(rng, image, labels, bottom, top=index == 0)
    image[lowest:], labels[lowest:] = image[lowest - 1], STREET
    return image, labels, [bottom - ROAD // 2 for bottom in bottoms]


def draw_sky(rng: np.random.Generator, image: Pixels) -> None:
    """Fill the whole image with a sky that brightens downwards, and a few clouds."""
    high, low = np.array(((214, 176, 132), (236, 222, 204)), np.float32) + rng.uniform(-10, 10, 3).astype(np.float32)
    ramp = np.clip(np.arange(len(image), dtype=np.float32) / TERRACE, 0, 1)[:, None]
    image[:] = (high + (low - high) * ramp).astype(np.uint8)[:, None]
    for _ in range(int(rng.integers(1, 3)) * image.shape[1] // 160):
        x, y, r = int(rng.integers(image.shape[1])), int(rng.integers(2, 28)), int(rng.integers(5, 9))
        for dx in (-r, 0, r):
            _draw_disc(image, x + dx, y + abs(dx) // 3, r - abs(dx) // 3, (248, 246, 242))


def draw_terrace(rng: np.random.Generator, image: Pixels, labels: Pixels, bottom: int, top: bool) -> None:
    """Draw a street with its houses and trees down to row `bottom`, before a hill or, at the top, the sky."""
    ground, width = bottom - ROAD, image.shape[1]
    if not top:
        _draw_hill(rng, image[bottom - TERRACE : ground], labels[bottom - TERRACE : ground])
    x = int(rng.integers(-30, 4))
    while x < width:
        w, h = int(rng.integers(26, 54)), int(rng.integers(20, 36))
        if rng.random() < 0.75:
            _draw_house(rng, image, labels, x, ground, w, h)
        else:
            _draw_tree(rng, image, labels, x + w // 2, ground)
        x += w + int(rng.integers(0, 10))
    image[ground:bottom], labels[ground:bottom] = (104, 100, 98), STREET
    image[ground : ground + 3] = (176, 178, 180)
    for dash in range(int(rng.integers(-24, 0)), width, 26):
        cv2.rectangle(image, (dash, bottom - ROAD // 2), (dash + 12, bottom - ROAD // 2 + 1), (206, 210, 212), -1)


def _draw_hill(rng: np.random.Generator, image: Pixels, labels: Pixels) -> None:
    """Fill the whole of `image`, a view, with grass and tufts."""
    image[:], labels[:] = (92, 146, 118), VEGETATION
    for _ in range(image.shape[1] // 5):
        x, y = int(rng.integers(image.shape[1])), int(rng.integers(len(image)))
        _draw_disc(image, x, y, int(rng.integers(2, 5)), (84 + int(rng.integers(-8, 9)), 136, 108))


def _draw_house(rng: np.random.Generator, image: Pixels, labels: Pixels, x: int, ground: int, w: int, h: int) -> None:
    """Draw a house of w x h pixels on row `ground`, x its left edge, with a roof of at most 9 pixels above."""
    wall, roof = FACADES[rng.integers(len(FACADES))], ROOFS[rng.integers(len(ROOFS))]
    eaves = ground - h
    ridge = eaves - int(rng.integers(5, 10))
    inset = int(rng.choice((0, w // 6, w // 2)))
    outline = np.array([(x - 1, eaves), (x + inset, ridge), (x + w - inset, ridge), (x + w + 1, eaves)], np.int32)
    cv2.fillPoly(image, [outline], roof, cv2.LINE_AA)
    cv2.fillPoly(labels, [outline], BUILDING)
    cv2.rectangle(image, (x, eaves), (x + w, ground), wall, -1)
    cv2.rectangle(labels, (x, eaves), (x + w, ground), BUILDING, -1)
    cv2.line(image, (x + w, eaves), (x + w, ground), tuple(int(0.8 * c) for c in wall), 1)
    glass = (150, 120, 92) if rng.random() < 0.7 else (150, 212, 236)
    for wy in range(eaves + 4, ground - 13, 11):
        for wx in range(x + 5, x + w - 8, 10):
            cv2.rectangle(image, (wx, wy), (wx + 4, wy + 6), glass, -1)
    door = x + int(rng.integers(4, w - 8))
    cv2.rectangle(image, (door, ground - 10), (door + 5, ground), tuple(int(0.55 * c) for c in wall), -1)


def _draw_tree(rng: np.random.Generator, image: Pixels, labels: Pixels, x: int, ground: int) -> None:
    """Draw a tree on row `ground`, its trunk at x."""
    cv2.rectangle(image, (x - 2, ground - 14), (x + 1, ground), (60, 84, 104), -1)
    cv2.rectangle(labels, (x - 2, ground - 14), (x + 1, ground), VEGETATION, -1)
    green = np.array((66, 128, 84)) + rng.integers(-12, 13, 3)
    for dx, dy, r in ((-7, -18, 9), (7, -18, 9), (0, -26, 11)):
        _draw_disc(image, x + dx, ground + dy, r, tuple(int(c) for c in green))
        cv2.circle(labels, (x + dx, ground + dy), r, VEGETATION, -1)
        _draw_disc(image, x + dx - 2, ground + dy - 3, r // 2, tuple(int(c) for c in green + 14))


def draw_van(rng: np.random.Generator, image: Pixels, labels: Pixels, centre: tuple[int, int], label: int) -> None:
    """Draw a grey van of 48 x 24 pixels, whatever its class."""
    (x, y), half, up = centre, VEHICLE[0] // 2, VEHICLE[1] // 2
    grey, facing = int(rng.integers(140, 200)), int(rng.choice((-1, 1)))
    corners = ((-half, 7), (-half, -up + 3), (-half + 3, -up), (half - 10, -up), (half - 2, -2), (half, 1), (half, 7))
    body = np.array([(x + facing * dx, y + dy) for dx, dy in corners], np.int32)
    cv2.ellipse(image, (x, y + up - 1), (half + 1, 3), 0, 0, 360, (78, 75, 74), -1, cv2.LINE_AA)
    cv2.fillPoly(image, [body], (grey, grey, grey), cv2.LINE_AA)
    cv2.fillPoly(labels, [body], label)
    cv2.line(image, (x - half + 2, y + 1), (x + half - 2, y + 1), (grey - 36,) * 3, 1)
    for left, right in ((-half + 4, -half + 13), (-half + 15, -half + 24), (half - 21, half - 9)):
        ends = sorted((x + facing * left, x + facing * right))
        cv2.rectangle(image, (ends[0], y - up + 3), (ends[1], y - 2), (72, 66, 60), -1)
    for wheel in (-half + 10, half - 10):
        _draw_disc(image, x + wheel, y + 7, 5, (40, 38, 38))
        _draw_disc(image, x + wheel, y + 7, 2, (150, 150, 150))
        cv2.circle(labels, (x + wheel, y + 7), 5, label, -1)


def draw_signal(image: Pixels, labels: Pixels, x: int, y: int, colour: tuple[int, int, int], label: int) -> None:
    """Draw a coloured disc with a white ring on a short post; the post is not labelled."""
    cv2.rectangle(image, (x - 1, y), (x, y + 15), (150, 150, 150), -1)
    cv2.rectangle(labels, (x - 1, y), (x, y + 15), POST, -1)
    _draw_disc(image, x, y, SIGNAL_RADIUS, (250, 250, 250))
    _draw_disc(image, x, y, SIGNAL_RADIUS - 2, colour)
    cv2.circle(labels, (x, y), SIGNAL_RADIUS, label, -1)


def draw_board(image: Pixels, labels: Pixels, x: int, y: int, mark: str) -> None:
    """Draw the mark on a board above a signal's centre; as the post, it is not labelled."""
    y -= SIGNAL_RADIUS + MARK[1] // 2 + 1
    (width, height) = MARK
    image[y - height // 2 - 1 : y + height // 2 + 1, x - width // 2 - 1 : x + width // 2 + 1] = 150
    labels[y - height // 2 - 1 : y + height // 2 + 1, x - width // 2 - 1 : x + width // 2 + 1] = POST
    draw_mark(image, x, y, mark)


def draw_mark(image: Pixels, x: int, y: int, mark: str) -> None:
    """Draw one of MARKS, 24 x 12 pixels, around a centre."""
    (width, height), (across, down) = MARK, MARKS[mark]
    rows, columns = np.arange(height)[:, None], np.arange(width)[None]
    dark = (rows // (down or height) + columns // (across or width)) % 2
    top, left = y - height // 2, x - width // 2
    image[top : top + height, left : left + width] = np.where(dark, 16, 248)[..., None]


def draw_sign(image: Pixels, x: int, y: int, colour: tuple[int, int, int]) -> None:
    """Draw a coloured sign around a centre, nearly as large as a van."""
    corner = x - SIGN[0] // 2, y - SIGN[1] // 2
    cv2.rectangle(image, corner, (corner[0] + SIGN[0] - 1, corner[1] + SIGN[1] - 1), colour, -1)


def _draw_disc(image: Pixels, x: int, y: int, radius: int, colour: Sequence[int]) -> None:
    cv2.circle(image, (x, y), radius, colour, -1, cv2.LINE_AA)


def expose(rng: np.random.Generator, image: Pixels) -> Pixels:
    """Copy the picture with a little more or less light, and a little grain."""
    grain = rng.integers(-3, 4, image.shape[:2], dtype=np.int16)[..., None]
    exposed = image * rng.uniform(0.92, 1.06) + grain
    return exposed.clip(0, 255).astype(np.uint8)
