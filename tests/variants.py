"""Models with some of their keys changed, by the short names that these had before version 0.2."""

from ccnet_cli.config import Model, migration


def variant(model: Model, **changes: object) -> Model:
    """The section model with these keys changed, such as recurrence=1 or backbone="tiny"."""
    mapping = {"model": model.model_dump(mode="json")}
    migration.assign(mapping, changes)
    return Model.model_validate(mapping["model"])
