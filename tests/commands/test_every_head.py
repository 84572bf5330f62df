"""Every head through what a user does with a network: training, resumption, scoring, segmenting, export, drawing."""

import itertools
import json

import browser
import numpy as np
import pytest
import tiny
import torch
from calls import evaluate, predict
from runs import SETTINGS, make_horizons, train

from ccnet_cli import config
from ccnet_cli.commands.explore import ExploreRequest, explore
from ccnet_cli.commands.export import export
from ccnet_cli.commands.visualize import VisualizeRequest, visualize
from ccnet_cli.errors import InputError
from ccnet_cli.inference import engine
from ccnet_cli.inference.artifact import load_model
from ccnet_cli.models.blocks import BLOCKS
from ccnet_cli.models.heads import HEADS
from ccnet_cli.models.network import build

OWN = {"gcn": {"kernel": 5}, "aspp": {"width": 4, "channels": 8}, "isa": {"cell": 3, "channels": 8}}
TERMS = {
    "danet": tuple(
        word for name in ("pam", "cam") for word in (f"loss.{name}.kind=cross_entropy", f"loss.{name}.output={name}")
    ),
    "encnet": ("loss.presence={}",),
}
AUXILIARY = ("loss.auxiliary.kind=cross_entropy", "loss.auxiliary.output=auxiliary", "loss.auxiliary.weight=0.4")
# by name where a kind has several forms
ATTENTIVE = {
    **dict.fromkeys(("rcca", "rcca3d", "nonlocal", "gc", "danet", "oc", "isa")),
    "oc, pooled": {"kind": "oc", "channels": 8, "pooled": True},
    "oc, pyramid": {"kind": "oc", "channels": 8, "form": "pyramid"},
    "oc, asp": {"kind": "oc", "channels": 8, "form": "asp"},
    "wrapped, cam": {"kind": "wrapped", "channels": 8, "block": "cam"},
}
# what a kind can be besides its defaults
FORMS = {
    **{f"wrapped, {name}": {"kind": "wrapped", "block": name} for name in BLOCKS if name != "none"},
    **{f"oc, {name}": {"kind": "oc", "form": name} for name in ("pyramid", "asp")},
    "oc, separate and pooled": {"kind": "oc", "separate": True, "pooled": True},
    "nonlocal, dot product": {"kind": "nonlocal", "mode": "dot_product"},
    "nonlocal, pooled": {"kind": "nonlocal", "sub_sample": True},
    **{f"aspp, {name}": {"kind": "aspp", "form": name, "width": 4} for name in ("mmseg", "torchvision")},
    "isa, mmseg": {"kind": "isa", "form": "mmseg", "cell": 3},
    "psp, map first": {"kind": "psp", "order": "map_first"},
    "encnet, lateral": {"kind": "encnet", "lateral": True},
    "upernet, resized first": {"kind": "upernet", "resize_first": True},
}
EVERY = {**dict.fromkeys(HEADS), **{name: {**head, "channels": 8} for name, head in FORMS.items()}}
NAMES = {
    "rcca": ["R = 1", "R = 2"],
    "rcca3d": ["R = 1", "R = 2", "R = 3"],
    "isa": ["R = 1", "R = 2"],
    "danet": ["all positions", "channels"],
    "oc, pyramid": [f"in {count}x{count} cells" for count in (1, 2, 3, 6)],
    "wrapped, cam": ["channels"],
}
SIZED = ("model.channels", "model.auxiliary_channels", "schedule.steps", "eval.every")


def settings_of(kind, data, steps, head=None, *more):
    head = head or {"kind": kind, **OWN.get(kind, {"channels": 8})}
    own = [line for line in sorted(SETTINGS) if not line.startswith(SIZED)]
    words = [
        f"model.head={json.dumps(head)}",
        "model.auxiliary={kind: fcn, channels: 4}",
        *AUXILIARY,
        *TERMS.get(kind, ()),
    ]
    overrides = [f"data.root={data}", *own, *words, f"schedule.steps={steps}", "eval.every=0", *more]
    return config.load("quickstart", overrides)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_horizons(tmp_path_factory.mktemp("heads") / "data")


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """The run of a head's kind, of one step and, resumed, another."""
    made = {}

    def run_of(kind, head=None):
        name = json.dumps([kind, head])
        if name not in made:
            folder = tmp_path_factory.mktemp("run") / "run"
            train(settings_of(kind, data, 1, head), folder)
            train(settings_of(kind, data, 2, head), folder, resume="auto")
            made[name] = folder
        return made[name]

    return run_of


@pytest.mark.parametrize("kind", HEADS)
def test_it_is_trained_resumed_scored_and_segments(kind, runs, data, tmp_path):
    run = runs(kind)
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2]
    terms = {"ohem", "auxiliary", *(word.split("=")[0].split(".")[1] for word in TERMS.get(kind, ()))}
    assert {key for key in steps[-1] if key.startswith("loss/")} == {f"loss/{term}" for term in terms}
    whole = evaluate(run)
    assert 0 <= whole.miou <= 1
    sliding = ("eval.mode=sliding", "eval.tile=32,40", "eval.scales=[0.75, 1.0]", "eval.flip=true")
    assert 0 <= evaluate(run, overrides=sliding).miou <= 1
    predict((str(data / "images" / "val"),), tmp_path / "masks", run)
    assert len(list((tmp_path / "masks").glob("*.png"))) == 4


