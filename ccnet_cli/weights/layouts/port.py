"""Plain PyTorch ports of the authors' CCNet: each activation is a layer of its own, after its batch norm."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from ccnet_cli.weights.layouts.layout import Foreign, Table, rename
from ccnet_cli.weights.layouts.network import AUTHORS_BACKBONE, AUTHORS_INPUT, ccnet

TABLE: Table = (
    ("head.cca.", "head.rcca.attention."),
    ("head.", "head."),
    ("dsn.", "auxiliary."),
    ("", "backbone."),
)


def recognise(state: dict[str, Tensor], meta: dict[str, Any]) -> Foreign | None:
    """The authors' names, with a layer between the head's last norm and its classifier."""
    if not has_authors_names(state):
        return None
    return authors("a plain PyTorch port of the authors' CCNet", rename(state, TABLE), TABLE, meta, "relu")


def has_authors_names(state: Iterable[str]) -> bool:
    """Whether names are those of the authors' code."""
    return {"head.conva.0.weight", "conv1.weight"} <= set(state)


def authors(
    what: str, weights: dict[str, Tensor], table: Table, meta: dict[str, Any], activation: str, *done: str
) -> Foreign:
    """A network of the authors' code; R is what somebody kept beside the weights, or 2."""
    recurrence = _recurrence(meta)
    if recurrence is None:
        done = (*done, "recurrence is not in the file, taken as 2 (model.recurrence)")
    return ccnet(
        what,
        weights,
        table,
        backbone=AUTHORS_BACKBONE,
        head={"recurrence": 2 if recurrence is None else recurrence, "activation": activation},
        others={**AUTHORS_INPUT, "align_corners": True},
        done=done,
    )


def _recurrence(meta: dict[str, Any]) -> int | None:
    """R, as the authors' option of that name."""
    for options in (meta, meta.get("args"), meta.get("config")):
        value = options.get("recurrence") if isinstance(options, dict) else None
        if isinstance(value, int) and 0 <= value <= 3:
            return value
    return None
