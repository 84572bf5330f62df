"""The wheel: it holds what is tracked and nothing else, and works from any folder."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "ccnet_cli" / "weights" / "demo" / "demo.pt"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a fresh environment that holds the wheel; dependencies are borrowed from this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    offline = ["--no-deps", "--no-index", "--find-links", wheel.parent, "ccnet-cli"]
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", *offline]
    subprocess.run(pip, check=True, capture_output=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def test_the_wheel_holds_exactly_what_is_tracked(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == {f"ccnet_cli/{name}" if name.startswith("presets/") else name for name in tracked()}
    assert "ccnet_cli/py.typed" in held
    assert {Path(name).suffix for name in held if "/presets/" in name} == {".yaml"}


def tracked() -> list[str]:
    command = ["git", "-C", ROOT, "ls-files", "ccnet_cli", "presets"]
    listing = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    # an unpacked source archive has no index
    return listing or [
        str(path.relative_to(ROOT))
        for folder in ("ccnet_cli", "presets")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]


def test_the_wheel_names_its_licence_and_its_command(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = {Path(name).name: name for name in archive.namelist() if ".dist-info/" in name}
        text = archive.read(names["METADATA"]).decode()
        assert "ccnet = ccnet_cli.cli:main" in archive.read(names["entry_points.txt"]).decode()
    assert "LICENSE" in names
    assert "Name: ccnet-cli\n" in text
    assert "License-Expression: MIT\n" in text
    assert "Requires-Python: >=3.11\n" in text


def test_presets_and_the_catalogue_are_found_from_another_folder(installed: Path, tmp_path: Path):
    assert "mit-resnet101-imagenet" in run(installed, tmp_path, "weights", "list").stdout
    done = run(installed, tmp_path, "presets", "list")
    assert done.returncode == 0, done.stderr
    for path in (ROOT / "presets").glob("*.yaml"):
        assert path.stem in done.stdout
    where = [installed / "python", "-c", "import ccnet_cli.config as c; print(c.folder())"]
    done = subprocess.run(where, cwd=tmp_path, env=environment(), check=True, capture_output=True, text=True)
    found = Path(done.stdout.strip())
    assert found.is_relative_to(installed.parent)


@pytest.mark.skipif(not DEMO.is_file(), reason="the demo weights are not there yet")
def test_predict_and_visualize_work_from_another_folder(installed: Path, tmp_path: Path):
    for words in (
        ("data", "sample", "img.png"),
        ("predict", "img.png", "-o", "mask.png"),
        ("visualize", "--point", "300,400"),
    ):
        done = run(installed, tmp_path, *words)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    assert "demo weights" in done.stderr
    assert {"img.png", "mask.png", "attention.png"} <= {path.name for path in tmp_path.iterdir()}


def run(installed: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [installed / "ccnet", *words]
    return subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, check=False, timeout=300
    )


def environment() -> dict[str, str]:
    """The environment without a checkout in the path."""
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "CCNET_CHECKPOINT")}
