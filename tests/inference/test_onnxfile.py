"""ONNX files: the scores are torch's, the commands take them, and damaged or hostile ones are refused."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from calls import evaluate, predict

from ccnet_cli import cli
from ccnet_cli.commands.export import export
from ccnet_cli.errors import EnvironmentFailure, InputError
from ccnet_cli.inference import engine, portable
from ccnet_cli.inference import onnx as onnxfile
from ccnet_cli.inference.artifact import default_device, load_model, open_artifact
from ccnet_cli.inference.views import to_input
from ccnet_cli.media import images
from ccnet_cli.models.attention import PlainCrissCross
from ccnet_cli.runs import checkpoint

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

SIZES = [(1, 65, 97), (3, 33, 50), (1, 17, 8), (2, 1, 1), (1, 9, 130)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A checkpoint with two passes and LeakyReLU, its ONNX file, a data set and a picture."""
    folder = tmp_path_factory.mktemp("made")
    tiny.save_checkpoint(folder, stirred=True).rename(folder / "model.pt")
    (folder / "step_00000001.json").unlink()
    export(folder / "model.pt", folder / "model.onnx", "onnx")
    tiny.make_camvid(folder / "data", [(40, 56), (37, 51)])
    tiny.write(folder / "image.png", tiny.picture(61, 83, 7))
    return folder


def scores(path, shape):
    """A file's network and its scores of noise, (N, H, W)."""
    restored = open_artifact(path)
    noise = np.random.default_rng(4).integers(0, 256, (*shape, 3), dtype=np.uint8)
    x = torch.cat([to_input(image, restored.network.normalisation, "cpu") for image in noise])
    with torch.inference_mode():
        return restored.network(x)


def compare(one, other):
    for shape in SIZES:
        got, wanted = scores(one, shape), scores(other, shape)
        assert got.shape == wanted.shape and got.dtype == torch.float32
        assert (got - wanted).abs().max() <= 1e-4 * wanted.std()
        assert torch.equal(got.argmax(1), wanted.argmax(1))


def test_two_passes_answer_as_torch_does(made):
    compare(made / "model.onnx", made / "model.pt")


@pytest.mark.parametrize(
    "settings",
    [
        "recurrence=0 activation=relu",
        "recurrence=1 activation=leaky_relu align_corners=false channel_order=rgb",
        "recurrence=2 activation=relu backbone=resnet18 pool=ceil",
        pytest.param("recurrence=1 activation=relu backbone=resnet50 pool=floor stem=7x7", marks=pytest.mark.slow),
        pytest.param("recurrence=3 dilation=contracted backbone=resnet34 stem=v1c", marks=pytest.mark.slow),
    ],
)
def test_other_networks_answer_as_torch_does(tmp_path, settings):
    settings = [f"model.{setting}" for setting in settings.split()]
    model = tiny.save_checkpoint(tmp_path, *settings, stirred=True)
    compare(export(model, tmp_path / "model.onnx", "onnx"), model)


def test_a_file_holds_one_plain_graph_and_all_that_is_to_be_known(made):
    model = onnx.load(made / "model.onnx")
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", onnxfile.OPSET)]
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("Softmax") == 2 and "BatchNormalization" not in operators
    # four of the backbone, three of the head, the projection twice, the classes: none of the auxiliary head
    assert operators.count("Conv") == 4 + 3 + 2 + 1
    for weight in model.graph.initializer:
        assert np.isfinite(onnx.numpy_helper.to_array(weight)).all()
    sizes = [[d.dim_param or d.dim_value for d in t.type.tensor_type.shape.dim] for t in model.graph.input]
    assert sizes == [["batch", 3, "height", "width"]]
    # whose machine it was is not told
    assert not re.search(rb"\.py\b|site-packages", (made / "model.onnx").read_bytes())
    facts, _ = onnxfile.read(made / "model.onnx")
    restored = load_model(made / "model.pt")
    own = checkpoint.read(made / "model.pt")
    assert facts["preset"] == own["preset"] and facts["classes"] == own["classes"]
    run = open_artifact(made / "model.onnx")
    assert (run.preset, run.classes, run.step) == (restored.preset, restored.classes, restored.step)
    assert run.network.normalisation == restored.network.normalisation


