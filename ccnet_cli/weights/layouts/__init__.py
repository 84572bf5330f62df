"""Layouts: LAYOUTS maps a name to how other people's files of weights are recognised and, for some, written.

- `recognise(state, meta) -> Foreign | None`: state are the file's tensors by name, prefixes of wrappers removed, meta
  what the file holds beside them. It answers None for a file of another layout, and raises Misfit for one of its own
  that is damaged. The layout that was added last is asked first.
- `export(state, model) -> dict`: a network's weights in this layout, for `ccnet export --format NAME`; model is the
  preset's section. Misfit where the layout has no such network.

This file loads no torch.
"""

from ccnet_cli.parts import late
from ccnet_cli.weights.layouts.layout import Foreign, Layout, Misfit, Table, rename

__all__ = ["LAYOUTS", "Foreign", "Layout", "Misfit", "Table", "rename"]

LAYOUTS: dict[str, Layout] = {
    "imagenet": Layout(late("ccnet_cli.weights.layouts.imagenet", "recognise")),
    "csail": Layout(
        late("ccnet_cli.weights.layouts.csail", "recognise"),
        late("ccnet_cli.weights.layouts.csail", "export"),
        parts=("encoder", "decoder"),
    ),
    **{
        name: Layout(
            late(f"ccnet_cli.weights.layouts.{name}", "recognise"), late(f"ccnet_cli.weights.layouts.{name}", "export")
        )
        for name in ("openseg", "ocnet", "torchvision", "semseg", "danet", "encoding", "toolbox", "mmseg")
    },
    "port": Layout(late("ccnet_cli.weights.layouts.port", "recognise")),
    "official": Layout(
        late("ccnet_cli.weights.layouts.official", "recognise"),
        late("ccnet_cli.weights.layouts.official", "export"),
        counts=False,
    ),
}
