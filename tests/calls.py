"""The package's functions that take a request, called with keywords."""

from dataclasses import dataclass
from pathlib import Path

from ccnet_cli.cli.options import path_override, view_overrides
from ccnet_cli.commands import evaluate as evaluation
from ccnet_cli.commands import explore as pages
from ccnet_cli.commands import predict as prediction
from ccnet_cli.commands import visualize as figures
from ccnet_cli.inference.runtime import Runtime
from ccnet_cli.inference.stream import Outcome
from ccnet_cli.inference.views import Views, batch_scores, host_input


def class_scores(network, image_1CHW, **views):
    """All scores of one image, (K, H, W) float32 at the image's size."""
    return batch_scores(network, image_1CHW, Views(**views), image_1CHW.device)[0].dense()


def segment(network, image_bgr, device, **views):
    """The class of each pixel of a uint8 BGR image."""
    image = host_input(image_bgr, network.normalisation, device)
    return batch_scores(network, image, Views(**views), device)[0].predict()


def evaluate(checkpoint=None, data=None, group=None, **options):
    """Score a checkpoint; options are the request's fields, the runtime's, mode, tile, scales and flip."""
    request = evaluation.EvaluateRequest(checkpoint, **_fields(options, path_override("data.root", data)))
    return evaluation.evaluate(request) if group is None else evaluation.evaluate_in_group(request, group)


@dataclass
class Predicted:
    """What a prediction has done, the legend last among the files; see its check for what it has not."""

    result: prediction.Prediction
    files: list[Path]
    outcomes: list[Outcome]

    @property
    def areas(self):
        return [outcome.area for outcome in self.outcomes if outcome.area is not None]

    def to_mapping(self):
        return {"checkpoint": str(self.result.checkpoint), "sources": [self.result.area(area) for area in self.areas]}


def predict(sources, output, checkpoint=None, check=True, **options):
    """Segment sources; options are the request's fields, the runtime's, mode, tile, scales and flip."""
    request = prediction.PredictRequest(tuple(map(str, sources)), output, checkpoint, **_fields(options))
    outcomes = []
    result = prediction.predict(request, lambda outcome, _: outcomes.append(outcome))
    if result is None:
        return None
    if check:
        result.check()
    files = [path for outcome in outcomes for path in outcome.files]
    return Predicted(result, files + [request.legend] * (request.legend is not None), outcomes)


def visualize(image, points, output, checkpoint=None, **fields):
    """Draw the figure of an image."""
    return figures.visualize(figures.VisualizeRequest(image, tuple(points), output, checkpoint, **fields))


def explore(images, output, points=(), checkpoint=None, **fields):
    """Write the pages of images."""
    return pages.explore(pages.ExploreRequest(tuple(images), output, tuple(points), checkpoint=checkpoint, **fields))


def _fields(options, overrides=()):
    """Options as a request's fields: a runtime, and overrides as the command line makes them."""
    own = {key: options.pop(key) for key in ("device", "precision", "compile", "memory", "firm") if key in options}
    views = view_overrides(*(options.pop(key, None) for key in ("mode", "scales", "flip")))
    if "tile" in options:
        views += ["eval.tile={},{}".format(*options.pop("tile"))]
    overrides = (*options.pop("overrides", ()), *overrides, *views)
    return {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()} | {
        "runtime": Runtime(**own),
        "overrides": overrides,
    }
