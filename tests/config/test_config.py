"""Presets: what they hold, how they are overridden, and how mistakes in them are told."""

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ccnet_cli import config
from ccnet_cli.errors import InputError

SMALLEST = """\
name: mine
model: {backbone: tiny, recurrence: 2}
data: {dataset: toyscapes, crop: [64, 128]}
train: {batch: 4, optimizer: adamw, precision: fp32}
schedule: {steps: 10, lr: 1e-2}
"""


@pytest.fixture
def preset(tmp_path: Path) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(SMALLEST)
    return str(path)


def refused(name: str, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        config.load(name, overrides)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_promised_presets_are_there():
    promised = {"cityscapes-r1", "cityscapes-r2", "cityscapes-r2-ohem", "camvid", "quickstart"}
    assert promised | {f"toyscapes-r{r}" for r in range(3)} <= set(config.names())


def test_presets_are_described_as_they_are_without_being_read_whole():
    for name, own in config.describe().items():
        preset = config.load(name)
        assert own == {key: getattr(preset, key) or "" for key in ("name", "description", "source", "published")}
    assert list(config.describe()) == config.names()


FILES = sorted(path.stem for path in config.folder().glob("*.yaml"))


@pytest.mark.parametrize("name", FILES)
def test_a_preset_of_ours_writes_its_own_name(name: str):
    preset = config.load(name)
    written = yaml.safe_load((config.folder() / f"{name}.yaml").read_text())
    assert leaves(config.to_mapping(preset)) == set(config.keys(preset))
    # a base, and null for a term of the loss that the base has, are not in the preset
    assert leaves(written) - {"base", "loss.auxiliary"} <= leaves(config.to_mapping(preset))
    assert preset.name == name
    assert preset.description and preset.source


def leaves(mapping: dict, prefix: str = "") -> set[str]:
    return {
        leaf
        for key, value in mapping.items()
        for leaf in (leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key])
    }


def test_the_preset_for_a_small_gpu_is_the_recipe_in_less_memory():
    recipe, small = config.load("cityscapes-r2-ohem"), config.load("cityscapes-r2-ohem-small")
    told = {"name", "description", "published"}
    train = {"train.micro_batch", "train.precision", "train.checkpoint_activations"}
    assert set(config.differences(recipe, small)) == told | train
    assert (small.train.micro_batch, small.train.precision, small.train.checkpoint_activations) == (2, "auto", True)


def test_the_cityscapes_presets_are_the_published_recipe():
    presets = [config.load(name) for name in ("cityscapes-r1", "cityscapes-r2", "cityscapes-r2-ohem")]
    for preset in presets:
        model, data, train, schedule = preset.model, preset.data, preset.train, preset.schedule
        assert (model.backbone.kind, model.backbone.width) == ("resnet101", 64)
        assert (model.head.channels, model.head.query_channels) == (512, 64)
        assert (model.channel_order, model.std, model.align_corners) == ("bgr", (1, 1, 1), True)
        assert model.mean == (104.00698793, 116.66876762, 122.67891434)
        assert (model.auxiliary.channels, model.head.dropout) == (512, 0.1)
        assert (train.batch, train.optimizer, train.momentum, train.weight_decay) == (8, "sgd", 0.9, 1e-4)
        assert (train.clip_norm, train.ema, train.sync_bn) == (None, 0, True)
        assert (schedule.steps, schedule.lr, schedule.power, schedule.warmup, schedule.minimum) == (
            60000,
            0.01,
            0.9,
            0,
            0,
        )
        assert (data.dataset, data.crop, data.mirror) == ("cityscapes", (769, 769), True)
        assert (data.scale_min, data.scale_max, data.scale_step) == (0.7, 2.1, 0.1)
        assert (preset.loss["auxiliary"].weight, preset.loss["auxiliary"].output) == (0.4, "auxiliary")
    assert [preset.model.head.recurrence for preset in presets] == [1, 2, 2]
    assert ["ohem" in preset.loss for preset in presets] == [False, False, True]
    assert (presets[2].loss["ohem"].threshold, presets[2].loss["ohem"].min_kept) == (0.7, 100000)


