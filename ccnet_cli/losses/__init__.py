"""Losses: LOSSES maps the kind of a term, `loss.NAME.kind`, to its settings and the function that builds it.

A builder is called as build(settings, ignore_index, align_corners). It returns what computes the term, before its
weight, as a 0-d float32 tensor from the network's outputs and the label: term(outputs: Outputs, label_BHW). That may be
a module; its parameters are then trained and saved with the network's, its buffers saved. What else it can do are
methods of these names, each optional:
- `prepare(classes, features)`: make what depends on the number of classes, and on the channels of outputs.features.
- `needs_pixels` (bool) and `weigh(pixels_K)`: take each class's pixels in the training set, before the first step.

This file loads no torch, so that a preset is checked in no time.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from ccnet_cli.parts import Channels, Count, Flag, Float, Fraction, Part, Positive, Term, Text, late


def _check_weights(value: object) -> object:
    """Refuse what is no choice of weights, in words that name both forms: a union's own would name neither."""
    if value is None or value == "auto":
        return value
    numbers: list[Any] = [*value] if isinstance(value, list | tuple) and 2 <= len(value) <= 255 else [None]
    if all(type(each) in (int, float) and 0 < each < float("inf") for each in numbers):
        return value
    raise ValueError("auto, or a list of positive numbers expected, one for each class")


Weights = Annotated[Literal["auto"] | list[Positive] | None, BeforeValidator(_check_weights)]


class Weighted(Term):
    """What each class weighs: a list, or "auto", ENet's weights.

    These are 1 / ln(1.02 + the class's share of the training set's pixels), with mean 1.
    """

    class_weights: Weights = None


class CrossEntropy(Weighted):
    """Cross entropy of all valid pixels.

    average is what their sum is divided by: the weights of the valid pixels (1 each without class_weights), or the
    number of all pixels, as mmsegmentation does. Weights and label_smoothing are as torch defines them.
    """

    kind: Literal["cross_entropy"] = "cross_entropy"
    average: Literal["valid", "all"] = "valid"
    label_smoothing: Fraction = 0.0


class Ohem(Weighted):
    """Cross entropy with online hard example mining.

    rule official is the authors': min_kept counts the pixels of what one process computes at once, and the average is
    over the pixels kept. mmseg is mmsegmentation's: min_kept counts per image, and average is as in cross_entropy.
    """

    kind: Literal["ohem"] = "ohem"
    threshold: Annotated[float, Field(strict=True, gt=0, le=1)] = 0.7
    min_kept: Count = 100_000
    rule: Literal["official", "mmseg"] = "official"
    average: Literal["valid", "all"] = "valid"
    label_smoothing: Fraction = 0.0


class Focal(Weighted):
    """Focal loss (Lin et al., ICCV 2017): cross entropy times (1 - p) ** gamma, the mean over the valid pixels.

    p is the true class's probability. With class_weights it is the weighted mean.
    """

    kind: Literal["focal"] = "focal"
    gamma: Annotated[float, Field(strict=True, ge=0, le=10)] = 2.0


class Dice(Term):
    """Dice loss (Milletari et al., 2016): 1 - (2 sum p f + smooth) / (sum p ** power + sum f + smooth) for each class.

    Sums are over the valid pixels of what a process computes at once; p is the class's probability, f is 1 where the
    label is the class. The mean is over the classes present in these labels, or over all.
    """

    kind: Literal["dice"] = "dice"
    classes: Literal["present", "all"] = "present"
    smooth: Float = 1.0
    power: Literal[1, 2] = 1


class Lovasz(Term):
    """Lovasz-softmax (Berman et al., CVPR 2018): a surrogate of 1 - IoU, the mean over the classes present, or all.

    One sort over all valid pixels of what a process computes at once; with per_image, the mean over images of one each.
    """

    kind: Literal["lovasz"] = "lovasz"
    classes: Literal["present", "all"] = "present"
    per_image: Flag = False


class CategoryConsistent(Term):
    """Category-consistent loss (TPAMI 2020): features of one class lie close to their mean, and means apart.

    They are outputs.features, of an rcca head its attention's output, reduced to `channels` by a 1x1 convolution that
    is trained along and is no part of the network. Labels are shrunk to their size. Means are over what a process
    computes at once. phi is what a feature's distance to its mean costs beyond delta_v: "piecewise" as in the paper, or
    "quadratic" throughout. variance, distance and regularization weigh the three sums.
    """

    kind: Literal["category_consistent"] = "category_consistent"
    channels: Channels = 16
    phi: Literal["piecewise", "quadratic"] = "piecewise"
    delta_v: Float = 0.5
    delta_d: Positive = 1.5
    variance: Float = 1.0
    distance: Float = 1.0
    regularization: Float = 0.001

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.delta_v > self.delta_d:
            raise ValueError(f"delta_v {self.delta_v} must not be above delta_d {self.delta_d}")
        return self


class Presence(Term):
    """Binary cross entropy of which classes an image holds, the mean over images and classes: EncNet's second loss."""

    kind: Literal["presence"] = "presence"
    output: Text = "presence"
    weight: Float = 0.2


LOSSES: dict[str, Part] = {
    "cross_entropy": Part(CrossEntropy, late("ccnet_cli.losses.cross_entropy")),
    "ohem": Part(Ohem, late("ccnet_cli.losses.ohem")),
    "focal": Part(Focal, late("ccnet_cli.losses.focal")),
    "dice": Part(Dice, late("ccnet_cli.losses.dice")),
    "lovasz": Part(Lovasz, late("ccnet_cli.losses.lovasz")),
    "category_consistent": Part(CategoryConsistent, late("ccnet_cli.losses.category_consistent")),
    "presence": Part(Presence, late("ccnet_cli.losses.presence")),
}
