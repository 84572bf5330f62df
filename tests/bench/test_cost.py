"""The paper's table: what it counts against counts made here, and what it prints."""

import json

import pytest

from ccnet_cli import cli
from ccnet_cli.bench import cost
from ccnet_cli.bench.request import Work
from ccnet_cli.errors import InputError

PASSES = [(f"RCCA R={r}", r) for r in (1, 2, 3)]


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", "cost", *words])
    assert stop.value.code == 0
    return capsys.readouterr().out


def measured(size: tuple[int, int], channels: int, batch: int = 1) -> dict[str, dict]:
    return {row["name"]: row for row in cost.measure(Work(size, channels, batch=batch), "cpu").values["rows"]}


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The full size without its seconds of computing."""
    keys = ("counted", "inference_memory", "training_memory", "step_memory")
    monkeypatch.setattr(cost, "_measure", lambda *_: dict(zip(keys, (1.0, 2.0, 3.0, 4.0), strict=True)))


@pytest.mark.parametrize(("H", "W", "batch"), [(5, 7, 2), (1, 6, 1)])
def test_what_torch_counts_are_the_products_by_hand(H, W, batch):
    rows = measured((H, W), 24, batch)
    projections = 24 * (3 + 3 + 24)
    expected = {name: r * (projections + (H + W) * (3 + 24)) for name, r in PASSES}
    expected["non-local"] = projections + H * W * (3 + 24)
    got = {name: row["counted"] * 1e9 for name, row in rows.items()}
    assert got == pytest.approx({name: 2 * batch * H * W * count for name, count in expected.items()})


def test_the_formula_has_biases_and_one_position_less():
    rows = measured((5, 7), 24, 2)
    for name, r in PASSES:
        less = 2 * 2 * 35 * r * (30 - 27)
        assert (rows[name]["gflop"] - rows[name]["counted"]) * 1e9 == pytest.approx(less)
    assert (rows["non-local"]["gflop"] - rows["non-local"]["counted"]) * 1e9 == pytest.approx(2 * 2 * 35 * 30)


def test_memory_is_what_has_to_live():
    """One more pass keeps its projections, weights of the cross, gathered values, result and the joined kernel."""
    H = W = 40
    rows = measured((H, W), 32)
    assert list(rows) == [*(name for name, _ in PASSES), "non-local"]
    kept = 4 * (H * W * (3 * 32 + 2 * 4 + H + W) + 32 * (32 + 2 * 4)) / 2**20
    for one, more in (("RCCA R=1", "RCCA R=2"), ("RCCA R=2", "RCCA R=3")):
        assert rows[more]["training_memory"] - rows[one]["training_memory"] == pytest.approx(kept, rel=0.02)
    assert rows["RCCA R=3"]["inference_memory"] == pytest.approx(rows["RCCA R=2"]["inference_memory"], rel=0.02)
    for row in rows.values():
        # the result at least
        assert 4 * 32 * H * W / 2**20 < row["inference_memory"] <= row["training_memory"] < row["step_memory"]
    pairs = 4 * (H * W) ** 2 / 2**20
    assert 2 < rows["non-local"]["training_memory"] / pairs < 3 and 4 < rows["non-local"]["step_memory"] / pairs < 5
    for key in ("inference_memory", "training_memory", "step_memory"):
        assert rows["RCCA R=2"][key] < rows["non-local"][key] / 4


def test_the_table_at_the_paper_s_size(unmeasured, capsys):
    lines = [line.replace("│", " ").split() for line in printed(capsys).splitlines() if "│" in line]
    assert lines == [
        ["RCCA", "R=1", "8.27", "1.00", "2.0", "3.0", "4.0"],
        ["RCCA", "R=2", "16.54", "1.00", "2.0", "3.0", "4.0", "16.5", "127"],
        ["RCCA", "R=3", "24.81", "1.00", "2.0", "3.0", "4.0"],
        ["non-local", "108.16", "1.00", "2.0", "3.0", "4.0", "108", "1411"],
    ]


@pytest.mark.parametrize("words", [("--size", "97x98"), ("--channels", "256"), ("--batch", "2")])
def test_the_paper_s_figures_hold_for_its_size_alone(unmeasured, capsys, words):
    report = json.loads(printed(capsys, *words, "--json", "-"))
    assert [row["published"] for row in report["rows"]] == [None] * 4


def test_the_json_keeps_published_and_measured_apart(unmeasured, capsys, tmp_path):
    path = tmp_path / "cost.json"
    assert "paper MB" in printed(capsys, "--device", "cpu", "--json", str(path))
    report = json.loads(path.read_text())
    assert report.keys() == {"size", "channels", "batch", "device", "torch", "rows"}
    assert (report["size"], report["channels"], report["batch"], report["device"]) == ([97, 97], 512, 1, "cpu")
    memories = {"inference_memory", "training_memory", "step_memory"}
    assert report["rows"][1].keys() == {"name", "gflop", "counted", "published"} | memories
    assert [row["published"] for row in report["rows"]] == [
        None,
        {"gflop": 16.5, "memory": 127},
        None,
        {"gflop": 108, "memory": 1411},
    ]


def test_a_map_too_large_for_the_non_local_block_is_refused():
    with pytest.raises(InputError, match="a non-local block needs about") as caught:
        cost.measure(Work((4000, 4000)), "cpu")
    assert str(caught.value).endswith("; use a smaller size") and "\n" not in str(caught.value)
