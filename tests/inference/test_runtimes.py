"""Networks in other runtimes: integers in ONNX, OpenVINO's files, and files that other programs have changed."""

import json
import re

import numpy as np
import pytest
import tiny
import torch
from calls import evaluate

from ccnet_cli import cli
from ccnet_cli.commands.export import export
from ccnet_cli.errors import InputError
from ccnet_cli.inference import onnx as onnxfile
from ccnet_cli.inference.artifact import load_model, open_artifact
from ccnet_cli.inference.views import to_input
from ccnet_cli.media import images

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

SIZES = [(1, 65, 97), (2, 33, 50)]


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(list(map(str, arguments)))
    return stop.value.code or 0


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A checkpoint whose maps are wide enough for integers, data, and its ONNX file in integers."""
    folder = tmp_path_factory.mktemp("made")
    wide = ("model.backbone={kind: resnet18, stem: 7x7, width: 16}", "model.head.channels=32")
    tiny.save_checkpoint(folder, *wide, stirred=True).rename(folder / "model.pt")
    (folder / "step_00000001.json").unlink()
    tiny.make_camvid(folder / "data", [(70, 96), (77, 61)])
    words = ("--format", "onnx", "--precision", "int8", "--calibrate", folder / "data" / "val")
    assert run("export", folder / "model.pt", *words, "-o", folder / "int8.onnx") == 0
    return folder


def scores(network, shape):
    noise = np.random.default_rng(4).integers(0, 256, (*shape, 3), dtype=np.uint8)
    x = torch.cat([to_input(image, network.normalisation, "cpu") for image in noise])
    with torch.inference_mode():
        return network(x)


def pictures(folder):
    return sorted((folder / "data" / "val").iterdir())


def close(made, path, limit):
    exact, other = load_model(made / "model.pt").network, open_artifact(path).network
    for picture in pictures(made):
        x = to_input(images.read_image(picture), exact.normalisation, "cpu")
        with torch.inference_mode():
            expected, got = exact(x), other(x)
        assert got.shape == expected.shape and (got - expected).norm() < limit * expected.norm()
        assert limit < 0.01 or not torch.equal(got, expected)


def test_an_onnx_file_in_integers_has_int8_weights_by_channel_and_answers_nearly_the_same(made):
    graph = onnx.load(made / "int8.onnx").graph
    makers = {output: node for node in graph.node for output in node.output}
    held = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    convs = [node for node in graph.node if node.op_type == "Conv"]
    integers = [node for node in convs if makers.get(node.input[1], node).op_type == "DequantizeLinear"]
    assert len(convs) / 2 < len(integers) < len(convs)
    exact = {name: tensor.numpy() for name, tensor in load_model(made / "model.pt").network.state_dict().items()}
    assert exact
    for conv in integers:
        weight, scale, zero = (held[name] for name in makers[conv.input[1]].input)
        assert weight.dtype == np.int8 and scale.shape == (len(weight),) and not zero.any()
        assert (np.abs(weight).max(axis=(1, 2, 3)) == 127).all()
        assert makers[conv.input[0]].op_type == "DequantizeLinear"
    close(made, made / "int8.onnx", 0.15)
    facts, _ = onnxfile.read(made / "int8.onnx", strict=True)
    assert facts["precision"] == "int8"


def test_a_runtime_computes_convolutions_in_integers(made, tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(made / "int8.onnx"), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert kinds.count("QLinearConv") > kinds.count("Conv") and "QLinearAdd" in kinds


def test_predict_and_eval_take_files_in_integers(made, tmp_path):
    result, exact = evaluate(made / "int8.onnx", made / "data"), evaluate(made / "model.pt", made / "data")
    assert abs(result.pixel_accuracy - exact.pixel_accuracy) < 0.1
    assert run("predict", made / "int8.onnx", pictures(made)[0], "-o", tmp_path / "mask.png") == 0


@pytest.fixture(scope="module")
def rewritten(made):
    """The float file as ONNX Runtime's own quantiser writes it."""
    from onnxruntime.quantization import quantize_dynamic

    export(made / "model.pt", made / "model.onnx", "onnx")
    quantize_dynamic(made / "model.onnx", made / "theirs.onnx", op_types_to_quantize=["MatMul"])
    model = onnx.load(made / "theirs.onnx")
    # some quantisers leave all metadata out, and then it is nobody's file
    assert {onnxfile.FACTS} <= {entry.key for entry in model.metadata_props}
    return made / "theirs.onnx"


def test_a_file_that_a_quantiser_rewrote_runs_with_a_notice_and_is_refused_with_strict(
    made, rewritten, tmp_path, capfd
):
    arguments = ("predict", rewritten, pictures(made)[0], "-o", tmp_path / "mask.png")
    assert run(*arguments) == 0
    err = capfd.readouterr().err
    assert err.count("theirs.onnx: changed since ccnet wrote it") == 1
    assert run(*arguments, "--overwrite", "--strict") == 2
    assert "theirs.onnx: damaged, or changed since it was written" in capfd.readouterr().err
    assert run("eval", rewritten, "--data", made / "data") == 0
    assert run("eval", rewritten, "--data", made / "data", "--strict") == 2
    close(made, rewritten, 0.3)


