"""The training objective: named terms, weighted and added up."""

import functools
import operator
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ccnet_cli.errors import InputError
from ccnet_cli.losses import LOSSES
from ccnet_cli.parts import Outputs, Term

LossTerm = Callable[[Outputs, Tensor], Tensor]


class Weighted(NamedTuple):
    """A term, its weight, and the network's output that it looks at."""

    weight: float
    output: str
    compute: LossTerm


class Objective(nn.Module):
    """Weighted terms by name, added up in their order; a term that is a module becomes the submodule NAME_term."""

    def __init__(self, terms: Mapping[str, Weighted]) -> None:
        super().__init__()
        self.terms = dict(terms)
        for name, term in terms.items():
            if isinstance(term.compute, nn.Module):
                self.add_module(f"{name}_term", term.compute)

    def forward(self, outputs: Outputs, label_BHW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The total, 0-d, and each term's value by name, before its weight and outside of the graph.

        A term may compute its gradient along with its value: it is good for one backward pass.
        """
        self.check({"main", *outputs.auxiliary})
        # a term chooses its precision itself
        with torch.autocast(label_BHW.device.type, enabled=False):
            values = {name: term.compute(outputs, label_BHW) for name, term in self.terms.items()}
            total = functools.reduce(operator.add, (self.terms[name].weight * values[name] for name in values))
        return total, {name: value.detach() for name, value in values.items()}

    def prepare(self, classes: int, features: int) -> None:
        """Make what terms have of their own, for these numbers of classes and channels of outputs.features."""
        for term in self.terms.values():
            if prepare := getattr(term.compute, "prepare", None):
                prepare(classes, features)

    @property
    def needs_pixels(self) -> bool:
        """Whether a term wants to know each class's pixels before the first step."""
        return any(getattr(term.compute, "needs_pixels", False) for term in self.terms.values())

    def weigh(self, pixels_K: npt.NDArray[np.int64]) -> None:
        """Give each class's pixels in the training set to the terms that want them."""
        for term in self.terms.values():
            if getattr(term.compute, "needs_pixels", False):
                term.compute.weigh(pixels_K)  # type: ignore[attr-defined]

    def check(self, outputs: Collection[str]) -> None:
        """InputError where a term looks at an output that is none of the network's."""
        for name, term in self.terms.items():
            if term.output not in outputs:
                why = f"no such output; the network has {', '.join(sorted(outputs))}"
                fix = "name one that it has, or leave the term out"
                raise InputError(f"preset key loss.{name}.output: {term.output}", why, fix)


def build(terms: Mapping[str, Term], ignore_index: int, align_corners: bool) -> Objective:
    """The objective of a preset's terms; the network's scores are enlarged to the label with align_corners or not."""
    made = {}
    for name, settings in terms.items():
        kind: str = getattr(settings, "kind", name)
        compute = LOSSES[kind].build(settings, ignore_index, align_corners)
        made[name] = Weighted(settings.weight, settings.output, compute)
    return Objective(made)
