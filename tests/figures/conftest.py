"""What the tests of pages and figures share."""

from collections.abc import Iterator
from pathlib import Path

import browser
import pytest
from tiny import picture, write


@pytest.fixture(scope="module")
def chromium() -> Iterator[browser.Browser]:
    with browser.launched() as running:
        yield running


@pytest.fixture(scope="module")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("image") / "street.png", picture(120, 184, seed=5))
