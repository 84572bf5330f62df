"""How many pixels of an image the network may see at once, so that a process stays within its memory."""

import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ccnet_cli.errors import InputError, notice
from ccnet_cli.inference.artifact import Network
from ccnet_cli.inference.bands import MIN_PIXELS_OF_BANDS, suits
from ccnet_cli.inference.engine import Engine
from ccnet_cli.inference.views import Views
from ccnet_cli.media.images import PIXEL_LIMIT
from ccnet_cli.media.pixels import scaled_size

# what Python, torch and OpenCV take without a network, and what they do not give back
PROGRAM_BYTES = 600 << 20
# of an image's pixel: itself, its class, and the logits of the tiles above it; as the network's input
IMAGE_BYTES, INPUT_BYTES = 5, 12
# of the memory, what transformed filters may take that could be made anew
FILTER_PART = 8
# as many maps of one size a network must have room for: then their memory is kept from one to the next
MIN_MAPS = 7
# by how much the network's tensors are exceeded by what else it takes
SLACK = 1.1
# the shorter sides of the pictures that a network's need is measured with
PROBE = 512
# as many the network must be able to see
MIN_PIXELS, MIN_PIXELS_UNLESS_FIRM = 1 << 16, 769 * 769
# of a pixel, more than any network is known to take: an image that fits by this is not measured
MOST_BYTES = 2048
# of the memory that the machine has left, what one may take
PART = 0.8
# operators whose result has the size of their largest operand, and those that answer their first one
ARITHMETIC = {"add", "sub", "mul", "div", "sqrt", "relu", "leaky_relu"}
IN_PLACE = {"add_", "sub_", "mul_", "relu_", "leaky_relu_", "copy_", "normal_", "uniform_", "_convolution_pointwise_"}


