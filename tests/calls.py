"""The package's functions that take a request, called with keywords."""

from ccnet_cli.inference.views import Views, batch_scores, host_input


def class_scores(network, image_1CHW, **views):
    """All scores of one image, (K, H, W) float32 at the image's size."""
    return batch_scores(network, image_1CHW, Views(**views), image_1CHW.device)[0].dense()


def segment(network, image_bgr, device, **views):
    """The class of each pixel of a uint8 BGR image."""
    image = host_input(image_bgr, network.normalisation, device)
    return batch_scores(network, image, Views(**views), device)[0].predict()
