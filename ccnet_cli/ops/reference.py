"""The definition of the criss-cross operators: short, any dtype and device, differentiable by autograd."""

from string import ascii_uppercase

import torch
from torch import Tensor


def affinity(query_BCS: Tensor, key_BCS: Tensor, mask: bool) -> Tensor:
    """Energies of each position over its cross, not scaled: two (B, C, *S) -> (B, P, *S); own entries but one -inf."""
    grid, lines = _letters(query_BCS)
    energies = [torch.einsum(f"bc{grid},bc{line}->bp{grid}", query_BCS, key_BCS) for line in lines]
    energy_BPS = torch.cat(energies, dim=1)
    return energy_BPS.masked_fill(own_entries(query_BCS), float("-inf")) if mask else energy_BPS


def aggregate(attention_BPS: Tensor, value_BCS: Tensor) -> Tensor:
    """Gather each position's cross, weighted: (B, P, *S), (B, C, *S) -> (B, C, *S)."""
    return _sum_weighted("bp{grid},bc{line}->bc{grid}", attention_BPS, value_BCS)


def scatter(attention_BPS: Tensor, value_BCS: Tensor) -> Tensor:
    """Spread each position's value over its cross, weighted: the adjoint of aggregate, with the same shapes."""
    return _sum_weighted("bp{grid},bc{grid}->bc{line}", attention_BPS, value_BCS)


def _sum_weighted(equation: str, attention_BPS: Tensor, value_BCS: Tensor) -> Tensor:
    grid, lines = _letters(value_BCS)
    arms = zip(attention_BPS.split(list(value_BCS.shape[2:]), dim=1), lines, strict=True)
    first, *others = (torch.einsum(equation.format(grid=grid, line=line), arm, value_BCS) for arm, line in arms)
    return sum(others, start=first)


def own_entries(x_BCS: Tensor) -> Tensor:
    """Where an entry (P, *S) of the cross is the position itself, which lies on every arm and counts in the last."""
    S, device = x_BCS.shape[2:], x_BCS.device
    own_PS = torch.zeros(sum(S), *S, dtype=torch.bool, device=device)
    for axis, arm in enumerate(own_PS.split(list(S))[:-1]):
        arm.diagonal(dim1=0, dim2=axis + 1).fill_(True)
    return own_PS


def _letters(x_BCS: Tensor) -> tuple[str, list[str]]:
    """The grid's axes in an equation, and the same with p, the entry of the arm, in place of each axis in turn."""
    grid = ascii_uppercase[: x_BCS.dim() - 2]
    return grid, [grid.replace(axis, "p") for axis in grid]
