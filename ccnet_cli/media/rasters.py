"""TIFF files of any size, read and written by windows with their georeference; the only user of rasterio."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ccnet_cli import files
from ccnet_cli.errors import EnvironmentFailure, InputError
from ccnet_cli.media import formats
from ccnet_cli.media.images import BYTE_LIMIT, PIXEL_LIMIT, Pixels

SUFFIXES = (".tif", ".tiff")
# pixels of a side of a tile of what is written
BLOCK = 256
# of the library, for blocks that it has read; its default is a twentieth of the machine's memory
CACHE_MEBIBYTES = 64


class Region(NamedTuple):
    """Rows of a picture, BGR (rows, W, 3), and which pixels count (rows, W): all where it is None."""

    image: Pixels
    valid: npt.NDArray[np.bool_] | None = None

    def rows(self, first: int, last: int) -> "Region":
        """Some of the rows."""
        return Region(self.image[first:last], None if self.valid is None else self.valid[first:last])

    def above(self, other: "Region") -> "Region":
        """Both, one above the other."""
        if self.valid is None or other.valid is None:
            return Region(np.concatenate([self.image, other.image]))
        return Region(np.concatenate([self.image, other.image]), np.concatenate([self.valid, other.valid]))


def is_raster(path: Path) -> bool:
    """Whether a file is a TIFF, by its name."""
    return path.suffix.lower() in SUFFIXES


def needs_windows(path: Path) -> bool:
    """Whether a TIFF is too large to be read at once, by its size and its header."""
    try:
        with path.open("rb") as file:
            size = formats.read_tiff_size(file)
        return size is None or size[0] * size[1] > PIXEL_LIMIT or path.stat().st_size > BYTE_LIMIT
    except (OSError, ValueError):
        # reading it says what is wrong
        return False


@dataclass(frozen=True)
class Raster:
    """An open TIFF of size (H, W); has_gaps says whether some of its pixels may not count."""

    path: Path
    size: tuple[int, int]
    has_gaps: bool
    dataset: Any

    def read(self, top: int, bottom: int) -> Region:
        """Rows of it: the first three bands, grey repeated, 16 bits cut to 8."""
        window = ((top, bottom), (0, self.size[1]))
        bands = [3, 2, 1] if self.dataset.count >= 3 else [1, 1, 1]
        try:
            values = self.dataset.read(bands if bands[0] == 3 else [1], window=window)
            valid = self.dataset.dataset_mask(window=window) > 0 if self.has_gaps else None
        except _library().errors.RasterioError as error:
            raise _unreadable(self.path, error) from None
        if values.dtype == np.uint16:
            # as images are read: OpenCV leaves colours to libtiff, which rounds
            values = (values >> 8 if len(values) == 1 else (values.astype(np.uint32) + 128) // 257).astype(np.uint8)
        table = self._palette()
        if table is not None:
            return Region(table[values[0]], valid)
        return Region(np.ascontiguousarray(np.broadcast_to(np.moveaxis(values, 0, 2), (*values.shape[1:], 3))), valid)

    def _palette(self) -> Pixels | None:
        """The colours of the values of a picture with a palette, BGR (256, 3)."""
        if self.dataset.colorinterp[0].name != "palette":
            return None
        table = np.zeros((256, 3), np.uint8)
        for value, colour in self.dataset.colormap(1).items():
            if value < 256:
                table[value] = colour[2::-1]
        return table


@contextmanager
def open_raster(path: Path) -> Iterator[Raster]:
    """Yield a TIFF, opened; InputError for what cannot be read."""
    rasterio = _library()
    with _environment():
        try:
            dataset = rasterio.open(path, driver="GTiff")
        except rasterio.errors.RasterioError as error:
            raise _unreadable(path, error) from None
        with dataset:
            kinds, depth = set(dataset.dtypes), dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", "8")
            if not kinds <= {"uint8", "uint16"} or len(kinds) > 1 or int(depth) < 8:
                narrow = f" of {depth} bits" if int(depth) < 8 else ""
                why = f"a TIFF of {' and '.join(sorted(kinds))} samples{narrow}"
                raise InputError(f"image {path}", why, "convert it to unsigned samples of 8 or 16 bits")
            gaps = rasterio.enums.MaskFlags.all_valid not in dataset.mask_flag_enums[0]
            yield Raster(path, (dataset.height, dataset.width), gaps, dataset)


@contextmanager
def open_writer(
    path: Path, like: Raster, bands: int = 1, palette: Sequence[Sequence[int]] | None = None, gap: int | None = None
) -> Iterator[Callable[[Pixels], None]]:
    """Yield a function that appends rows, (rows, W) or BGR (rows, W, 3), to a TIFF with the georeference of another.

    It appears when the block ends without error. gap is the value of pixels that do not count.
    """
    rasterio, target = _library(), files.find_target(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    source, (height, width) = like.dataset, like.size
    points, system = source.gcps
    # what has ground control points has no transformation
    place = {"gcps": points, "crs": system} if points else {"transform": source.transform, "crs": source.crs}
    profile = {"driver": "GTiff", "dtype": "uint8", "count": bands, "height": height, "width": width, "nodata": gap}
    layout = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "compress": "deflate", "bigtiff": "if_safer"}
    colours = {"photometric": "rgb", "interleave": "pixel"} if bands == 3 else {}
    waiting, top = np.zeros((0, width, *[3] * (bands == 3)), np.uint8), 0
    with files.replace_file(target) as temporary, _environment():
        # says, as the library does not, why a file cannot be made
        temporary.touch()
        try:
            with rasterio.open(temporary, "w", **profile, **layout, **colours, **place) as dataset:
                dataset.update_tags(**{k: v for k, v in source.tags().items() if k == "AREA_OR_POINT"})
                if source.rpcs is not None:
                    dataset.rpcs = source.rpcs
                if palette is not None:
                    dataset.write_colormap(1, dict(enumerate(map(tuple, palette))))

                def flush(rows: int) -> None:
                    nonlocal waiting, top
                    part, waiting = waiting[:rows], waiting[rows:]
                    window = ((top, top + rows), (0, width))
                    if bands == 3:
                        dataset.write(np.moveaxis(part[..., ::-1], 2, 0), window=window)
                    else:
                        dataset.write(part, 1, window=window)
                    top += rows

                def append(rows: Pixels) -> None:
                    nonlocal waiting
                    waiting = np.concatenate([waiting, rows])
                    # whole tiles: each is written once
                    flush(len(waiting) // BLOCK * BLOCK)

                yield append
                if top + len(waiting) != height:
                    raise ValueError(f"{top + len(waiting)} rows in a picture of {height}")
                flush(len(waiting))
        except rasterio.errors.RasterioError as error:
            raise _unwritten(path, str(error)) from None
        if not is_whole(temporary):
            # a full disk is not reported when the file is closed
            raise _unwritten(path, "the file is not whole")


def is_whole(path: Path) -> bool:
    """Whether a TIFF can be opened and holds all that its header says."""
    rasterio = _library()
    try:
        with _environment(), rasterio.open(path, driver="GTiff") as dataset:
            down, across = dataset.block_shapes[0]
            last = (dataset.height - 1) // down, (dataset.width - 1) // across
            end = path.stat().st_size
            for row in range(last[0] + 1):
                for column in range(last[1] + 1):
                    tag = dataset.get_tag_item(f"BLOCK_OFFSET_{column}_{row}", "TIFF", bidx=1)
                    if tag is None or int(tag) + dataset.block_size(1, row, column) > end:
                        return False
        return True
    except (rasterio.errors.RasterioError, rasterio.errors.RasterBlockError):
        return False


def _library() -> Any:
    try:
        import rasterio
    except ImportError:
        what, why = "TIFF by windows", "rasterio is not installed"
        raise InputError(what, why, "run pip install 'ccnet-cli[geo]', or write PNG files") from None
    return rasterio


@contextmanager
def _environment() -> Iterator[None]:
    """The library's settings inside: a small cache, no files beside the pictures, no warnings."""
    rasterio = _library()
    with warnings.catch_warnings(), rasterio.Env(GDAL_CACHEMAX=CACHE_MEBIBYTES, GDAL_PAM_ENABLED=False):
        # a photograph needs no georeference
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        yield


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"image {path}", f"cannot be read ({error})", "replace the file")


def _unwritten(path: Path, why: str) -> EnvironmentFailure:
    return EnvironmentFailure(f"output {path}", f"not written ({why})", "make room, and run again")
