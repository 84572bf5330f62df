"""Large images: the bands of a picture have the bits of the whole, and the plan of its tiles keeps to a budget."""

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import calls
import numpy as np
import pytest
import tiny
import torch

from ccnet_cli import config
from ccnet_cli.errors import InputError, Interrupted
from ccnet_cli.inference import bands, budget, engine, large, segmenter, views
from ccnet_cli.inference.artifact import open_artifact
from ccnet_cli.inference.bands import Region, score_bands
from ccnet_cli.inference.budget import Budget, machine_memory
from ccnet_cli.inference.runtime import Runtime
from ccnet_cli.inference.views import Views, batch_scores, plan_tile, to_input
from ccnet_cli.media import images
from ccnet_cli.models.network import build, build_unfilled
from ccnet_cli.ops import convolution

CPU = torch.device("cpu")
MIRRORED = ((0, 1), (3, 7))
LOOKS = {
    "tiles": Views("sliding", (24, 32)),
    "tiles larger than the picture": Views("sliding", (90, 40), flip=True),
    "flipped, several at once": Views("sliding", (24, 33), flip=True, batch=3, mirrored=MIRRORED),
    "whole, but too large": Views(max_pixels=1500, flip=True, batch=4),
    "whole": Views(),
}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return open_artifact(tiny.save_checkpoint(tmp_path_factory.mktemp("run"), stirred=True))


def reader(image, valid=None):
    """What score_bands reads from; it asserts that rows come once, in order."""
    end = 0

    def read(top, bottom):
        nonlocal end
        assert top == end < bottom
        end = bottom
        return Region(image, valid).rows(top, bottom)

    return read


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("size", [(61, 83), (7, 150), (100, 20)])
def test_bands_have_the_bits_of_the_whole(artifact, look, size):
    image, seen = tiny.picture(*size, 1), LOOKS[look]
    network = Runtime().resolve(artifact.path).prepare(artifact, 1)
    (whole,) = batch_scores(network, to_input(image, network.normalisation, CPU), seen, CPU)
    top = 0
    for band in score_bands(network, reader(image), size, seen, CPU):
        rows = slice(top, top + len(band.region.image))
        assert band.top == top and np.array_equal(band.region.image, image[rows])
        assert torch.equal(band.scores.dense(), whole.dense()[:, rows])
        for implementation in ("torch", "numba"):
            assert np.array_equal(band.scores.predict(implementation), whole.predict()[rows])
        top = rows.stop
    assert top == size[0]


def test_rows_that_are_final_are_not_held(artifact):
    """However high the picture, tiles of two rows at most are held."""
    network = Runtime().resolve(artifact.path).prepare(artifact, 1)
    image, seen = tiny.picture(400, 70, 1), Views("sliding", (24, 32))
    held = [len(band.scores.tiles) for band in score_bands(network, reader(image), (400, 70), seen, CPU)]
    across = len(seen.grid((400, 70), (400, 70), True).columns.starts)
    assert len(held) > 20 and max(held) <= 2 * across


def test_where_no_pixel_counts_the_network_does_not_look(artifact):
    seen, size = Views("sliding", (24, 24), flip=True), (120, 150)
    image, valid = tiny.picture(*size, 1), np.zeros(size, bool)
    valid[70:76, 30:90] = True
    network = Runtime().resolve(artifact.path).prepare(artifact, 1)
    (whole,) = batch_scores(network, to_input(image, network.normalisation, CPU), seen, CPU)
    looked = []

    def count(x):
        looked.append(len(x))
        return network(x)

    count.normalisation, count.align_corners = network.normalisation, network.align_corners
    found = np.zeros(size, np.uint8)
    without = 0
    for band in score_bands(count, reader(image, valid), size, seen, CPU):
        without += band.scores is None
        if band.scores is not None:
            found[band.top : band.top + len(band.region.image)] = band.scores.predict()
    assert np.array_equal(found[valid], whole.predict()[valid])
    assert without >= 2 and sum(looked) < len(whole.tiles) / 3


@pytest.mark.parametrize("size", [(4000, 6000), (61, 83), (5, 100_000), (31_000, 32_000), (300, 300), (1, 7)])
@pytest.mark.parametrize("most", [70, 5000, 769 * 769, 3_000_000])
def test_a_plan_covers_the_picture_within_the_budget(size, most):
    tile, overlap = plan_tile(size, most)
    grid = Views(max_pixels=most).grid(size, size, True)
    if size[0] * size[1] <= most:
        assert grid.is_whole
        return
    assert tile[0] * tile[1] <= most and 0 < overlap <= views.OVERLAP
    for axis, length in zip((grid.rows, grid.columns), size, strict=True):
        assert axis.starts[0] == 0 and axis.starts[-1] + axis.tile == length
        for one, other in itertools.pairwise(axis.starts):
            assert one < other and one + axis.tile - other >= min(overlap, axis.tile - 1)


