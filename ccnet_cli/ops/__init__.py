"""The criss-cross operators.

Shape legend of this package: B batch, C channels, H height, W width, P = H + W positions on a pixel's cross: first the
H positions of its column (its own one masked), then the W positions of its row (its own one kept). A name's suffix
spells its axes in order, so ``value_BCHW`` is (B, C, H, W).
"""

from ccnet_cli.ops.convolution import Conv2d
from ccnet_cli.ops.criss_cross import affinity, aggregate, choices, criss_cross, implementations, residual, scatter

__all__ = ["Conv2d", "affinity", "aggregate", "choices", "criss_cross", "implementations", "residual", "scatter"]
