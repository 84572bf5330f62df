"""Small maps against float64, in every type: a first answer on a card, and work for a sanitizer.

check_small.py DEVICE IMPLEMENTATION
"""

import sys
import time

import torch

from ccnet_cli.bench import gpu


def main(device: str, name: str) -> int:
    """How many maps are wrong."""
    wrong = 0
    for shape in gpu.SHAPES[2:5]:
        for dtype in gpu.TOLERANCES:
            start = time.time()
            passed, seen = gpu.check_parity(gpu.inputs(shape, dtype, torch.device(device)), name)
            wrong += not passed
            print("passed" if passed else "FAILED", shape, dtype, seen, f"{time.time() - start:.2f} s", flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
