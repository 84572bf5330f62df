"""Each field of our checkpoints, manifests and ONNX facts, absent or of another kind: refused by its name."""

import copy
import json
import os
import shutil

import pytest
import tiny
import torch

from ccnet_cli import cli, errors
from ccnet_cli.errors import InputError
from ccnet_cli.runs import checkpoint
from ccnet_cli.runs.fields import NewerVersionError, check_facts, check_fields, check_resumable
from ccnet_cli.training.optimizer import check_optimizer
from ccnet_cli.weights.load import read_facts, read_start, read_weights

ABSENT = object()
WRONG = {
    "absent": ABSENT,
    "null": None,
    "text": "abc",
    "list": [1, 2],
    "negative": -7,
    "float": 0.5,
    "huge": 10**30,
    "infinite": float("inf"),
    "nested": {"a": [None]},
}
ENVIRONMENT = ("world_size", "global_batch", "num_threads", "deterministic")
# field -> what of these it may be; a preset is checked as a whole when it is read
FIELDS = {
    **dict.fromkeys(("format", "model", "classes", "step", "metrics"), ()),
    "preset": ("nested",),
    **dict.fromkeys(("classes.names", "classes.palette"), ()),
    "classes.label_ids": ("list",),
    "classes.mirrored": ("absent",),
    "origin": ("absent", "text"),
    "choices": ("absent",),
    "training.model": ("null",),
    **dict.fromkeys(("training.optimizer", "training.scaler", "training.random"), ()),
    "training.optimizer.state": ("nested",),
    "training.optimizer.param_groups": (),
    "training.best": ("float",),
    **dict.fromkeys(
        [f"training.{name}" for name in ("best_step", "epoch", "offset", "nonfinite", "unlogged")], ("absent",)
    ),
    "training.circumstances": ("absent", "nested"),
    **dict.fromkeys([f"training.circumstances.{name}" for name in ENVIRONMENT], ("absent",)),
    **dict.fromkeys([f"training.circumstances.{name}" for name in ("torch", "device")], ("absent", "text")),
    "training.circumstances.cuda": ("absent", "text", "null"),
    "training.circumstances.cudnn": ("absent",),
}


def command(*words):
    with pytest.raises(SystemExit) as stop:
        cli.main([os.fspath(word) for word in words])
    return stop.value.code


def train(folder, steps, *words):
    settings = ["train.batch=2", "data.workers=0", f"schedule.steps={steps}", "schedule.warmup=0", "data.crop=24,40"]
    settings += ["checkpoint.every=1", "train.precision=fp32", "eval.every=0"]
    sets = [word for setting in [*tiny.OVERRIDES, *settings] for word in ("-s", setting)]
    return command("train", "--preset", "camvid", "--data", folder / "data", "--device", "cpu", *sets, *words)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fields")
    for split in ("train", "val"):
        tiny.make_camvid(folder / "data", [(64, 96), (64, 96)], split)
    assert train(folder, 1, "-o", folder / "run") == 0
    return folder


@pytest.fixture(scope="module")
def content(run):
    return checkpoint.read(run / "run" / "last.pt")


@pytest.fixture(autouse=True)
def loud(monkeypatch):
    monkeypatch.setenv(errors.VERBOSITY, "")


def changed(content, field, value):
    content = {**content}
    inner, (*groups, last) = content, field.split(".")
    for group in groups:
        inner[group] = {**inner[group]}
        inner = inner[group]
    if value is ABSENT:
        inner.pop(last, None)
    else:
        inner[last] = value
    return content


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("field", FIELDS)
def test_a_field_of_another_kind_is_refused_by_its_name(content, tmp_path, field, kind):
    bad = changed(content, field, WRONG[kind])
    if kind in FIELDS[field]:
        check_fields(bad, tmp_path)
        return
    with pytest.raises(InputError) as error:
        check_fields(bad, tmp_path)
    assert field in error.value.why
    assert str(error.value).isprintable()
    assert len(error.value.why) < 200


def test_every_field_of_a_checkpoint_is_in_the_table(content):
    check_fields(content, None)
    keys = {*content} - {"training"} | {f"training.{key}" for key in content["training"]}
    assert keys <= FIELDS.keys()


@pytest.mark.parametrize("field", ["step", "metrics", "preset", "classes", "format", "model"])
@pytest.mark.parametrize("kind", ["absent", "null", "text", "list", "negative"])
def test_commands_refuse_such_a_file_in_one_line(content, run, tmp_path, capfd, field, kind):
    torch.save(changed(content, field, WRONG[kind]), tmp_path / "bad.pt")
    assert command("eval", tmp_path / "bad.pt", "--data", run / "data", "--device", "cpu") == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert f"field {field} " in line