def test_a_plan_sees_few_pixels_twice():
    """24 megapixels: a quarter more than there are, where tiles of 769 x 769 that overlap by a third see 2.2 times."""
    grid = Views(max_pixels=1_800_000).grid((4000, 6000), (4000, 6000), True)
    assert len(grid.rows.starts) * len(grid.columns.starts) * grid.rows.tile * grid.columns.tile < 1.25 * 24e6


def limited(artifact, memory, firm=True):
    network = Runtime().resolve(artifact.path).prepare(artifact, 1)
    return Budget(memory, firm, network, lambda: build(artifact.preset.model, len(artifact.classes)))


def test_a_budget_cuts_what_is_too_large_and_says_so_once(artifact, capsys):
    own = limited(artifact, 1 << 30)
    assert own.fit(Views(), (500, 800)).grid((500, 800), (500, 800), True).is_whole
    assert capsys.readouterr().err == ""
    for _ in range(2):
        assert not own.fit(Views(), (6000, 8000)).grid((6000, 8000), (6000, 8000), True).is_whole
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "8000x6000 pixels is too large for whole mode in 1.0 GiB" in said
    # a tile that was chosen stays
    assert own.fit(Views("sliding"), (6000, 8000)).tile == (769, 769)
    assert capsys.readouterr().err == ""