@pytest.mark.parametrize(("told", "stride"), [({"stride": 4}, 4), ({}, 8)])
def test_a_file_says_how_far_apart_its_cells_are(made, monkeypatch, told, stride):
    """Files of version 0.1.0 say nothing: their networks were all of stride 8."""
    facts, content = onnxfile.read(made / "model.onnx")
    assert facts.pop("stride") == 8
    monkeypatch.setattr(onnxfile, "read", lambda *_: (facts | told, content))
    network = open_artifact(made / "model.onnx").network
    assert network.stride == stride
    wanted = load_model(made / "model.pt").network.normalisation
    assert network.normalisation == wanted and wanted.mean != wanted.std


@pytest.mark.parametrize("views", [{}, {"mode": "sliding", "tile": (24, 40)}, {"scales": (0.75, 1.5), "flip": True}])
def test_predict_writes_the_same_masks(made, tmp_path, views):
    ours = predict([made / "image.png"], tmp_path / "a.png", made / "model.pt", **views, areas=True)
    theirs = predict([made / "model.onnx", made / "image.png"], tmp_path / "b.png", **views, areas=True)
    assert theirs.areas[0].pixels == ours.areas[0].pixels and len(set(ours.areas[0].pixels)) > 3
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_eval_finds_the_same_figures(made):
    ours = evaluate(made / "model.pt", str(made / "data")).to_mapping()
    theirs = evaluate(made / "model.onnx", str(made / "data")).to_mapping()
    assert theirs.pop("checkpoint").endswith("model.onnx") and ours.pop("checkpoint")
    assert theirs == ours


def test_the_commands_take_a_file(made, tmp_path, capsys):
    mask = tmp_path / "mask.png"
    assert run("predict", made / "image.png", "-o", mask, "--checkpoint", made / "model.onnx") == 0
    assert mask.is_file()
    assert run("eval", made / "model.onnx", "--data", made / "data", "--json", "-", "--flip") == 0
    out = capsys.readouterr().out
    assert json.loads(out[out.index("{") :])["images"] == 2


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("predict model.onnx image.png -o mask.png --checkpoint model.pt", "model.onnx is given too"),
        ("predict model.onnx -o mask.png", "no image given"),
        ("predict missing.onnx image.png -o mask.png", "missing.onnx: does not exist"),
        (
            "predict model.onnx image.png -o mask.png -s model.recurrence=1",
            "the network of an exported file stays as it is",
        ),
        ("predict model.onnx image.png -o mask.png -s eval.tile=no", "eval.tile"),
        ("eval model.onnx", "data.root|data/camvid"),
        ("visualize image.png --point 3,4 --checkpoint model.onnx -o mask.png", "neither attention maps"),
        ("export model.onnx --format onnx -o mask.onnx", "nor weights"),
        ("export model.pt --format onnx -o mask.png", "end the name in .onnx"),
        ("export model.pt --format torch-export -o mask.onnx", ".onnx is the ending of --format onnx"),
        ("export model.pt -o mask.pt2", "add --format torch-export"),
        ("export model.pt --format onnx -o model.onnx", "exists"),
    ],
)
def test_what_makes_no_sense_takes_one_line(made, monkeypatch, capsys, words, reason):
    monkeypatch.chdir(made)
    before = {path: path.read_bytes() for path in made.glob("*.*")}
    assert run(*words.split()) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and re.search(reason, told)
    assert {path: path.read_bytes() for path in made.glob("*.*")} == before


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(word) for word in words])
    return int(stopped.value.code or 0)


