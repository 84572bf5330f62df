"""The architecture: imports go down, each library has one door, the command line starts light, no unsafe calls."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ccnet_cli"
SOURCES = sorted(PACKAGE.rglob("*.py"))

FLOORS = {
    8: "cli",
    7: "commands bench",
    6: "training",
    5: "inference",
    4: "weights",
    3: "config figures",
    2: "models losses datasets runs",
    1: "parallel media ops",
    0: "children devices progress version errors files parts",
}
FLOOR = {name: floor for floor, names in FLOORS.items() for name in names.split()}
# in ops, implementations import neither each other nor the reference; only these files gather them
# and the one that is gemm in another layout
GATHERERS = {"ops", "ops.convolution", "ops.fused", "ops.operators", "ops.padded", "ops.registered"}
# on the ground floor, everything may raise these errors
GROUND = {"errors"}

DOORS = {
    "typer": {"cli"},
    "rich": {"cli", "progress"},
    "yaml": {"config"},
    "pydantic": {"config", "parts", "models", "losses", "datasets"},
    "numba": {"commands.doctor", "ops"},
    "llvmlite": {"ops"},
    "cuda.bindings": {"ops"},
    "torch.distributed": {"parallel"},
    "matplotlib": {"figures"},
    "jinja2": {"figures"},
    # one file alone reaches the network
    "urllib.request": {"weights.transport"},
    "http.client": {"weights.transport"},
    "torch.onnx": {"inference.onnx"},
    "onnx": {"inference.onnx", "inference.qdq"},
    "onnxruntime": {"inference.onnx"},
    "openvino": {"inference.openvino"},
    "google.protobuf": {"inference.onnx"},
}
CODECS = {"imread", "imwrite", "imdecode", "imencode", "imreadmulti", "imdecodemulti"}
VIDEO_CODECS = {"VideoCapture", "VideoWriter"}
UNSAFE = {
    "torch.load without weights_only=True": r"torch\.load\((?![^\n]*weights_only=True)",
    "yaml.load": r"yaml\.(?:unsafe_|full_)?load\(",
    "eval": r"(?<![\w.])eval\(",
    "exec": r"(?<![\w.])exec\(",
    "os.system": r"os\.system",
    "shell=True": r"shell\s*=\s*True",
    "pickle": r"\bpickle\.",
    "cv2.imread": r"cv2\.imread",
    "cv2.imwrite": r"cv2\.imwrite",
}
COMMAND_LINE_MUST_NOT_LOAD = {"torch", "numba", "cv2", "scipy", "numpy", "yaml", "rich.table"}


def name_of(path: Path) -> str:
    """ops/gemm.py -> ops.gemm; ops/__init__.py -> ops; __init__.py -> the empty string."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {name_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}


