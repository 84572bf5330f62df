"""The criss-cross operators as strided batched matrix products on channels-last tensors.

With the channels innermost, the rows of an image are H matrices (W, C) and its columns, seen through a transposed view,
are W matrices (H, C), and so on along any axis: every product below reads and writes such views in place, without
permuted copies. Energies of all arms land in one buffer (B, *S, P), so that one softmax over its last axis covers the
whole cross.
"""

from math import prod

import torch
from torch import Tensor

PADDING = 8  # entries: the 16 bytes of bfloat16 that tensor cores read at once


def channels_innermost(x_BCS: Tensor) -> Tensor:
    """View (B, C, *S) as (B, *S, C) with unit channel stride; copies only where the layout is another."""
    x_BSC = x_BCS.movedim(1, -1)
    return x_BSC if x_BSC.stride(-1) == 1 and x_BSC.shape[-1] > 1 else x_BSC.contiguous()


def pad_arm(length: int, step: int) -> int:
    """Entries of an arm that begins and ends at multiples of a step."""
    return -(-length // step) * step


def _split(energy_BSP: Tensor) -> list[Tensor]:
    """The arms with their padding, if there is any: to multiples of PADDING."""
    S = energy_BSP.shape[1:-1]
    step = 1 if energy_BSP.shape[-1] == sum(S) else PADDING
    return list(energy_BSP.split([pad_arm(length, step) for length in S], dim=-1))


def _arms(energy_BSP: Tensor) -> list[tuple[int, Tensor]]:
    """Each axis with its arm (B, *S, L), the last axis first."""
    S = energy_BSP.shape[1:-1]
    return [(axis, arm[..., : S[axis]]) for axis, arm in enumerate(_split(energy_BSP))][::-1]


def _new_arms(x_BSC: Tensor, padded: bool, padding: float, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor for all arms, of which only what lies between them is written."""
    S = x_BSC.shape[1:-1]
    width = sum(pad_arm(length, PADDING if padded else 1) for length in S)
    new_BSP = x_BSC.new_empty(*x_BSC.shape[:-1], width, dtype=dtype)
    if width > sum(S):
        for length, arm in zip(S, _split(new_BSP), strict=True):
            arm[..., length:].fill_(padding)
    return new_BSP


def _lines(x_BSC: Tensor, axis: int) -> Tensor:
    """All lines along an axis as batches of matrices (M, N, L, C): a view where positions are evenly spaced."""
    B, *S, C = x_BSC.shape
    if axis == len(S) - 1:
        return x_BSC.reshape(B, prod(S[:-1]), S[-1], C)
    return x_BSC.reshape(B * prod(S[:axis]), S[axis], prod(S[axis + 1 :]), C).transpose(1, 2)


def _energies(query_BSC: Tensor, key_BSC: Tensor, mask: bool, padded: bool = False) -> Tensor:
    """padded: with arms of multiples of PADDING, between which what is masked is -inf, and 0 what is not."""
    S = query_BSC.shape[1:-1]
    energy_BSP = _new_arms(query_BSC, padded, float("-inf") if mask else 0.0)
    for axis, arm in _arms(energy_BSP):
        for query, key, energy in zip(*(_lines(x, axis) for x in (query_BSC, key_BSC, arm)), strict=True):
            torch.bmm(query, key.transpose(1, 2), out=energy)
            if mask and axis < len(S) - 1:
                # the position lies on every arm: count it once, in the last
                energy.diagonal(dim1=1, dim2=2).fill_(float("-inf"))
    return energy_BSP


def _pull(grad_BSC: Tensor, value_BSC: Tensor, padded: bool) -> Tensor:
    """Products of gradient and value; of float16 in float32, as sums beyond 65504 would be infinite."""
    if grad_BSC.dtype != torch.float16:
        return _energies(grad_BSC, value_BSC, mask=False, padded=padded)
    if not grad_BSC.is_cuda:
        return _energies(grad_BSC.float(), value_BSC.float(), mask=False, padded=padded)
    pull_BSP = _new_arms(grad_BSC, padded, 0.0, torch.float32)
    for axis, arm in _arms(pull_BSP):
        for grad, value, pull in zip(*(_lines(x, axis) for x in (grad_BSC, value_BSC, arm)), strict=True):
            pull.copy_(torch.bmm(grad, value.transpose(1, 2), out_dtype=torch.float32))
    return pull_BSP


def _gather(attention_BSP: Tensor, value_BSC: Tensor, spread: bool = False) -> Tensor:
    """Sums over the arms, or with spread the adjoint in value."""
    out_BSC = value_BSC.new_empty(value_BSC.shape)
    last = value_BSC.dim() - 3
    for axis, arm in _arms(attention_BSP):
        for weight, value, out in zip(*(_lines(x, axis) for x in (arm, value_BSC, out_BSC)), strict=True):
            weight_NLL = weight.transpose(1, 2) if spread else weight
            if axis == last:
                torch.bmm(weight_NLL, value, out=out)
            else:
                out.baddbmm_(weight_NLL, value)
    return out_BSC


def _to_BCS(x_BSC: Tensor) -> Tensor:
    return x_BSC.movedim(-1, 1)


def affinity(query_BCS: Tensor, key_BCS: Tensor, mask: bool) -> Tensor:
    """Energies of each position over its cross, not scaled: two (B, C, *S) -> (B, P, *S); own entries but one -inf."""
    return _to_BCS(_energies(channels_innermost(query_BCS), channels_innermost(key_BCS), mask))


def aggregate(attention_BPS: Tensor, value_BCS: Tensor) -> Tensor:
    """Gather each position's cross, weighted: (B, P, *S), (B, C, *S) -> (B, C, *S)."""
    return _to_BCS(_gather(channels_innermost(attention_BPS), channels_innermost(value_BCS)))


def scatter(attention_BPS: Tensor, value_BCS: Tensor) -> Tensor:
    """Spread each position's value over its cross, weighted: the adjoint of aggregate, with the same shapes."""
    return _to_BCS(_gather(channels_innermost(attention_BPS), channels_innermost(value_BCS), spread=True))


def criss_cross(query_BCS: Tensor, key_BCS: Tensor, value_BCS: Tensor, padded: bool = False) -> tuple[Tensor, Tensor]:
    """Output (B, C, *S) and attention (B, *S, P) of one pass of criss-cross attention; padded: see padded.py."""
    energy_BSP = _energies(channels_innermost(query_BCS), channels_innermost(key_BCS), True, padded)
    attention_BSP = torch.softmax(energy_BSP, dim=-1)
    out_BSC = _gather(attention_BSP.to(value_BCS.dtype), channels_innermost(value_BCS))
    return _to_BCS(out_BSC), attention_BSP


def criss_cross_backward(
    grad_BCS: Tensor, query_BCS: Tensor, key_BCS: Tensor, value_BCS: Tensor, attention_BSP: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value from the output's gradient and the saved attention."""
    grad_BSC = channels_innermost(grad_BCS)
    padded = attention_BSP.shape[-1] > sum(grad_BSC.shape[1:-1])
    pull_BSP = _pull(grad_BSC, channels_innermost(value_BCS), padded).to(attention_BSP.dtype)
    # the softmax's own backward: attention * (pull - sum(attention * pull)), in one pass
    energy_BSP = torch.ops.aten._softmax_backward_data(pull_BSP, attention_BSP, -1, attention_BSP.dtype)
    return (
        _to_BCS(_gather(energy_BSP, channels_innermost(key_BCS))),
        _to_BCS(_gather(energy_BSP, channels_innermost(query_BCS), spread=True)),
        _to_BCS(_gather(attention_BSP.to(grad_BSC.dtype), grad_BSC, spread=True)),
    )
