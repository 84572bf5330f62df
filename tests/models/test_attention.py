"""Criss-cross attention against a loop over single pixels; gamma is never 0, where the module is the identity."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ccnet_cli import ops
from ccnet_cli.errors import InputError
from ccnet_cli.models.attention import CrissCrossAttention, RecurrentCrissCross, attention_map

SHAPES = [(1, 1), (1, 7), (7, 1), (2, 3), (5, 6)]
CHANNELS, QUERY_CHANNELS = 6, 3
every_implementation = pytest.mark.parametrize("implementation", ("reference", "gemm"))


def module(implementation: str = "auto", gamma: float = 1.0) -> CrissCrossAttention:
    torch.manual_seed(0)
    attention = CrissCrossAttention(CHANNELS, QUERY_CHANNELS, implementation).double()
    attention.gamma.data.fill_(gamma)
    return attention


def image(H: int, W: int, B: int = 2) -> torch.Tensor:
    return 2 * torch.randn(B, CHANNELS, H, W, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def project(conv: torch.nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    return torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0], x) + conv.bias[:, None, None]


def pixel_loop(attention: CrissCrossAttention, x: torch.Tensor, recurrence: int) -> torch.Tensor:
    """The paper's words, one pixel at a time."""
    B, _, H, W = x.shape
    for _ in range(recurrence):
        query, key, value = (project(c, x) for c in (attention.query_conv, attention.key_conv, attention.value_conv))
        gathered = torch.zeros_like(x)
        for b, i, j in product(range(B), range(H), range(W)):
            cross = [(y, j) for y in range(H) if y != i] + [(i, column) for column in range(W)]
            assert len(set(cross)) == H + W - 1
            energies = torch.stack([query[b, :, i, j] @ key[b, :, y, column] for y, column in cross])
            weights = energies.exp() / energies.exp().sum()
            gathered[b, :, i, j] = sum(w * value[b, :, y, c] for w, (y, c) in zip(weights, cross, strict=True))
        x = attention.gamma * gathered + x
    return x


@every_implementation
@pytest.mark.parametrize("recurrence", [1, 2, 3])
@pytest.mark.parametrize(("H", "W"), SHAPES)
@torch.no_grad()
def test_it_equals_the_loop_over_pixels(H, W, recurrence, implementation):
    attention, x = module(implementation), image(H, W)
    expected = pixel_loop(attention, x, recurrence)
    rcca = RecurrentCrissCross(attention, recurrence)
    assert (rcca(x) - expected).abs().max() <= 1e-12
    attended, maps = rcca.attend(x)
    assert (attended - expected).abs().max() <= 1e-12
    assert len(maps) == recurrence
    for weights in maps:
        assert weights.shape == (2, H + W, H, W)
        torch.testing.assert_close(weights.sum(1), torch.ones(2, H, W, dtype=torch.float64))
        assert (weights[:, :H].diagonal(dim1=1, dim2=2) == 0).all()


MUTANTS = {
    "no mask": {"mask_column": False},
    # a mask moved from the column to the row gives the same output: the layout of the maps tells them apart, above
    "mask on the row too": {"mask_row": True},
    "softmax per arm": {"one_softmax": False},
    "height and width swapped": {"swap": True},
    "gamma ignored": {"use_gamma": False},
    "scaled energies": {"scale": QUERY_CHANNELS**-0.5},
}


def dense(
    attention: CrissCrossAttention,
    x: torch.Tensor,
    mask_column: bool = True,
    mask_row: bool = False,
    one_softmax: bool = True,
    swap: bool = False,
    use_gamma: bool = True,
    scale: float = 1.0,
) -> torch.Tensor:
    """A third rendering, with a switch for each mistake that is easily made."""
    H, W = x.shape[-2:]
    query, key, value = (project(c, x) for c in (attention.query_conv, attention.key_conv, attention.value_conv))
    column = torch.einsum("bcij,bcyj->bijy", query, key) * scale
    row = torch.einsum("bcij,bcix->bijx", query, key) * scale
    if mask_column:
        column = column.masked_fill(torch.eye(H, dtype=torch.bool)[:, None], float("-inf"))
    if mask_row:
        row = row.masked_fill(torch.eye(W, dtype=torch.bool), float("-inf"))
    if one_softmax:
        weights = torch.cat([column, row], -1).softmax(-1)
    else:
        weights = torch.cat([column.softmax(-1), row.softmax(-1)], -1) / 2
    if swap:
        weights = torch.cat([weights[..., H:], weights[..., :H]], -1)
    gathered = torch.einsum("bijy,bcyj->bcij", weights[..., :H], value)
    gathered = gathered + torch.einsum("bijx,bcix->bcij", weights[..., H:], value)
    return (attention.gamma if use_gamma else 1.0) * gathered + x


@every_implementation
@torch.no_grad()
def test_a_mistake_would_be_seen(implementation):
    attention, x = module(implementation, gamma=0.6), image(5, 6)
    assert (attention(x) - dense(attention, x)).abs().max() <= 1e-12
    for name, switches in MUTANTS.items():
        difference = (attention(x) - dense(attention, x, **switches)).abs().max().item()
        assert difference > 1e-2, name


