"""What a run is: the preset's schema, and how a preset is found, overridden, checked and written."""

import difflib
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ccnet_cli.errors import InputError

LARGEST_FILE = 1 << 20
DEEPEST_NESTING = 16

# words people bring from other projects, and what they are called here
SYNONYMS = {
    "learning_rate": "schedule.lr",
    "base_lr": "schedule.lr",
    "batch_size": "train.batch",
    "iterations": "schedule.steps",
    "max_iters": "schedule.steps",
    "epochs": "schedule.steps",
    "num_workers": "data.workers",
    "crop_size": "data.crop",
    "ignore_label": "data.ignore_index",
    "amp": "train.precision",
}


def _two(value: object, meaning: str) -> object:
    """Read "512,1024" as the two integers that it names; leave anything else of two parts to the validator."""
    if isinstance(value, str):
        parts = value.split(",")
        if len(parts) == 2 and all(re.fullmatch(r"\s*\d{1,6}\s*", part) for part in parts):
            return [int(part) for part in parts]
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"two positive integers expected, {meaning}")
    return value


def _pair(value: object) -> object:
    return _two(value, "height and width, such as 512,1024")


def _sides(value: object) -> object:
    return _two(value, "the longer side and the shorter, such as 2048,512")


def _longer_first(sides: tuple[int, int]) -> tuple[int, int]:
    if sides[0] < sides[1]:
        raise ValueError("the longer side comes first, whatever the picture's orientation")
    return sides


# strict: YAML has its own types, so a quoted number or a true in place of 1 is a mistake worth telling
Int = Annotated[int, Field(strict=True, ge=0, le=1_000_000_000)]
Count = Annotated[int, Field(strict=True, ge=1, le=1_000_000_000)]
Channels = Annotated[int, Field(strict=True, ge=1, le=16384)]
Byte = Annotated[int, Field(strict=True, ge=0, le=255)]
Flag = Annotated[bool, Field(strict=True)]
Float = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(strict=True, ge=0, lt=1, allow_inf_nan=False)]
Side = Annotated[int, Field(strict=True, ge=1, le=16384)]
Pair = Annotated[tuple[Side, Side], BeforeValidator(_pair)]
Fit = Annotated[tuple[Side, Side], BeforeValidator(_sides), AfterValidator(_longer_first)]
Text = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f\x7f]*$")]
Scale = Annotated[float, Field(strict=True, gt=0, le=8, allow_inf_nan=False)]