@dataclass(frozen=True)
class Budget:
    """The memory of a process, in bytes, and the network that takes it, as it runs and as built without weights.

    Memory that is not firm may be exceeded where nothing fits into it.
    """

    memory: int
    firm: bool
    network: Network
    build: Callable[[], Any] = field(repr=False)
    # the first size that was cut
    _cut: list[tuple[int, int]] = field(default_factory=list)

    def fit(self, views: Views, size: tuple[int, int]) -> Views:
        """The views of an image within the budget; InputError where it must fit and nothing does."""
        scaled = [scaled_size(size, s, views.fit) for s in views.scales]
        pixels = [height * width for height, width in scaled]
        # larger ones are read by windows
        own = IMAGE_BYTES * min(size[0] * size[1], PIXEL_LIMIT)
        if self._room - own > (views.batch + len(scaled)) * max(pixels) * MOST_BYTES:
            return views
        if not (suits(views) and size[0] * size[1] >= MIN_PIXELS_OF_BANDS):
            own += INPUT_BYTES * (size[0] * size[1] + max(pixels))
            own += int(self._answer_bytes * sum(pixels) * (1 + views.flip))
        most = self._most(self._room - own, max(scaled))
        if most < MIN_PIXELS and not self.firm:
            most = MIN_PIXELS_UNLESS_FIRM
        if most < MIN_PIXELS:
            needed = (self.memory - self._room + own + MIN_PIXELS * self.pixel_bytes) / (1 << 30)
            why = f"the network and an image of {size[1]}x{size[0]} pixels take {needed:.1f} GiB"
            raise InputError(f"memory of {self.memory / (1 << 30):.1f} GiB", why, "give --memory more of it")
        fitting = replace(views, max_pixels=most, limit=None)
        self._announce(size, fitting)
        if isinstance(self.network, Engine) and self.network.memory is None:
            self.network.reuse_memory(self.pixel_bytes / SLACK / 4 / MIN_MAPS)
        return fitting

    def _most(self, room: float, size: tuple[int, int]) -> int:
        """The pixels of a part of a picture of that size that fit into a number of bytes, whatever its shape."""
        most = int(room / self.pixel_bytes)
        if most < MIN_PIXELS:
            return most
        # a pixel's cross is longest where a part has one whole side of the picture
        shapes = ((side, max(most // side, PROBE)) for side in (max(min(side, most), PROBE) for side in size))
        return int(room / max(self._measure(shape) for shape in shapes))

    def _announce(self, size: tuple[int, int], views: Views) -> None:
        """Say, once, that an image is seen in tiles that was to be seen as a whole."""
        grid = views.grid(size, size, True)
        if views.mode == "whole" and not grid.is_whole and not self._cut:
            self._cut.append(size)
            tiles = f"{len(grid.rows.starts) * len(grid.columns.starts)} tiles of {grid.columns.tile}x{grid.rows.tile}"
            why = f"too large for whole mode in {self.memory / (1 << 30):.1f} GiB (--memory)"
            notice(f"an image of {size[1]}x{size[0]} pixels is {why}: it is seen in {tiles}")

    @cached_property
    def _room(self) -> int:
        """What is left for images; the engine may have to save memory for it."""
        module: Any = self.network
        weights = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
        if isinstance(module, Engine):
            module.release_maps()
            if self.firm and 4 * module.count_filters() > self.memory / FILTER_PART:
                module.save_memory()
            weights += 4 * module.count_filters()
        return int(self.memory - PROGRAM_BYTES - weights)

    @cached_property
    def pixel_bytes(self) -> float:
        """What the network takes for each pixel that it sees, of a small picture."""
        return self._measure((PROBE, PROBE))

    @cached_property
    def _answer_bytes(self) -> float:
        """What the scores take for each pixel that the network sees."""
        with torch.device("meta"), torch.no_grad(), _Meter([]):
            answers = _pytree.tree_leaves(self._shapes(torch.empty(1, 3, PROBE, PROBE)))
        most: int = max(answer.numel() for answer in answers)
        return 4 * most / PROBE**2

    def _measure(self, size: tuple[int, int]) -> float:
        return SLACK * peak_bytes(self._shapes, size) / (size[0] * size[1])

    @cached_property
    def _shapes(self) -> nn.Module:
        """The network without memory for its weights, as it runs."""
        network = self.network
        with torch.device("meta"), _Meter([]):
            model = self.build()
            if not isinstance(network, Engine):
                return cast(nn.Module, model).eval()
            # in whatever type: where the engine's is narrower, oneDNN keeps sums in float32
            engine = Engine(model, torch.float32, network.fused)
            engine.release_maps()
            return engine.eval()


def peak_bytes(network: nn.Module, size: tuple[int, int]) -> int:
    """The bytes of all tensors but the weights while a network on the meta device sees a picture, at their most.

    Nothing is computed.
    """
    with torch.device("meta"), torch.no_grad(), _Meter([*network.parameters(), *network.buffers()]) as meter:
        network(torch.empty(1, 3, *size, memory_format=torch.channels_last))
    most: int = meter.most
    return most


class _Meter(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, besides some, and their most."""

    def __init__(self, others: Sequence[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self.seen = {_key(tensor.untyped_storage()) for tensor in others}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # nothing is compiled here: torch's compiler need not be loaded to be left out
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = _answer(func.overloadpacket.__name__, args)
        if out is None:
            out = func(*args, **(kwargs or {}))
        for leaf in _pytree.tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = _key(storage), storage.nbytes()
        if key not in self.seen:
            self.seen.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self.seen.remove(key)
        self.now -= size


def _answer(name: str, args: Sequence[Any]) -> Any:
    """Empty results of operators for which torch would load its compiler, a second and 80 MiB; None for others."""
    if name in IN_PLACE:
        return args[0]
    if name == "max_pool2d_with_indices":
        x, *window = args
        small = torch.ops.aten.max_pool2d_with_indices(torch.zeros(1, 1, *x.shape[2:], device="cpu"), *window)
        return [x.new_empty(*x.shape[:2], *each.shape[2:], dtype=each.dtype) for each in small]
    tensors = [each for each in args if isinstance(each, torch.Tensor)]
    if name == "cat":
        tensors, axis = args[0], args[1] if len(args) > 1 else 0
        shape = list(tensors[0].shape)
        shape[axis] = sum(each.shape[axis] for each in tensors)
    elif name == "_convolution_pointwise":
        sides = zip(args[0].shape[2:], args[1].shape[2:], *args[3:6], strict=True)
        shape = [len(args[0]), len(args[1]), *((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, p, s, d in sides)]
    elif name in ARITHMETIC:
        shape = [*np.broadcast_shapes(*(each.shape for each in tensors))]
    else:
        return None
    # maps are channels last
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    return torch.empty(shape, dtype=tensors[0].dtype, device=tensors[0].device, memory_format=layout)


def _key(storage: torch.UntypedStorage) -> int:
    key: int = storage._cdata
    return key


def machine_memory(device: torch.device) -> int:
    """The bytes that the GPU, or this machine or the container, has left for a process that begins."""
    if device.type == "cuda":
        return int(PART * torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        left = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        left = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return int(PART * min([left, *_container_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))]))


def _container_limits(membership: Path, root: Path) -> list[int]:
    """What the process's control groups, of either version, and those above them have left."""
    limits = []
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, own = line.split(":", 2)
        second = not controllers
        if not second and "memory" not in controllers.split(","):
            continue
        names = ("memory.max", "memory.current") if second else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        folder = root / ("" if second else "memory")
        for path in (folder / own.lstrip("/"), *(folder / own.lstrip("/")).parents):
            if not path.is_relative_to(folder):
                break
            try:
                limit, used = (int((path / name).read_text()) for name in names)
                # the cache of files is given back where memory is short
                stat = dict(entry.split() for entry in (path / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):
                continue
            limits.append(limit - used + int(stat.get("inactive_file", 0)))
    return limits
