"""The measured choice of `auto`, with clocks and candidates made up, and the rules of when nothing is measured."""

import copy
from types import SimpleNamespace

import pytest
import torch
from runs import make_horizons, preset

from ccnet_cli import ops
from ccnet_cli.datasets.source import open_source
from ccnet_cli.errors import CCNetError, InputError
from ccnet_cli.models.attention import CrissCrossAttention
from ccnet_cli.ops import choice, operators, registered
from ccnet_cli.parallel.group import Group
from ccnet_cli.training import trainer as trainers


class Bench:
    """Candidates that take the times given, one after the other, on a clock that reads them."""

    def __init__(self, **times: list[float] | Exception) -> None:
        self.times = times
        self.calls = dict.fromkeys(times, 0)
        self.order: list[str] = []
        self.now = 0.0

    def candidates(self) -> dict[str, choice.Call]:
        return {name: lambda name=name: self.run(name) for name in self.times}

    def run(self, name: str) -> None:
        times = self.times[name]
        if isinstance(times, Exception):
            raise times
        self.now += times[min(self.calls[name], len(times) - 1)]
        self.calls[name] += 1
        self.order.append(name)

    def clock(self, call: choice.Call) -> float:
        before = self.now
        call()
        return self.now - before


def choices() -> choice.Choices:
    return choice.Choices()


def test_the_fastest_is_chosen_once_and_printed_once(capsys):
    table, bench = choices(), Bench(gemm=[3.0], numba=[2.0])
    assert table.choose("a", bench.candidates(), bench.clock) == "numba"
    calls = dict(bench.calls)
    assert calls == dict.fromkeys(("gemm", "numba"), choice.WARM_UP + choice.REPEATS)
    assert table.choose("a", bench.candidates(), bench.clock) == "numba" and bench.calls == calls
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "ccnet: criss-cross attention on a: numba (gemm 3.000 ms, numba 2.000 ms)"
    other = Bench(gemm=[1.0], numba=[2.0])
    assert table.choose("b", other.candidates(), other.clock) == "gemm"
    assert table.export() == {"a": "numba", "b": "gemm"}


def test_what_the_first_calls_cost_and_one_slow_or_fast_call_do_not_decide():
    slow_start = [1000.0] * choice.WARM_UP
    bench = Bench(gemm=[3.0], numba=[*slow_start, 2.0, 50.0, 2.0])
    assert choices().choose("a", bench.candidates(), bench.clock) == "numba"
    # rounds alternate, so that a busy moment slows both alike
    assert bench.order[-4:] == ["gemm", "numba"] * 2
    # nor does one fast call
    bench = Bench(gemm=[3.0], numba=[*slow_start, 4.0, 1.0, 4.0])
    assert choices().choose("a", bench.candidates(), bench.clock) == "gemm"


@pytest.mark.parametrize(
    "error",
    [InputError("numba", "not installed", "pip"), RuntimeError("CUDA driver: X"), ImportError("no lib"), OSError()],
)
def test_a_candidate_that_does_not_run_is_left_out_with_one_warning(error, capsys):
    table, bench = choices(), Bench(gemm=[3.0], numba=error)
    assert [table.choose(key, bench.candidates(), bench.clock) for key in ("a", "b")] == ["gemm", "gemm"]
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if "warning: numba is left out" in line and str(error) in line]) == 1
    assert len(lines) == 3


def test_where_nothing_runs_the_error_is_that_of_the_last():
    bench = Bench(gemm=RuntimeError("first"), numba=RuntimeError("second"))
    with pytest.raises(RuntimeError, match="second"):
        choices().choose("a", bench.candidates(), bench.clock)
    bug = Bench(gemm=[1.0], numba=TypeError("a bug"))
    with pytest.raises(TypeError):
        choices().choose("a", bug.candidates(), bug.clock)


def test_rank_0_chooses_for_all(capsys):
    shared = []

    def share(mine: str) -> str:
        shared.append(mine)
        return "gemm"

    table, bench = choice.Choices(share, quiet=True), Bench(gemm=[3.0], numba=[2.0])
    assert [table.choose("a", bench.candidates(), bench.clock) for _ in range(2)] == ["gemm", "gemm"]
    assert shared == ["numba"] and table.export() == {"a": "gemm"} and capsys.readouterr().err == ""


def test_the_choices_of_a_checkpoint_are_not_measured_again():
    table = choices()
    table.known["c"] = "gemm"
    saved = {"a": "numba", "b": "fastest", 3: "gemm", "c": "numba", "d": ["gemm"]}
    table.load({key: name for key, name in saved.items() if key != "d"})
    assert table.export() == {"a": "numba", "c": "numba"}
    for nothing in (None, [], "gemm", 3):
        table.load(nothing)
    assert table.export() == {"a": "numba", "c": "numba"}
    assert table.choose("a", {}, lambda call: 0.0) == "numba"
    exported = table.export()
    exported.clear()
    assert table.known


