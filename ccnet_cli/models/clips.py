"""Criss-cross attention over clips, of which one frame is wanted: its last pass looks from this frame alone."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ccnet_cli import ops
from ccnet_cli.models.attention import FoldedPasses, RecurrentCrissCross, plain_energies, plain_sums
from ccnet_cli.models.layers import Make
from ccnet_cli.ops import cpu

# numbers of a frame's projection up to which the frames of a clip are copied together, for fewer and larger steps
MAX_NUMBERS = 1 << 18
# multiply-adds of a pass over a clip for which the CPU's kernels are faster than all else
MIN_MACS = cpu.MIN_MACS // 4

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


class Plane(NamedTuple):
    """What positions gather in their own frame, (B, T, H, W, C), and the logarithms of their weights' sums."""

    gathered: Tensor
    log: Tensor


# some frames of a clip, (B, T, H, W, C): their input, its projection, and their Plane where it is known already
Group = tuple[Tensor, ...]


class FoldedClips(FoldedPasses):
    """The recurrent attention with one projection, gamma in the value's; channels lie innermost."""

    def __init__(self, rcca: RecurrentClips, make: Make) -> None:
        super().__init__(rcca, make)
        self.chooses = rcca.attention.implementation == "auto"

    def encode(self, x_BCHW: Tensor) -> Group:
        """What a frame gives to the first pass over any clip: itself, its projection and, of several passes, its Plane.

        Each is (B, H, W, C). A single pass looks from one frame of the clip alone.
        """
        group = self._project(x_BCHW.movedim(1, -1)[:, None])
        plane = () if self.recurrence == 1 else self._look(group[1])
        return tuple(each[:, 0] for each in (*group, *plane))

    def at(self, frames: Sequence[Group], frame: int) -> Tensor:
        """The output at one frame, (B, C, H, W), from what all frames of the clip were encoded to."""
        small = frames[0][1][0].numel() <= MAX_NUMBERS
        groups = [_stack(frames)] if small else [_stack([each]) for each in frames]
        for _ in range(self.recurrence - 1):
            groups = [self._project(x_BTHWC) for x_BTHWC in self._pass(groups)]
        (x, projected), own = groups[0 if small else frame][:2], slice(frame, frame + 1) if small else slice(None)
        x, projected = x[:, own], projected[:, own]
        gathered = gather_in_time(self._split(projected)[0], *self._lines(groups), self._look(projected), frame)
        return gathered.add_(x)[:, 0].movedim(-1, 1)

    def _pass(self, groups: Sequence[Group]) -> list[Tensor]:
        """The output at all frames."""
        if len(groups[0]) == 2 and self._pays_off(groups[0][1], sum(each[1].shape[1] for each in groups)):
            whole = torch.cat([projected for _, projected in groups], dim=1)
            query, key, value = (each.movedim(-1, 1) for each in self._split(whole))
            name = "numba" if whole.is_cpu and self.implementation == "auto" else self.implementation
            out = ops.criss_cross(query, key, value, name, self.choices).movedim(1, -1)
            outputs = out.split([x.shape[1] for x, _ in groups], dim=1)
            return [gathered.add_(x) for gathered, (x, _) in zip(outputs, groups, strict=True)]
        keys, values = self._lines(groups)
        outputs = []
        for first, (x, projected, *plane) in enumerate(groups):
            known = Plane(*plane) if plane else self._look(projected)
            outputs.append(gather_in_time(self._split(projected)[0], keys, values, known, first).add_(x))
        return outputs

    def _pays_off(self, projected_BTHWC: Tensor, frames: int) -> bool:
        """Whether a pass over this number of frames is one for the operator over three axes."""
        if not projected_BTHWC.is_cpu or self.implementation not in ("auto", "gemm"):
            return True
        # lines as short as a clip cost more in products of matrices than in sums over the frames
        B, _, H, W, C = projected_BTHWC.shape
        macs = B * frames * H * W * (frames + H + W) * C
        return self.implementation == "auto" and projected_BTHWC.dtype == torch.float32 and macs >= MIN_MACS

    def _project(self, x_BTHWC: Tensor) -> Group:
        tall: Tensor = self.project(x_BTHWC.flatten(1, 2).movedim(-1, 1))
        return x_BTHWC, tall.movedim(1, -1).unflatten(1, x_BTHWC.shape[1:3])

    def _split(self, projected: Tensor) -> tuple[Tensor, ...]:
        parts: tuple[Tensor, ...] = projected.split(self.widths, dim=-1)
        return parts

    def _lines(self, groups: Sequence[Group]) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values frame by frame, (B, 1, H, W, C)."""
        frames = [self._split(frame) for group in groups for frame in group[1].split(1, dim=1)]
        return [key for _, key, _ in frames], [value for _, _, value in frames]

    def _look(self, projected_BTHWC: Tensor) -> Plane:
        """What these frames gather in themselves."""
        images_NCHW = projected_BTHWC.flatten(0, 1).movedim(-1, 1)
        query, key, value = images_NCHW.split(self.widths, dim=1)
        # small maps cost least without the operators' own work
        plain = self.chooses and value.is_cpu and value.dtype == torch.float32
        if plain:
            energy_NHWP = plain_energies(query, key)
        else:
            energy_NHWP = ops.affinity(query, key, self.implementation).movedim(1, -1)
        weights_NHWP = energy_NHWP.softmax(dim=-1)
        # by the greatest of them, which is no less than 1 / P
        log_NHW = energy_NHWP.amax(-1) - weights_NHWP.amax(-1).log()
        if plain:
            gathered_NHWC = plain_sums(weights_NHWP, value)
        else:
            gathered_NHWC = ops.aggregate(weights_NHWP.movedim(-1, 1), value, self.implementation).movedim(1, -1)
        return Plane(*(each.unflatten(0, (len(projected_BTHWC), -1)) for each in (gathered_NHWC, log_NHW)))


def gather_in_time(
    query_BQHWC: Tensor, keys_B1HWC: Sequence[Tensor], values_B1HWC: Sequence[Tensor], plane: Plane, first: int
) -> Tensor:
    """What positions gather from their own frame and their place in all others, (B, Q, H, W, C).

    They lie in Q frames from `first` on. Their own frame is one entry of the softmax, with all of its weights.
    """
    if len(keys_B1HWC) == 1:
        return plane.gathered
    full = plane.log.dtype
    query_BQHWC = query_BQHWC.to(full)
    energy_BTQHW = torch.stack([(query_BQHWC * key.to(full)).sum(-1) for key in keys_B1HWC], dim=1)
    energy_BTQHW.diagonal(-first, 1, 2).copy_(plane.log.movedim(1, -1))
    weights_BTQHW = energy_BTQHW.softmax(dim=1).to(plane.gathered.dtype)
    own_BHWQ = weights_BTQHW.diagonal(-first, 1, 2)
    out_BQHWC = own_BHWQ.movedim(-1, 1)[..., None] * plane.gathered
    own_BHWQ.zero_()
    for weight_BQHW, value in zip(weights_BTQHW.unbind(1), values_B1HWC, strict=True):
        out_BQHWC.addcmul_(weight_BQHW[..., None], value)
    return out_BQHWC


def _stack(frames: Sequence[Group]) -> Group:
    if len(frames) == 1:
        return tuple(each[:, None] for each in frames[0])
    return tuple(torch.stack(of_frames, dim=1) for of_frames in zip(*frames, strict=True))