def imports(tree: ast.AST, module: str, modules: set[str]) -> Iterator[str]:
    """Full names of what a module imports, anywhere in it; `from ccnet_cli import ops` counts as ccnet_cli.ops."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full.removeprefix("ccnet_cli.") in modules or node.module == "torch" else str(node.module)


def forbidden(module: str, imported: str) -> bool:
    """Whether importing a module of ours breaks the floors: imports go down, and inside a room anywhere.

    The implementations of ops are apart: only the files that gather them import them.
    """
    if imported in ("", module):
        return False
    top, other = module.partition(".")[0], imported.partition(".")[0]
    if top != other:
        return FLOOR[other] >= FLOOR[top] and not (FLOOR[top] == 0 and other in GROUND)
    one, another = module.split("."), imported.split(".")
    parts = {"reference", "gemm", "cpu", "cuda"}
    apart = top == "ops" and len(another) > 1 and another[1] in parts and one[1:2] != another[1:2]
    return apart and module not in GATHERERS


def ours(module: str) -> list[str]:
    found = imports(MODULES[module], module, set(MODULES))
    return [name.removeprefix("ccnet_cli").removeprefix(".") for name in found if name.split(".")[0] == "ccnet_cli"]


def test_every_module_has_a_floor():
    assert {name.partition(".")[0] for name in MODULES if name} <= FLOOR.keys()


@pytest.mark.parametrize("module", [name for name in MODULES if name])
def test_imports_go_down(module: str):
    assert [imported for imported in ours(module) if forbidden(module, imported)] == []


@pytest.mark.parametrize(
    ("module", "line", "bad"),
    [
        ("models.network", "from ccnet_cli.commands.train import train", True),
        ("models.network", "def f():\n    from ccnet_cli.commands import evaluate", True),
        ("models.network", "from ccnet_cli import datasets", True),
        ("models.network", "from ccnet_cli.models.heads import HEADS", False),
        ("losses.ohem", "import ccnet_cli.inference.metrics", True),
        ("ops.gemm", "from ccnet_cli.ops import reference", True),
        ("ops.gemm", "from ccnet_cli.ops.reference import affinity", True),
        ("ops.operators", "from ccnet_cli.ops import gemm, reference", False),
        ("ops.cuda.build", "from ccnet_cli.ops.cuda import steps", False),
        ("ops.cuda.build", "from ccnet_cli.ops import gemm", True),
        ("ops.gemm", "from ccnet_cli.ops.cuda import steps", True),
        ("commands.train", "from ccnet_cli.bench import model", True),
        ("commands.train", "from ccnet_cli.training import loop", False),
        ("errors", "from ccnet_cli import config", True),
        ("files", "from ccnet_cli.errors import InputError", False),
        ("errors", "from ccnet_cli import files", True),
        ("media.images", "from ccnet_cli.errors import InputError", False),
        ("cli", "from ccnet_cli import __version__", False),
        ("cli.train", "from ccnet_cli.cli.options import Json", False),
        ("bench.cost", "from ccnet_cli.bench import meter", False),
        ("bench.cost", "from ccnet_cli.commands.predict import predict", True),
    ],
)
def test_the_floor_check_sees_what_it_must(module: str, line: str, bad: bool):
    modules = {*MODULES, "ops.gemm", "ops.reference", "ops.cuda", "ops.cuda.steps", *FLOOR}
    found = [name.removeprefix("ccnet_cli").removeprefix(".") for name in imports(ast.parse(line), module, modules)]
    assert any(forbidden(module, name) for name in found) == bad


def test_the_contributors_page_shows_the_same_floors():
    page = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
    drawn = {int(floor): names for floor, names in re.findall(r"^(\d)  (\w.*)$", page, re.M)}
    assert drawn == FLOORS


@pytest.mark.parametrize("module", list(MODULES))
def test_each_library_has_one_door(module: str):
    tree = MODULES[module]
    used = set(imports(tree, module, set(MODULES)))
    # torch's parts can be used without an import of their own
    attributes = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    used |= {name for name in attributes if name.startswith("torch.")}
    for library, doors in DOORS.items():
        if not {module, module.partition(".")[0]} & doors:
            assert [name for name in used if name == library or name.startswith(f"{library}.")] == []
    if module != "media.images":
        # media/images prepares OpenCV before it loads, and tells where it cannot be loaded
        assert "cv2" not in imports(tree, module, set(MODULES))
        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert names & CODECS == set()
        assert module == "media.video" or names & VIDEO_CODECS == set()


def test_every_library_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    declared = {distribution(line) for line in [*project["dependencies"], *extras]}
    declared |= {distribution(line) for line in metadata.requires("typer") or ()}
    providers = metadata.packages_distributions()
    used = {
        name.partition(".")[0]
        for module, tree in MODULES.items()
        for name in imports(tree, module, set(MODULES))
        if name.partition(".")[0] not in sys.stdlib_module_names | {"ccnet_cli"}
    }
    # no index has ptxrun, which is used where it can be imported
    used.discard("ptxrun")
    # tensorboard is imported through torch, and is an extra
    undeclared = {name for name in used if not declared & {d.lower() for d in providers.get(name, [name])}}
    assert undeclared == set()


def distribution(requirement: str) -> str:
    match = re.match(r"[\w.-]+", requirement)
    assert match
    return match.group().lower()


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_unsafe_is_called(path: Path):
    source = path.read_text(encoding="utf-8")
    assert [what for what, pattern in UNSAFE.items() if re.search(pattern, source)] == []


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("torch.load(path)", "torch.load without weights_only=True"),
        ("torch.load(path, weights_only=False)", "torch.load without weights_only=True"),
        ("yaml.load(text, Loader=L)", "yaml.load"),
        ("x = eval(text)", "eval"),
        ("exec(text)", "exec"),
        ("os.system('ls')", "os.system"),
        ("run('ls', shell=True)", "shell=True"),
        ("pickle.loads(b)", "pickle"),
        ("cv2.imread(p)", "cv2.imread"),
        ("model.eval(); torch.load(path, weights_only=True)", None),
    ],
)
def test_the_gate_sees_what_it_must(line: str, what: str | None):
    assert [name for name, pattern in UNSAFE.items() if re.search(pattern, line)] == ([what] if what else [])


def test_the_command_line_starts_light():
    loaded = run("import sys, ccnet_cli.cli.entry; print(*sys.modules)")
    assert "typer" in loaded
    assert loaded & COMMAND_LINE_MUST_NOT_LOAD == set()


def test_a_preset_is_read_without_torch():
    loaded = run("import sys, ccnet_cli.config as c; [c.load(name) for name in c.names()]; print(*sys.modules)")
    assert "yaml" in loaded
    assert loaded & {"torch", "numba", "cv2", "scipy", "numpy"} == set()


def test_presets_are_listed_without_their_settings():
    loaded = run("import sys, ccnet_cli.config as c; c.describe(), c.names(); print(*sys.modules)")
    assert "yaml" in loaded
    assert loaded & {"torch", "numpy", "pydantic"} == set()


def run(code: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    return set(done.stdout.split())
