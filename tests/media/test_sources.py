"""The names of outputs, and that a file which two sources name comes once."""

import numpy as np
import pytest

from ccnet_cli.errors import InputError
from ccnet_cli.media import images, sources


@pytest.fixture
def photos(tmp_path):
    for name in ("a.png", "deep/b.jpg"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        images.write_image(tmp_path / "photos" / name, np.full((4, 5, 3), 90, np.uint8))
    return tmp_path / "photos"


def found(*names):
    return [(source.path.name, source.name, source.error) for source in sources.find(names)]


def test_outputs_are_called_as_their_sources_below_what_was_named(photos):
    assert found(photos) == [("a.png", "a", None), ("b.jpg", "deep/b", None)]
    assert found(photos / "deep" / "b.jpg") == [("b.jpg", "b", None)]
    assert found(f"{photos}/*/b.*") == [("b.jpg", "deep/b", None)]


def test_a_file_comes_once_however_it_is_named(photos):
    (photos / "link.png").symlink_to(photos / "a.png")
    folder = photos.parent / "folder"
    folder.symlink_to(photos)
    names = (photos / "a.png", photos / "link.png", folder / "a.png", photos / "deep" / ".." / "a.png")
    assert found(*names) == [("a.png", "a", None)]


def test_two_files_of_one_output_are_told_apart_by_an_error(photos):
    other = photos.parent / "a.png"
    other.write_bytes((photos / "a.png").read_bytes())
    (_, _, none), (_, _, error) = found(photos / "a.png", other)
    assert none is None and isinstance(error, InputError) and "both would be written to a.png" in str(error)
