"""The library: the bits of the command line, whatever a picture is given as; what is saved comes back."""

import inspect
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from attentive import saved
from calls import predict, visualize
from PIL import Image
from tiny import picture, write

import ccnet_cli
from ccnet_cli.errors import EnvironmentFailure, InputError
from ccnet_cli.inference import int8
from ccnet_cli.media import images

GUIDES = Path(ccnet_cli.__file__).parent / "guides"


@pytest.fixture(scope="module")
def street(tmp_path_factory):
    return write(tmp_path_factory.mktemp("image") / "street.png", picture(90, 122, seed=5))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("run") / "run", strength=30.0)


@pytest.fixture(scope="module")
def model(run):
    return ccnet_cli.load(run)


def test_a_picture_is_segmented_as_by_the_command_line(model, run, street, tmp_path):
    result = model.segment(street)
    for format in ("color", "train-id", "label-id", "overlay"):
        predict((str(street),), tmp_path / f"{format}.png", run, formats=(format,))
        result.save(tmp_path / f"own-{format}.png", format)
        assert (tmp_path / f"own-{format}.png").read_bytes() == (tmp_path / f"{format}.png").read_bytes()
    assert (images.read_label(tmp_path / "train-id.png") == result.mask).all() and len(np.unique(result.mask)) > 1
    assert (cv2.imread(str(tmp_path / "overlay.png"))[..., ::-1] == result.overlay()).all()
    assert (result.scores.argmax(0) == result.mask).mean() > 0.999 and result.scores.shape == (3, 90, 122)
    assert result.areas() == {name: (result.mask == i).mean() for i, name in enumerate(model.classes)}
    assert (result.classes, len(result.palette)) == (model.classes, 3)


def test_arrays_pictures_of_pil_and_lists_are_the_same_picture(model, street):
    wanted = model.segment(street).mask
    rgb = cv2.imread(str(street))[..., ::-1]
    assert (wanted != model.segment(rgb[..., ::-1]).mask).any(), "a network that does not see colours"
    for each in (rgb, Image.open(street), str(street), Image.fromarray(rgb).convert("RGBA")):
        result = model.segment(each)
        assert (result.mask == wanted).all() and (result.image == rgb).all()
    assert [(each.mask == wanted).all() for each in model.segment([street, rgb])] == [True, True]
    assert model.segment([]) == []
    grey = rgb[..., 0]
    assert (model.segment(grey).mask == model.segment(np.stack([grey] * 3, 2)).mask).all()


@pytest.mark.parametrize(
    "wrong", [np.zeros((4, 5, 3)), np.zeros((4, 5, 4), np.uint8), np.zeros((0, 5, 3), np.uint8), 7]
)
def test_what_is_no_picture_is_refused(model, wrong):
    with pytest.raises(InputError, match="picture: an array of") as caught:
        model.segment(wrong)
    assert "\n" not in str(caught.value)


@torch.no_grad()
def test_called_it_is_the_network_and_segmenting_follows_its_weights(run, street):
    model = ccnet_cli.load(run)
    x = torch.randn(2, 3, 33, 41, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(x), model.network(x)) and model(x).shape == (2, 3, 5, 6)
    assert (model.stride, model.recurrence) == (8, 2) and model.state_dict().keys() == model.network.state_dict().keys()
    before, twice = model.segment(street).mask, model.segment(street).scores
    model.recurrence = 1
    assert model.network.recurrence == 1 and (model.segment(street).scores != twice).any()
    model.recurrence = 2
    bias = model.network.head.bottleneck[-1].bias
    bias.zero_()
    bias[1] += 1e6
    after = model.segment(street).mask
    assert (before != 1).any() and (after == 1).all()


def test_the_maps_of_a_point_are_those_of_visualize(model, run, street, tmp_path):
    maps = model.attention(street, (100, 30))
    visualize(street, [(100, 30)], tmp_path / "a.png", run, maps=tmp_path / "maps.npz")
    with np.load(tmp_path / "maps.npz") as wanted:
        assert list(maps) == ["R = 1", "R = 2"]
        assert all((maps[f"R = {r}"] == wanted[f"r{r}"][0]).all() for r in (1, 2))
    with pytest.raises(InputError, match="outside the image"):
        model.attention(street, (122, 0))
    with pytest.raises(InputError, match="no attention"):
        ccnet_cli.load(saved(tmp_path / "r0", recurrence=0)).attention(street, (1, 1))


