"""Artifacts: files that hold a model, whoever wrote them, opened for inference."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from torch import Tensor

from ccnet_cli import config
from ccnet_cli.datasets.settings import Clip
from ccnet_cli.errors import InputError
from ccnet_cli.inference import onnx, openvino
from ccnet_cli.media.classes import Classes
from ccnet_cli.models.network import CCNet, Normalisation
from ccnet_cli.weights.find import find_artifact
from ccnet_cli.weights.load import damaged_facts, read_facts, read_weights


class Network(Protocol):
    """What inference needs of a network: the torch model, the engine, and ONNX Runtime's all have it."""

    normalisation: Normalisation
    align_corners: bool

    @property
    def stride(self) -> int:
        """Pixels of the image for each cell of the scores, each way."""

    def __call__(self, x: Tensor) -> Any:
        """Normalised image (B, 3, H, W) -> class scores (B, K, h, w)."""


class RuntimeFiles(NamedTuple):
    """How the files of a runtime are read and run."""

    read: Callable[[Path, bool], tuple[dict[str, Any], Any]]
    network: type[onnx.OnnxNetwork]
    offers_cuda: Callable[[], bool]


# by suffix
RUNTIMES = {
    onnx.SUFFIX: RuntimeFiles(
        lambda path, strict: onnx.read(path, strict), onnx.OnnxNetwork, lambda: onnx.offers_cuda()
    ),
    openvino.SUFFIX: RuntimeFiles(openvino.read, openvino.OpenVinoNetwork, lambda: False),
}
N = TypeVar("N", bound=Network, covariant=True)


@dataclass(frozen=True)
class Artifact(Generic[N]):
    """A network in evaluation mode on the CPU, and what its file says of it.

    origin says where its weights come from if not from a training of ours; metrics are those of its last evaluation.
    """

    network: N
    preset: config.Preset
    classes: Classes
    origin: str
    metrics: dict[str, float]
    step: int
    path: Path

    @property
    def clip(self) -> Clip | None:
        """The clips that the network takes, None where it takes images."""
        clip = self.preset.data.clip
        return clip if clip is not None and clip.frames > 1 else None


def open_artifact(
    path: Path | None = None, preset: str | None = None, overrides: Sequence[str] = (), strict: bool = False
) -> Artifact[Network]:
    """Open a checkpoint, a run folder, other people's weights, or a file of ours for a runtime; see find_artifact.

    preset, a name or a file, replaces the one that the file holds or suggests; overrides ("key=value") come last. Of a
    runtime's file they may change what lies around the network; strict refuses one that others have changed. InputError
    if the file is damaged, unknown, or does not fit.
    """
    path = find_artifact(path)
    if not is_program(path):
        return load_model(path, preset, overrides)
    runtime = RUNTIMES[path.suffix.lower()]
    facts, content = runtime.read(path, strict)
    return _open_program(path, runtime.network, content, _override(path, facts, preset, overrides))


def load_model(
    path: Path | None = None, preset: str | None = None, overrides: Sequence[str] = (), headless: bool = False
) -> Artifact[CCNet]:
    """As open_artifact, for those who need the torch model itself: an ONNX file is an InputError.

    headless lets a backbone alone pass, which then gets a new head.
    """
    path = find_artifact(path)
    weights = read_weights(path, preset, overrides, headless)
    facts = weights.facts()
    network = weights.build(facts)
    return Artifact(network, facts.preset, facts.classes, facts.origin, facts.metrics, facts.step, path)


def _open_program(path: Path, kind: type[onnx.OnnxNetwork], content: Any, facts: dict[str, Any]) -> Artifact[Network]:
    f = read_facts(facts, path)
    m = f.preset.model
    normalisation = Normalisation(m.channel_order, m.mean, m.std)
    network = kind(content, path, len(f.classes), normalisation, m.align_corners, facts.get("stride", 8))
    return Artifact(network.eval(), f.preset, f.classes, f.origin, f.metrics, f.step, path)


def _override(path: Path, facts: dict[str, Any], preset: str | None, overrides: Sequence[str]) -> dict[str, Any]:
    """A file's facts with another preset around the network."""
    try:
        model = dict(facts["preset"]["model"])
        mapping = facts["preset"] if preset is None else config.to_mapping(config.load(preset)) | {"model": model}
    except (KeyError, TypeError, ValueError) as error:
        raise damaged_facts(path, error) from None
    for text in overrides:
        if text.startswith("model."):
            fix = "override it when you export the file (ccnet export -s)"
            raise InputError(f"--set {text}", "the network of an exported file stays as it is", fix)
        config.override(mapping, text)
    return facts | {"preset": mapping}


def is_program(path: Path) -> bool:
    """Whether a file is one for ONNX Runtime or OpenVINO, by its name."""
    return path.suffix.lower() in RUNTIMES


def _has_cuda(path: Path) -> bool:
    return is_program(path) and RUNTIMES[path.suffix.lower()].offers_cuda()


def default_device(name: str, path: Path | None) -> str:
    """A device's name; for auto it is cpu if a file is to run in a runtime without CUDA."""
    return "cpu" if name == "auto" and path and is_program(path) and not _has_cuda(path) else name


def default_precision(name: str, path: Path | None) -> str:
    """A precision's name; for auto it is fp32 if a runtime's file is to run, whose only precision that is."""
    return "fp32" if name == "auto" and path and is_program(path) else name
