"""A sheet of pictures with text and marks, drawn by matplotlib: pixels, or PDF and SVG whose text is text.

Places are in pixels of the sheet, (x, y) from its top left; sizes of text and marks are in points.
"""

import base64
import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ccnet_cli.errors import InputError, one_line
from ccnet_cli.figures import charts
from ccnet_cli.media import images
from ccnet_cli.media.images import Pixels, cv2

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = ("png", "pdf", "svg")
# dots per inch of a PNG of its own width, and of all that is made for print
SCREEN_DPI, PRINT_DPI = 100, 300
# text: at its natural width, and where a narrow sheet would make it too small to read
TEXT_POINTS, LEAST_POINTS, LEAST_MARKS = 12.0, 6.5, 3.5
# of the viewer's colours, the one that pages and figures begin with
COLOURS = cv2.COLORMAP_INFERNO
INK, FAINT, MARK = "#232323", "#5a5a5a", "#3cff78"
# a line of text in heights of its letters
LINE = 1.5
# from one line of a caption to the next, in lines
CLOSE = 0.85
NO_BREAK = "\N{NO-BREAK SPACE}"
# as wide as the end of a colour bar can be
WIDEST_WEIGHT = "≥ 0.00044"
# words that would have to be smaller than this, in text sizes, break at spaces that do not break otherwise
LEAST_SIZE = 0.85


@dataclass(frozen=True)
class Print:
    """How a figure is made: its format, inches across and dots per inch, and whether a row's maps share a scale."""

    format: str = "png"
    width: float | None = None
    dpi: int | None = None
    one_scale: bool = False

    @property
    def dots(self) -> int:
        """Dots per inch, of the pictures in a PDF or SVG too."""
        natural = self.format == "png" and self.width is None
        return self.dpi or (SCREEN_DPI if natural else PRINT_DPI)

    def zoom(self, natural: float) -> float:
        """Pixels of the sheet for each pixel of one that is `natural` pixels wide on a screen."""
        return self.dots / SCREEN_DPI * (1 if self.width is None else self.width * SCREEN_DPI / natural)

    def points(self, natural: float) -> float:
        """The size of its text."""
        return max(LEAST_POINTS, self.marks(natural))

    def marks(self, natural: float) -> float:
        """The size of its marks, which shrink with the pictures as long as one can see them."""
        return max(LEAST_MARKS, TEXT_POINTS * self.zoom(natural) * SCREEN_DPI / self.dots)


class Sheet:
    """A white sheet of this size, `natural` pixels wide on a screen; all is drawn inside `with charts.style()`."""

    def __init__(self, size: tuple[int, int], how: Print, natural: float) -> None:
        self.width, self.height = size
        self.how, self.points, self.marks = how, how.points(natural), how.marks(natural)
        self.figure = charts.new_figure(self.width, self.height, how.dots)
        self.texts: list[str] = []

    @property
    def line(self) -> float:
        """Pixels of a line of text."""
        return self.pixels(LINE * self.points)

    def pixels(self, points: float) -> float:
        """Pixels of a length in points."""
        return points * self.how.dots / 72

    def picture(
        self, picture_bgr: Pixels, corner: tuple[float, float], size: tuple[float, float] | None = None
    ) -> "Axes":
        """Put a picture with its top left at corner, pixel by pixel unless a size is given; its axes count its own."""
        height, width = picture_bgr.shape[:2]
        across, down = size or (width, height)
        left, top = corner
        box = left / self.width, 1 - (top + down) / self.height, across / self.width, down / self.height
        axes: Any = self.figure.add_axes(box)
        axes.set_axis_off()
        axes.imshow(picture_bgr[..., ::-1], interpolation="none", aspect="auto")
        axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
        return axes  # type: ignore[no-any-return]

    def text_width(self, text: str, points: float) -> float:
        """Pixels of a text."""
        return charts.text_width(text, points) * self.how.dots / charts.DPI

    def write(self, text: str, place: tuple[float, float], room: float, size: float = 1, colour: str = INK) -> None:
        """Write a line with its base at place, smaller if it is wider than `room` pixels; size is in text sizes."""
        # a space that does not break is a space in print
        shown, points = one_line(text.replace(NO_BREAK, " ")), size * self.points
        points *= min(1, room / max(self.text_width(shown, points), 1e-9))
        self.texts.append(shown)
        x, y = place
        self.figure.text(x / self.width, 1 - y / self.height, shown, size=points, color=colour, va="baseline")

    def label(self, axes: "Axes", text: str, place: tuple[float, float]) -> None:
        """Write a short text on a picture, with its base at a pixel (x, y) of it."""
        self.texts.append(text)
        axes.text(*place, text, size=0.85 * self.points, color="white", va="baseline")

    def wrap(self, text: str, room: float, size: float = 1) -> list[str]:
        """A text in lines no wider than `room` pixels, broken at spaces that may break."""
        lines, most = [""], room / LEAST_SIZE
        wide = [word for word in text.split(" ") if self.text_width(word, size * self.points) > most]
        for word in wide:
            text = text.replace(word, word.replace(NO_BREAK, " "))
        for word in text.split(" "):
            longer = f"{lines[-1]} {word}".strip()
            if lines[-1] and self.text_width(longer, size * self.points) > room:
                lines.append(word)
            else:
                lines[-1] = longer
        return lines

    def rule(self, start: tuple[float, float], length: float) -> None:
        """Draw a thin line to the right."""
        from matplotlib.lines import Line2D

        x, y = start[0] / self.width, 1 - start[1] / self.height
        self.figure.add_artist(Line2D([x, x + length / self.width], [y, y], color=FAINT, linewidth=0.06 * self.points))

    def bar_lines(self, room: float) -> int:
        """How many lines a colour bar takes: below a narrow one, its weight has a line of its own."""
        side, widest = 0.85 * self.pixels(self.points), self.text_width(WIDEST_WEIGHT, 0.9 * self.points)
        return 1 if room >= 2.5 * side + LEAST_SIZE * widest else 2

    def colour_bar(self, corner: tuple[float, float], limit: float, room: float, lines: int = 1) -> None:
        """A bar of the colours from 0 to a weight that also stands for all above it; see bar_lines."""
        left, top = corner
        side, size = 0.85 * self.pixels(self.points), 0.9
        base = top + 0.8 * self.line
        self.write("0", (left, base), side, size, FAINT)
        text = f"≥ {write_weight(limit)}"
        after = self.text_width(text, size * self.points) + 1.6 * side
        length = max(min(room / 3, room - side - after), side)
        place, rest = (left + length + 1.5 * side, base), room - length - 1.5 * side
        if lines == 2:
            length, place, rest = room - side, (left, base + CLOSE * self.line), room
        bar = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[None], COLOURS)
        self.picture(np.asarray(bar, np.uint8), (left + side, base - 0.85 * side), (length, side))
        self.write(text, place, rest, size, FAINT)

    def encode(self) -> bytes:
        """The file."""
        if self.how.format == "png":
            content_png = images.encode_png(self.to_pixels(), smallest=True)
            return content_png if self.how.dots == SCREEN_DPI else _set_dpi(content_png, self.how.dots)
        content = io.BytesIO()
        # no date: the same figure is the same file
        date = "CreationDate" if self.how.format == "pdf" else "Date"
        self.figure.savefig(content, format=self.how.format, dpi=self.how.dots, metadata={date: None})
        return content.getvalue() if self.how.format == "pdf" else _embed_font(content.getvalue(), self.texts)

    def to_pixels(self) -> Pixels:
        """The sheet as a BGR picture."""
        return charts.pixels_of(self.figure)


