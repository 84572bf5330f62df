"""What the settings of a data set accept; how a preset reads them is tested in tests/config."""

import pytest
from pydantic import ValidationError

from ccnet_cli.datasets import Data, FolderData, settings_of
from ccnet_cli.datasets.training import Augmentation

OLD = ("train_images", "train_labels", "val_images", "val_labels")


def voc(**keys):
    return Data(dataset="voc", crop=(4, 6), **keys)


def own(**keys):
    return FolderData(dataset="folder", crop=(4, 6), **{"classes": ["a", "b"], **keys})


def test_null_under_a_key_of_folders_is_accepted_everywhere_and_a_value_only_there():
    assert voc(**dict.fromkeys(OLD)) == voc()
    for key in OLD:
        assert getattr(own(**{key: "x"}), key) == "x"
        with pytest.raises(ValidationError, match=key):
            voc(**{key: "x"})
    with pytest.raises(ValidationError, match="train_image"):
        voc(train_image=None)
    assert settings_of("folder") is FolderData and settings_of("voc") is Data


@pytest.mark.parametrize(
    ("make", "keys", "words"),
    [
        (voc, {"scale_min": 1.5, "scale_max": 1.5}, None),
        (voc, {"scale_min": 1.5, "scale_max": 1.4}, "scale_min must not be above scale_max"),
        (voc, {"ignore_index": 254}, "ignore_index must be 255: the table of voc maps to it"),
        (voc, {"classes": ["a", "b", "a"]}, "classes names a class twice"),
        (own, {"classes": ["a", "a"]}, "classes names a class twice"),
        (own, {"classes": None}, "dataset folder needs data.classes"),
        (own, {"ignore_index": 1}, "ignore_index 1 is also class b"),
        (own, {"ignore_index": 2}, None),
        (own, {"palette": [(0, 0, 0)]}, "palette has 1 colours for 2 classes"),
        (own, {"palette": [(0, 0, 0)] * 3}, "palette has 3 colours for 2 classes"),
        (own, {"palette": [(0, 0, 0)] * 2}, None),
    ],
)
def test_keys_that_do_not_go_together_are_refused(make, keys, words):
    if words is None:
        assert all(getattr(make(**keys), key) == value for key, value in keys.items())
        return
    with pytest.raises(ValidationError, match=words):
        make(**keys)


def test_the_augmentation_is_the_settings():
    keys = {"fit": (9, 7), "scale_min": 0.25, "scale_max": 3.0, "scale_step": 0.25, "category_ratio": 0.5}
    data = voc(**keys, mirror=False, photometric=True)
    assert Augmentation.from_settings(data) == Augmentation((4, 6), **keys, mirror=False, photometric=True)
    assert Augmentation.from_settings(voc()) == Augmentation((4, 6))