def test_bench_model_runs_files_and_says_nothing_of_their_scores(made, tmp_path):
    words = ("--preset", "quickstart", "--size", "33x33", "--precision", "fp32", "--repeats", 1, "--no-runtimes")
    assert run("bench", "model", made / "int8.onnx", *words, "--json", tmp_path / "bench.json") == 0
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["official", "plain", "engine", "int8.onnx"]
    assert rows[3]["forward"]["median"] > 0 and rows[3]["agreement"] is rows[3]["gflop"] is None
    assert run("bench", "model", made / "model.pt", *words) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--format", "onnx", "--precision", "int8"), "no image to measure the ranges on; name some by --calibrate"),
        (("--precision", "int8", "--calibrate", "data/val"), "--format weights holds no integers"),
        (
            ("--format", "onnx", "--with-processing", "--precision", "int8", "--calibrate", "data/val"),
            "--with-processing holds float32 alone",
        ),
        (("--format", "onnx", "--calibrate", "data/val"), "precision fp32 measures no ranges"),
        (("--format", "openvino"), ".xml is the ending of --format openvino"),
    ],
)
def test_what_export_cannot_write_is_refused_in_one_line(made, tmp_path, monkeypatch, capfd, options, words):
    monkeypatch.chdir(made)
    name = "new.onnx" if "onnx" in options else "new.pt"
    assert run("export", "model.pt", *options, "-o", tmp_path / name) == 2
    err = capfd.readouterr().err
    assert words in err and err.count("\n") == 1
    assert not (tmp_path / name).exists()


@pytest.fixture(scope="module")
def openvino(made):
    """The network in floats and in integers, as OpenVINO's files."""
    pytest.importorskip("openvino")
    assert run("export", made / "model.pt", "--format", "openvino", "-o", made / "model.xml") == 0
    words = ("--format", "openvino", "--precision", "int8", "--calibrate", made / "data" / "val")
    assert run("export", made / "model.pt", *words, "-o", made / "int8.xml") == 0
    return made


def test_openvino_answers_as_torch_does(openvino):
    close(openvino, openvino / "model.xml", 1e-3)
    close(openvino, openvino / "int8.xml", 0.15)
    exact, other = load_model(openvino / "model.pt").network, open_artifact(openvino / "model.xml", strict=True).network
    for shape in SIZES:
        got, expected = scores(other, shape), scores(exact, shape)
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3 * float(expected.std()))
    # a fourth of the size
    sizes = [(openvino / name).with_suffix(".bin").stat().st_size for name in ("int8.xml", "model.xml")]
    assert sizes[0] < 0.45 * sizes[1]


def test_the_commands_take_openvinos_files(openvino, tmp_path):
    written = []
    for model in ("model.xml", "model.onnx"):
        if not (openvino / "model.onnx").exists():
            export(openvino / "model.pt", openvino / "model.onnx", "onnx")
        target = tmp_path / f"{model}.png"
        assert run("predict", openvino / model, pictures(openvino)[0], "-o", target, "--format", "train-id") == 0
        written.append(images.read_label(target))
    assert (written[0] == written[1]).mean() > 0.999
    one, other = (evaluate(openvino / name, openvino / "data") for name in ("model.xml", "model.pt"))
    assert abs(one.pixel_accuracy - other.pixel_accuracy) < 1e-3


def test_an_openvino_file_that_was_changed_is_noticed(openvino, tmp_path, capfd):
    graph, weights = (openvino / f"model{suffix}" for suffix in (".xml", ".bin"))
    changed = bytearray(weights.read_bytes())
    changed[len(changed) // 2] ^= 1
    text = graph.read_text()
    for name, new_graph, new_weights in (
        ("weights", text, bytes(changed)),
        ("graph", text.replace('pads_begin="1, 1"', 'pads_begin="1,1"', 1), weights.read_bytes()),
    ):
        path = tmp_path / f"{name}.xml"
        path.write_text(new_graph)
        path.with_suffix(".bin").write_bytes(new_weights)
        capfd.readouterr()
        open_artifact(path)
        assert "changed since ccnet wrote it" in capfd.readouterr().err
        with pytest.raises(InputError, match="damaged, or changed"):
            open_artifact(path, strict=True)
    for content, reason in (("<net>", "not a graph"), ("<net/>", "did not write")):
        (tmp_path / "graph.xml").write_text(content)
        with pytest.raises(InputError, match=reason):
            open_artifact(tmp_path / "graph.xml")
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(InputError, match=r"weights.bin: does not exist"):
        open_artifact(tmp_path / "weights.xml")
    (tmp_path / "facts.xml").write_text(re.sub(r'<facts value="[^"]*"', '<facts value="{"', text))
    (tmp_path / "facts.bin").write_bytes(weights.read_bytes())
    with pytest.raises(InputError, match="of its network is damaged"):
        open_artifact(tmp_path / "facts.xml")
    assert json.dumps(open_artifact(graph).classes.names) in text.replace("&quot;", '"')


def test_openvino_is_for_the_cpu(openvino):
    with pytest.raises(InputError, match="runs it on the CPU alone"):
        open_artifact(openvino / "model.xml").network.open(torch.device("cuda"))