def test_a_case_names_sizes_types_device_and_work():
    tensors = torch.ones(2, 3, 4, 5), torch.ones(2, 7, 4, 5, dtype=torch.bfloat16)
    assert choice.describe(tensors, "GPU", True) == "2x3x4x5 float32, 2x7x4x5 bfloat16, GPU, with gradients"
    assert choice.describe(tensors[:1], "GPU", False) == "2x3x4x5 float32, GPU, without gradients"


class OnGPU(torch.Tensor):
    """A CPU tensor that says it is on a GPU, so that the rules can be seen here."""

    is_cuda = True


@pytest.fixture
def fake_gpu(monkeypatch):
    """`fastest` as on a GPU: what it measured, and switches for what surrounds it."""
    state = SimpleNamespace(capturing=False, measured=[], table=choices())

    def choose(key, candidates, clock):
        state.measured.append(key)
        for call in candidates.values():
            if call.args[0] == "gemm":
                call()
        return "numba"

    monkeypatch.setattr(state.table, "choose", choose)
    # a subclass would be taken for a fake tensor
    monkeypatch.setattr(operators, "Tensor", OnGPU)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: state.capturing)
    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.autograd.set_grad_enabled(True))
    state.fastest = lambda *tensors: operators.fastest(*tensors, state.table)
    return state


def inputs(dtype=torch.float32, gradients=False) -> list[torch.Tensor]:
    found = [torch.randn(1, n, 3, 4, dtype=dtype).as_subclass(OnGPU) for n in (2, 2, 5)]
    return [x.requires_grad_(gradients) for x in found]


def test_a_gpu_measures_with_gradients_where_they_are_wanted(fake_gpu):
    assert fake_gpu.fastest(*inputs(gradients=True)) == "numba"
    with torch.no_grad():
        fake_gpu.fastest(*inputs(gradients=True))
    fake_gpu.fastest(*inputs())
    assert [key.rpartition(", ")[2] for key in fake_gpu.measured] == [
        f"{x} gradients" for x in ("with", *["without"] * 2)
    ]
    assert fake_gpu.measured[0].startswith("1x2x3x4 float32, 1x5x3x4 float32, GPU")


def test_nothing_is_measured_where_it_must_not_be(fake_gpu, monkeypatch):
    plain = inputs(gradients=True)
    key = choice.describe((plain[0], plain[2]), "GPU", True)
    fake_gpu.capturing = True
    assert fake_gpu.fastest(*plain) == "gemm"
    fake_gpu.table.known[key] = "numba"
    # a capture may use what is known
    assert fake_gpu.fastest(*plain) == "numba"
    fake_gpu.table.known.clear()
    fake_gpu.capturing = False
    torch.use_deterministic_algorithms(True)
    try:
        assert fake_gpu.fastest(*plain) == "gemm"
    finally:
        torch.use_deterministic_algorithms(False)
    fake_gpu.table.share = Group().broadcast
    assert fake_gpu.fastest(*inputs()) == "gemm"
    assert fake_gpu.fastest(*inputs(torch.float64, True)) == "gemm"
    assert fake_gpu.fastest(*(x.as_subclass(torch.Tensor) for x in inputs())) == "gemm"
    with monkeypatch.context() as tracing:
        tracing.setattr(torch.compiler, "is_compiling", lambda: True)
        assert fake_gpu.fastest(*plain) == "gemm"
    assert fake_gpu.measured == []
    assert fake_gpu.fastest(*plain) == "numba" and fake_gpu.measured == [key]


def test_processes_name_one_device_however_their_gpus_differ(fake_gpu):
    # a checkpoint that rank 0 wrote on another GPU holds for all: a rank that measured alone would wait for ever
    fake_gpu.table.share, fake_gpu.table.device = Group().broadcast, "GPU of rank 0"
    plain = inputs(gradients=True)
    fake_gpu.table.load({choice.describe((plain[0], plain[2]), "GPU of rank 0", True): "gemm"})
    assert fake_gpu.fastest(*plain) == "gemm" and fake_gpu.measured == []


def test_fake_tensors_of_a_gpu_are_not_measured():
    with torch._subclasses.FakeTensorMode():
        fake = [torch.empty(1, n, 3, 4, device="cuda") for n in (2, 2, 5)]
        assert ops.criss_cross(*fake).shape == (1, 5, 3, 4)


def test_on_the_cpu_auto_is_gemm_and_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(choice.Choices, "choose", None)
    query, key, value = (torch.randn(1, n, 3, 4) for n in (2, 2, 5))
    assert torch.equal(
        ops.criss_cross(query, key, value, choices=choices()), ops.criss_cross(query, key, value, "gemm")
    )


