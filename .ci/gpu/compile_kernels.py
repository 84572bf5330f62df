"""Compile what the first minutes on a card launch into the cache folder, for one architecture, without a GPU.

compile_kernels.py sm_90 [quick]
compile_kernels.py adopt    on the card's machine: names the images as its own compiler would
"""

import re
import sys
import time

import torch

from ccnet_cli.bench import gpu, passes
from ccnet_cli.ops import cuda
from ccnet_cli.ops.cuda import attention, launch, plan
from ccnet_cli.ops.cuda.steps import Kernel

# the maps of a ResNet at 769x769, and of the short training and its evaluation
MODELS = ((1, 64, 512, 97, 97), (8, 16, 64, 20, 26), (8, 16, 64, 21, 27), (8, 16, 64, 40, 52))


def list_shapes() -> list[tuple[int, ...]]:
    """Images, channels of query and key, channels of value, height and width of every map."""
    single = {(batch, 64, 512, *size) for batch, size, *_ in passes.cases(gpu.SIZES)}
    return [*dict.fromkeys((*gpu.SHAPES, *sorted(single), *MODELS))]


def list_kernels(shapes: list[tuple[int, ...]]) -> list[Kernel]:
    """What passes of these shapes and their gradients launch, in every type."""
    kernels: dict[Kernel, None] = {}
    launch.run = lambda steps, tensors: kernels.update(dict.fromkeys(step.kernel for step in steps))
    for B, c, C, H, W in shapes:
        for dtype in gpu.TOLERANCES:
            # tensors without memory
            whole = torch.empty(B, 2 * c + C, H, W, dtype=dtype, device="meta")
            query, key, value = whole.to(memory_format=torch.channels_last).split([c, c, C], dim=1)
            for copies in plan.COPIES:
                with attention.copying(copies):
                    out, log = attention.attend(query, key, value)
                    attention.attend_and_add(query, key, value, out, torch.empty(1, device="meta"))
                    attention.attend_backward(out, query, key, value, out, log)
            query, key = query.float(), key.float()
            for tensor in (False, True) if dtype in gpu.TENSOR else (False,):
                out, weights = cuda.criss_cross(query, key, value, tensor=tensor)
            cuda.criss_cross_backward(out, query, key, value, weights)
    return [*kernels]


def adopt() -> None:
    """Name images of these sources after this machine's compiler, which then has nothing to compile."""
    for path in launch._folder().glob(f"*-{launch._sources()}*.cubin"):
        path.rename(path.with_name(f"{path.name.rpartition('-')[0]}-{launch._version()}.cubin"))


def main(arch: str, quick: bool = False) -> None:
    """Compile all; quick, three of a small map."""
    major, minor = (int(x) for x in re.fullmatch(r"sm_(\d+)(\d)", arch).groups())
    kernels = list_kernels([gpu.SHAPES[2]])[:3] if quick else list_kernels(list_shapes())
    start = time.time()
    for number, kernel in enumerate(kernels, 1):
        launch.machine_code(kernel, (major, minor))
        print(f"{number} of {len(kernels)} after {time.time() - start:.0f} s: {kernel.name}", flush=True)


if __name__ == "__main__":
    adopt() if sys.argv[1] == "adopt" else main(sys.argv[1], "quick" in sys.argv)
