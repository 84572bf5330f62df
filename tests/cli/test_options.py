"""What the values of options mean, and which are none."""

from collections.abc import Callable

import pytest

from ccnet_cli.cli import options
from ccnet_cli.errors import InputError


def test_points_are_x_and_y_and_sizes_height_and_width():
    assert options.point_of("300,40") == (300, 40)
    assert options.size_of("97x129") == (97, 129)
    assert options.size_of("4096x1") == (4096, 1)
    assert options.numbers_of("--scales", "0.75,1,8") == [0.75, 1.0, 8.0]
    assert options.numbers_of("--scales", None) is None


@pytest.mark.parametrize(
    "text", ["0", "1,0", "0.009", ",".join(["1"] * 33), "-1", "8.01", "nan", "inf", "", "1,", "1;2", "a"]
)
def test_what_is_no_scale_is_refused(text: str):
    with pytest.raises(InputError, match=r"^option --scales .*: not a list of "):
        options.numbers_of("--scales", text)


@pytest.mark.parametrize(
    ("read", "text"),
    [
        *((options.point_of, text) for text in ("3", "3,", ",4", "-1,4", "1.5,2", "1,2,3", "a,b", "3x4")),
        *((options.size_of, text) for text in ("0x5", "5x0", "4097x1", "1x4097", "5", "5,6", "-1x5", "x")),
    ],
)
def test_what_is_no_point_or_size_is_refused(read: Callable[[str], object], text: str):
    with pytest.raises(InputError, match=r"not a (pixel|size); write"):
        read(text)


def test_presets_are_completed_from_their_beginning():
    assert options.preset_names("quick") == ["quickstart"]
    assert options.preset_names("r2") == []
    assert set(options.preset_names("cityscapes-r")) >= {"cityscapes-r1", "cityscapes-r2", "cityscapes-r2-ohem"}


def test_memory_has_a_unit():
    assert options.bytes_of(None) == 0
    assert options.bytes_of("2G") == options.bytes_of("2048m") == options.bytes_of("2 GiB".replace(" ", "")) == 2 << 30
    assert options.bytes_of("1.5g") == 3 << 29
    for text in ("2", "0G", "512K", "-1G", "G", "1e3G", "2X", ""):
        with pytest.raises(InputError, match=r"^option --memory .*: not an amount of memory; write"):
            options.bytes_of(text)
