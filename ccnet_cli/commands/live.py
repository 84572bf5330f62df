"""Segment a stream by its address: `ccnet predict rtsp://...`."""

from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING

from ccnet_cli import files
from ccnet_cli.errors import InputError, Interrupted, notice
from ccnet_cli.inference import sharing
from ccnet_cli.inference.artifact import Artifact, Network
from ccnet_cli.inference.live import segment_live
from ccnet_cli.inference.sharing import Recipe
from ccnet_cli.inference.stream import Area, Outcome
from ccnet_cli.media import outputs, video

if TYPE_CHECKING:
    from ccnet_cli.commands.predict import PredictRequest


def check(request: "PredictRequest") -> None:
    """InputError for what a stream cannot be combined with."""
    address, output, format = request.sources[0], request.output, request.formats[0]
    if len(request.sources) > 1:
        raise InputError(f"stream {address}", "other sources are given too", "segment a stream by itself")
    if request.gpus or request.processes > 1 or request.shard != (1, 1) or request.skip_complete:
        fix = "leave out --gpus, --processes, --shard and --continue"
        raise InputError(f"stream {address}", "is segmented by one process, once", fix)
    if output.suffix.lower() not in video.WRITTEN or request.probabilities or len(request.formats) > 1:
        fix = f"end the output's name in {' or '.join(video.WRITTEN)}, and ask for one format"
        raise InputError(f"output {output}", "a stream becomes one video", fix)
    if format not in outputs.VIDEO_FORMATS:
        raise InputError(
            f"stream {address}", f"cannot be written as {format}", f"use {' or '.join(outputs.VIDEO_FORMATS)}"
        )
    files.refuse_outputs([output, *request.others], [request.checkpoint])
    files.refuse_outputs([output], overwrite=request.overwrite)


def record(request: "PredictRequest", recipe: Recipe, artifact: Artifact[Network]) -> tuple[Outcome, int]:
    """Write the stream; what came of it, and the number of the signal that ended it, or 0."""
    address, target = request.sources[0], (request.formats[0], request.output)
    files.sweep(request.output.parent)
    with sharing.record_signals() as received:
        segmenter = recipe.prepare(artifact)

        def stop_signal() -> int:
            return next(iter(received), 0)

        recording = segment_live(segmenter, artifact.classes, address, target, request.seconds, stop_signal)
    notice(f"{recording.frames} frames of {address} are segmented, {recording.dropped} came too fast and are left out")
    area = Area(Path(address), recording.size, recording.frames, recording.pixels)
    return Outcome(0, Path(address), (request.output,), area if request.areas else None), stop_signal()


def interrupted(request: "PredictRequest", number: int) -> Interrupted:
    """The error that says that a signal ended a stream."""
    why = f"stopped by {Signals(number).name}; what came until then is in {request.output}"
    return Interrupted(f"stream {request.sources[0]}", why, "use --seconds to end it by itself", number)
