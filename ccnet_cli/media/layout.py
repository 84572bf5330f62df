"""Where the outputs of an image or a video go: into one file, or below a folder that mirrors the sources' names."""

import hashlib
import mimetypes
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ccnet_cli import files
from ccnet_cli.errors import InputError
from ccnet_cli.media import IMAGE_SUFFIXES, outputs, rasters, sources, video

NPZ = "npz"
MAX_FAN_OUT = 3
# kinds of files that nobody means as a folder
KINDS = ("image/", "video/", "audio/", "text/plain", "text/csv", "text/html", "application/json", "application/pdf")
WRITTEN = (*IMAGE_SUFFIXES, *video.SUFFIXES, *video.ANIMATIONS, *rasters.SUFFIXES)

# the file of each format
Targets = dict[str, Path]


@dataclass(frozen=True)
class Layout:
    """What is written of each source, and below which output.

    npz adds probabilities beside the masks. tiff writes TIFF files of TIFF images; those that are too large to be read
    at once become such files anyway. fan_out spreads the files of a folder over that many levels of 256 subfolders, by
    a hash of their names.
    """

    output: Path
    formats: tuple[str, ...]
    npz: bool = False
    fan_out: int = 0
    tiff: bool = False

    def __post_init__(self) -> None:
        if self.is_file:
            if len(self.formats) > 1 or self.fan_out:
                what = f"{len(self.formats)} formats" if len(self.formats) > 1 else "a fan-out"
                raise InputError(self.output, f"one file for {what}", f"name a folder, without {self.output.suffix}")
        elif self.output.exists() and not self.output.is_dir():
            raise InputError(self.output, "is a file, not a folder", "name a folder, or end the name in .png")
        elif not self.output.is_dir() and (mimetypes.guess_type(self.output.name)[0] or "").startswith(KINDS):
            fix = "end the name in .png, .mp4 or .webm, or name a folder"
            raise InputError(self.output, f"{self.output.suffix} files are not written", fix)

    @property
    def is_file(self) -> bool:
        """Whether the output is the file of one source."""
        named = self.output.suffix.lower() in WRITTEN and not self.output.is_dir()
        return named or files.is_stream(self.output)

    def targets(self, source: Path, name: str) -> Targets:
        """The file of each format of a source; InputError for what cannot be written, or would lie elsewhere."""
        film = sources.is_video(source)
        for format in [*self.formats, *[NPZ] * self.npz] if film else []:
            if format not in outputs.VIDEO_FORMATS:
                fix = f"use {' or '.join(outputs.VIDEO_FORMATS)}, or leave it out"
                raise InputError(f"video {source}", f"cannot be written as {format}", fix)
        by_windows = self._by_windows(source)
        if by_windows and self.npz:
            why = "too large for probabilities" if not self.tiff else "probabilities do not go into TIFF files"
            raise InputError(f"image {source}", why, "leave out --probabilities")
        if by_windows and "overlay-legend" in self.formats:
            raise InputError(f"image {source}", "a TIFF holds no overlay-legend", "use overlay, and --legend FILE")
        if self.is_file:
            return self._file(source)
        if self.fan_out:
            name = _fan_out(name, self.fan_out)
        suffix = ".mp4" if film else ".tif" if by_windows else ".png"
        targets = outputs.destinations(self.output, name, self.formats, suffix)
        if self.npz:
            # beside the masks, or in a folder of its own where these have theirs
            targets[NPZ] = outputs.destinations(self.output, name, [NPZ, *self.formats[1:]], ".npz")[NPZ]
        return targets

    def _by_windows(self, source: Path) -> bool:
        if not rasters.is_raster(source):
            return False
        return self.tiff or (self.is_file and rasters.is_raster(self.output)) or rasters.needs_windows(source)

    def _file(self, source: Path) -> Targets:
        film = sources.is_video(source)
        if files.is_stream(self.output):
            if film:
                raise InputError(self.output, "a video cannot be written through a stream", "name a file")
            return dict.fromkeys([*self.formats, *[NPZ] * self.npz], self.output)
        suffix = self.output.suffix.lower()
        known = video.WRITTEN if film else rasters.SUFFIXES if self._by_windows(source) else (".png",)
        if suffix not in known:
            kinds = f"masks of {source.name} are TIFF files" if len(known) > 1 else "masks are PNG files"
            kinds = "videos are MP4, WebM, GIF or WebP files" if film else kinds
            fix = f"end the name in {' or '.join(known)}, or name a folder"
            raise InputError(self.output, f"{kinds}, not {suffix}", fix)
        return {self.formats[0]: self.output} | ({NPZ: self.output.with_suffix(".npz")} if self.npz else {})


def _fan_out(name: str, levels: int) -> str:
    """The name with folders before its last part, two digits of its hash each."""
    digits = hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=MAX_FAN_OUT).hexdigest()
    path = PurePosixPath(name)
    return str(path.parent.joinpath(*(digits[2 * level : 2 * level + 2] for level in range(levels)), path.name))
