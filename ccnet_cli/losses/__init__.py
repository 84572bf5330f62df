"""Losses: LOSSES maps the kind of a term, `loss.NAME.kind`, to its settings and the function that builds it.

A builder is called as build(settings, ignore_index, align_corners). It returns what computes the term, before its
weight, as a 0-d float32 tensor from the network's outputs and the label: term(outputs: Outputs, label_BHW). That may be
a module; its parameters are then trained and saved with the network's.

This file loads no torch, so that a preset is checked in no time.
"""

from typing import Annotated, Literal

from pydantic import Field

from ccnet_cli.parts import Count, Part, Term, late


class CrossEntropy(Term):
    """Cross entropy of all valid pixels.

    average is what their sum is divided by: the number of valid pixels, or of all, as mmsegmentation does.
    """

    kind: Literal["cross_entropy"] = "cross_entropy"
    average: Literal["valid", "all"] = "valid"


class Ohem(Term):
    """Cross entropy with online hard example mining.

    rule official is the authors': min_kept counts the pixels of what one process computes at once, and the average is
    over the pixels kept. mmseg is mmsegmentation's: min_kept counts per image, and average is as in cross_entropy.
    """

    kind: Literal["ohem"] = "ohem"
    threshold: Annotated[float, Field(strict=True, gt=0, le=1)] = 0.7
    min_kept: Count = 100_000
    rule: Literal["official", "mmseg"] = "official"
    average: Literal["valid", "all"] = "valid"


LOSSES: dict[str, Part] = {
    "cross_entropy": Part(CrossEntropy, late("ccnet_cli.losses.cross_entropy")),
    "ohem": Part(Ohem, late("ccnet_cli.losses.ohem")),
}
