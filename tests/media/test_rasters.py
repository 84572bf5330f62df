"""TIFF files by windows: read as images are, written with the georeference, whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

from ccnet_cli.errors import InputError
from ccnet_cli.media import images, outputs, rasters
from ccnet_cli.media.classes import Classes
from ccnet_cli.media.layout import Layout

rasterio = pytest.importorskip("rasterio")
PLACE = {"crs": "EPSG:32633", "transform": rasterio.Affine(0.5, 0, 400_000, 0, -0.5, 5_300_000)}


def draw(path, pixels, **options):
    """A TIFF of pixels (H, W) or (H, W, bands), RGB first."""
    bands = pixels[..., None] if pixels.ndim == 2 else pixels
    shape = {"height": len(bands), "width": bands.shape[1], "count": bands.shape[2], "dtype": bands.dtype}
    colours = {"photometric": "rgb"} if bands.shape[2] >= 3 else {}
    with rasterio.open(path, "w", driver="GTiff", **shape, **(colours | options)) as dataset:
        dataset.write(np.moveaxis(bands, 2, 0))
    return path


def read_all(path, rows=7):
    with rasters.open_raster(path) as raster:
        height = raster.size[0]
        return [raster.read(top, min(top + rows, height)) for top in range(0, height, rows)]


PIXELS = np.random.default_rng(0).integers(0, 65536, (50, 37, 3)).astype(np.uint16)
KINDS = {
    "rgb": (PIXELS >> 8).astype(np.uint8),
    "rgb, 16 bits": PIXELS,
    "grey": (PIXELS[..., 0] >> 8).astype(np.uint8),
    "grey, 16 bits": PIXELS[..., 0],
}


@pytest.mark.parametrize("options", [{}, {"tiled": True, "blockxsize": 16, "blockysize": 32, "compress": "lzw"}])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_windows_hold_what_the_image_holds(tmp_path, kind, options):
    # of tiles of 16-bit grey that reach beyond the picture, OpenCV reads no more than the first row of them
    path = draw(tmp_path / "a.tif", KINDS[kind][:32, :32] if options else KINDS[kind], **options)
    regions = read_all(path)
    assert all(region.valid is None for region in regions)
    assert np.array_equal(np.concatenate([region.image for region in regions]), images.read_image(path))


def test_more_bands_and_palettes_are_read(tmp_path):
    many = np.concatenate([KINDS["rgb"], KINDS["rgb"][..., :2]], axis=2)
    (region,) = read_all(draw(tmp_path / "many.tif", many, **PLACE), 50)
    # a fourth band may be transparency, of which there is no word here
    assert np.array_equal(region.image, KINDS["rgb"][..., ::-1])
    path = draw(tmp_path / "palette.tif", np.array([[0, 1, 2]], np.uint8), photometric="palette", **PLACE)
    with rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, {0: (1, 2, 3), 1: (40, 50, 60), 2: (7, 8, 9)})
    (region,) = read_all(path)
    assert region.image.tolist() == [[[3, 2, 1], [60, 50, 40], [9, 8, 7]]]


def test_pixels_without_data_do_not_count(tmp_path):
    pixels = KINDS["rgb"].copy()
    pixels[10:30, 5:9] = 0
    pixels[40, 1] = (0, 0, 9)
    regions = read_all(draw(tmp_path / "a.tif", pixels, nodata=0, **PLACE))
    valid = np.concatenate([region.valid for region in regions])
    # what has a value in one band counts
    assert np.array_equal(valid, (pixels != 0).any(-1)) and not valid[10:30, 5:9].any() and valid[40, 1]


@pytest.mark.parametrize(
    ("pixels", "why"),
    [(np.zeros((4, 5), np.float32), "float32 samples;"), (np.zeros((4, 5), np.int16), "int16 samples;")],
)
def test_other_samples_are_refused(tmp_path, pixels, why):
    with pytest.raises(InputError, match=why), rasters.open_raster(draw(tmp_path / "a.tif", pixels, **PLACE)):
        pass


def test_bands_that_only_a_tiff_takes_are_named(tmp_path):
    path = draw(tmp_path / "a.tif", np.zeros((4, 5, 5), np.uint8), **PLACE)
    with pytest.raises(InputError, match=r"or has not 1, 3 or 4 bands .*-o NAME\.tif"):
        images.read_image(path)


def test_what_is_no_tiff_is_refused(tmp_path):
    (tmp_path / "a.tif").write_bytes(b"II*\0" + bytes(50))
    with pytest.raises(InputError, match=r"a\.tif: cannot be read"), rasters.open_raster(tmp_path / "a.tif"):
        pass


@pytest.mark.parametrize(("bands", "gap"), [(1, 255), (1, None), (3, None)])
def test_a_written_tiff_lies_where_the_other_lies(tmp_path, bands, gap):
    source = draw(tmp_path / "a.tif", np.zeros((600, 300), np.uint8), **PLACE)
    values = np.random.default_rng(1).integers(0, 256, (600, 300, 3), dtype=np.uint8)
    values = values[..., 0] if bands == 1 else values
    palette = ((1, 2, 3), (4, 5, 6)) if bands == 1 else None
    path = tmp_path / "new/out.tif"
    with rasters.open_raster(source) as like, rasters.open_writer(path, like, bands, palette, gap) as append:
        for top in range(0, 600, 70):
            append(values[top : top + 70])
        assert not path.exists()
    with rasterio.open(path) as dataset:
        assert (dataset.crs, dataset.transform, dataset.nodata) == (PLACE["crs"], PLACE["transform"], gap)
        assert np.array_equal(np.moveaxis(dataset.read(), 0, 2)[..., ::-1].squeeze(), values)
        if palette:
            assert dataset.colormap(1)[1] == (4, 5, 6, 255)
    assert [each.name for each in path.parent.iterdir()] == ["out.tif"] and outputs.is_complete(path)
    path.write_bytes(path.read_bytes()[:-2000])
    assert not outputs.is_complete(path)


def test_ground_control_points_are_kept(tmp_path):
    points = [
        rasterio.control.GroundControlPoint(r, c, 10.0 + c, 50.0 - r) for r, c in ((0, 0), (0, 9), (9, 0), (9, 9))
    ]
    source = draw(tmp_path / "a.tif", np.zeros((10, 10), np.uint8), gcps=points, crs="EPSG:4326")
    with rasters.open_raster(source) as like, rasters.open_writer(tmp_path / "b.tif", like) as append:
        append(np.zeros((10, 10), np.uint8))
    with rasterio.open(tmp_path / "b.tif") as dataset:
        assert [(p.row, p.col, p.x, p.y) for p in dataset.gcps[0]] == [(p.row, p.col, p.x, p.y) for p in points]


def test_after_an_error_nothing_is_left(tmp_path):
    source = draw(tmp_path / "a.tif", np.zeros((300, 300), np.uint8), **PLACE)
    for rows, error in ((40, KeyboardInterrupt), (299, ValueError)):
        with (
            pytest.raises(error),
            rasters.open_raster(source) as like,
            rasters.open_writer(tmp_path / "b.tif", like) as append,
        ):
            append(np.zeros((rows, 300), np.uint8))
            if rows == 40:
                raise KeyboardInterrupt
        assert [each.name for each in tmp_path.iterdir()] == ["a.tif"]


def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path):
    draw(tmp_path / "a.tif", np.zeros((600, 600), np.uint8), **PLACE)
    code = f"""