@torch.no_grad()
@pytest.mark.parametrize("name", EVERY)
def test_the_engine_answers_as_it_does(name, data):
    torch.manual_seed(0)
    network = build(settings_of(name.split(",")[0], data, 1, EVERY[name]).model, 2).eval()
    tiny.stir(network)
    stir(network.head)
    x = 50 * torch.randn(2, 3, 57, 41, generator=torch.Generator().manual_seed(0))
    wanted = network(x)
    spread = wanted.max() - wanted.min()
    for precision, limit in (("fp32", 1e-4), ("bf16", 0.2)):
        got = engine.prepare(network, torch.device("cpu"), precision)(x)
        assert got.dtype == torch.float32 and got.shape == wanted.shape
        assert (got - wanted).abs().max() <= limit * spread, precision


def stir(head):
    """Weights with which every branch of a head counts."""
    random = torch.Generator().manual_seed(1)
    for parameter in head.parameters():
        scale = 0.5 if parameter.ndim < 2 else 1.2 / parameter[0].numel() ** 0.5
        parameter.copy_(scale * torch.randn(parameter.shape, generator=random))


@pytest.mark.parametrize("kind", ["psp", "aspp"])
def test_one_image_at_a_time_is_too_few_for_a_pooled_map(kind, data, tmp_path):
    with pytest.raises(InputError, match=f"micro batch 1: the head {kind} pools maps to one cell") as caught:
        train(settings_of(kind, data, 1, None, "train.micro_batch=1"), tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


EXPORTS = [(name, form) for form in ("onnx", "torch-export") for name in EVERY]
QUICK = [("rcca3d", "onnx"), ("nonlocal", "torch-export"), ("psp", "torch-export")]


@pytest.mark.parametrize(
    ("name", "form"), [pytest.param(*each, marks=[] if each in QUICK else pytest.mark.slow) for each in EXPORTS]
)
def test_it_is_exported(name, form, runs, tmp_path):
    # what is written is compared with the network before it is kept
    suffix = ".onnx" if form == "onnx" else ".pt2"
    run = runs(name.split(",")[0], EVERY[name])
    if name == "rcca3d":
        with pytest.raises(InputError, match="its head takes clips"):
            export(run, tmp_path / f"network{suffix}", form)
        return
    assert export(run, tmp_path / f"network{suffix}", form).is_file()


@pytest.fixture(scope="module")
def page():
    with browser.launched() as running:
        yield running.page()


@pytest.mark.parametrize("case", ATTENTIVE)
def test_its_attention_is_drawn_beside_another_s(case, runs, data, tmp_path):
    kind, head = case.split(",")[0], ATTENTIVE[case]
    picture = data / "images/val/0.png"
    request = VisualizeRequest(
        picture, ((30, 20),), tmp_path / "a.png", runs(kind, head), runs("rcca"), maps=tmp_path / "m.npz"
    )
    summary = visualize(request)
    assert summary.compared is not None and (tmp_path / "a.png").stat().st_size > 1000
    assert list(summary.names) == NAMES.get(case, ["all positions"])
    with np.load(tmp_path / "m.npz") as maps:
        for name in (f"r{r}" for r in range(1, summary.recurrence + 1)):
            assert maps[name].shape == (1, *summary.grid)
            # a map of cells with a padded border loses what looks there
            assert maps[name].sum() == pytest.approx(1, abs=0.5 if kind == "isa" else 1e-6)


@pytest.mark.parametrize("case", [case for case in ATTENTIVE if case != "rcca"])
def test_its_attention_is_explored_in_a_page(case, runs, data, page, tmp_path):
    kind, head = case.split(",")[0], ATTENTIVE[case]
    picture, path, points = data / "images/val/0.png", tmp_path / "page.html", ((3, 4), (30, 20), (50, 9))
    explore(ExploreRequest((picture,), path, points, checkpoint=runs(kind, head)))
    visualize(VisualizeRequest(picture, points, tmp_path / "a.png", runs(kind, head), maps=tmp_path / "m.npz"))
    page.open(path)
    with np.load(tmp_path / "m.npz") as maps:
        for number, (index, (x, y)) in itertools.product(range(1, len(maps) - 1), enumerate(points)):
            wanted = maps[f"r{number}"][index].ravel()
            shown = np.array(page.value(f"Array.from(ccnet.map({x}, {y}, {number}))"))
            assert abs(shown - wanted).max() <= wanted.max() / 255, (number, x, y)
    titles = page.value("[...document.querySelectorAll('.panel h2')].map((title) => title.textContent)")
    assert titles[1:-1] == NAMES.get(case, ["all positions"])
    before = page.value("document.querySelector('#map-1').toDataURL()")
    page.mouse("#picture", 0.9, 0.9)
    page.settle()
    # a head that looks alike from everywhere changes its mark alone
    assert page.value("document.querySelector('#map-1').toDataURL()") != before
    assert page.complaints() == []


def test_channel_attention_is_drawn_for_a_class(runs, data, tmp_path):
    picture, run = data / "images/val/0.png", runs("danet")
    names = load_model(run).classes.names
    request = VisualizeRequest(picture, ((30, 20),), tmp_path / "a.png", run, drawn_class=names[1])
    (point,) = visualize(request).to_mapping()["points"]
    assert point["r2"]["drawn_class"] == names[1] and point["r2"]["on_cross"] is None
    assert "channel" not in point["r1"]
    for unknown, where, words in (
        ("rode", run, "not a class of"),
        (names[1], runs("oc"), "no attention over channels"),
    ):
        with pytest.raises(InputError, match=words):
            visualize(VisualizeRequest(picture, ((3, 4),), tmp_path / "b.png", where, drawn_class=unknown))


@pytest.mark.parametrize("kind", ["psp", "encnet"])
def test_a_head_without_attention_is_not_drawn(kind, runs, data, tmp_path):
    with pytest.raises(InputError, match=f"the head {kind} has no attention"):
        visualize(VisualizeRequest(data / "images/val/0.png", ((3, 4),), tmp_path / "a.png", runs(kind)))