class Section(BaseModel):
    """A group of preset keys: unknown keys are refused, values do not change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Model(Section):
    """The network; mean and std are in channel_order, for pixel values 0 to 255.

    stem: deep is three 3x3 convolutions of 64, 64, 128 channels (at width 64), v1c of 32, 32, 64, 7x7 one of 64.
    dilation: the first block of layers 3 and 4 is dilated as the others are, or half as much (contracted).
    """

    backbone: Literal["tiny", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
    width: Channels = 64
    stem: Literal["deep", "v1c", "7x7"] = "deep"
    dilation: Literal["dilated", "contracted"] = "dilated"
    pool: Literal["ceil", "floor"] = "ceil"
    recurrence: Annotated[int, Field(strict=True, ge=0, le=3)]
    channels: Channels = 512
    query_channels: Channels | None = None
    activation: Literal["leaky_relu", "relu"] = "leaky_relu"
    auxiliary: Flag = True
    auxiliary_channels: Channels = 512
    auxiliary_bias: Flag = True
    dropout: Fraction = 0.1
    channel_order: Literal["bgr", "rgb"] = "bgr"
    mean: tuple[Float, Float, Float] = (104.00698793, 116.66876762, 122.67891434)
    std: tuple[Positive, Positive, Positive] = (1.0, 1.0, 1.0)
    align_corners: Flag = True
    implementation: Literal["auto", "reference", "gemm", "numba"] = "auto"


class Data(Section):
    """Where images and labels are, which classes they have, and how training samples are cut.

    A picture is scaled to fit within fit, its longer and its shorter side, and then by scale_min to scale_max, with
    scale_step 0 anything between. category_ratio below 1 avoids crops of which one class covers that share. timeout is
    how many seconds a batch may take before the worker that owes it is given up.
    """

    dataset: Literal["cityscapes", "camvid", "ade20k", "voc", "lip", "cocostuff", "toyscapes", "folder"]
    root: Text | None = None
    train_split: Text = "train"
    val_split: Text = "val"
    train_list: Text | None = None
    val_list: Text | None = None
    test_list: Text | None = None
    train_images: Text | None = None
    train_labels: Text | None = None
    val_images: Text | None = None
    val_labels: Text | None = None
    classes: Annotated[list[Text], Field(min_length=1, max_length=255)] | None = None
    palette: list[tuple[Byte, Byte, Byte]] | None = None
    ignore_index: Byte = 255
    crop: Pair
    fit: Fit | None = None
    scale_min: Scale = 0.7
    scale_max: Scale = 2.1
    scale_step: Annotated[float, Field(strict=True, ge=0, le=8, allow_inf_nan=False)] = 0.1
    category_ratio: Annotated[float, Field(strict=True, gt=0, le=1)] = 1.0
    mirror: Flag = True
    photometric: Flag = False
    workers: Annotated[int, Field(strict=True, ge=0, le=64)] = 2
    timeout: Annotated[int, Field(strict=True, ge=1, le=86400)] = 300

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.scale_min > self.scale_max:
            raise ValueError("scale_min must not be above scale_max")
        if self.dataset == "folder" and self.classes is None:
            raise ValueError("dataset folder needs data.classes, the list of class names")
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            raise ValueError("classes names a class twice")
        if self.palette is not None and self.classes is not None and len(self.palette) != len(self.classes):
            raise ValueError(f"palette has {len(self.palette)} colours for {len(self.classes)} classes")
        if self.dataset != "folder" and self.ignore_index != 255:
            raise ValueError(f"ignore_index must be 255: the table of {self.dataset} maps to it")
        if self.classes is not None and self.ignore_index < len(self.classes):
            raise ValueError(f"ignore_index {self.ignore_index} is also class {self.classes[self.ignore_index]}")
        return self


class Train(Section):
    """The optimiser; batch is global, micro_batch what one process computes at once (the rest is accumulated).

    precision auto is bf16 where the device computes in it, else fp32. max_nonfinite steps in a row that are skipped for
    their loss or gradient end the run.
    """

    batch: Annotated[int, Field(strict=True, ge=1, le=65536)]
    micro_batch: Count | None = None
    optimizer: Literal["sgd", "adamw"]
    momentum: Fraction = 0.9
    weight_decay: Float = 1e-4
    clip_norm: Positive | None = None
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    channels_last: Flag = True
    checkpoint_activations: Flag = False
    ema: Fraction = 0.0
    sync_bn: Flag = True
    max_nonfinite: Count = 10


class Schedule(Section):
    """Poly decay from lr to minimum over steps, after a linear warm-up."""

    steps: Count
    lr: Positive
    power: Float = 0.9
    warmup: Int = 0
    minimum: Float = 0.0

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.warmup >= self.steps:
            raise ValueError(f"warmup {self.warmup} must be below steps {self.steps}")
        if self.minimum > self.lr:
            raise ValueError(f"minimum {self.minimum} must not be above lr {self.lr}")
        return self


class Ohem(Section):
    """Online hard example mining of the main loss.

    rule official is the authors' (min_kept for what a process computes at once), mmseg mmsegmentation's (per image).
    """

    enabled: Flag
    threshold: Annotated[float, Field(strict=True, gt=0, le=1)] = 0.7
    min_kept: Count = 100000
    rule: Literal["official", "mmseg"] = "official"


class Loss(Section):
    """Cross entropy, plus auxiliary times that of the auxiliary head.

    average is what the sum over pixels is divided by: the valid ones, or all, as mmsegmentation does. Mining by the
    official rule always averages over the pixels it keeps.
    """

    auxiliary: Float = 0.4
    average: Literal["valid", "all"] = "valid"
    ohem: Ohem = Ohem(enabled=False)


class Eval(Section):
    """How images are scored; every counts training steps between evaluations, 0 for once at the end.

    An image is scaled to fit within fit, its longer and its shorter side, before scales apply; scores get its own size.
    The network sees up to batch pictures or tiles of one size at once.
    """

    mode: Literal["whole", "sliding"] = "whole"
    tile: Pair = (769, 769)
    fit: Fit | None = None
    scales: Annotated[list[Scale], Field(min_length=1, max_length=32)] = [1.0]
    flip: Flag = False
    batch: Annotated[int, Field(strict=True, ge=1, le=1024)] = 1
    every: Int = 0


class Checkpoint(Section):
    """How often, in steps, a checkpoint is written, and how many are kept."""

    every: Count = 500
    keep: Annotated[int, Field(strict=True, ge=2, le=1000)] = 2


class Log(Section):
    """How often, in steps, a line is logged."""

    every: Count = 10
    tensorboard: Flag = False


class Preset(Section):
    """One run, whole; published is the figure other people reached with this recipe."""

    name: Text
    description: str = ""
    source: str = ""
    published: str | None = None
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**32)] = 0
    model: Model
    data: Data
    train: Train
    schedule: Schedule
    loss: Loss = Loss()
    eval: Eval = Eval()
    checkpoint: Checkpoint = Checkpoint()
    log: Log = Log()


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars (1e-2 is a float, `no` a word), no duplicate keys, aliases, tags or deep nesting."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        mark = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(None, None, "an alias is not allowed here", mark)
        if event.tag is not None:
            raise yaml.MarkedYAMLError(None, None, f"tag {event.tag} is not allowed here", mark)
        if self.depth >= DEEPEST_NESTING:
            raise yaml.MarkedYAMLError(None, None, "nested too deep", mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                raise yaml.MarkedYAMLError(None, None, "a key must be a word", key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(None, None, f"key {key.value} is written twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes every string that the loader would read as something else; writes lists in one line."""

    def represent_list(self, data: Any) -> yaml.SequenceNode:
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)


