"""What becomes of outputs that exist already, and in which order outcomes are delivered."""

import numpy as np
import pytest

from ccnet_cli.errors import InputError
from ccnet_cli.inference.stream import Area, Collector, Keep, Outcome, StreamSegmenter, Task
from ccnet_cli.media import images
from ccnet_cli.media.classes import Classes
from ccnet_cli.progress import Progress

CLASSES = Classes(("road", "car"), ((1, 2, 3), (4, 5, 6)), (7, 26))


@pytest.mark.parametrize(
    ("again", "keep", "refused", "area"),
    [
        (False, Keep(), True, None),
        # a process may have died after it wrote them
        (True, Keep(), False, None),
        (False, Keep(complete=True), False, None),
        (False, Keep(complete=True, areas=True), False, (8, 4)),
    ],
)
def test_complete_outputs_are_kept_or_refused_and_never_made_again(tmp_path, again, keep, refused, area):
    source, mask = tmp_path / "a.png", tmp_path / "out.png"
    images.write_image(source, np.zeros((3, 4, 3), np.uint8))
    images.write_label(mask, np.array([[0, 0, 1, 0], [0, 0, 1, 1], [0, 1, 0, 0]], np.uint8))
    outcomes = []
    # without a network
    StreamSegmenter(None, CLASSES, keep, outcomes.append).run([Task(5, source, {"train-id": mask}, again)])
    (outcome,) = outcomes
    assert (outcome.index, outcome.source, outcome.files) == (5, source, ())
    assert isinstance(outcome.error, InputError) == refused
    assert outcome.area == (Area(source, (3, 4), 1, area) if area else None)


def test_outcomes_are_delivered_in_order_and_counted_as_they_come(tmp_path):
    delivered = []
    collector = Collector(delivered.append, Progress(4))
    error = InputError("a", "b", "c")
    for index in (2, 0, 3, 1):
        collector.add(Outcome(index, tmp_path, error=error if index == 3 else None))
        assert [outcome.index for outcome in delivered] == {2: [], 0: [0], 3: [0], 1: [0, 1, 2, 3]}[index]
    assert collector.done == 3


def test_where_strict_the_first_error_is_raised(tmp_path):
    collector = Collector(lambda _: None, Progress(2), strict=True)
    with pytest.raises(InputError, match="a: b; c"):
        collector.add(Outcome(0, tmp_path, error=InputError("a", "b", "c")))
