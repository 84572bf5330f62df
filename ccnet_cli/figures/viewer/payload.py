"""The attention in a viewer page: typed arrays, quantised and compressed."""

import base64
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# N pixels of the grid, whose size is (h, w) or of a clip (T, h, w); P, their sum, positions on a pixel's cross, M keys,
# C' channels of query and key, K classes

# steps of a weight's square root: the finer first, the coarser if that is too large
LEVELS = (1023, 255)
# the largest code of a query or key: the finest of int16 first, coarser until the page is small enough
STEPS = tuple(round(2 ** (bits / 2)) - 1 for bits in range(30, 9, -1))


@dataclass(frozen=True)
class DensePass:
    """A pass in which each pixel looks at the keys of its group, with weights softmax(query key).

    key_N is each pixel's own key, -1 for none; what a key gets is shared by the pixels whose own it is.
    """

    query_CN: Array
    key_CM: Array
    key_N: Array
    group_N: Array
    group_M: Array

    def reduce(self) -> "DensePass":
        """The same products from as few channels as it takes, the strongest first, so that weak ones need few bits."""
        # what is common to all keys changes all energies of a pixel alike, and not their softmax
        key = self.key_CM - self.key_CM.mean(axis=1, keepdims=True)
        left, scale, own = np.linalg.svd(self.query_CN, full_matrices=False)
        others, other_scale, own_key = np.linalg.svd(key, full_matrices=False)
        turn, strength, back = np.linalg.svd((scale[:, None] * left.T) @ (others * other_scale), full_matrices=False)
        strong = strength > 1e-12 * strength.max()
        strong[0] = True
        root = np.sqrt(strength[strong])[:, None]
        query, key = root * (turn.T @ own)[strong], root * (back @ own_key)[strong]
        return DensePass(query, key, self.key_N, self.group_N, self.group_M)

    def spread(self, map_N: Array) -> Array:
        """Where the pixels of a map look, each weighted by its own, (N,)."""
        total_M: Array = np.zeros(self.key_CM.shape[1])
        for pixel in np.flatnonzero(map_N):
            own_M = np.flatnonzero(self.group_M == self.group_N[pixel])
            energies = self.query_CN[:, pixel] @ self.key_CM[:, own_M]
            weights = np.exp(energies - energies.max())
            total_M[own_M] += map_N[pixel] * weights / weights.sum()
        present = self.key_N >= 0
        sharers = np.bincount(self.key_N[present], minlength=len(total_M)).clip(min=1)
        return np.where(present, (total_M / sharers)[self.key_N], 0.0)


@dataclass(frozen=True)
class ClassMaps:
    """What is drawn for a point of a class, (N,) each, and the channel whose map that is."""

    maps: Mapping[int, tuple[int, Array]]


def dense(passes: Sequence[DensePass | ClassMaps], steps: int) -> tuple[dict[str, Array], list[float | None]]:
    """Each pass's arrays, whose names end in its number, and the size of a step of query and key.

    Of class maps, codes are 65535 times what a map is of its largest weight.
    """
    arrays: dict[str, Array] = {}
    sizes: list[float | None] = []
    for number, each in enumerate(passes, start=1):
        if isinstance(each, ClassMaps):
            maps_KN = np.stack([map_N for _, map_N in each.maps.values()])
            largest = maps_KN.max(axis=1, keepdims=True)
            own: dict[str, Array] = {
                "codes": np.rint(65535 * maps_KN / largest).astype(np.uint16),
                "scale": (largest / 65535).astype(np.float32),
                "class": np.array([*each.maps], np.int32),
                "channel": np.array([channel for channel, _ in each.maps.values()], np.int32),
            }
            sizes.append(None)
        else:
            query, key, step = _code(each.query_CN, each.key_CM, steps)
            used: Array = np.asarray(query.any(axis=1) & key.any(axis=1))
            used[0] = True
            own = {"query": query[used], "key": key[used], "own": each.key_N.astype(np.int32)}
            own |= {"group": each.group_N.astype(np.uint16), "keygroup": each.group_M.astype(np.uint16)}
            sizes.append(step)
        arrays |= {f"{name}{number}": array for name, array in own.items()}
    return arrays, sizes


def dense_error(
    passes: Sequence[DensePass | ClassMaps],
    arrays: Mapping[str, Array],
    step_sizes: Sequence[float | None],
    composed: bool,
    pixels: Sequence[int],
) -> float:
    """The largest error of some pixels' maps, through all passes if they are composed, as map_error's."""
    pairs = []
    for number, (each, step) in enumerate(zip(passes, step_sizes, strict=True), start=1):
        if isinstance(each, DensePass) and step is not None:
            query, key = (step * arrays[f"{name}{number}"].astype(np.float64) for name in ("query", "key"))
            pairs.append((each, DensePass(query, key, each.key_N, each.group_N, each.group_M)))
    worst = 0.0
    for chain in [pairs] if composed else [[pair] for pair in pairs]:
        for pixel in pixels:
            exact, coded = (_through([pair[side] for pair in chain], pixel) for side in (0, 1))
            worst = max(worst, float(np.abs(exact - coded).max() / exact.max()))
    return worst


def _through(passes: Sequence[DensePass], pixel: int) -> Array:
    """The map of a pixel through passes, the last first, (N,)."""
    map_N: Array = np.zeros(len(passes[0].key_N))
    map_N[pixel] = 1
    for each in reversed(passes):
        map_N = each.spread(map_N)
    return map_N