def test_a_network_whose_scores_differ_is_not_written(made, tmp_path, monkeypatch):
    plain = PlainCrissCross.forward
    monkeypatch.setattr(PlainCrissCross, "forward", lambda self, x: plain(self, x) * 1.01)
    for name, format in (("model.onnx", "onnx"), ("model.pt2", "torch-export")):
        (tmp_path / name).write_text("what was there")
        with pytest.raises(EnvironmentFailure, match="of their range away"):
            export(made / "model.pt", tmp_path / name, format)
        assert (tmp_path / name).read_text() == "what was there"
    assert len(list(tmp_path.iterdir())) == 2


def test_more_weights_than_a_file_can_hold_are_refused(made, tmp_path, monkeypatch):
    monkeypatch.setattr(onnxfile, "MAX_BYTES", onnxfile.MAX_GRAPH_BYTES + 20_000)
    with pytest.raises(InputError, match="bytes of weights"):
        export(made / "model.pt", tmp_path / "model.onnx", "onnx")


def test_scores_that_are_not_finite_are_not_written(tmp_path):
    spoilt = tiny.save_checkpoint(tmp_path / "run", "model.recurrence=0", spoil=True)
    with pytest.raises(EnvironmentFailure, match="of their range away"):
        export(spoilt, tmp_path / "model.pt2", "torch-export")


def test_an_override_and_a_preset_change_what_lies_around_the_network(made, tmp_path):
    changed = open_artifact(made / "model.onnx", overrides=["eval.mode=sliding", "data.root=elsewhere"])
    assert changed.preset.eval.mode == "sliding" and changed.preset.data.root == "elsewhere"
    other = open_artifact(made / "model.onnx", "cityscapes-r1")
    own = open_artifact(made / "model.onnx")
    assert other.preset.name == "cityscapes-r1" and other.preset.model == own.preset.model
    assert other.classes == own.classes


def test_another_precision_is_refused(made, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="float32 alone"):
        predict([made / "model.onnx", made / "image.png"], tmp_path / "mask.png", precision="bf16")
    with pytest.raises(InputError, match="float32 alone"):
        evaluate(made / "model.onnx", str(made / "data"), precision="bf16")
    monkeypatch.setattr(engine, "compiles", lambda *_: True)
    with pytest.raises(InputError, match="not by torch"):
        predict([made / "model.onnx", made / "image.png"], tmp_path / "mask.png", compile="on")
    assert not (tmp_path / "mask.png").exists()
    # auto takes what there is
    predict([made / "model.onnx", made / "image.png"], tmp_path / "mask.png", precision="auto", compile="auto")
    assert evaluate(made / "model.onnx", str(made / "data"), precision="auto").settings["precision"] == "fp32"


def test_auto_is_the_cpu_where_the_runtime_knows_no_gpu(monkeypatch):
    monkeypatch.setattr(onnxfile, "offers_cuda", lambda: False)
    assert [default_device(*choice) for choice in CHOICES] == ["cpu", "auto", "auto", "cuda:1", "cuda"]
    monkeypatch.setattr(onnxfile, "offers_cuda", lambda: True)
    assert [default_device(*choice) for choice in CHOICES] == ["auto", "auto", "auto", "cuda:1", "cuda"]


def test_a_gpu_that_the_runtime_does_not_know_is_refused(made, monkeypatch):
    monkeypatch.setattr(onnxfile, "offers_cuda", lambda: False)
    with pytest.raises(InputError, match="device cuda:0: the ONNX Runtime that is installed has no CUDA"):
        open_artifact(made / "model.onnx").network.open(torch.device("cuda:0"))


CHOICES = [
    *(("auto", path) for path in (Path("a.ONNX"), Path("a.pt"), None)),
    ("cuda:1", Path("a.onnx")),
    ("cuda", Path("a.pt")),
]


def seal(model, told=None) -> bytes:
    """The bytes of a changed file with a seal that fits: anybody can make one."""
    props = {entry.key: entry.value for entry in model.metadata_props}
    props[onnxfile.FACTS] = props[onnxfile.FACTS] if told is None else told
    props[onnxfile.SEAL] = onnxfile._seal(model.graph.SerializeToString(), props[onnxfile.FACTS])
    onnx.helper.set_model_props(model, props)
    return model.SerializeToString()