@pytest.mark.parametrize(
    ("field", "kind"),
    [
        ("training", "text"),
        ("training.optimizer", "null"),
        ("training.scaler", "list"),
        ("training.best", "text"),
        ("training.epoch", "negative"),
        ("training.random", "nested"),
        ("training.offset", "float"),
    ],
)
def test_a_resume_refuses_such_a_file_in_one_line(content, run, tmp_path, capfd, field, kind):
    torch.save(changed(content, field, WRONG[kind]), tmp_path / "bad.pt")
    assert train(run, 2, "--resume", tmp_path / "bad.pt", "-o", tmp_path / "new") == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert f"field {field} " in line
    assert not (tmp_path / "new").exists()


def without_sense(content):
    """Contents of a checkpoint of step 2 that are well formed, each with one value that makes no sense."""
    content = copy.deepcopy(content) | {"step": 2}
    weights = dict(content["model"])
    first = next(iter(weights))
    optimizer = content["training"]["optimizer"]
    state = {0: {"momentum_buffer": torch.zeros(5)}}
    yield "step", {**content, "step": 7}
    yield "training", {**content, "training": None}
    yield "training.offset", changed(content, "training.offset", -7)
    yield first, {**content, "model": {**weights, first: torch.zeros(3)}}
    yield first, {**content, "model": {**weights, first: weights[first] * float("nan")}}
    yield "momentum_buffer", changed(content, "training.optimizer", {**optimizer, "state": state})
    yield "schedule.lr", changed(content, "preset.schedule.lr", "abc")
    bad = copy.deepcopy(content)
    bad["training"]["random"][0]["python"] = (3, (1, 2), None)
    yield "training.random", bad


def test_a_resume_by_itself_passes_over_a_checkpoint_without_sense(content, run, tmp_path, capfd):
    for index, (field, bad) in enumerate(without_sense(content)):
        own = shutil.copytree(run / "run", tmp_path / str(index))
        checkpoint.save(own / "checkpoints", 2, bad, keep=2)
        assert train(run, 3, "-o", own, "--resume", "auto") == 0
        skipped = [line for line in capfd.readouterr().err.splitlines() if "skipped" in line]
        assert len(skipped) == 1 and "step_00000002" in skipped[0] and field in skipped[0]
        # step 2 was done again
        assert checkpoint.read_newest(own / "checkpoints", check=check_resumable)[1]["step"] == 3
        assert [path.stem for path in checkpoint.list_checkpoints(own / "checkpoints")][1:] == ["step_00000002"]
        check_resumable(checkpoint.read(own / "checkpoints/step_00000002.pt"), own)
        assert not (own / "checkpoints/attempts.json").exists()


def test_the_only_checkpoint_is_refused_by_the_field_that_makes_no_sense(content, run, tmp_path, capfd):
    own = shutil.copytree(run / "run", tmp_path / "run")
    path = own / "checkpoints/step_00000001.pt"
    path.with_suffix(".json").unlink()
    checkpoint.save(own / "checkpoints", 1, changed(content, "preset.schedule.lr", "abc"), keep=2)
    assert train(run, 3, "-o", own, "--resume", "auto") == 2
    assert "schedule.lr" in capfd.readouterr().err.splitlines()[-1]
    # another model than before is no damage
    checkpoint.save(own / "checkpoints", 1, content, keep=2)
    checkpoint.save(own / "checkpoints", 2, content | {"step": 2}, keep=2)
    assert train(run, 3, "-o", own, "--resume", "auto", "-s", "model.channels=24") == 2
    assert "skipped" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("torch", torch.zeros(3, dtype=torch.uint8)),
        ("python", (3, (1, 2), None)),
        ("numpy", ["x", [], 0, 0, 0.0]),
        ("numpy", ["MT19937", ["a"] * 624, 0, 0, 0.0]),
    ],
)
def test_random_states_that_no_generator_takes_are_refused(content, run, tmp_path, capfd, key, value):
    bad = copy.deepcopy(content)
    bad["training"]["random"][0][key] = value
    torch.save(bad, tmp_path / "bad.pt")
    assert train(run, 2, "--resume", tmp_path / "bad.pt", "-o", tmp_path / "new") == 2
    assert "training.random" in capfd.readouterr().err.splitlines()[-1]


def stepped(make):
    """An optimiser of one weight after a step."""
    weight = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = make([weight])
    weight.sum().backward()
    optimizer.step()
    return optimizer, optimizer.state_dict()