# mmsegmentation's table: backbone, data set, crop, thousands of steps -> mIoU, mIoU with scales and flip
MMSEGMENTATION = """
50 cityscapes 512x1024 40 77.76 78.87
101 cityscapes 512x1024 40 76.35 78.19
50 cityscapes 769 40 78.46 79.93
101 cityscapes 769 40 76.94 78.62
50 cityscapes 512x1024 80 79.03 80.16
101 cityscapes 512x1024 80 78.87 79.90
50 cityscapes 769 80 79.29 81.08
101 cityscapes 769 80 79.45 80.66
50 ade20k 512 80 41.78 42.98
101 ade20k 512 80 43.97 45.13
50 ade20k 512 160 42.08 43.13
101 ade20k 512 160 43.71 45.04
50 voc 512 20 76.17 77.51
101 voc 512 20 77.27 79.02
50 voc 512 40 75.96 77.04
101 voc 512 40 77.87 78.90
"""


@pytest.mark.parametrize("row", MMSEGMENTATION.strip().splitlines())
def test_the_mmsegmentation_presets_are_its_recipes(row: str):
    depth, dataset, crop, steps, single, multiple = row.split()
    preset = config.load(f"mmseg-r{depth}-{dataset}-{crop}-{steps}k")
    assert preset.published == f"mIoU {single} on val, single scale; {multiple} with scales and flip"
    assert preset.source.startswith(f"mmsegmentation configs/ccnet, ccnet_r{depth}-d8_{crop.partition('x')[0]}x")
    assert f"_{steps}k_" in preset.source
    model, data, schedule, test = preset.model, preset.data, preset.schedule, preset.eval
    backbone, head, auxiliary = model.backbone, model.head, model.auxiliary
    assert (backbone.kind, backbone.stem) == (f"resnet{depth}", "v1c")
    assert (backbone.dilation, backbone.pool) == ("contracted", "floor")
    assert (head.activation, auxiliary.activation, auxiliary.bias, auxiliary.channels) == ("relu", "relu", False, 256)
    assert (head.recurrence, head.channels, head.query_channels, head.dropout) == (2, 512, 64, 0.1)
    assert (model.channel_order, model.mean) == ("rgb", (123.675, 116.28, 103.53))
    assert (model.std, model.align_corners) == ((58.395, 57.12, 57.375), crop == "769")
    assert (preset.train.optimizer, preset.train.momentum, preset.train.weight_decay) == ("sgd", 0.9, 5e-4)
    assert preset.train.batch == (8 if dataset == "cityscapes" else 16)
    assert (schedule.steps, schedule.lr, schedule.minimum) == (int(steps) * 1000, 0.01, 1e-4)
    assert (schedule.power, schedule.warmup) == (0.9, 0)
    size, fit = {
        "512x1024": ((512, 1024), (2048, 1024)),
        "769": ((769, 769), (2049, 1025)),
        "512": ((512, 512), (2048, 512)),
    }[crop]
    assert (data.dataset, data.crop, data.fit) == (dataset, size, fit)
    assert (data.scale_min, data.scale_max, data.scale_step) == (0.5, 2.0, 0)
    assert (data.category_ratio, data.mirror, data.photometric) == (0.75, True, True)
    assert (preset.loss["auxiliary"].weight, preset.loss["auxiliary"].average) == (0.4, "all")
    assert (list(preset.loss), preset.loss["cross_entropy"].average) == (["cross_entropy", "auxiliary"], "all")
    assert (test.mode, test.fit) == ("sliding" if crop == "769" else "whole", fit)
    assert (test.tile, test.scales, test.flip) == (size, [1.0], False)


def test_the_run_scripts_differ_from_the_readme_in_what_they_set():
    readme = config.load("cityscapes-r2")
    told = {"name", "description", "source", "published"}
    for name, batch in (("cityscapes-r2-run-local", {"train.batch"}), ("cityscapes-r2-run-azure", set())):
        preset = config.load(name)
        assert set(config.differences(readme, preset)) - told == {"train.weight_decay", "eval.mode"} | batch
        assert (preset.train.weight_decay, preset.eval.mode) == (5e-4, "sliding")
        assert preset.train.batch == (4 if batch else 8)
        assert (preset.published, "commit" in preset.source) == (None, True)


@pytest.mark.parametrize(("family", "recurrences"), [("toyscapes", (0, 1, 2)), ("toyscapes2", (0, 2))])
def test_the_toyscapes_presets_differ_in_recurrence_alone(family: str, recurrences: tuple[int, ...]):
    mappings = [config.to_mapping(config.load(f"{family}-r{r}")) for r in recurrences]
    assert mappings[0]["data"]["signals"] == (2 if family == "toyscapes2" else 1)
    for r, mapping in zip(recurrences, mappings, strict=True):
        assert mapping["model"]["head"].pop("recurrence") == r
        assert f"R={r}" in mapping.pop("description")
        del mapping["name"]
    assert all(mapping == mappings[0] for mapping in mappings)