def test_what_is_saved_comes_back(model, street, tmp_path):
    wanted = model.segment(street)
    model.save_pretrained(tmp_path / "model")
    model.save(tmp_path / "model.pt")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["README.md", "model.safetensors"]
    card = (tmp_path / "model/README.md").read_text(encoding="utf-8")
    assert all(name in card for name in model.classes)
    sources = (tmp_path / "model", tmp_path / "model/model.safetensors", tmp_path / "model.pt")
    for other in (ccnet_cli.Segmenter.from_pretrained(sources[0]), *map(ccnet_cli.load, sources)):
        again = other.segment(street)
        assert (again.mask == wanted.mask).all() and (again.scores == wanted.scores).all()
        assert (again.classes, again.palette) == (wanted.classes, wanted.palette)
    predict((str(street),), tmp_path / "mask.png", tmp_path / "model", formats=("train-id",))
    assert (images.read_label(tmp_path / "mask.png") == wanted.mask).all()


def test_integers_measure_their_ranges_on_named_images(run, street, tmp_path):
    try:
        int8.check_support(torch.device("cpu"))
    except EnvironmentFailure as error:
        pytest.skip(str(error))
    predict((str(street),), tmp_path / "mask.png", run, formats=("train-id",), precision="int8")
    model = ccnet_cli.load(run, precision="int8", calibrate=[street.parent])
    assert (images.read_label(tmp_path / "mask.png") == model.segment(street).mask).all()
    assert (model.segment(street).scores != ccnet_cli.load(run).segment(street).scores).any()
    for options in ({"precision": "int8"}, {"calibrate": [street]}):
        with pytest.raises(InputError, match="names of images to measure ranges on; name some by calibrate"):
            ccnet_cli.load(run, **options)


def members(thing):
    """A public function, or a class with its public methods and properties."""
    yield thing.__name__, thing
    for name, member in vars(thing).items() if inspect.isclass(thing) else ():
        if name == "__call__" or not name.startswith("_"):
            function = getattr(member, "fget", None) or getattr(member, "__func__", member)
            if inspect.isfunction(function):
                yield name, function


def test_every_public_name_is_described_and_arrays_by_their_shapes():
    text = (GUIDES / "library.md").read_text(encoding="utf-8")
    shape = re.compile(r"\([A-Za-z]'?, [^)]*\)")
    for name in ccnet_cli.__all__:
        public = getattr(ccnet_cli, name)
        assert re.search(rf"\b{name}\b", text), name
        for own, member in members(public):
            assert member.__doc__, f"{name}.{own}"
            # a class says what goes in and comes out of it
            words = member.__doc__ + (public.__doc__ if own == "forward" else "")
            assert shape.search(words) or not re.search("Tensor|ndarray", str(inspect.signature(member))), own
            assert name not in ("Segmenter", "Segmentation") or own in ("__call__", name) or own in text, own
    with pytest.raises(AttributeError, match="no attribute nothing"):
        _ = ccnet_cli.nothing


@pytest.mark.parametrize("page", [GUIDES.parent.parent / "README.md", GUIDES / "library.md"], ids=["README", "guide"])
def test_the_lines_of_the_pages_run_as_pasted(page, street, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path / "runs/camvid")
    path.rename(tmp_path / "runs/camvid/best.pt")
    Path("street.jpg").write_bytes(images.encode_jpeg(cv2.imread(str(street))))
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    for block in blocks:
        exec(block, names := {})
    assert len(blocks) == 2 and names["y"].shape == (2, 64, 33, 45)


@torch.no_grad()
def test_the_notebook_runs(monkeypatch, tmp_path):
    """Each cell as it stands, its last line's value too."""
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((GUIDES / "library.ipynb").read_text(encoding="utf-8"))
    names: dict[str, object] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert names["overlay"].shape == (512, 1024, 3)
    assert [round(float(each.sum()), 6) for each in names["maps"].values()] == [1, 1]
