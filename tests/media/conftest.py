"""What the tests of images and videos share."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def film_on_a_full_disk(tmp_path: Path) -> str:
    """What a process prints on stderr whose video, out.mp4, grows beyond what it may write."""
    code = f"""
import resource
from pathlib import Path
import numpy as np
from ccnet_cli.media import video
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
with video.open_writer(Path({str(tmp_path)!r}) / "out.mp4", 5, (64, 96)) as write:
    for _ in range(40):
        write(np.roll(noise, _, 1))
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    return ran.stderr