def test_crosses_are_part_of_what_a_large_picture_takes(artifact):
    """The attention holds a number for each cell of each cell's row and column, whatever the part's shape."""
    model = build(artifact.preset.model, len(artifact.classes))
    own = limited(artifact, 4 << 30)
    for size in ((1000, 9000), (4000, 3000)):
        rows, columns = (-(-side // model.stride) for side in size)
        needed = own._measure(size) * size[0] * size[1] / budget.SLACK
        assert needed > 4 * rows * columns * (rows + columns)


def test_pictures_at_several_scales_are_part_of_what_they_take(artifact, monkeypatch):
    """The network's input, whole, as it is and at the largest scale, and the scores of every view."""
    rooms = []
    monkeypatch.setattr(Budget, "_most", lambda self, room, size: rooms.append(room) or 1_000_000)
    for looks in (Views(), Views(scales=(1.0, 1.5)), Views(scales=(1.0, 1.5), flip=True)):
        limited(artifact, 2 << 30).fit(looks, (3000, 4000))
    scores = 4 * len(artifact.classes) * 12e6 * (1 + 1.5**2) / 64
    assert rooms[0] - rooms[1] == pytest.approx(12 * 12e6 * (1 + 1.5**2) + scores, rel=0.02)
    assert rooms[1] - rooms[2] == pytest.approx(scores, rel=0.1)


def test_a_budget_that_nothing_fits_into_is_refused_where_it_was_asked_for(artifact, capsys):
    with pytest.raises(InputError, match=r"memory of 0\.2 GiB: the network and an image of 800x500 pixels take"):
        limited(artifact, 200 << 20).fit(Views(), (500, 800))
    assert limited(artifact, 200 << 20, firm=False).fit(Views(), (500, 800)).max_pixels == 769 * 769


def test_a_tight_budget_keeps_no_transformed_filters_and_the_same_bits(monkeypatch):
    if not convolution.is_faster(torch.float32, 64):
        pytest.skip("the kernels are not used on this processor")
    monkeypatch.setattr(engine, "MIN_MACS_FOR_WINOGRAD", 1)
    monkeypatch.setattr(budget, "PROGRAM_BYTES", 0)
    preset = config.load("camvid", ["model.backbone=tiny", "model.width=64", "model.channels=64"])
    model = build(preset.model, 5).eval()
    image, answers, rooms = torch.randn(1, 3, 65, 81), [], []
    for memory in (1 << 30, 1 << 24):
        network = engine.prepare(model, CPU)
        rooms.append(memory - Budget(memory, True, network, lambda: model)._room)
        answers.append(network(image))
        assert any(conv.quick for conv in network.convolutions)
        kept = [conv for conv in network.convolutions if "filters" in vars(conv)]
        assert bool(kept) is (memory == 1 << 30)
    assert torch.equal(*answers) and rooms[0] > rooms[1]


def test_what_a_network_takes_is_what_lives_at_once():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.Conv2d(8, 20, 1), torch.nn.Conv2d(20, 2, 1))
    # the picture, which the caller holds, and the input and output of the second convolution
    assert budget.peak_bytes(network.to("meta"), (64, 80)) == 4 * (3 * 4 + 8 + 20) * 32 * 40


def test_the_engine_is_measured_as_it_runs():
    """A block's result is added to what is there where that is one operator, and lies beside it where it is two."""
    preset = config.load("quickstart", ["model.backbone=resnet50", "model.head.recurrence=0"])
    with torch.device("meta"):
        networks = [engine.Engine(build(preset.model, 5), torch.float32, fused) for fused in (True, False)]
    fused, plain = (budget.peak_bytes(network, (256, 256)) for network in networks)
    assert fused < plain


def test_the_backbone_s_map_goes_before_the_attention_for_the_same_bits():
    preset = config.load("quickstart", ["model.backbone=resnet50", "model.channels=64"])
    model = build(preset.model, 5).eval()
    tiny.stir(model)
    network, image = engine.prepare(model, CPU), torch.randn(1, 3, 65, 81)
    whole = network(image)
    network.release_maps()
    network.release_maps()
    assert torch.equal(network(image), whole)
    with torch.device("meta"):
        larger = build_unfilled(config.load("cityscapes-r2").model, 19)
        before, after = (engine.Engine(larger, torch.float32, True) for _ in range(2))
        after.release_maps()
    assert budget.peak_bytes(after, (512, 512)) < 0.9 * budget.peak_bytes(before, (512, 512))


def test_a_network_is_measured_without_torch_s_compiler():
    """Which takes a second to load, and memory that the pictures need."""
    code = """
import sys, torch
from ccnet_cli import config
from ccnet_cli.inference.budget import Budget
from ccnet_cli.inference.engine import prepare
from ccnet_cli.models.network import build_unfilled
model = config.load("cityscapes-r2", ["model.backbone=resnet18"]).model
engine = prepare(build_unfilled(model, 19).eval(), torch.device("cpu"))
assert Budget(1 << 30, True, engine, lambda: build_unfilled(model, 19)).pixel_bytes > 50
assert "torch._dynamo" not in sys.modules and "sympy" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_bytes_count_from_an_operator_until_nothing_holds_them():
    with budget._Meter([]) as meter:
        x = torch.zeros(4, 5)
        y = x.add_(1).view(20) + 1
        assert (meter.now, meter.most) == (160, 160)
        del x
        assert (meter.now, meter.most) == (80, 160)
        del y
    assert (meter.now, meter.most) == (0, 160)


@pytest.mark.parametrize("version", [1, 2])
def test_a_container_has_what_its_tightest_group_leaves(tmp_path, version):
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if version == 1 else ("memory.max", "memory.current")
    root = tmp_path / "memory" if version == 1 else tmp_path
    for folder, limit, used in (("", "max", "9"), ("jobs", 4000, 1000), ("jobs/one", 9000, 500)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for name, value in zip(names, (limit, used), strict=True):
            (root / folder / name).write_text(f"{value}\n")
        (root / folder / "memory.stat").write_text("anon 5\ninactive_file 300\n")
    membership = tmp_path / "cgroup"
    membership.write_text("3:cpu:/x\n" + ("7:memory:/jobs/one\n" if version == 1 else "0::/jobs/one\n"))
    assert min(budget._container_limits(membership, tmp_path)) == 4000 - 1000 + 300
    assert budget._container_limits(tmp_path / "none", tmp_path) == []
    assert 0 < machine_memory(CPU)


def test_memory_that_runs_out_in_a_band_is_an_error_of_the_picture(artifact):
    def fail(x):
        raise MemoryError

    fail.normalisation, fail.align_corners = artifact.network.normalisation, True
    with pytest.raises(bands.OutOfMemory, match="an image of 90x60 pixels: not enough memory"):
        next(score_bands(fail, reader(tiny.picture(60, 90, 1)), (60, 90), Views("sliding", (24, 24)), CPU))


@pytest.mark.parametrize("formats", [("color",), ("overlay", "train-id")])
@pytest.mark.parametrize("options", [{}, {"overrides": ("eval.mode=sliding", "eval.flip=true")}])
def test_large_images_become_the_same_files(artifact, tmp_path, monkeypatch, options, formats):
    tiny.write(tmp_path / "photos/a.png", tiny.picture(90, 130, 1))
    tiny.write(tmp_path / "photos/b.jpg", tiny.picture(90, 110, 2))
    photos = sorted(tmp_path.glob("photos/*"))
    memory = 1 << 30
    if not options:
        # room for some 3,000 pixels, of whole mode as well, besides the picture
        monkeypatch.setattr(budget, "PROGRAM_BYTES", memory - 438_000)
        monkeypatch.setattr(budget, "MIN_PIXELS", 100)
    options = options | {"formats": formats, "device": "cpu", "memory": memory, "firm": True}
    at_once = calls.predict(photos, tmp_path / "one", artifact.path, **dict(options))
    seen = []
    monkeypatch.setattr(segmenter, "MIN_PIXELS_OF_BANDS", 1)
    monkeypatch.setattr(segmenter, "score_bands", lambda *rest: seen.append(rest[2]) or score_bands(*rest))
    in_bands = calls.predict(photos, tmp_path / "two", artifact.path, **options)
    assert seen == [(90, 130), (90, 110)]
    for one, two in zip(at_once.files, in_bands.files, strict=True):
        assert one.read_bytes() == two.read_bytes()


def test_whole_mode_within_a_budget_is_that_tiling(artifact, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(budget, "PROGRAM_BYTES", (1 << 30) - 438_000)
    monkeypatch.setattr(budget, "MIN_PIXELS", 100)
    image = tiny.picture(90, 130, 1)
    photo = tiny.write(tmp_path / "a.png", image)
    calls.predict([photo], tmp_path / "ids.png", artifact.path, formats=["train-id"], memory=1 << 30, firm=True)
    assert "is too large for whole mode in 1.0 GiB (--memory): it is seen in" in capsys.readouterr().err
    runtime = Runtime("cpu", memory=1 << 30, firm=True).resolve(artifact.path)
    network = runtime.prepare(artifact, 1)
    seen = runtime.budget(artifact, network).fit(Views(), (90, 130))
    assert 1000 < seen.max_pixels < 90 * 130 / 2
    (scores,) = batch_scores(network, to_input(image, network.normalisation, CPU), seen, CPU)
    assert np.array_equal(images.read_label(tmp_path / "ids.png"), scores.predict())
    (whole,) = batch_scores(network, to_input(image, network.normalisation, CPU), Views(), CPU)
    assert not np.array_equal(whole.predict(), scores.predict())
    # an evaluation sees the same
    data = tiny.make_camvid(tmp_path / "data", [(90, 130)])
    calls.evaluate(artifact.path, data, save=tmp_path / "out", formats=["train-id"], memory=1 << 30, firm=True)
    (ours,) = (tmp_path / "out").glob("*.png")
    picture = images.read_image(data / "val/000.png")
    (scores,) = batch_scores(network, to_input(picture, network.normalisation, CPU), seen, CPU)
    assert np.array_equal(images.read_label(ours), scores.predict())


@pytest.fixture
def scene(tmp_path):
    """A drawn GeoTIFF of 500 x 700 pixels, part of it without data."""
    rasterio = pytest.importorskip("rasterio")
    path, image = tmp_path / "scene.tif", np.maximum(tiny.picture(500, 700, 1), 1)
    image[200:460, :300] = 0
    place = {"crs": "EPSG:32633", "transform": rasterio.Affine(2, 0, 4e5, 0, -2, 5e6), "nodata": 0}
    with rasterio.open(path, "w", "GTiff", 700, 500, 3, dtype="uint8", photometric="rgb", **place) as dataset:
        dataset.write(np.moveaxis(image[..., ::-1], 2, 0))
    return path, image


def test_a_scene_becomes_a_map_in_the_same_place(artifact, scene, tmp_path, capsys):
    import rasterio

    path, image = scene
    valid = (image != 0).any(-1)
    network = Runtime("cpu").resolve(artifact.path).prepare(artifact, 1)
    (scores,) = batch_scores(network, to_input(image, network.normalisation, CPU), Views("sliding", (100, 130)), CPU)
    options = {"overrides": ("eval.mode=sliding", "eval.tile=100,130"), "areas": True}
    done = calls.predict([path], tmp_path / "map.tif", artifact.path, **options)
    assert done.files == [tmp_path / "map.tif"]
    with rasterio.open(path) as source, rasterio.open(tmp_path / "map.tif") as written:
        ids = written.read(1)
        assert (written.crs, written.transform, written.nodata) == (source.crs, source.transform, 255)
        assert written.colormap(1)[2][:3] == artifact.classes.palette[2]
    assert np.array_equal(ids, np.where(valid, scores.predict(), 255))
    (area,) = done.areas
    assert sum(area.pixels) == valid.sum() and area.size == (500, 700)
    # a folder of several formats, which a second run keeps
    for _ in range(2):
        options = {"formats": ("overlay", "label-id"), "tiff": True, "skip_complete": True, "mode": "sliding"}
        calls.predict([path], tmp_path / "maps", artifact.path, tile=(100, 130), **options)
    assert "1 of 1 are there already" in capsys.readouterr().err
    with rasterio.open(tmp_path / "maps/overlay/scene.tif") as written:
        drawn = np.moveaxis(written.read(), 0, 2)
    colours = np.array(artifact.classes.palette)[scores.predict()]
    assert np.array_equal(drawn[valid], (image[..., ::-1].astype(int) + colours)[valid] // 2)
    assert not drawn[~valid].any()


def test_a_scene_at_several_scales_is_held_or_refused(artifact, scene, tmp_path, monkeypatch):
    import rasterio

    path, image = scene
    network = Runtime("cpu").resolve(artifact.path).prepare(artifact, 1)
    seen = Views(scales=(0.5, 1.0))
    (scores,) = batch_scores(network, to_input(image, network.normalisation, CPU), seen, CPU)
    calls.predict([path], tmp_path / "map.tif", artifact.path, scales=[0.5, 1.0], formats=["train-id"])
    with rasterio.open(tmp_path / "map.tif") as written:
        assert np.array_equal(written.read(1), np.where((image != 0).any(-1), scores.predict(), 255))
    monkeypatch.setattr(large, "PIXEL_LIMIT", 500 * 700 - 1)
    with pytest.raises(InputError, match="too large to be seen at several scales"):
        calls.predict([path], tmp_path / "more.tif", artifact.path, scales=[0.5, 1.0])
    assert not (tmp_path / "more.tif").exists()


def test_a_signal_gives_up_the_scene_at_hand(artifact, scene, tmp_path, monkeypatch):
    def interrupt(*rest):
        for count, band in enumerate(score_bands(*rest)):
            if count == 3:
                os.kill(os.getpid(), signal.SIGINT)
            yield band

    monkeypatch.setattr(segmenter, "score_bands", interrupt)
    with pytest.raises(Interrupted):
        calls.predict([scene[0]], tmp_path / "out/map.tif", artifact.path, mode="sliding", tile=(100, 130))
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("side", [1500, pytest.param(20_000, marks=pytest.mark.slow)])
def test_a_large_scene_takes_flat_memory(artifact, tmp_path, side):
    """Drawn sparse: most of it has no data, but is read and written all the same."""
    rasterio = pytest.importorskip("rasterio")
    place = {"crs": "EPSG:32633", "transform": rasterio.Affine(2, 0, 4e5, 0, -2, 5e6), "nodata": 0}
    layout = {"tiled": True, "blockxsize": 256, "blockysize": 256, "SPARSE_OK": True, "bigtiff": "yes"}
    path = tmp_path / "scene.tif"
    with rasterio.open(path, "w", "GTiff", side, side, 3, dtype="uint8", **place, **layout) as dataset:
        dataset.write(np.full((3, 256, 256), 90, np.uint8), window=((0, 256), (side - 512, side - 256)))
    code = f"""
import resource, sys
from ccnet_cli import cli
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
def run(*words):
    try:
        cli.main(["predict", *words, "--checkpoint", {str(artifact.path)!r}, "--mode", "sliding", "--overwrite",
                  "-s", "eval.tile=257,257"])
    except SystemExit as stopped:
        assert not stopped.code, stopped.code
run({str(tmp_path / "small.tif")!r}, "-o", "small-out.tif")
before = peak()
run({str(path)!r}, "-o", "out.tif")
print(peak() - before)
"""
    with (
        rasterio.open(path) as dataset,
        rasterio.open(tmp_path / "small.tif", "w", "GTiff", 600, 600, 3, dtype="uint8", **place) as small,
    ):
        small.write(dataset.read(window=((0, 600), (side - 600, side))))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    grown = int(done.stdout.splitlines()[-1])
    print(f"{side}: {grown} MiB")
    # the image and its classes alone would be 4 bytes a pixel, 1.5 GiB of the large one; rows and blocks are held
    assert grown < 60 + 40 * side * 257 / (1 << 20)
    with rasterio.open(tmp_path / "out.tif") as written:
        assert written.shape == (side, side) and written.crs == "EPSG:32633"
        assert set(np.unique(written.read(1, window=((0, 600), (side - 600, side))))) <= {*range(11), 255}
