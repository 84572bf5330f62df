"""Segment a TIFF by windows into TIFF files, so that its size does not matter."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ccnet_cli.errors import InputError
from ccnet_cli.inference.segmenter import Segmenter
from ccnet_cli.media import outputs, rasters
from ccnet_cli.media.classes import Classes
from ccnet_cli.media.images import PIXEL_LIMIT
from ccnet_cli.media.layout import Targets
from ccnet_cli.media.rasters import Region

Counts = npt.NDArray[np.int64]


def segment_raster(
    segmenter: Segmenter, classes: Classes, source: Path, targets: Targets, after_rows: Callable[[int], None]
) -> tuple[tuple[int, int], Counts]:
    """Size and pixels of each class; after_rows gets the number of rows that are done, and may raise."""
    counts, done = np.zeros(len(classes), np.int64), 0
    with ExitStack() as stack:
        raster = stack.enter_context(rasters.open_raster(source))
        if raster.size[0] * raster.size[1] > PIXEL_LIMIT and not segmenter.takes_bands:
            why = "too large to be seen at several scales, fitted or in clips"
            raise InputError(f"image {source}", why, "leave out --scales and eval.fit, or cut it into parts")
        writers = {}
        for format, path in targets.items():
            gap = outputs.gap_value(format, classes) if raster.has_gaps else None
            bands, palette = (3, None) if format == "overlay" else (1, classes.palette if format == "color" else None)
            writer = rasters.open_writer(path, raster, bands, palette, None if bands == 3 else gap)
            writers[format] = stack.enter_context(writer), gap
        for region, ids in segmenter.predict_bands(raster.size, raster.read):
            counts += _count(ids, region, len(classes))
            for format, (append, gap) in writers.items():
                drawn = outputs.values_of(format, ids, region.image, classes)
                if region.valid is not None and gap is not None:
                    drawn[~region.valid] = region.image[~region.valid] if format == "overlay" else gap
                append(drawn)
            done += len(ids)
            after_rows(done)
    return raster.size, counts


def _count(ids: npt.NDArray[np.uint8], region: Region, classes: int) -> Counts:
    return np.bincount((ids if region.valid is None else ids[region.valid]).ravel(), minlength=classes)
