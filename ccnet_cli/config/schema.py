"""The schema of a preset: the sections that are the same for every run, and those whose keys the tables' parts give."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, PlainValidator, SerializeAsAny, ValidationError, model_validator

from ccnet_cli.datasets import Data, settings_of
from ccnet_cli.losses import LOSSES
from ccnet_cli.models.settings import Model
from ccnet_cli.parts import (
    Count,
    Fit,
    Flag,
    Float,
    Fraction,
    Int,
    Pair,
    PartError,
    Positive,
    Scale,
    Section,
    Term,
    Text,
    chooser,
)


class EarlyStop(Section):
    """Ends a run that no longer gets better on the validation split.

    patience is how many evaluations in a row may lie within min_gain of the best figure of metric before them.
    """

    patience: Count
    metric: Literal["miou", "pixel_accuracy", "mean_accuracy"] = "miou"
    min_gain: Fraction = 0.0


class Train(Section):
    """The optimiser; batch is global, micro_batch what one process computes at once (the rest is accumulated).

    decay_vectors is whether weight_decay acts on norms, biases and gammas too; null: with sgd yes, with adamw no.
    precision auto is bf16 where the device computes in it, else fp32. tf32: products and convolutions of float32 round
    their inputs to TF32 on a GPU that has it. max_nonfinite steps in a row that are skipped for
    their loss or gradient end the run. weights is what the recipe begins with: a file, or a name of the catalogue.
    early_stop needs eval.every.
    """

    batch: Annotated[int, Field(strict=True, ge=1, le=65536)]
    micro_batch: Count | None = None
    optimizer: Literal["sgd", "adamw"]
    momentum: Fraction = 0.9
    weight_decay: Float = 1e-4
    decay_vectors: Flag | None = None
    clip_norm: Positive | None = None
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    tf32: Flag = True
    channels_last: Flag = True
    checkpoint_activations: Flag = False
    ema: Fraction = 0.0
    sync_bn: Flag = True
    max_nonfinite: Count = 10
    weights: Text | None = None
    early_stop: EarlyStop | None = None


class Schedule(Section):
    """Poly decay from lr to minimum over steps, after a linear warm-up.

    All but the backbone learns at head_lr_factor times that rate: heads are new, the backbone was trained before.
    """

    steps: Count
    lr: Positive
    head_lr_factor: Annotated[float, Field(strict=True, ge=1e-3, le=1e3, allow_inf_nan=False)] = 1.0
    power: Annotated[float, Field(strict=True, ge=0, le=100, allow_inf_nan=False)] = 0.9
    warmup: Int = 0
    minimum: Float = 0.0

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.warmup >= self.steps:
            raise ValueError(f"warmup {self.warmup} must be below steps {self.steps}")
        if self.minimum > self.lr:
            raise ValueError(f"minimum {self.minimum} must not be above lr {self.lr}")
        return self


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
    """How often, in steps, a line is logged, and which programs get numbers and pictures too; each is an extra."""

    every: Count = 10
    tensorboard: Flag = False
    wandb: Flag = False
    mlflow: Flag = False

    @property
    def trackers(self) -> list[str]:
        """The programs by name."""
        return [name for name in ("tensorboard", "wandb", "mlflow") if getattr(self, name)]


def _data(value: object) -> Data:
    """The settings of the data set that the mapping names."""
    if isinstance(value, Data):
        return value
    if not isinstance(value, Mapping):
        raise ValueError("a group of keys expected")
    try:
        return settings_of(value.get("dataset")).model_validate(value)
    except ValidationError as error:
        raise PartError(list(error.errors(include_url=False))) from None


def _terms(value: object) -> dict[str, Section | None]:
    """Every term's settings, by its kind, which is its name unless it is given."""
    if not isinstance(value, Mapping):
        raise ValueError("a group of terms expected, each with its name")
    terms: dict[str, Section | None] = {}
    for name, term in value.items():
        if term is None:
            # --set loss.NAME=null takes a term away
            continue
        term = {"kind": name, **term} if isinstance(term, Mapping) else term
        try:
            terms[str(name)] = chooser(LOSSES, f"loss.{name}")(term)
        except PartError as error:
            raise PartError([each | {"loc": (name, *each["loc"])} for each in error.errors]) from None
    if not terms:
        raise ValueError("one term at least")
    return terms


class Preset(Section):
    """One run, whole; published is the figure other people reached with this recipe.

    loss is a sum of terms, each under its name.
    """

    name: Text
    description: str = ""
    source: str = ""
    published: str | None = None
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**32)] = 0
    model: Model
    data: Annotated[SerializeAsAny[Data], PlainValidator(_data)]
    train: Train
    schedule: Schedule
    loss: Annotated[dict[str, SerializeAsAny[Term]], PlainValidator(_terms)]
    eval: Eval = Eval()
    checkpoint: Checkpoint = Checkpoint()
    log: Log = Log()

    @model_validator(mode="after")
    def _evaluate_to_stop(self) -> Self:
        if self.train.early_stop and not self.eval.every:
            raise ValueError("train.early_stop needs eval.every, the steps from one evaluation to the next")
        return self

    @model_validator(mode="after")
    def _take_clips(self) -> Self:
        if self.data.frames > 1 and not getattr(self.model.head, "takes_clips", False):
            kind = getattr(self.model.head, "kind", "")
            raise ValueError(f"data.clip has {self.data.frames} frames, model.head.kind {kind} takes 1: use rcca3d")
        return self
