"""The package's functions that take a request, called with keywords."""

from ccnet_cli.cli.options import path_override, view_overrides
from ccnet_cli.commands import evaluate as evaluation
from ccnet_cli.commands import explore as pages
from ccnet_cli.commands import predict as prediction
from ccnet_cli.commands import visualize as figures
from ccnet_cli.inference.runtime import Runtime
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


def predict(sources, output, checkpoint=None, **options):
    """Segment sources; options are the request's fields, the runtime's, mode, tile, scales and flip."""
    names = tuple(map(str, sources))
    return prediction.predict(prediction.PredictRequest(names, output, checkpoint, **_fields(options)))


def visualize(image, points, output, checkpoint=None, **fields):
    """Draw the figure of an image."""
    return figures.visualize(figures.VisualizeRequest(image, tuple(points), output, checkpoint, **fields))


def explore(images, output, points=(), checkpoint=None, **fields):
    """Write the pages of images."""
    return pages.explore(pages.ExploreRequest(tuple(images), output, tuple(points), checkpoint=checkpoint, **fields))


def _fields(options, overrides=()):
    """Options as a request's fields: a runtime, and overrides as the command line makes them."""
    own = {key: options.pop(key) for key in ("device", "precision", "compile") if key in options}
    views = view_overrides(*(options.pop(key, None) for key in ("mode", "scales", "flip")))
    if "tile" in options:
        views += ["eval.tile={},{}".format(*options.pop("tile"))]
    overrides = (*options.pop("overrides", ()), *overrides, *views)
    return {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()} | {
        "runtime": Runtime(**own),
        "overrides": overrides,
    }