def sgd(weights):
    return torch.optim.SGD(weights, 0.1, 0.9)


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("key", ["momentum", "weight_decay", "dampening", "lr", "eps", "betas", "nesterov"])
def test_settings_of_an_optimizer_are_of_its_kind(key, kind):
    optimizer, saved = stepped(torch.optim.AdamW if key in ("betas", "eps") else sgd)
    saved["param_groups"][0] = changed(saved["param_groups"][0], key, WRONG[kind])
    numeric = key not in ("betas", "nesterov")
    if (kind == "float" and numeric) or (key == "nesterov" and kind in ("null", "absent")):
        check_optimizer(optimizer, saved)
    else:
        with pytest.raises(ValueError, match=key):
            check_optimizer(optimizer, saved)


@pytest.mark.parametrize("value", ["abc", [1], -1, torch.zeros(5), {"a": 1}, float("nan"), 10**30])
def test_states_of_an_optimizer_fit_their_weights(value):
    optimizer, saved = stepped(sgd)
    check_optimizer(optimizer, saved)
    saved["state"] = {0: {"momentum_buffer": value}}
    with pytest.raises(ValueError, match="momentum_buffer"):
        check_optimizer(optimizer, saved)
    saved["state"] = {7: {}}
    with pytest.raises(ValueError, match="no weight"):
        check_optimizer(optimizer, saved)


@pytest.mark.parametrize("number", [2, 3, 10**30])
def test_a_newer_format_is_said_to_be_newer(content, tmp_path, number):
    torch.save(changed(content, "format", number), tmp_path / "new.pt")
    for read in (checkpoint.read, read_weights, read_start):
        with pytest.raises(NewerVersionError, match="from a newer version of ccnet; update ccnet-cli"):
            read(tmp_path / "new.pt")
    folder = tmp_path / "checkpoints"
    checkpoint.save(folder, 1, content, keep=2)
    checkpoint.save(folder, 2, changed(content, "format", number), keep=2)
    # it must not be taken for damaged
    with pytest.raises(NewerVersionError):
        checkpoint.read_newest(folder)


@pytest.mark.parametrize("key", ["seeds", "model.head.heads", "train.sam", "loss.cross_entropy.heat", "data.cache"])
def test_an_unknown_preset_key_is_said_to_be_newer(content, tmp_path, key):
    preset = copy.deepcopy(content["preset"])
    inner, (*groups, last) = preset, key.split(".")
    for group in groups:
        inner = inner[group]
    inner[last] = 1
    torch.save({**content, "preset": preset}, tmp_path / "new.pt")
    for read in (lambda path: read_weights(path).facts(), read_start):
        with pytest.raises(NewerVersionError, match=rf"{key}.*from a newer version of ccnet"):
            read(tmp_path / "new.pt")


@pytest.mark.parametrize("field", ["step", "bytes", "sha256"])
@pytest.mark.parametrize("kind", WRONG)
def test_a_field_of_a_manifest(content, tmp_path, field, kind):
    path = checkpoint.save(tmp_path, 1, content, keep=2)
    record = json.loads(path.with_suffix(".json").read_text())
    del record["seal"]
    record = changed(record, field, WRONG[kind])
    for text, words in (
        (checkpoint._seal_manifest(record), rf"damaged manifest \(field {field} is"),
        (json.dumps({**record, "seal": "0" * 64}), "damaged manifest"),
    ):
        path.with_suffix(".json").write_text(text)
        with pytest.raises(InputError, match=words):
            checkpoint.read(path)


def test_a_manifest_of_a_newer_format_is_said_to_be_newer(content, tmp_path):
    path = checkpoint.save(tmp_path, 1, content, keep=2)
    record = json.loads(path.with_suffix(".json").read_text())
    del record["seal"]
    path.with_suffix(".json").write_text(checkpoint._seal_manifest(record | {"format": 2}))
    with pytest.raises(NewerVersionError):
        checkpoint.read(path)


@pytest.mark.parametrize("field", ["format", "preset", "classes", "step", "metrics", "stride"])
@pytest.mark.parametrize("kind", WRONG)
def test_the_facts_of_an_onnx_file(content, tmp_path, field, kind):
    facts = {key: content[key] for key in ("format", "preset", "classes", "step", "metrics")} | {"stride": 8}
    check_facts(facts, tmp_path)
    if (field, kind) not in {("stride", "absent"), ("preset", "nested")}:
        with pytest.raises(InputError, match=field):
            check_facts(changed(facts, field, WRONG[kind]), tmp_path)


def test_a_preset_of_another_kind_is_refused(content, tmp_path):
    for value in ({"a": 1}, {**content["preset"], "model": None}, {**content["preset"], "model": {"backbone": 3}}):
        with pytest.raises(InputError):
            read_facts({**content, "preset": value}, tmp_path)
        torch.save({**content, "preset": value}, tmp_path / "bad.pt")
        with pytest.raises(InputError):
            read_start(tmp_path / "bad.pt")
