"""Artifacts: files that hold a model, whoever wrote them, opened for inference."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from ccnet_cli import config
from ccnet_cli.datasets.settings import Clip
from ccnet_cli.errors import InputError
from ccnet_cli.inference import onnx
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
    path: Path | None = None, preset: str | None = None, overrides: Sequence[str] = ()
) -> Artifact[Network]:
    """Open a checkpoint, a run folder, other people's weights, or an ONNX file that we wrote; see find_artifact.

    preset, a name or a file, replaces the one that the file holds or suggests; overrides ("key=value") come last. Of an
    ONNX file they may change what lies around the network. InputError if the file is damaged, unknown, or does not fit.
    """
    path = find_artifact(path)
    return _open_onnx(path, preset, overrides) if is_onnx(path) else load_model(path, preset, overrides)


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


def _open_onnx(path: Path, preset: str | None, overrides: Sequence[str]) -> Artifact[Network]:
    facts, content = onnx.read(path)
    try:
        model = dict(facts["preset"]["model"])
        mapping = facts["preset"] if preset is None else config.to_mapping(config.load(preset)) | {"model": model}
    except (KeyError, TypeError, ValueError) as error:
        raise damaged_facts(path, error) from None
    for text in overrides:
        if text.startswith("model."):
            fix = "override it when you export the file (ccnet export -s)"
            raise InputError(f"--set {text}", "the network of an ONNX file stays as it is", fix)
        config.override(mapping, text)
    f = read_facts(facts | {"preset": mapping}, path)
    m = f.preset.model
    normalisation = Normalisation(m.channel_order, m.mean, m.std)
    network = onnx.OnnxNetwork(content, path, len(f.classes), normalisation, m.align_corners, facts.get("stride", 8))
    return Artifact(network.eval(), f.preset, f.classes, f.origin, f.metrics, f.step, path)


def is_onnx(path: Path) -> bool:
    """Whether a file is an ONNX file, by its name."""
    return path.suffix.lower() == onnx.SUFFIX


def default_device(name: str, path: Path | None) -> str:
    """A device's name; for auto it is cpu if an ONNX file is to run in an ONNX Runtime without CUDA."""
    return "cpu" if name == "auto" and path and is_onnx(path) and not onnx.offers_cuda() else name


def default_precision(name: str, path: Path | None) -> str:
    """A precision's name; for auto it is fp32 if an ONNX file is to run, whose only precision that is."""
    return "fp32" if name == "auto" and path and is_onnx(path) else name
