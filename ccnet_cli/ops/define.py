"""Torch operators of the package's own, which autograd, compilers and exporters see as one step each.

torch.library.custom_op does the same, but its first call imports torch's compiler: most of a second that a prediction
does not need.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch

# the definitions live as long as this object
_LIBRARY = torch.library.Library("ccnet", "FRAGMENT")


class Operator:
    """torch.ops.ccnet.NAME, for every device; its tensors are not changed, and its outputs are new."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = f"ccnet::{name}"
        schema = torch.library.infer_schema(function, mutates_args=())
        _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        _LIBRARY.impl(name, _hide(function), "CompositeExplicitAutograd")
        self._operator = getattr(torch.ops.ccnet, name).default

    def __call__(self, *arguments: Any) -> Any:
        """The operator's outputs."""
        return self._operator(*arguments)

    def register_fake(self, function: Callable[..., Any]) -> None:
        """Work out the outputs' shapes and strides, without numbers, by this function."""
        torch.library.register_fake(self.name, function, lib=_LIBRARY)

    def register_autograd(self, backward: Callable[..., Any], setup_context: Callable[..., None]) -> None:
        """Differentiate by these functions."""
        torch.library.register_autograd(self.name, backward, setup_context=setup_context, lib=_LIBRARY)


def operator(name: str) -> Callable[[Callable[..., Any]], Operator]:
    """Make a function, whose annotations are the schema, the operator ccnet::NAME."""
    return lambda function: Operator(name, function)


def _hide(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, into which torch's compiler does not look, wherever that was imported."""
    hidden = functools.cache(lambda: sys.modules["torch._dynamo"].disable(function))

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        compiler = sys.modules.get("torch._dynamo")
        return (hidden() if hasattr(compiler, "disable") else function)(*arguments)

    return call