def test_what_is_measured_leaves_the_caller_s_hooks_on_saved_tensors_alone():
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda x: x):
        registered.run_once("gemm", *(torch.randn(1, n, 3, 4).requires_grad_() for n in (2, 2, 5)), True)
    assert saved == []


def test_a_resumed_run_makes_the_choices_of_before(tmp_path):
    made = preset(make_horizons(tmp_path / "data"))
    source = open_source(made.data, "train")
    trainer = trainers.build(made, source, Group())
    table = trainer.choices
    table.known["here"] = "numba"
    content = trainer.state()
    assert content["choices"] == {"here": "numba"}
    table.known = {"here": "gemm"}
    trainer.resume(content, tmp_path / "x.pt")
    assert table.known == {"here": "numba"}
    # checkpoints of before had none
    del content["choices"]
    trainer.resume(content, tmp_path / "x.pt")
    assert table.known == {"here": "numba"} and table.share is None and not table.quiet


def test_the_processes_of_a_run_share_rank_0_s(tmp_path, monkeypatch):
    made = preset(make_horizons(tmp_path / "data"))
    source = open_source(made.data, "train")
    group = Group(rank=1, world_size=2)
    monkeypatch.setattr(Group, "broadcast", lambda *_: "GPU of rank 0")
    table = trainers.build(made, source, group).choices
    assert table.share == group.broadcast and table.quiet and table.device == "GPU of rank 0"


@pytest.mark.gpu
def test_a_gpu_measures_once_and_the_result_is_right(capsys):
    table = choices()
    leaves = [torch.randn(1, n, 33, 20, device="cuda").requires_grad_() for n in (8, 8, 64)]
    out = ops.criss_cross(*leaves, choices=table)
    (name,) = table.export().values()
    assert torch.equal(out, ops.criss_cross(*leaves, name))
    printed = capsys.readouterr().err
    ops.criss_cross(*leaves, choices=table)
    assert name in printed and capsys.readouterr().err == "" and len(table.export()) == 1


@pytest.mark.gpu
def test_a_capture_does_not_measure():
    table = choices()
    inputs = [torch.randn(1, n, 33, 20, device="cuda") for n in (8, 8, 64)]
    ops.criss_cross(*inputs, "gemm")
    torch.cuda.synchronize()
    with torch.no_grad(), torch.cuda.graph(torch.cuda.CUDAGraph()):
        ops.criss_cross(*inputs, choices=table)
    assert table.export() == {}


def test_the_modules_of_a_network_share_the_choices_that_they_are_given():
    network = torch.nn.Sequential(CrissCrossAttention(8), torch.nn.Sequential(CrissCrossAttention(8)))
    first, second = network[0], network[1][0]
    assert first.choices is not second.choices
    table = choices()
    ops.use(network, table)
    assert first.choices is second.choices is table
    # as the moving average of a run's weights does
    assert copy.deepcopy(network)[0].choices is table
    assert "choices" not in "".join(network.state_dict())


def test_an_attention_module_hands_its_choices_to_the_operator(fake_gpu, monkeypatch):
    attention = CrissCrossAttention(16)
    seen = []
    monkeypatch.setattr(operators, "fastest", lambda *given: seen.append(given[-1]) or "gemm")
    attention(torch.randn(1, 16, 3, 4))
    assert seen and all(found is attention.choices for found in seen)


def test_without_choices_a_gpu_measures_nothing(fake_gpu):
    assert operators.fastest(*inputs(gradients=True), None) == "gemm" and fake_gpu.measured == []


def test_a_gpu_is_busy_while_its_calls_are_submitted(monkeypatch):
    order = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            order.append("event")

        def synchronize(self):
            order.append("wait")

        def elapsed_time(self, end):
            return 10.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: order.append("busy"))
    assert choice.time_on_gpu(lambda: order.append("call"), calls=4) == 2.5
    assert order == ["busy", "event", *["call"] * 4, "event", "wait"]


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_agree_where_nothing_runs_on_rank_0(rank):
    shared = []
    table = choice.Choices(lambda mine: shared.append(mine) or "", quiet=True)
    bench = Bench(gemm=RuntimeError("out of luck")) if rank == 0 else Bench(gemm=[1.0])
    # rank 0 with its own error, the others with its name; none waits in the exchange
    with pytest.raises(RuntimeError if rank == 0 else CCNetError, match="luck" if rank == 0 else "rank 0"):
        table.choose("a", bench.candidates(), bench.clock)
    assert shared == ["" if rank == 0 else "gemm"] and table.export() == {}


def test_a_process_on_which_nothing_runs_takes_part_in_the_exchange():
    table = choice.Choices(lambda mine: "gemm", quiet=True)
    assert table.choose("a", Bench(numba=RuntimeError()).candidates(), lambda call: call()) == "gemm"
