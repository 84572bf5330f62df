"""Which classes an image holds, as EncNet's head answers it (CVPR 2018, section 3.1)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ccnet_cli.losses import Presence
from ccnet_cli.losses.objective import LossTerm
from ccnet_cli.parts import Outputs


def presence(label_BHW: Tensor, classes: int, ignore_index: int = 255) -> Tensor:
    """1 for each class that has a pixel in an image, else 0: (B, classes) float32."""
    label_BN = label_BHW.flatten(1)
    valid_BN = label_BN != ignore_index
    counts = torch.zeros(len(label_BN), classes, device=label_BHW.device)
    return counts.scatter_add_(1, label_BN.where(valid_BN, 0), valid_BN.float()).clamp(max=1)


def build(settings: Presence, ignore_index: int, align_corners: bool) -> LossTerm:
    """The term of these settings, from scores (B, K)."""

    def term(outputs: Outputs, label_BHW: Tensor) -> Tensor:
        scores_BK = outputs.by_name(settings.output).float()
        truth_BK = presence(label_BHW, scores_BK.shape[1], ignore_index)
        return F.binary_cross_entropy_with_logits(scores_BK, truth_BK)

    return term