_Dumper.add_representer(list, _Dumper.represent_list)


# seventeen digits: Python refuses to convert absurdly long integers with an error of its own
for _tag, _pattern, _first in (
    ("null", r"null|~|", ["n", "~", ""]),
    ("bool", r"true|false", ["t", "f"]),
    ("int", r"[-+]?(0|[1-9][0-9]{0,17})", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def folder() -> Path:
    """Where the presets lie: inside the package when installed, beside it in a checkout."""
    installed = Path(__file__).parents[1] / "presets"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "presets"


def names() -> list[str]:
    """Names of the presets that come with ccnet, sorted."""
    return sorted(path.stem for path in folder().glob("*.yaml"))


def load(name_or_path: str, overrides: Sequence[str] = ()) -> Preset:
    """Read a preset by name, or a file by path, and apply overrides, each "key=value"; InputError if any is wrong."""
    path = find(name_or_path)
    mapping = _read(path)
    for text in overrides:
        override(mapping, text)
    return from_mapping(mapping)


def find(name_or_path: str) -> Path:
    """The file of a preset name or path; InputError names the nearest preset."""
    known = names()
    if name_or_path in known:
        return folder() / f"{name_or_path}.yaml"
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        return path
    near = difflib.get_close_matches(name_or_path, known, n=1, cutoff=0.5)
    fix = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(known)}, or give a .yaml file"
    raise InputError(f"preset {name_or_path or '(empty)'}", "unknown", fix)


def from_mapping(mapping: Mapping[str, Any]) -> Preset:
    """Check a mapping of plain types and make a preset of it; InputError names the first key at fault."""
    try:
        return Preset.model_validate(dict(mapping))
    except ValidationError as error:
        raise _told(error) from None


def to_mapping(preset: Preset) -> dict[str, Any]:
    """The preset as dicts, lists and scalars, every key present."""
    return preset.model_dump(mode="json")


def dump(preset: Preset) -> str:
    """The whole preset as YAML that load reads back to an equal preset."""
    return yaml.dump(to_mapping(preset), Dumper=_Dumper, sort_keys=False, default_flow_style=False, width=120)


def keys() -> list[str]:
    """Every dotted key a preset can have, sections left out, in the schema's order."""
    return list(_keys(Preset, ""))


def differences(one: Preset, other: Preset) -> list[str]:
    """The dotted keys in which two presets differ, in the schema's order."""
    return [key for key in keys() if value(one, key) != value(other, key)]


def value(preset: Preset, key: str) -> Any:
    """What a preset has under a dotted key."""
    found: Any = preset
    for name in key.split("."):
        found = getattr(found, name)
    return found


def _keys(section: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def _read(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; InputError gives line and column."""
    if not path.is_file():
        why = "is not a file" if path.exists() else "does not exist"
        raise InputError(f"preset {path}", why, "give a .yaml file or a name from ccnet presets list")
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise InputError(f"preset {path}", f"cannot be read ({error.strerror})", "check its permissions") from None
    if len(content) > LARGEST_FILE:
        raise InputError(f"preset {path}", f"larger than {LARGEST_FILE} bytes", "give a preset file")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"preset {path}", f"byte {error.start} is not UTF-8", "save the file as UTF-8") from None
    value = _parse(text, str(path))
    if not isinstance(value, dict):
        found = "nothing" if value is None else "a list" if isinstance(value, list) else "a single value"
        why = f"keys and values expected, found {found}"
        raise InputError(f"preset {path}:1:1", why, "start from ccnet presets copy quickstart FILE")
    return value


def _parse(text: str, where: str) -> Any:
    """One YAML document as plain types; `where` opens the error message."""
    try:
        return _Loader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
        # yaml splits some sentences in two: "expected a single document", "but found another document"
        why = f"{error.context} {error.problem}" if str(error.problem).startswith("but ") else error.problem
        raise InputError(place, str(why), "correct the YAML") from None
    except yaml.reader.ReaderError as error:
        place = f"{where}:{text.count(chr(10), 0, error.position) + 1}"
        raise InputError(place, f"character {error.character!r} is not allowed in YAML", "remove it") from None


def override(mapping: dict[str, Any], text: str) -> None:
    """Set one key of a preset mapping in place from "key=value"."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InputError(f"--set {text}", "KEY=VALUE expected", "write for example --set model.recurrence=1")
    if key not in keys():
        raise _unknown(key)
    *sections, last = key.split(".")
    for section in sections:
        inner = mapping.setdefault(section, {})
        if not isinstance(inner, dict):
            raise InputError(f"preset key {section}", "a group of keys expected", "see ccnet presets show quickstart")
        mapping = inner
    mapping[last] = _parse(value, f"--set {key}")


def _unknown(key: str) -> InputError:
    known = keys()
    inside = [known_key for known_key in known if known_key.startswith(f"{key}.")]
    if inside:
        return InputError(f"preset key {key}", "a group of keys, not a value", f"set one of {', '.join(inside)}")
    leaves = {known_key.rpartition(".")[2]: known_key for known_key in reversed(known)}
    last = key.rpartition(".")[2]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.7)
    near = near or [leaves[word] for word in (last,) if word in leaves]
    near = near or [SYNONYMS[word] for word in difflib.get_close_matches(last, SYNONYMS, n=1, cutoff=0.75)]
    near = near or [leaves[word] for word in difflib.get_close_matches(last, leaves, n=1, cutoff=0.6)]
    fix = f"did you mean {near[0]}?" if near else "see every key with ccnet presets show quickstart"
    return InputError(f"preset key {key}", "unknown", fix)


def _told(error: ValidationError) -> InputError:
    """The first thing pydantic refused, in this project's words."""
    errors = error.errors(include_url=False, include_context=False)
    # a misspelt key is reported as missing too: tell the spelling
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return _unknown(place)
    # the key itself, without the position in its list
    key = ".".join(part for part in first["loc"] if isinstance(part, str))
    if first["type"] == "missing" and key == place:
        return InputError(f"preset key {key}", "missing", "add it, or start from ccnet presets copy quickstart FILE")
    why = _WORDS.get(first["type"]) or first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    value = first["input"]
    if not isinstance(value, Mapping | BaseModel) and first["type"] != "missing":
        why += f", found {'null' if value is None else str(value)[:60]}"
    fix = f"correct it in the file or with --set {key}=VALUE" if key in keys() else "correct the file or use --set"
    return InputError(f"preset key {place}" if place else "preset", why, fix)


_WORDS = {
    "string_pattern_mismatch": "control characters are not allowed",
    "too_short": "too few values",
    "too_long": "too many values",
    "missing": "a value is missing",
    "string_too_short": "must not be empty",
    "string_type": "must be text (put it in quotes)",
}
