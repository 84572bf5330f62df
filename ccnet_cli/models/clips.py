"""Criss-cross attention over clips, of which one frame is wanted: its last pass looks from this frame alone."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ccnet_cli import ops
from ccnet_cli.models.attention import MASKED, FoldedPasses, RecurrentCrissCross
from ccnet_cli.models.layers import Make

# numbers of a frame's map up to which the frames of a clip are looked at together, in fewer steps
MAX_NUMBERS = 1 << 18

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


# of each of B frames, (B, H, W, C): its input and, of several passes, its projection, what its positions gather in the
# frame itself, and the logarithms (B, H, W) of their weights' sums
Frame = tuple[Tensor, ...]


class FoldedClips(FoldedPasses):
    """The recurrent attention with one projection, gamma in the value's; channels lie innermost.

    One clip is seen at a time, as products of several round otherwise. Its frames lie side by side, (H, T, W, C), which
    spaces all rows evenly, and all columns. The last pass looks from one frame, and reads the other frames' places
    without their projection: the query goes through the key's weights, and what it gathers through the value's, one
    frame each instead of T.
    """

    key_weight: Tensor
    value_weight: Tensor

    def __init__(self, rcca: RecurrentClips, make: Make) -> None:
        super().__init__(rcca, make)
        self.chooses = rcca.attention.implementation == "auto"
        joined = rcca.attention.joined_projection(torch.float64)
        assert joined.bias is not None
        weights = torch.cat([joined.weight[:, :, 0, 0], joined.bias[:, None]], dim=1).float().detach()
        _, key_weight, value_weight = weights.split(self.widths)
        # (C', C + 1) and (C + 1, C): the last is the bias
        self.register_buffer("key_weight", key_weight)
        self.register_buffer("value_weight", value_weight.T.contiguous())

    def encode(self, x_BCHW: Tensor) -> Frame:
        """What a frame gives to every clip: itself and, of several passes, what the first one needs.

        A single pass looks from one frame of the clip alone.
        """
        frames_HWC = x_BCHW.movedim(1, -1)
        if self.recurrence == 1:
            return (frames_HWC,)
        return frames_HWC, *map(_stack, zip(*map(self._look_within, frames_HWC), strict=True))

    def at(self, frames: Sequence[Frame], frame: int, repeats: int = 1) -> Tensor:
        """The output at one frame, (B, C, H, W), from what all frames of the clip were encoded to.

        A frame alone may stand for a clip that repeats it.
        """
        clips = ([tuple(each[index] for each in own) for own in frames] for index in range(len(frames[0][0])))
        if len(frames) == 1:
            return _stack([self._repeat(clip[0], repeats) for clip in clips]).movedim(-1, 1)
        return _stack([self._at(clip, frame) for clip in clips]).movedim(-1, 1)

    def _at(self, frames: Sequence[Frame], frame: int) -> Tensor:
        inputs, *rest = zip(*frames, strict=True)
        if rest:
            x_HTWC = self._mix(inputs, *rest)
            for _ in range(self.recurrence - 2):
                x_HTWC = self._pass(x_HTWC)
            inputs = x_HTWC.unbind(1)
        return self._look_from(inputs, frame)

    def _repeat(self, frame: Frame, times: int) -> Tensor:
        """The output (H, W, C) of a clip that repeats a frame: the positions of all frames stay equal."""
        x_HWC, *first = frame
        for _ in range(self.recurrence):
            projected, gathered, log_HW = first or self._look_within(x_HWC)
            first = []
            if times > 1:
                query, key, value = self._split(projected)
                line_HW = (query.to(log_HW.dtype) * key.to(log_HW.dtype)).sum(-1) + math.log(times - 1)
                gathered = gathered.lerp(value, (line_HW - log_HW).sigmoid()[..., None].to(value.dtype))
            x_HWC = x_HWC + gathered
        return x_HWC

    def _pass(self, x_HTWC: Tensor) -> Tensor:
        """The output at all frames."""
        if not x_HTWC.is_cpu or self.implementation not in ("auto", "gemm"):
            sides = (*self._split(self._project(x_HTWC)), x_HTWC)
            query, key, value, x_BCTHW = (each.permute(3, 1, 0, 2)[None] for each in sides)
            out: Tensor = ops.criss_cross(query, key, value, self.implementation, self.choices).add_(x_BCTHW)
            return out[0].permute(2, 1, 3, 0)
        # lines as short as a clip cost more in products of matrices than in sums over the frames
        is_small = x_HTWC[:, 0].numel() <= MAX_NUMBERS
        if is_small and self._is_plain(x_HTWC):
            return self._pass_together(x_HTWC)
        looks = [self._look_within(part) for part in x_HTWC.split(x_HTWC.shape[1] if is_small else 1, dim=1)]
        lists = ([frame for part in each for frame in part.unbind(1)] for each in zip(*looks, strict=True))
        return self._mix(x_HTWC.unbind(1), *lists)

    def _pass_together(self, x_HTWC: Tensor) -> Tensor:
        """The output at all frames, of small ones: all of a position's cross in one softmax, in few steps."""
        H, T, W, _ = x_HTWC.shape
        parts = self._split(self._project(x_HTWC))
        rows = [each.flatten(0, 1) for each in parts]
        columns = [each.flatten(1, 2).transpose(0, 1) for each in parts]
        query, key = (each.transpose(1, 2).flatten(0, 1) for each in parts[:2])
        energy_MHH, energy_MTT = columns[0] @ columns[1].transpose(1, 2), query @ key.transpose(1, 2)
        for energy in (energy_MHH, energy_MTT):
            # the position lies on all arms: count it once, in the row
            energy.diagonal(dim1=1, dim2=2).fill_(MASKED)
        row_HTWP = (rows[0] @ rows[1].transpose(1, 2)).view(H, T, W, W)
        column_HTWP = energy_MHH.view(T, W, H, H).permute(2, 0, 1, 3)
        line_HTWP = energy_MTT.view(H, W, T, T).transpose(1, 2)
        weights = torch.cat([row_HTWP, column_HTWP, line_HTWP], dim=-1).softmax(dim=-1)
        row, column, line = weights.split([W, H, T], dim=-1)
        out_HTWC: Tensor = (row.flatten(0, 1) @ rows[2]).view(x_HTWC.shape).add_(x_HTWC)
        gathered_MHC = column.permute(1, 2, 0, 3).flatten(0, 1) @ columns[2]
        out_HTWC.add_(gathered_MHC.view(T, W, H, -1).permute(2, 0, 1, 3))
        for frame, value in enumerate(parts[2].split(1, dim=1)):
            out_HTWC.addcmul_(line[..., frame : frame + 1], value)
        return out_HTWC

    def _look_within(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of a frame, or frames side by side, the projection and, see _look, what each gathers from itself."""
        projected = self._project(x)
        shape, (H, *_, W, _) = projected.shape[:-1], projected.shape
        gathered_HTWC, log_HTW = self._look(projected.view(H, -1, W, projected.shape[-1]))
        return projected, gathered_HTWC.view(*shape, -1), log_HTW.view(shape)

    def _project(self, x: Tensor) -> Tensor:
        tall = self.project(x.flatten(0, -3)[None].movedim(-1, 1)).movedim(1, -1)
        projected: Tensor = tall.view(*x.shape[:-1], -1)
        return projected

    def _split(self, projected: Tensor) -> tuple[Tensor, ...]:
        parts: tuple[Tensor, ...] = projected.split(self.widths, dim=-1)
        return parts

    def _mix(
        self,
        inputs_HWC: Sequence[Tensor],
        projected_HWC: Sequence[Tensor],
        gathered_HWC: Sequence[Tensor],
        log_HW: Sequence[Tensor],
    ) -> Tensor:
        """The output at all frames: what each gathers from itself and from its place in the others, and its input.

        A position's own frame is one entry of the softmax, with all of its weights.
        """
        queries, keys, values = zip(*map(self._split, projected_HWC), strict=True)
        full, T, (H, W) = log_HW[0].dtype, len(values), log_HW[0].shape
        query_NQC, key_NTC = (torch.stack(each, dim=-2).to(full).flatten(0, 1) for each in (queries, keys))
        # a softmax over the outer axis is quicker than one over few numbers that lie together
        energy_TQN = (query_NQC @ key_NTC.transpose(1, 2)).permute(2, 1, 0).contiguous()
        energy_TQN.diagonal().copy_(torch.stack(list(log_HW), dim=-1).flatten(0, 1))
        weights_TQN = energy_TQN.softmax(dim=0).to(values[0].dtype)
        weights_THQW1 = weights_TQN.view(T, T, H, W, 1).transpose(1, 2)
        out_HQWC: Tensor = values[0].new_empty(H, T, W, values[0].shape[-1])
        for frame, (x, gathered) in enumerate(zip(inputs_HWC, gathered_HWC, strict=True)):
            torch.addcmul(x, weights_THQW1[frame, :, frame], gathered, out=out_HQWC[:, frame])
        weights_TQN.diagonal().zero_()
        for weight_HQW1, value in zip(weights_THQW1.unbind(0), values, strict=True):
            out_HQWC.addcmul_(weight_HQW1, value[:, None])
        return out_HQWC

    def _look(self, projected_HTWC: Tensor) -> tuple[Tensor, Tensor]:
        """What positions gather in their own frame, (H, T, W, C); the logarithms (H, T, W) of their weights' sums."""
        query, key, value = self._split(projected_HTWC)
        if not self._is_plain(query):
            query, key, value = (each.permute(1, 3, 0, 2) for each in (query, key, value))
            weights_THWP, log_THW = weigh(ops.affinity(query, key, self.implementation).movedim(1, -1))
            gathered_THWC = ops.aggregate(weights_THWP.movedim(-1, 1), value, self.implementation).movedim(1, -1)
            return gathered_THWC.transpose(0, 1).contiguous(), log_THW.transpose(0, 1).contiguous()
        # small maps cost least without the operators' own work
        rows = [each.flatten(0, 1) for each in (query, key, value)]
        columns = [each.flatten(1, 2).transpose(0, 1) for each in (query, key, value)]
        energy_MHH = columns[0] @ columns[1].transpose(1, 2)
        # the position lies on both arms: count it once, in the row
        energy_MHH.diagonal(dim1=1, dim2=2).fill_(MASKED)
        H, T, W, _ = projected_HTWC.shape
        weights_MHH, log_MH = weigh(energy_MHH)
        column_HTWC = (weights_MHH @ columns[2]).view(T, W, H, -1).permute(2, 0, 1, 3)
        weights_MWW, log_MW = weigh(rows[0] @ rows[1].transpose(1, 2))
        row_HTWC, row_HTW = (weights_MWW @ rows[2]).view(H, T, W, -1), log_MW.view(H, T, W)
        column_HTW = log_MH.view(T, W, H).permute(2, 0, 1)
        share_HTW1 = (column_HTW - row_HTW).sigmoid_()[..., None]
        return row_HTWC.lerp_(column_HTWC, share_HTW1), torch.logaddexp(row_HTW, column_HTW)

    def _is_plain(self, x: Tensor) -> bool:
        """Whether maps cost least without the operators' own work."""
        return self.chooses and x.is_cpu and x.dtype == torch.float32

    def _look_from(self, inputs_HWC: Sequence[Tensor], frame: int) -> Tensor:
        """The output at one frame, (H, W, C)."""
        x = inputs_HWC[frame]
        projected, gathered, log_HW = self._look_within(x)
        query, full, C = self._split(projected)[0], log_HW.dtype, x.shape[-1]
        others = [each.to(full) for place, each in enumerate(inputs_HWC) if place != frame]
        seen_HWC, constant_HW1 = (query.to(full) @ self.key_weight.to(full)).split([C, 1], dim=-1)
        line_THW = [(seen_HWC * each).sum(-1).add_(constant_HW1[..., 0]) for each in others]
        own, *line = torch.stack([log_HW, *line_THW]).softmax(dim=0)[..., None].unbind(0)
        mixed_HWC = line[0] * others[0]
        for weight, other in zip(line[1:], others[1:], strict=True):
            mixed_HWC.addcmul_(weight, other)
        wanted, bias = self.value_weight.to(full).split([C, 1])
        mixed_HWC = (mixed_HWC @ wanted).addcmul_(1 - own, bias).to(x.dtype)
        out_HWC: Tensor = mixed_HWC.addcmul_(own.to(x.dtype), gathered).add_(x)
        return out_HWC


def weigh(energy: Tensor) -> tuple[Tensor, Tensor]:
    """The softmax over the last axis, and the logarithms of the sums that it divides by."""
    weights = energy.softmax(dim=-1)
    # by the greatest of them, which is no less than one divided by their number
    return weights, energy.amax(-1) - weights.amax(-1).log_()


def _stack(parts: Sequence[Tensor]) -> Tensor:
    """One more axis, without a copy of one part alone."""
    return parts[0][None] if len(parts) == 1 else torch.stack(list(parts))