def forged(change):
    def write(path: Path, good: bytes) -> None:
        model = onnx.load_model_from_string(good)
        told = change(model)
        path.write_bytes(seal(model, told))

    return write


def node(*arguments, **attributes):
    def change(model):
        model.graph.node.append(onnx.helper.make_node(*arguments, **attributes))

    return forged(change)


def facts(**changes):
    def change(model):
        told = json.loads(next(entry.value for entry in model.metadata_props if entry.key == onnxfile.FACTS))
        return json.dumps({**told, **changes})

    return forged(change)


def external(model):
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "/etc/passwd")
    model.graph.initializer[0].ClearField("raw_data")
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL


def constant(model):
    """A weight in another file, in an attribute."""
    tensor = onnx.numpy_helper.from_array(np.zeros(1, np.float32), "hidden")
    onnx.external_data_helper.set_external_data(tensor, "../secret")
    model.graph.node.append(onnx.helper.make_node("Cast", [], ["y"], value=tensor))


def function(model):
    inner = onnx.helper.make_node("Relu", ["x"], ["y"])
    opsets = [onnx.helper.make_opsetid("", 18)]
    model.functions.append(onnx.helper.make_function("ours", "Twice", ["x"], ["y"], [inner], opsets))


def cycle(model):
    model.graph.node[0].input[0] = model.graph.node[5].output[0]


def bare(path: Path, good: bytes) -> None:
    model = onnx.load_model_from_string(good)
    del model.metadata_props[:]
    path.write_bytes(model.SerializeToString())


def garbled(path: Path, good: bytes) -> None:
    """An operator whose name is no text, under a seal that fits."""
    model = onnx.load_model_from_string(good)
    model.graph.node.append(onnx.helper.make_node("Relq", ["scores"], ["y"]))
    graph = model.graph.SerializeToString().replace(b"Relq", b"Rel\xff")
    told = next(entry.value for entry in model.metadata_props if entry.key == onnxfile.FACTS)
    onnx.helper.set_model_props(model, {onnxfile.FACTS: told, onnxfile.SEAL: onnxfile._seal(graph, told)})
    path.write_bytes(model.SerializeToString().replace(b"Relq", b"Rel\xff"))


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def crowded(path: Path, good: bytes) -> None:
    """Three million nodes without a byte in them, which parsed would take half a gigabyte."""
    graph = b"\x0a\x00" * 3_000_000
    path.write_bytes(b"\x08\x08\x3a" + varint(len(graph)) + graph)


def wordy(path: Path, good: bytes) -> None:
    """A graph with few fields, of which one is huge."""
    name = b"\x12" + varint(5 << 20) + bytes(5 << 20)
    path.write_bytes(b"\x08\x08\x3a" + varint(len(name)) + name)


def sparse(path: Path, good: bytes) -> None:
    path.write_bytes(good)
    os.truncate(path, 1 << 32)


