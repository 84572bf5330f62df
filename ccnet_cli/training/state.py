"""What the bits of a run's next steps depend on beside its weights and settings: random numbers and environment."""

import hashlib
import json
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from ccnet_cli import config
from ccnet_cli.parallel.group import Group

# changes of these leave the samples of a step as they are, but not the order in which numbers are added up
SAMPLE_EXACT = ("accumulation", "world_size", "global_batch")


def seed_rank(seed: int, rank: int) -> None:
    """Seed torch, Python and NumPy, each rank in its own way: dropout must differ between them."""
    own = seed * 1000 + rank + 1
    torch.manual_seed(own)
    random.seed(own)
    np.random.seed(own % 2**32)


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of every generator of random numbers, in plain types and tensors."""
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    own: dict[str, Any] = np.random.get_state(legacy=False)
    # a numpy array would not be read back
    numpy = [own["bit_generator"], own["state"]["key"].tolist(), own["state"]["pos"], own["has_gauss"], own["gauss"]]
    return {"torch": torch.get_rng_state(), "cuda": cuda, "python": random.getstate(), "numpy": numpy}


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Continue the random numbers of a random_state."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
    random.setstate(state["python"])
    if "numpy" in state:
        np.random.set_state(tuple(state["numpy"]))


def environment_fingerprint(preset: config.Preset, group: Group, list_sha256: str, accumulation: int) -> dict[str, Any]:
    """Everything else that affects bit-exact resumption; list_sha256 is that of the list of training images."""
    mapping = config.to_mapping(preset)
    cudnn = torch.backends.cudnn
    return {
        "world_size": group.world_size,
        "global_batch": preset.train.batch,
        "accumulation": accumulation,
        "num_threads": torch.get_num_threads(),
        "precision": preset.train.precision,
        "device": group.device.type,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "float32_matmul": torch.get_float32_matmul_precision(),
        "cudnn": [cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic],
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "numpy": np.__version__,
        "config_sha256": hashlib.sha256(json.dumps(mapping, sort_keys=True).encode()).hexdigest(),
        "list_sha256": list_sha256,
    }


def differences(now: Mapping[str, Any], before: Mapping[str, Any]) -> Iterator[str]:
    """How two environment fingerprints differ, a phrase each; what the earlier one lacks counts as equal."""
    changed = [key for key in now if key != "config_sha256" and now[key] != before.get(key, now[key])]
    phrases = {key: f"{key} {now[key]}, was {before[key]}" for key in changed}
    sample_exact = [phrases.pop(key) for key in SAMPLE_EXACT if key in phrases]
    if sample_exact:
        yield f"{', '.join(sample_exact)}: sample-exact, not bit-exact"
    if phrases.pop("list_sha256", None):
        yield "another list of training images than before: other samples will come"
    if phrases:
        yield f"{', '.join(phrases.values())}: not bit-exact"