import resource, signal
from pathlib import Path
import numpy as np
from ccnet_cli.media import rasters
folder = Path({str(tmp_path)!r})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
noise = np.random.default_rng(0).integers(0, 256, (600, 600), dtype=np.uint8)
with rasters.open_raster(folder / "a.tif") as like:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    with rasters.open_writer(folder / "out.tif", like) as append:
        append(noise)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert "EnvironmentFailure" in ran.stderr and "out.tif" in ran.stderr and "not written" in ran.stderr
    assert [each.name for each in tmp_path.iterdir()] == ["a.tif"]


def test_where_the_files_go(tmp_path, monkeypatch):
    tiff, small, huge = (tmp_path / name for name in ("a.tiff", "b.tif", "c.tif"))
    for path in (tiff, small, huge):
        draw(path, np.zeros((10, 20), np.uint8), bigtiff="yes" if path == huge else "no", **PLACE)
    folder = Layout(tmp_path / "masks", ("color",))
    assert folder.targets(small, "b") == {"color": tmp_path / "masks/b.png"}
    assert folder.targets(huge, "c") == {"color": tmp_path / "masks/c.tif"}
    assert Layout(tmp_path / "masks", ("color",), tiff=True).targets(tiff, "a") == {"color": tmp_path / "masks/a.tif"}
    assert Layout(tmp_path / "out.tif", ("color",)).targets(small, "b") == {"color": tmp_path / "out.tif"}
    monkeypatch.setattr(rasters, "PIXEL_LIMIT", 199)
    assert folder.targets(small, "b") == {"color": tmp_path / "masks/b.tif"}
    with pytest.raises(InputError, match=r"masks of b\.tif are TIFF files, not \.png"):
        Layout(tmp_path / "out.png", ("color",)).targets(small, "b")
    with pytest.raises(InputError, match="too large for probabilities"):
        Layout(tmp_path / "masks", ("color",), npz=True).targets(small, "b")
    with pytest.raises(InputError, match="holds no overlay-legend"):
        Layout(tmp_path / "masks", ("overlay-legend",), tiff=True).targets(tiff, "a")
    photo = tiny.write(tmp_path / "p.png", tiny.picture(8, 8, 1))
    with pytest.raises(InputError, match=r"masks are PNG files, not \.tif"):
        Layout(tmp_path / "out.tif", ("color",)).targets(photo, "p")


def test_the_value_of_gaps_is_no_class():
    classes = Classes(("a", "b"), ((1, 2, 3), (4, 5, 6)), (0, 255))
    assert [outputs.gap_value(format, classes) for format in ("color", "train-id", "label-id")] == [255, 255, 1]


def test_without_the_library_a_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(InputError, match=r"rasterio is not installed; run pip install 'ccnet-cli\[geo\]'"):
        rasters.open_raster(tmp_path / "a.tif").__enter__()