GRAPH = onnx.helper.make_graph([], "inner", [], [])
# name: how it is written, from the path and the bytes of a good file, and a word of the reason
HOSTILE = {
    "weights elsewhere": (forged(external), "in other files"),
    "a constant elsewhere": (forged(constant), "in other files"),
    "a branch": (node("If", ["x"], ["y"], then_branch=GRAPH, else_branch=GRAPH), "more than one graph"),
    "a function": (forged(function), "more than one graph"),
    "an operator": (node("Loop", ["x"], ["y"]), "operators that no network of ours has .Loop"),
    "another domain": (node("Relu", ["x"], ["y"], domain="evil"), "operators that no network of ours has"),
    "an input from nowhere": (node("Relu", ["nowhere"], ["y"]), "not sound ONNX"),
    "a cycle": (forged(cycle), "not sound ONNX"),
    "no facts": (bare, "an ONNX file that ccnet did not write"),
    "facts of no form": (facts(format=None), "format None"),
    "a later form": (facts(format=2), "update ccnet-cli"),
    "facts that nest": (forged(lambda model: "[" * 100_000), "what it says of its network is damaged"),
    "facts that are a number": (forged(lambda model: "7"), "what it says of its network is damaged"),
    "no preset": (facts(preset=None), "configuration is damaged"),
    "another preset": (facts(preset={"model": {}}), "preset"),
    "no classes": (facts(classes={"names": "ab"}), "configuration is damaged"),
    "a name that is no text": (garbled, "operators that no network of ours has|not an ONNX file"),
    "empty messages": (crowded, "damaged, or not an ONNX file"),
    "a large name": (wordy, "a graph larger than any of ours"),
    "four gigabytes": (sparse, "larger than an ONNX file can be"),
    "half": (lambda path, good: path.write_bytes(good[: len(good) // 2]), "damaged, or not an ONNX file"),
    "a byte short": (lambda path, good: path.write_bytes(good[:-1]), "damaged, or not an ONNX file"),
    "two graphs": (lambda path, good: path.write_bytes(good + b"\x3a\x00"), "damaged, or not an ONNX file"),
    "empty": (lambda path, good: path.write_bytes(b""), "damaged, or not an ONNX file"),
    "text": (lambda path, good: path.write_text("<!DOCTYPE html>"), "damaged, or not an ONNX file"),
    "zeros": (lambda path, good: path.write_bytes(bytes(100_000)), "damaged, or not an ONNX file"),
    "torch's": (lambda path, good: torch.save({"a": torch.zeros(9)}, path), "damaged, or not an ONNX file"),
    "a folder": (lambda path, good: path.mkdir(), "a folder without best.pt"),
    "a pipe": (lambda path, good: os.mkfifo(path), "not a regular file"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_damaged_and_hostile_files_are_refused(made, tmp_path, name):
    write, reason = HOSTILE[name]
    write(tmp_path / "bad.onnx", (made / "model.onnx").read_bytes())
    with pytest.raises(InputError, match=reason):
        open_artifact(tmp_path / "bad.onnx", strict=True)


def test_a_large_graph_is_not_parsed(made, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx, "load_model_from_string", lambda content: pytest.fail("parsed"))
    for write in (crowded, wordy):
        write(tmp_path / "bad.onnx", b"")
        with pytest.raises(InputError):
            onnxfile.read(tmp_path / "bad.onnx")


def test_no_bit_of_weights_or_facts_can_change_unnoticed(made, tmp_path):
    good = (made / "model.onnx").read_bytes()
    facts, _ = onnxfile.read(made / "model.onnx")
    begin, end, _ = onnxfile._outline(good)
    chosen = random.Random(6)
    told = good.index(b'{"format"')
    inside = [chosen.randrange(begin, end) for _ in range(60)] + [chosen.randrange(told, told + 500) for _ in range(20)]
    for at in (*inside, *range(begin), *range(end, len(good), 97)):
        changed = bytearray(good)
        changed[at] ^= 1 << chosen.randrange(8)
        (tmp_path / "changed.onnx").write_bytes(changed)
        try:
            found, content = onnxfile.read(tmp_path / "changed.onnx", strict=True)
        except InputError:
            continue
        # what stands around the two, such as the name of the program that wrote it, is nobody's concern
        assert at not in inside and found == facts
        assert content[slice(*onnxfile._outline(content)[:2])] == good[begin:end]


def fewer(model):
    told = json.loads(next(entry.value for entry in model.metadata_props if entry.key == onnxfile.FACTS))
    told["classes"] = {key: values[:-1] for key, values in told["classes"].items()}
    return json.dumps(told)


def flat(model):
    """One axis less: the scores of the first row."""
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0), "first"))
    model.graph.node.append(onnx.helper.make_node("Gather", ["scores", "first"], ["flat"], axis=2))
    model.graph.output[0].name = "flat"


def bomb(model):
    """Eighty terabytes of numbers, from three of them."""
    for name, value in (("from", 0), ("to", 10**13), ("by", 1)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value), name))
    model.graph.node.append(onnx.helper.make_node("Range", ["from", "to", "by"], ["numbers"]))
    model.graph.node.append(onnx.helper.make_node("Cast", ["numbers"], ["huge"], to=1))
    model.graph.output[0].name = "huge"


