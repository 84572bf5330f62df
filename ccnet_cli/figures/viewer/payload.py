"""What a viewer page holds of the attention: typed arrays, compressed, small to send and exact enough to read."""

import base64
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

# N = h w pixels of the grid, P = h + w positions on a pixel's cross, C' channels of query and key

# weights are kept as steps of their square root: the finer first, the coarser where that would be too large
LEVELS = (1023, 255)
# the largest code of a query or key: the finest of int16 first, then as coarse as the page's size asks for
STEPS = tuple(round(2 ** (bits / 2)) - 1 for bits in range(30, 9, -1))


def weights(passes_NP: Sequence[np.ndarray], size: tuple[int, int], levels: int) -> dict[str, np.ndarray]:
    """Each pass's weights as codes: weight = scale (code / levels)^2 gain of the target pixel; names end in the pass.

    Through what comes before it, a target of a later pass can reach weights up to its `reach`. Codes are spent on the
    product of weight and reach: whatever the composed maps show, its error is then a share of their largest weight.
    """
    arrays: dict[str, np.ndarray] = {}
    targets = _targets(size)
    reach = np.ones(targets.shape[0])
    for number, weight_NP in enumerate(passes_NP, start=1):
        product = weight_NP * reach[targets]
        largest = product.max(axis=1)
        codes = np.rint(levels * np.sqrt(product / largest[:, None]))
        arrays[f"codes{number}"] = codes.astype(np.uint8 if levels < 256 else np.uint16)
        arrays[f"scale{number}"] = largest.astype(np.float32)
        arrays[f"gain{number}"] = (1 / reach).astype(np.float32)
        reach = largest
    return arrays


def projections(
    passes_CN: Sequence[tuple[np.ndarray, np.ndarray]], steps: int
) -> tuple[dict[str, np.ndarray], list[float]]:
    """Each pass's query and key (C', N) as int16 codes of up to `steps`, and what a step of each pass is worth."""
    arrays: dict[str, np.ndarray] = {}
    worth = []
    for number, (query, key) in enumerate(passes_CN, start=1):
        # what all keys share raises all energies of a pixel alike, and the softmax does not see it
        key = key - key.mean(axis=1, keepdims=True)
        # evened out, no channel is large in one and small in the other
        even = np.sqrt((np.abs(key).max(axis=1) + 1e-12) / (np.abs(query).max(axis=1) + 1e-12))[:, None]
        query, key = query * even, key / even
        step = max(float(np.abs(query).max()), float(np.abs(key).max()), 1e-12) / steps
        arrays[f"query{number}"] = np.rint(query / step).astype(np.int16)
        arrays[f"key{number}"] = np.rint(key / step).astype(np.int16)
        worth.append(step)
    return arrays, worth


def departure(
    passes_CN: Sequence[tuple[np.ndarray, np.ndarray]],
    arrays: Mapping[str, np.ndarray],
    worth: Sequence[float],
    size: tuple[int, int],
    pixels: Sequence[int],
) -> float:
    """The largest error of the maps of some pixels through all passes, as a share of each map's largest weight."""
    exact = [_attention(query, key, size) for query, key in passes_CN]
    kept = [
        _attention(step * arrays[f"query{number}"], step * arrays[f"key{number}"], size)
        for number, step in enumerate(worth, start=1)
    ]
    maps = [(_composed(exact, size, pixel), _composed(kept, size, pixel)) for pixel in pixels]
    return max(float(np.abs(one - other).max() / one.max()) for one, other in maps)


def pack(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, tuple[str, int, int]], str]:
    """All arrays in one base64 text of zlib data, and where each lies in it: name -> (type, offset, values).

    Types are u1, f4, and u2p and i2p for 16 bits in two planes: all low bytes before all high ones. The values of i2p
    are raised by 128 and wrap around: small ones of either sign then have the same high byte.
    """
    directory, parts, offset = {}, [], 0
    for name, array in arrays.items():
        flat = np.ascontiguousarray(array).ravel()
        kind = flat.dtype.str[1:]
        if kind in ("u2", "i2"):
            raised = flat.astype("<u2") + np.uint16(128 * (kind == "i2"))
            kind, content = f"{kind}p", raised.view(np.uint8).reshape(-1, 2).T.tobytes()
        else:
            content = flat.astype(flat.dtype.newbyteorder("<")).tobytes()
        directory[name] = (kind, offset, flat.size)
        # typed arrays must begin at a multiple of their values' size
        content += bytes(-len(content) % 8)
        parts.append(content)
        offset += len(content)
    return directory, base64.b64encode(zlib.compress(b"".join(parts), 6)).decode()


def _targets(size: tuple[int, int]) -> np.ndarray:
    """The pixel at each position of each pixel's cross, (N, P)."""
    h, w = size
    rows, columns = np.divmod(np.arange(h * w), w)
    column = np.arange(h)[None] * w + columns[:, None]
    row = rows[:, None] * w + np.arange(w)[None]
    return np.concatenate([column, row], axis=1)


def _attention(query_CN: np.ndarray, key_CN: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Each pixel's weights over its cross, (N, P)."""
    h, w = size
    query, key = (part.astype(np.float64).reshape(-1, h, w) for part in (query_CN, key_CN))
    column = (query.transpose(2, 1, 0) @ key.transpose(2, 0, 1)).transpose(1, 0, 2)
    # the pixel lies on both arms and counts once, in its row
    column[np.arange(h), :, np.arange(h)] = -np.inf
    row = query.transpose(1, 2, 0) @ key.transpose(1, 0, 2)
    energies = np.concatenate([column, row], axis=2).reshape(h * w, h + w)
    weights = np.exp(energies - energies.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def _composed(passes_NP: Sequence[np.ndarray], size: tuple[int, int], pixel: int) -> np.ndarray:
    """Where a pixel looks through all passes, (N,)."""
    targets, count = _targets(size), size[0] * size[1]
    map_N = np.zeros(count)
    map_N[pixel] = 1
    for weights_NP in reversed(passes_NP):
        reached = np.flatnonzero(map_N)
        shares = map_N[reached, None] * weights_NP[reached]
        map_N = np.bincount(targets[reached].ravel(), shares.ravel(), count)
    return map_N