def test_an_exponent_is_a_number(preset: str):
    assert config.load(preset).schedule.lr == 0.01
    assert config.load(preset, ["schedule.lr=2e-3"]).schedule.lr == 0.002
    assert config.load(preset, ["schedule.lr=1E+0"]).schedule.lr == 1.0


def test_overrides_apply_in_order_and_reach_every_depth(preset: str):
    loaded = config.load(
        preset,
        [
            "seed=1",
            "seed=2",
            "loss.ohem.enabled=true",
            "data.crop=32,48",
            "eval.scales=[0.5, 1]",
            "data.root=a=b",
            "train.clip_norm=null",
        ],
    )
    assert loaded.seed == 2
    assert list(loaded.loss) == ["ohem", "auxiliary"]
    assert loaded.data.crop == (32, 48)
    assert loaded.eval.scales == [0.5, 1.0]
    assert loaded.data.root == "a=b"
    assert loaded.train.clip_norm is None


def test_what_a_preset_leaves_out_has_the_documented_value(preset: str):
    loaded = config.load(preset)
    assert (loaded.seed, loaded.loss["auxiliary"].weight, list(loaded.loss)) == (0, 0.4, ["cross_entropy", "auxiliary"])
    assert loaded.data.ignore_index == 255
    assert (loaded.eval.mode, loaded.eval.scales, loaded.checkpoint.keep) == ("whole", [1.0], 2)


def test_dump_and_mapping_lead_back_to_the_same_preset(tmp_path: Path):
    for name in FILES:
        preset = config.load(name)
        path = tmp_path / "again.yaml"
        path.write_text(config.dump(preset))
        assert config.load(str(path)) == preset
        assert config.from_mapping(config.to_mapping(preset)) == preset