def test_gamma_starts_at_zero_and_the_module_as_the_identity():
    attention = CrissCrossAttention(16)
    x = torch.randn(1, 16, 3, 4)
    assert attention.gamma.item() == 0 and attention.gamma.shape == (1,)
    assert torch.equal(attention(x), x)
    assert attention.query_conv.out_channels == 2
    assert {name.partition(".")[0] for name in attention.state_dict()} == {
        "query_conv", "key_conv", "value_conv", "gamma"
    }  # fmt: skip


@every_implementation
def test_every_parameter_and_the_input_get_the_gradients_of_the_dense_rendering(implementation):
    attention, x = module(implementation, gamma=0.6), image(4, 5).requires_grad_()
    factor = torch.randn(2, CHANNELS, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    leaves = [x, *attention.parameters()]
    got = torch.autograd.grad((attention(attention(x)) * factor).sum(), leaves)
    expected = torch.autograd.grad((dense(attention, dense(attention, x)) * factor).sum(), leaves)
    for gradient, wanted in zip(got, expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-10)
    # a shared shift of all keys' energies cancels in the softmax
    assert got[1 + [name for name, _ in attention.named_parameters()].index("key_conv.bias")].abs().max() < 1e-10


@torch.no_grad()
def test_batch_neighbours_and_memory_layout_change_nothing():
    attention, x = module(), image(5, 6, B=3)
    together = RecurrentCrissCross(attention, 2)(x)
    for b in range(3):
        torch.testing.assert_close(RecurrentCrissCross(attention, 2)(x[b : b + 1]), together[b : b + 1])
    last = RecurrentCrissCross(attention, 2)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, together)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_energies_and_maps_their_precision(dtype):
    attention = module().float()
    # 1.6e5 where both are large: more than float16 holds
    attention.query_conv.bias.fill_(300)
    attention.key_conv.bias.fill_(180)
    with torch.autocast("cpu", dtype=dtype):
        out, maps = RecurrentCrissCross(attention, 2).attend(image(5, 6).float())
        assert attention(image(5, 6).float()).isfinite().all()
    assert all(weights.dtype == torch.float64 for weights in maps)
    assert out.isfinite().all() and all(weights.isfinite().all() for weights in maps)


def dense_matrix(weights_PHW: torch.Tensor) -> torch.Tensor:
    """One pass as a matrix over all pairs of pixels, (H W, H W)."""
    H, W = weights_PHW.shape[1:]
    matrix = weights_PHW.new_zeros(H, W, H, W)
    for i, j in product(range(H), range(W)):
        for y in range(H):
            matrix[i, j, y, j] += weights_PHW[y, i, j]
        for x in range(W):
            matrix[i, j, i, x] += weights_PHW[H + x, i, j]
    return matrix.reshape(H * W, H * W)


@torch.no_grad()
@pytest.mark.parametrize(("H", "W"), SHAPES)
def test_attention_maps_are_rows_of_the_product_of_the_passes(H, W):
    _, maps = RecurrentCrissCross(module(gamma=0.6), 3).attend(image(H, W))
    first, second, third = (dense_matrix(weights[0]) for weights in maps)
    for i, j in product(range(H), range(W)):
        one, two, three = (attention_map(maps[:count], i, j) for count in (1, 2, 3))
        off = torch.ones(H, W, dtype=torch.bool)
        off[i] = off[:, j] = False
        assert (one[off] == 0).all()
        assert (one[~off] > 0).all() and (two > 0).all()
        for drawn, matrix in ((one, first), (two, second @ first), (three, third @ second @ first)):
            torch.testing.assert_close(drawn.flatten(), matrix[i * W + j], rtol=0, atol=1e-12)
            assert abs(drawn.sum().item() - 1) < 1e-12


@settings(max_examples=200, deadline=None, database=None)
@given(
    H=st.integers(1, 6),
    W=st.integers(1, 6),
    size=st.floats(0, 1e4),
    seed=st.integers(0, 2**16),
    implementation=st.sampled_from(["reference", "gemm"]),
)
def test_weights_are_a_distribution_over_the_cross(H, W, size, seed, implementation):
    query, key = torch.randn(2, 1, 4, H, W, generator=torch.Generator().manual_seed(seed)) * size**0.5
    weights = ops.affinity(query, key, implementation).softmax(dim=1)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(1, H, W), rtol=0, atol=1e-6)


def test_compiled_it_is_one_graph_with_equal_results():
    rcca, x = RecurrentCrissCross(module(gamma=0.6), 2), image(3, 4)
    compiled = torch.compile(rcca, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), rcca(x), rtol=0, atol=1e-13)


@pytest.mark.parametrize("implementation", ["vector", "unheard-of"])
def test_an_implementation_that_is_not_here_is_refused_by_the_module(implementation):
    if implementation in ops.implementations():
        pytest.skip("available in this version")
    attention = module(implementation)
    for run in (attention, attention.attend):
        with pytest.raises(InputError, match=implementation) as caught:
            run(image(2, 3))
        assert "\n" not in str(caught.value)