def mismatched(model):
    """A convolution for other channels than it gets."""
    weight = next(each for each in model.graph.initializer if len(each.dims) == 4 and each.dims[1] == 8)
    weight.CopyFrom(onnx.numpy_helper.from_array(np.zeros((weight.dims[0], 7, 3, 3), np.float32), weight.name))


@pytest.mark.parametrize(
    ("change", "code", "reason"),
    [
        (fewer, 2, "scores of shape .* for 10 classes"),
        (flat, 2, "ONNX Runtime cannot run it|scores of shape"),
        (mismatched, 2, "ONNX Runtime cannot run it"),
        (bomb, 3, "not enough memory for whole mode"),
    ],
)
def test_a_network_that_cannot_be_run_takes_one_line(made, tmp_path, capsys, change, code, reason):
    forged(change)(tmp_path / "bad.onnx", (made / "model.onnx").read_bytes())
    assert run("predict", tmp_path / "bad.onnx", made / "image.png", "-o", tmp_path / "mask.png") == code
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and re.search(reason, told)
    assert not (tmp_path / "mask.png").exists()


@pytest.fixture(scope="module")
def whole(made):
    """The file with processing."""
    path = made / "street.onnx"
    assert run("export", made / "model.pt", "--format", "onnx", "--with-processing", "-o", path) == 0
    return path


def test_a_file_with_processing_answers_what_predict_does(made, whole, tmp_path):
    import onnxruntime

    session = onnxruntime.InferenceSession(whole)
    for height, width in ((61, 83), (40, 56), (9, 130), (75, 33)):
        image = tiny.write(tmp_path / "image.png", tiny.picture(height, width, height))
        predict([image], tmp_path / "mask.png", made / "model.pt", formats=["train-id"], overwrite=True)
        expected = images.read_label(tmp_path / "mask.png")
        (classes,) = session.run(None, {"image": np.stack([images.read_image(image)[..., ::-1]] * 2)})
        assert classes.dtype == np.uint8 and classes.shape == (2, height, width)
        assert (classes[0] == expected).mean() >= 0.999 and (classes[1] == classes[0]).all()
        assert len(np.unique(expected)) > 1


def test_the_program_of_the_guide_runs(made, whole, tmp_path):
    guide = (Path(onnxfile.__file__).parents[1] / "guides" / "onnx.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    for source, name in ((whole, "street.onnx"), (made / "image.png", "img.png")):
        (tmp_path / name).symlink_to(source)
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    shares = [float(line.rpartition(" ")[2]) for line in done.stdout.splitlines()]
    assert len(shares) > 1 and sum(shares) == pytest.approx(1)


def test_a_file_with_processing_documents_itself_and_is_not_read_back(made, whole, tmp_path, capsys):
    model = onnx.load(whole)
    assert "RGB" in model.graph.input[0].doc_string and "class" in model.graph.output[0].doc_string
    assert "Sky" in model.doc_string or "sky" in model.doc_string.casefold()
    capsys.readouterr()
    assert run("predict", whole, made / "image.png", "-o", tmp_path / "mask.png") == 2
    assert "export it without --with-processing" in capsys.readouterr().err
    assert run("export", made / "model.pt", "--with-processing", "-o", tmp_path / "new.pt") == 2
    assert "option --with-processing: --format weights holds no processing" in capsys.readouterr().err


def test_classes_that_are_not_the_models_are_not_written(made, tmp_path, monkeypatch, capsys):
    flipped = portable.Processed.forward
    monkeypatch.setattr(portable.Processed, "forward", lambda self, image: flipped(self, image.flip(3)))
    assert run("export", made / "model.pt", "--format", "onnx", "--with-processing", "-o", tmp_path / "new.onnx") == 3
    assert "of its classes are the model's" in capsys.readouterr().err and not (tmp_path / "new.onnx").exists()
