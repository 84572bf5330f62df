"""Criss-cross attention over clips, of which one frame is wanted: its last pass looks from this frame alone."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ccnet_cli import ops
from ccnet_cli.models.attention import FoldedPasses, RecurrentCrissCross, plain_energies, plain_sums
from ccnet_cli.models.layers import Make
from ccnet_cli.ops import cpu

# numbers of a frame's projection up to which the frames of a clip look into themselves together, in fewer steps
MAX_NUMBERS = 1 << 18
# multiply-adds of a pass over a clip for which the CPU's kernels are faster than all else
MIN_MACS = cpu.MIN_MACS // 16

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


# of one frame, (B, H, W, C) each: its input and, of several passes, its projection, what its positions gather in the
# frame itself, and the logarithms (B, H, W) of their weights' sums
Frame = tuple[Tensor, ...]


class FoldedClips(FoldedPasses):
    """The recurrent attention with one projection, gamma in the value's; channels lie innermost.

    The last pass looks from one frame, and reads the other frames' places without their projection: the query goes
    through the key's weights, and what it gathers through the value's, one frame each instead of T.
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
        x_BTHWC = x_BCHW.movedim(1, -1)[:, None]
        if self.recurrence == 1:
            return (x_BTHWC[:, 0],)
        projected = self._project(x_BTHWC)
        return x_BTHWC[:, 0], projected[:, 0], *(each[:, 0] for each in self._look(projected))

    def at(self, frames: Sequence[Frame], frame: int) -> Tensor:
        """The output at one frame, (B, C, H, W), from what all frames of the clip were encoded to."""
        inputs, *rest = zip(*frames, strict=True)
        if rest:
            projected, *planes = rest
            x_BTHWC = self._mix(inputs, projected, *planes)
            for _ in range(self.recurrence - 2):
                x_BTHWC = self._pass(x_BTHWC)
            inputs = x_BTHWC.unbind(1)
        return self._look_from(inputs, frame).movedim(-1, 1)

    def _pass(self, x_BTHWC: Tensor) -> Tensor:
        """The output at all frames."""
        projected_BTHWC = self._project(x_BTHWC)
        if self._pays_off(projected_BTHWC):
            query, key, value = (each.movedim(-1, 1) for each in self._split(projected_BTHWC))
            if x_BTHWC.is_cpu and self.implementation == "auto":
                # the sum with the input in the same passes over memory
                return cpu.criss_cross(query, key, value, x_BTHWC.movedim(-1, 1))[0].movedim(1, -1)
            out: Tensor = ops.criss_cross(query, key, value, self.implementation, self.choices).movedim(1, -1)
            return out.add_(x_BTHWC)
        together = projected_BTHWC[:, 0].numel() <= MAX_NUMBERS
        looks = [self._look(part) for part in projected_BTHWC.split(projected_BTHWC.shape[1] if together else 1, dim=1)]
        planes = ([frame for part in parts for frame in part.unbind(1)] for parts in zip(*looks, strict=True))
        return self._mix(x_BTHWC.unbind(1), projected_BTHWC.unbind(1), *planes)

    def _pays_off(self, projected_BTHWC: Tensor) -> bool:
        """Whether a pass over these frames is one for the operator over three axes."""
        if not projected_BTHWC.is_cpu or self.implementation not in ("auto", "gemm"):
            return True
        # lines as short as a clip cost more in products of matrices than in sums over the frames
        B, T, H, W, C = projected_BTHWC.shape
        macs = B * T * H * W * (T + H + W) * C
        return self.implementation == "auto" and projected_BTHWC.dtype == torch.float32 and macs >= MIN_MACS

    def _project(self, x_BTHWC: Tensor) -> Tensor:
        tall = self.project(x_BTHWC.flatten(1, 2).movedim(-1, 1)).movedim(1, -1)
        projected: Tensor = tall.unflatten(1, x_BTHWC.shape[1:3])
        return projected

    def _split(self, projected: Tensor, dim: int = -1) -> tuple[Tensor, ...]:
        parts: tuple[Tensor, ...] = projected.split(self.widths, dim)
        return parts

    def _mix(
        self,
        inputs_BHWC: Sequence[Tensor],
        projected_BHWC: Sequence[Tensor],
        gathered_BHWC: Sequence[Tensor],
        log_BHW: Sequence[Tensor],
    ) -> Tensor:
        """The output at all frames: what each gathers from itself and from its place in the others, and its input.

        A position's own frame is one entry of the softmax, with all of its weights.
        """
        queries, keys, values = zip(*map(self._split, projected_BHWC), strict=True)
        full = log_BHW[0].dtype
        energy_BHWQT = torch.stack(queries, -2).to(full) @ torch.stack(keys, -2).to(full).transpose(-2, -1)
        # a softmax over the outer axis is quicker than one over few numbers that lie together
        energy_BTQHW = energy_BHWQT.permute(0, 4, 3, 1, 2).contiguous()
        energy_BTQHW.diagonal(dim1=1, dim2=2).copy_(torch.stack(list(log_BHW), dim=-1))
        weights_BTQHW = energy_BTQHW.softmax(dim=1).to(values[0].dtype)[..., None]
        out_BQHWC: Tensor = values[0].new_empty(len(values[0]), *weights_BTQHW.shape[2:5], values[0].shape[-1])
        for frame, (x, gathered) in enumerate(zip(inputs_BHWC, gathered_BHWC, strict=True)):
            torch.addcmul(x, weights_BTQHW[:, frame, frame], gathered, out=out_BQHWC[:, frame])
        weights_BTQHW.diagonal(dim1=1, dim2=2).zero_()
        for weight_BQHW1, value in zip(weights_BTQHW.unbind(1), values, strict=True):
            out_BQHWC.addcmul_(weight_BQHW1, value[:, None])
        return out_BQHWC

    def _look(self, projected_BTHWC: Tensor) -> tuple[Tensor, Tensor]:
        """What positions gather in their own frame, (B, T, H, W, C), and the logarithms of their weights' sums."""
        query, key, value = self._images(projected_BTHWC.flatten(0, 1))
        energy_NHWP = self._energies(query, key)
        weights_NHWP = energy_NHWP.softmax(dim=-1)
        # by the greatest of them, which is no less than 1 / P
        log_NHW = energy_NHWP.amax(-1) - weights_NHWP.amax(-1).log()
        planes = self._sums(weights_NHWP, value), log_NHW
        gathered, log = (each.unflatten(0, projected_BTHWC.shape[:2]) for each in planes)
        return gathered, log

    def _look_from(self, inputs_BHWC: Sequence[Tensor], frame: int) -> Tensor:
        """The output at one frame, (B, H, W, C)."""
        x = inputs_BHWC[frame]
        query, key, value = self._images(self._project(x[:, None])[:, 0])
        energy_BHWP = self._energies(query, key)
        P, full = energy_BHWP.shape[-1], energy_BHWP.dtype
        others = [each.to(full) for place, each in enumerate(inputs_BHWC) if place != frame]
        if not others:
            return self._sums(energy_BHWP.softmax(dim=-1), value).add_(x)
        *_, C = x.shape
        seen_BHWC, constant_BHW1 = (query.movedim(1, -1).to(full) @ self.key_weight.to(full)).split([C, 1], dim=-1)
        line_BHWT = torch.stack([(seen_BHWC * each).sum(-1) for each in others], dim=-1) + constant_BHW1
        weights_BHWP = torch.cat([energy_BHWP, line_BHWT], dim=-1).softmax(dim=-1)
        line = weights_BHWP[..., P:]
        mixed_BHWC = line[..., :1] * others[0]
        for place in range(1, len(others)):
            mixed_BHWC.addcmul_(line[..., place : place + 1], others[place])
        wanted, bias = self.value_weight.to(full).split([C, 1])
        mixed_BHWC = (mixed_BHWC @ wanted).addcmul_(line.sum(-1, keepdim=True), bias).to(x.dtype)
        out_BHWC: Tensor = mixed_BHWC.add_(self._sums(weights_BHWP[..., :P], value)).add_(x)
        return out_BHWC

    def _images(self, projected_NHWC: Tensor) -> tuple[Tensor, ...]:
        """Query, key and value of frames, (N, C', H, W) twice and (N, C, H, W)."""
        return self._split(projected_NHWC.movedim(-1, 1), dim=1)

    def _energies(self, query_NCHW: Tensor, key_NCHW: Tensor) -> Tensor:
        """Of each position over its cross in its own frame, (N, H, W, P)."""
        if self._is_plain(query_NCHW):
            return plain_energies(query_NCHW, key_NCHW)
        return ops.affinity(query_NCHW, key_NCHW, self.implementation).movedim(1, -1)

    def _sums(self, weights_NHWP: Tensor, value_NCHW: Tensor) -> Tensor:
        """What positions gather in their own frame, (N, H, W, C)."""
        if self._is_plain(value_NCHW):
            return plain_sums(weights_NHWP, value_NCHW)
        return ops.aggregate(weights_NHWP.movedim(-1, 1), value_NCHW, self.implementation).movedim(1, -1)

    def _is_plain(self, x: Tensor) -> bool:
        """Whether small maps cost least without the operators' own work."""
        return self.chooses and x.is_cpu and x.dtype == torch.float32