def weights(passes_NP: Sequence[Array], size: tuple[int, ...], levels: int) -> dict[str, Array]:
    """Each pass's weights as codes: weight = scale (code / levels)^2 gain of the target pixel; names end in the pass.

    Through the passes before it, a target of a later pass can get weights up to its `reach`. Codes quantise the product
    of weight and reach, so that the error of a composed map is a fraction of its largest weight.
    """
    arrays: dict[str, Array] = {}
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


def projections(passes_CN: Sequence[tuple[Array, Array]], steps: int) -> tuple[dict[str, Array], list[float]]:
    """Each pass's query and key (C', N) as int16 codes of up to `steps`, and the size of a step in each pass."""
    arrays: dict[str, Array] = {}
    sizes = []
    for number, (query, key) in enumerate(passes_CN, start=1):
        # a part common to all keys changes all energies of a pixel alike, and not their softmax
        key = key - key.mean(axis=1, keepdims=True)
        arrays[f"query{number}"], arrays[f"key{number}"], step = _code(query, key, steps)
        sizes.append(step)
    return arrays, sizes


def _code(query_CN: Array, key_CM: Array, steps: int) -> tuple[Array, Array, float]:
    """Codes of both, of up to `steps`, and the size of a step."""
    # balance query and key, so that no channel is large in one and small in the other
    balance = np.sqrt((np.abs(key_CM).max(axis=1) + 1e-12) / (np.abs(query_CN).max(axis=1) + 1e-12))[:, None]
    query, key = query_CN * balance, key_CM / balance
    step = max(float(np.abs(query).max()), float(np.abs(key).max()), 1e-12) / steps
    return np.rint(query / step).astype(np.int16), np.rint(key / step).astype(np.int16), step


def map_error(
    passes_CN: Sequence[tuple[Array, Array]],
    arrays: Mapping[str, Array],
    step_sizes: Sequence[float],
    size: tuple[int, ...],
    pixels: Sequence[int],
) -> float:
    """The largest error of some pixels' maps through all passes, as a fraction of each map's largest weight."""
    exact = [_attention(query, key, size) for query, key in passes_CN]
    coded = [
        _attention(step * arrays[f"query{number}"], step * arrays[f"key{number}"], size)
        for number, step in enumerate(step_sizes, start=1)
    ]
    maps = [(_compose(exact, size, pixel), _compose(coded, size, pixel)) for pixel in pixels]
    return max(float(np.abs(one - other).max() / one.max()) for one, other in maps)


def pack(arrays: Mapping[str, Array]) -> tuple[dict[str, tuple[str, int, int]], str]:
    """All arrays as one base64 text of zlib data, and a directory: name -> (type, offset, number of values).

    Types are u1, i4, f4, and u2p and i2p for 16 bits in two planes, all low bytes before all high ones. The values of
    i2p have 128 added, modulo 2^16, so that small ones of either sign have the same high byte.
    """
    directory: dict[str, tuple[str, int, int]] = {}
    parts, offset = [], 0
    for name, array in arrays.items():
        flat = np.ascontiguousarray(array).ravel()
        kind = flat.dtype.str[1:]
        if kind in ("u2", "i2"):
            shifted = flat.astype("<u2") + np.uint16(128 * (kind == "i2"))
            kind, content = f"{kind}p", shifted.view(np.uint8).reshape(-1, 2).T.tobytes()
        else:
            content = flat.astype(flat.dtype.newbyteorder("<")).tobytes()
        directory[name] = (kind, offset, flat.size)
        # a typed array must begin at a multiple of its values' size
        content += bytes(-len(content) % 8)
        parts.append(content)
        offset += len(content)
    return directory, base64.b64encode(zlib.compress(b"".join(parts), 6)).decode()


def _targets(size: tuple[int, ...]) -> Array:
    """The pixel at each position of each pixel's cross, (N, P)."""
    numbers: Array = np.arange(math.prod(size)).reshape(size)
    lines = []
    for axis, length in enumerate(size):
        along = np.moveaxis(numbers, axis, -1)
        lines.append(np.broadcast_to(np.moveaxis(along[..., None, :], -2, axis), (*size, length)).reshape(-1, length))
    return np.concatenate(lines, axis=1)


def _attention(query_CN: Array, key_CN: Array, size: tuple[int, ...]) -> Array:
    """Each pixel's weights over its cross, (N, P)."""
    query, key = (part.astype(np.float64).reshape(-1, *size) for part in (query_CN, key_CN))
    lines = []
    for axis, length in enumerate(size):
        rows = np.moveaxis(query, (axis + 1, 0), (-2, -1)) @ np.moveaxis(key, (0, axis + 1), (-2, -1))
        if axis < len(size) - 1:
            # the pixel lies on all lines: count it once, in its row
            rows[..., np.arange(length), np.arange(length)] = -np.inf
        lines.append(np.moveaxis(rows, -2, axis).reshape(-1, length))
    energies = np.concatenate(lines, axis=1)
    weights = np.exp(energies - energies.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _compose(passes_NP: Sequence[Array], size: tuple[int, ...], pixel: int) -> Array:
    """The map of a pixel through all passes, (N,)."""
    targets, count = _targets(size), math.prod(size)
    map_N: Array = np.zeros(count)
    map_N[pixel] = 1
    for weights_NP in reversed(passes_NP):
        sources = np.flatnonzero(map_N)
        weights = map_N[sources, None] * weights_NP[sources]
        map_N = np.bincount(targets[sources].ravel(), weights.ravel(), count)
    return map_N
