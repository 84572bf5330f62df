"""Models with some of their keys changed, by the short names that these had before version 0.2."""

from ccnet_cli.config import Model, migration


def variant(model: Model, **changes: object) -> Model:
    """The section model with these keys changed, such as recurrence=1 or backbone="tiny"."""
    mapping = {"model": model.model_dump(mode="json")}
    # the backbone's kind, and whether there is an auxiliary head, before their keys
    for key, value in sorted(changes.items(), key=lambda item: item[0] not in ("backbone", "auxiliary")):
        if not migration.translate(mapping, f"model.{key}", value, lambda _: None):
            mapping["model"][key] = value
    return Model.model_validate(mapping["model"])