words = st.one_of(
    st.sampled_from(["1e-2", "no", "on", "null", "~", "true", ".inf", "0x10", "1:30", "2020-01-01", "- a", "#x"]),
    st.text(st.characters(min_codepoint=32, exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20),
)


@given(word=words)
def test_any_text_survives_dump_and_load(word: str, tmp_path_factory: pytest.TempPathFactory):
    mapping = yaml.safe_load(SMALLEST.replace("1e-2", "0.01")) | {"name": word, "description": word}
    preset = config.from_mapping(mapping)
    path = tmp_path_factory.getbasetemp() / "word.yaml"
    path.write_text(config.dump(preset), encoding="utf-8")
    assert config.load(str(path)) == preset


def test_a_preset_cannot_be_changed_once_read(preset: str):
    with pytest.raises(ValueError, match="frozen"):
        config.load(preset).schedule.lr = 1.0


GOLDEN = json.loads((Path(__file__).parent / "golden_presets.json").read_text(encoding="utf-8"))
OLD = Path(__file__).parent / "v0.1.0"


@pytest.mark.parametrize("name", FILES)
def test_no_default_changes_a_recipe_in_silence(name: str):
    assert config.to_mapping(config.load(name)) == GOLDEN[name]


def test_the_golden_file_holds_no_preset_that_is_gone():
    assert set(GOLDEN) == set(FILES)


@pytest.mark.parametrize("path", sorted(OLD.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_preset_of_version_0_1_0_is_todays(path: Path, capfd: pytest.CaptureFixture[str]):
    # with what a recipe begins was not in it then
    assert config.load(str(path)) == config.load(path.stem, ["train.weights=null"])
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("model.recurrence=1", "model.head.recurrence=1"),
        ("model.width=8", "model.backbone.width=8"),
        ("model.backbone=resnet50", "model.backbone.kind=resnet50"),
        ("model.stem=7x7", "model.backbone.stem=7x7"),
        ("model.query_channels=null", "model.head.query_channels=null"),
        ("model.implementation=gemm", "model.head.implementation=gemm"),
        ("model.auxiliary_channels=3", "model.auxiliary.channels=3"),
        ("model.auxiliary_bias=false", "model.auxiliary.bias=false"),
        ("loss.auxiliary=0.3", "loss.auxiliary.weight=0.3"),
        ("loss.ohem.enabled=true", "loss.ohem.weight=1.0"),
    ],
)
@pytest.mark.parametrize("base", ["cityscapes-r2-ohem", str(OLD / "mmseg-r101-voc-512-40k.yaml")])
def test_an_old_key_sets_what_took_its_place(base: str, old: str, new: str, capfd: pytest.CaptureFixture[str]):
    if "ohem" in new and "mmseg" in base:
        new = "loss.ohem.average=all"
    before, after = config.load(base, [old]), config.load(base, [new])
    if old == "loss.ohem.enabled=true" and "mmseg" in base:
        assert list(before.loss) == ["ohem", "auxiliary"] and before.loss["ohem"] == after.loss["ohem"]
    else:
        assert before == after
    assert capfd.readouterr().err == ""


def test_old_keys_that_reach_two_parts_reach_both():
    preset = config.load("cityscapes-r2", ["model.activation=relu", "model.dropout=0.2", "loss.average=all"])
    assert (preset.model.head.activation, preset.model.auxiliary.activation) == ("relu", "relu")
    assert (preset.model.head.dropout, preset.model.auxiliary.dropout) == (0.2, 0.2)
    assert [term.average for term in preset.loss.values()] == ["all", "all"]


def test_an_auxiliary_head_that_an_old_key_adds_shares_the_old_keys_of_both():
    """The order of overrides does not matter: quickstart has no dropout and no auxiliary head."""
    words = ["model.auxiliary_channels=8", "model.activation=relu", "model.auxiliary=true"]
    for overrides in (words, words[::-1]):
        auxiliary = config.load("quickstart", overrides).model.auxiliary
        assert (auxiliary.channels, auxiliary.dropout, auxiliary.activation) == (8, 0.0, "relu")
    words = ["model.stem=7x7", "model.backbone=resnet18"]
    assert config.load("quickstart", words) == config.load("quickstart", words[::-1])


def test_mining_is_switched_by_the_old_key():
    on, off = config.load("cityscapes-r2-ohem"), config.load("cityscapes-r2-ohem", ["loss.ohem.enabled=false"])
    assert (list(on.loss), list(off.loss)) == (["ohem", "auxiliary"], ["cross_entropy", "auxiliary"])
    again = config.load("cityscapes-r2", ["loss.ohem.threshold=0.6", "loss.ohem.enabled=true"])
    assert (list(again.loss), again.loss["ohem"].threshold) == (["ohem", "auxiliary"], 0.6)


def test_an_old_loss_that_leaves_out_a_weight_has_the_one_that_it_always_had(preset: str):
    """Version 0.1.0 weighed the auxiliary loss with 0.4 and mined, where it did, at 0.7 and 100000."""
    mapping = yaml.safe_load(Path(preset).read_text().replace("1e-2", "0.01"))
    loss = config.from_mapping(mapping | {"loss": {"ohem": {"enabled": True}, "average": "all"}}).loss
    assert list(loss) == ["ohem", "auxiliary"]
    assert (loss["ohem"].weight, loss["auxiliary"].weight, loss["auxiliary"].output) == (1.0, 0.4, "auxiliary")
    assert (loss["ohem"].threshold, loss["ohem"].min_kept) == (0.7, 100_000)
    assert (loss["ohem"].average, loss["auxiliary"].average) == ("all", "all")


def test_without_an_auxiliary_head_its_term_goes_and_with_it_comes_back():
    without = config.load("cityscapes-r2-ohem", ["model.auxiliary=false"])
    assert without.model.auxiliary is None and list(without.loss) == ["ohem"]
    with_head = config.load("quickstart", ["model.auxiliary=true", "model.auxiliary_channels=8"])
    assert with_head.model.auxiliary.channels == 8
    assert (list(with_head.loss), with_head.loss["auxiliary"].weight) == (["ohem", "auxiliary"], 0.4)


def test_an_old_key_with_nothing_to_act_on_is_announced(capfd: pytest.CaptureFixture[str]):
    assert config.load("quickstart", ["model.stem=7x7"]) == config.load("quickstart")
    assert capfd.readouterr().err == "ccnet: preset key model.stem: has no effect on this network\n"


def test_another_kind_keeps_the_keys_that_both_have():
    preset = config.load("cityscapes-r2", ["model.backbone=tiny", "model.backbone.width=8"])
    assert config.to_mapping(preset)["model"]["backbone"] == {"kind": "tiny", "width": 8}
    head = config.load("cityscapes-r2", ["model.head.channels=32", "model.head.kind=fcn"]).model.head
    assert (head.kind, head.channels) == ("fcn", 32)


def test_a_term_is_added_and_taken_away():
    both = config.load("cityscapes-r2", ["loss.ohem.weight=0.5"])
    assert list(both.loss) == ["cross_entropy", "auxiliary", "ohem"] and both.loss["ohem"].weight == 0.5
    named = config.load("cityscapes-r2", ["loss.hard.kind=ohem", "loss.hard.min_kept=9", "loss.cross_entropy=null"])
    assert list(named.loss) == ["auxiliary", "hard"] and named.loss["hard"].min_kept == 9


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("model.recurence=1", "model.recurrence"),
        ("learing_rate=1", "schedule.lr"),
        ("lr=1", "schedule.lr"),
        ("train.batchsize=4", "train.batch"),
        ("ohem.enabled=true", "loss.ohem.enabled"),
        ("recurrence=1", "model.recurrence"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(preset: str, override: str, nearest: str):
    key = override.partition("=")[0]
    assert refused(preset, override) == f"preset key {key}: unknown; did you mean {nearest}?"


def test_an_unknown_key_in_a_file_is_refused_with_the_nearest(tmp_path: Path):
    path = tmp_path / "typo.yaml"
    path.write_text(SMALLEST.replace("recurrence", "recurence"))
    assert refused(str(path)) == "preset key model.recurence: unknown; did you mean model.recurrence?"


@pytest.mark.parametrize(
    "override",
    [
        *(f"schedule.lr={value}" for value in ("-1", "0", "nan", ".nan", "inf", ".inf", "1e999")),
        *(f"schedule.lr={value}" for value in ("fast", "null", "true", "'1'")),
        *(f"data.crop={value}" for value in ("769", "0,0", "-1,5", "768,768,3", "99999,1")),
        *(f"data.crop={value}" for value in ("[1]", "[a,b]", "[1.5,2]", "null")),
        *(f"train.batch={value}" for value in ("0", "-1", "1.5", "true", "many", "10000000000000000000000000")),
        *(f"data.workers={value}" for value in ("-1", "9999", "two")),
        *(f"model.recurrence={value}" for value in ("-1", "4", "1.0", "true", "")),
        "model.backbone=vgg16",
        "model.mean=[1, 2]",
        "model.std=[1, 0, 1]",
        "model.dropout=1",
        "data.ignore_index=3",
        "data.ignore_index=256",
        "data.scale_min=3",
        "data.scale_step=-0.1",
        "data.scale_step=.inf",
        *(f"data.category_ratio={value}" for value in ("0", "1.01", "-1", "true", ".nan")),
        *(f"data.photometric={value}" for value in ("1", "yes", "null")),
        *(f"data.fit={value}" for value in ("2048", "512,2048", "0,0", "[1]", "[a,b]", "99999,1", "2048,512,3")),
        *(f"eval.fit={value}" for value in ("769,1538", "[2048]", "whole")),
        "model.activation=tanh",
        "model.auxiliary_bias=0",
        "loss.average=mean",
        "data.dataset=imagenet",
        "data.palette=[[0, 0, 256]]",
        "eval.mode=tiles",
        "eval.scales=[]",
        "eval.scales=[0]",
        "schedule.warmup=10",
        "schedule.minimum=1",
        "checkpoint.keep=1",
        "checkpoint.every=0",
        "loss.ohem.threshold=0",
        "loss.ohem=true",
        "loss.ohem.rule=paper",
        "loss.average=kept",
        "model={}",
        "seed=-1",
        "seed=4294967296",
        "seed=010",
        'name="a\\nb"',
        "name=",
        "name=!!python/object/apply:os.system ['touch x']",
        "name=!!str x",
        "data.classes=[road, road]",
        "data.root=a: b",
        "data.root=[",
        "data.root=" + "[" * 5000,
        "data.root=\x07",
        "data.root",
        "=1",
        "",
    ],
)
def test_a_bad_value_is_refused_in_one_line(preset: str, override: str):
    told = refused(preset, override)
    key = override.partition("=")[0]
    assert key.rpartition(".")[0] in told
    assert len(told) < 700


def test_what_fit_means_is_told(preset: str):
    assert config.load(preset, ["data.fit=2048,512", "eval.fit=[64, 64]"]).data.fit == (2048, 512)
    for key in ("data.fit", "eval.fit"):
        assert "the longer side and the shorter" in refused(preset, f"{key}=2048")
        assert "the longer side comes first" in refused(preset, f"{key}=512,2048")
        assert config.load(preset, [f"{key}=null"]) == config.load(preset)


def test_a_folder_data_set_needs_classes_that_agree(preset: str):
    assert "classes" in refused(preset, "data.dataset=folder")
    named = ["data.dataset=folder", "data.classes=[road, car]"]
    assert "1 colours for 2 classes" in refused(preset, *named, "data.palette=[[0, 0, 0]]")
    assert "ignore_index 1 is also class car" in refused(preset, *named, "data.ignore_index=1")
    assert config.load(preset, [*named, "data.ignore_index=2"]).data.ignore_index == 2


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ("", ":1:1"),
        ("# only a comment\n", ":1:1"),
        ("- a\n", ":1:1"),
        ("word\n", ":1:1"),
        ("name: x\n\tseed: 1\n", ":2:1"),
        ("name: x\n  seed: 1\n", ":2:7"),
        ("name: x\n---\nname: y\n", ":2:1"),
        ("name: x\nname: y\n", ":2:1"),
        ("model: {width: 1, width: 2}\n", ":1:19"),
        ("name: [\n", ":2:1"),
        ("name: &a x\nseed: *a\n", ":2:7"),
        ("name: !!python/object/apply:os.system ['touch x']\n", ":1:7"),
        ("name: " + "[" * 5000, ":1:22"),
        ("name: " + "{a: " * 5000, ":1:"),
        ("1.5: x\n", ":1:1"),
        ("? [a]\n: x\n", ":1:3"),
        ("name: x\nseed: \x07\n", ":2"),
    ],
)
def test_bad_yaml_is_told_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, where: str):
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_text(content)
    assert f"bad.yaml{where}" in refused("bad.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]


def test_files_that_are_no_presets_are_refused(tmp_path: Path):
    path = tmp_path / "p.yaml"
    path.write_bytes(b"name: \xff\n")
    assert "not UTF-8" in refused(str(path))
    path.write_bytes(b"a" * (config.MAX_FILE_BYTES + 1))
    assert "larger than" in refused(str(path))
    path.write_text("\ufeff" + SMALLEST, encoding="utf-8")
    assert config.load(str(path)).name == "mine"
    assert "does not exist" in refused(str(tmp_path / "none.yaml"))
    assert "not a file" in refused(str(tmp_path))
    assert "missing" in refused(str(write(tmp_path / "less.yaml", SMALLEST.replace("steps: 10, ", ""))))


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_an_unknown_preset_is_refused_with_the_nearest():
    assert refused("quikstart") == "preset quikstart: unknown; did you mean quickstart?"
    assert "see ccnet presets list" in refused("zzz")
    assert "(empty)" in refused("")


def test_differences_are_named_by_their_keys():
    one, other = (
        config.load("toyscapes-r1"),
        config.load("toyscapes-r1", ["seed=4", "data.crop=8,9", "loss.ohem.min_kept=3"]),
    )
    assert config.differences(one, other) == ["seed", "data.crop", "loss.ohem.min_kept"]
    assert config.differences(one, one) == []


def test_a_part_that_only_one_preset_has_differs_as_a_whole():
    one, other = config.load("cityscapes-r2"), config.load("cityscapes-r2-ohem", ["model.auxiliary=null"])
    different = config.differences(one, other)
    assert [key for key in different if "." in key] == [
        "model.auxiliary",
        "loss.cross_entropy",
        "loss.auxiliary",
        "loss.ohem",
    ]
    assert config.value(one, "loss.ohem") is None and config.value(other, "loss.ohem")["kind"] == "ohem"


def test_fewer_steps_than_the_warm_up_shorten_it(capfd):
    short = config.load("camvid", ["schedule.steps=40"]).schedule
    assert (short.steps, short.warmup) == (40, 2)
    assert "schedule.warmup 2, was 50: as large a part of 40 steps as of 800" in capfd.readouterr().err
    assert config.load("camvid", ["schedule.steps=51"]).schedule.warmup == 50
    assert not capfd.readouterr().err
    with pytest.raises(InputError, match="warmup 50 must be below steps 40"):
        config.load("camvid", ["schedule.steps=40", "schedule.warmup=50"])