def write_weight(weight: float) -> str:
    """Two digits, with a proper minus in its exponent."""
    mantissa, _, exponent = f"{weight:.2g}".partition("e")
    return f"{mantissa}e−{-int(exponent)}" if exponent else mantissa


def mark_ring(
    axes: "Axes", place: tuple[float, float], points: float, colour: str = MARK, outline: bool = True
) -> None:
    """A ring of this diameter around a pixel (x, y)."""
    for ink, width in ((("black", 0.3),) if outline else ()) + ((colour, 0.14),):
        axes.plot(*place, "o", ms=points, mfc="none", mec=ink, mew=width * points, clip_on=True)


def mark_lines(axes: "Axes", lines: Sequence[tuple[tuple[float, float], tuple[float, float]]], points: float) -> None:
    """Lines between pixels (x, y), seen on any ground."""
    for colour, width in (("black", 2.2 * points), (MARK, points)):
        for (x, y), (end_x, end_y) in lines:
            axes.plot([x, end_x], [y, end_y], color=colour, linewidth=width, solid_capstyle="butt")


def _set_dpi(png: bytes, dpi: int) -> bytes:
    """A PNG that says how large it is printed."""
    per_metre = round(dpi / 0.0254)
    chunk = b"pHYs" + struct.pack(">IIB", per_metre, per_metre, 1)
    # behind the header, which comes first and has one size
    head = len(images.PNG_SIGNATURE) + 25
    return png[:head] + struct.pack(">I", 9) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[head:]


def _embed_font(svg: bytes, texts: Sequence[str]) -> bytes:
    """An SVG with the letters of its texts in it, as a font of its own."""
    from fontTools import subset
    from fontTools.ttLib import TTFont

    path = charts.font_file()
    options = subset.Options(flavor=None, notdef_outline=True, glyph_names=False, hinting=False)
    font = TTFont(path)
    letters = subset.Subsetter(options)
    letters.populate(text="".join(texts))
    letters.subset(font)
    content = io.BytesIO()
    font.save(content, reorderTables=False)
    address = f"data:font/ttf;base64,{base64.b64encode(content.getvalue()).decode()}"
    style = f"<style>@font-face {{ font-family: 'DejaVu Sans'; src: url({address}); }}</style>"
    # made smaller on a screen, pictures are to be smooth
    svg = svg.replace(b"image-rendering:crisp-edges;image-rendering:pixelated", b"")
    head, tag, rest = svg.partition(b"<defs>")
    return head + tag + style.encode() + rest


def check_print(how: Print) -> None:
    """InputError for a width or a resolution that no figure can have."""
    if how.width is not None and not 1 <= how.width <= 60:
        raise InputError(f"width {how.width:g}in", "not a width of a figure", "give 1in to 60in, such as 3.3in")
    if how.dpi is not None and not 50 <= how.dpi <= 1200:
        raise InputError(f"dpi {how.dpi}", "not a resolution of a figure", "give 50 to 1200, such as 300")
