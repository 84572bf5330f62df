"""Criss-cross attention over clips, of which one frame is wanted: its last pass looks from this frame alone."""

import torch
from torch import Tensor

from ccnet_cli import ops
from ccnet_cli.models.attention import FoldedPasses, RecurrentCrissCross, on_planes
from ccnet_cli.models.layers import Make
from ccnet_cli.ops import cpu

# B batch, C channels, T frames, H height, W width, P = T + H + W positions on a cross: the own one counts in the row


def gather_at(query_BCTHW: Tensor, key_BCTHW: Tensor, value_BCTHW: Tensor, frame: int, implementation: str) -> Tensor:
    """What the positions of one frame gather from their crosses in time and space, (B, C, H, W)."""
    query_BCHW, T = query_BCTHW[:, :, frame], key_BCTHW.shape[2]
    full = torch.promote_types(query_BCHW.dtype, torch.float32)
    plane_BPHW = ops.affinity(query_BCHW, key_BCTHW[:, :, frame], implementation)
    line_BTHW = torch.stack([(query_BCHW.to(full) * key.to(full)).sum(1) for key in key_BCTHW.unbind(2)], dim=1)
    # the position lies on all arms: count it once, in the row
    own_T = torch.arange(T, device=line_BTHW.device) == frame
    line_BTHW = line_BTHW.masked_fill(own_T[:, None, None], float("-inf"))
    weights = torch.cat([line_BTHW, plane_BPHW.to(full)], dim=1).softmax(dim=1).to(value_BCTHW.dtype)
    out_BCHW = ops.aggregate(weights[:, T:].contiguous(), value_BCTHW[:, :, frame], implementation)
    for weight_BHW, value_BCHW in zip(weights[:, :T].unbind(1), value_BCTHW.unbind(2), strict=True):
        out_BCHW = torch.addcmul(out_BCHW, weight_BHW[:, None], value_BCHW)
    return out_BCHW


class RecurrentClips(RecurrentCrissCross):
    """Recurrent criss-cross attention over clips (B, C, T, H, W); three passes reach the whole clip."""

    def at(self, x_BCTHW: Tensor, frame: int) -> Tensor:
        """The output at one frame, (B, C, H, W)."""
        for _ in range(self.recurrence - 1):
            x_BCTHW = self.attention(x_BCTHW)
        gathered = gather_at(*self.attention.project(x_BCTHW), frame, self.attention.implementation)
        return self.attention.gamma.to(gathered.dtype) * gathered + x_BCTHW[:, :, frame]

    def fold(self, make: Make) -> "FoldedClips":
        """Itself for inference."""
        return FoldedClips(self, make)


class FoldedClips(FoldedPasses):
    """The recurrent attention with one projection, gamma in the value's."""

    def at(self, x_BCTHW: Tensor, projected_BCTHW: Tensor, frame: int) -> Tensor:
        """The output at one frame, (B, C, H, W), from the input and its projection."""
        for _ in range(self.recurrence - 1):
            x_BCTHW = self._gather(projected_BCTHW).add_(x_BCTHW)
            projected_BCTHW = on_planes(self.project, x_BCTHW)
        query, key, value = projected_BCTHW.split(self.widths, dim=1)
        return gather_at(query, key, value, frame, self.implementation).add_(x_BCTHW[:, :, frame])

    def _gather(self, projected_BCTHW: Tensor) -> Tensor:
        query, key, value = projected_BCTHW.split(self.widths, dim=1)
        if query.device.type == "cpu" and not cpu.pays_off(query, value):
            # lines as short as a clip cost more in products of matrices than in sums over the frames
            frames = [gather_at(query, key, value, t, self.implementation) for t in range(query.shape[2])]
            return torch.stack([each.permute(0, 2, 3, 1) for each in frames], dim=1).movedim(-1, 1)
        return ops.criss_cross(query, key, value, self.implementation, self.choices)
