"""The table of implementations: what one offers is asked for, what it lacks is composed or refused."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ccnet_cli import config, ops
from ccnet_cli.errors import InputError
from ccnet_cli.models.attention import CrissCrossAttention
from ccnet_cli.models.network import build
from ccnet_cli.ops import gemm, reference
from ccnet_cli.parts import extend

ROOT = Path(__file__).parents[2]
EXTENSION = """
import torch
from ccnet_cli.ops import IMPLEMENTATIONS, Implementation, reference

calls = []

def affinity(query, key, mask):
    calls.append("affinity")
    return reference.affinity(query, key, mask)

aggregate, scatter = reference.aggregate, reference.scatter
IMPLEMENTATIONS["mine"] = Implementation(__name__)
"""


def tensors(H: int = 3, W: int = 4) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn(2, n, H, W, dtype=torch.float64, generator=random).requires_grad_() for n in (2, 2, 5)]


def step(inputs: list[torch.Tensor], implementation: str) -> list[torch.Tensor]:
    out = ops.criss_cross(*inputs, implementation)
    return [out, *torch.autograd.grad(out.square().sum(), inputs)]


@pytest.fixture
def table(monkeypatch):
    """The table, restored afterwards."""
    before = dict(ops.IMPLEMENTATIONS)
    yield ops.IMPLEMENTATIONS
    ops.IMPLEMENTATIONS.clear()
    ops.IMPLEMENTATIONS.update(before)


def test_an_extension_adds_an_implementation_of_three_operators(table, tmp_path):
    path = tmp_path / "my_attention.py"
    path.write_text(EXTENSION)
    extend([path])
    inputs = tensors()
    for mine, wanted in zip(step(inputs, "mine"), step(inputs, "reference"), strict=True):
        assert torch.equal(mine, wanted)
    assert sys.modules["ccnet_extension_my_attention"].calls == ["affinity"] * 2
    assert ops.implementations() == ("reference", "gemm", "flash", "numba", "mine")
    attention = CrissCrossAttention(16, implementation="mine")
    attention.gamma.data.fill_(0.5)
    x = torch.randn(1, 16, 3, 4)
    attention(x)
    assert len(sys.modules["ccnet_extension_my_attention"].calls) == 3
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), attention(x), rtol=0, atol=1e-6)


def test_a_preset_names_any_implementation_of_the_table_and_no_other(table, tmp_path):
    with pytest.raises(
        InputError, match=r"model\.head\.implementation: must be one of auto, .*numba, found mine; .*--extend"
    ):
        config.load("quickstart", ["model.head.implementation=mine"])
    path = tmp_path / "my_presets_attention.py"
    path.write_text(EXTENSION)
    extend([path])
    loaded = config.load("quickstart", ["model.implementation=mine"])
    assert loaded.model.head.implementation == "mine"
    assert build(loaded.model, 3).head.rcca.attention.implementation == "mine"


def test_its_own_passes_and_width_are_taken_where_it_has_them(table):
    seen = []

    def forward(*inputs):
        out, attention = gemm.criss_cross(*inputs)
        return out, torch.nn.functional.pad(attention, (0, 3))

    def backward(grad, query, key, value, attention):
        seen.append(attention.shape[-1])
        return gemm.criss_cross_backward(grad, query, key, value, attention[..., :-3])

    table["wide"] = ops.Implementation(
        SimpleNamespace(criss_cross=forward, criss_cross_backward=backward, attention_width=lambda H, W: H + W + 3)
    )
    inputs = tensors()
    for mine, wanted in zip(step(inputs, "wide"), step(inputs, "gemm"), strict=True):
        assert torch.equal(mine, wanted)
    assert seen == [10]
    shapes = torch.ops.ccnet.criss_cross(*(x.to("meta") for x in inputs), "wide")
    assert shapes[1].shape == (2, 3, 4, 10)


def test_what_an_implementation_lacks_is_refused_by_name(table):
    table["half"] = ops.Implementation(SimpleNamespace(affinity=reference.affinity, aggregate=reference.aggregate))
    inputs = tensors()
    out = ops.criss_cross(*inputs, "half")
    assert torch.equal(out, ops.criss_cross(*inputs, "reference"))
    with pytest.raises(InputError, match="implementation half: it has no scatter"):
        out.sum().backward()


def test_an_implementation_for_another_device_is_refused(table):
    table["elsewhere"] = ops.Implementation(cuda=reference)
    assert "elsewhere" in ops.implementations("cuda:1") and "elsewhere" not in ops.implementations()
    with pytest.raises(InputError, match=r"elsewhere: it has no operators for cpu tensors; use auto, reference, gemm"):
        ops.criss_cross(*tensors(), "elsewhere")


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"implementation gem: unknown; did you mean gemm\?"):
        ops.criss_cross(*tensors(), "gem")


def test_numba_is_the_cpu_s_or_the_gpu_s():
    assert (ops.IMPLEMENTATIONS["numba"].on("cpu"), ops.IMPLEMENTATIONS["numba"].on("cuda")) == (
        "ccnet_cli.ops.cpu",
        "ccnet_cli.ops.cuda",
    )
    assert ops.implementations("mps") == ("reference", "gemm", "flash")


def test_graphs_of_the_version_before_name_the_cpu_kernels_vector():
    inputs = [x.detach().float() for x in tensors()]
    old, new = (torch.ops.ccnet.criss_cross(*inputs, name)[0] for name in ("vector", "numba"))
    assert torch.equal(old, new)


def test_the_table_loads_without_torch():
    code = "import sys\nfrom ccnet_cli.ops import IMPLEMENTATIONS, implementations\nassert implementations()\n"
    code += "assert not {'torch', 'numba', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    with pytest.raises(AttributeError, match="no attribute 'criss_crosses'"):
        ops.criss_crosses  # noqa: B018


def test_the_first_pass_of_a_process_is_counted():
    code = """
import torch
from torch.utils.flop_counter import FlopCounterMode
from ccnet_cli.models.attention import CrissCrossAttention
attention = CrissCrossAttention(16)
with FlopCounterMode(display=False) as counter:
    attention(torch.ones(1, 16, 3, 4))
names = {str(name) for name in counter.get_flop_counts()["Global"]}
assert "ccnet.criss_cross" in names, names
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
