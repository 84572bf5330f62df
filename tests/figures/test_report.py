"""The page of a finished run: what it shows, what it keeps out, which images it takes for the worst."""

import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from accessible import find_faults

from ccnet_cli.figures.report import WorstImages, merge_worst, write_evaluation, write_report
from ccnet_cli.media.classes import Classes

PALETTE = ((128, 64, 128), (70, 130, 180), (0, 0, 142))
NAMES = ("road", "sky <b>", 'car "x"')
CLASSES = Classes(NAMES, PALETTE, (7, 8, 9))


def scene(share, size=(40, 60), void=0):
    """An mIoU, an image, its label, and a prediction of which `share` is right; the first `void` rows do not count."""
    label = np.zeros(size, np.uint8)
    label[: size[0] // 2] = 1
    ids = label.copy()
    ids[:, round(share * size[1]) :] = 2
    label[:void] = 255
    miou = 2 * share / 3 if void < size[0] else math.nan
    return miou, np.full((*size, 3), 90, np.uint8), label, ids


def test_the_worst_images_are_kept_worst_first():
    shares = [0.9, 0.2, 0.7, 0.4, 0.8, 0.1, 0.6]
    parts = WorstImages(3, PALETTE, 255), WorstImages(3, PALETTE, 255)
    for number, share in enumerate(shares):
        parts[number % 2].add(f"image {number}", *scene(share))
    kept = merge_worst(parts, 3)
    assert [example.name for example in kept] == ["image 5", "image 1", "image 3"]
    assert kept[0].miou == pytest.approx(0.2 / 3)
    assert len(parts[1].entries) == 3
    nothing = WorstImages(3, PALETTE, 255)
    nothing.add("void", *scene(0.5, void=40))
    assert merge_worst([nothing], 3) == []


@pytest.mark.parametrize("order", [[0.1, 0.2, 0.3, 0.4, 0.5], [0.5, 0.4, 0.3, 0.2, 0.1], [0.3, 0.5, 0.1, 0.4, 0.2]])
def test_the_worst_images_are_kept_in_whatever_order_they_come(order):
    worst = WorstImages(2, PALETTE, 255)
    for share in order:
        worst.add(str(share), *scene(share))
    assert [example.name for example in merge_worst([worst], 2)] == ["0.1", "0.2"]


def test_an_example_shows_image_label_and_prediction_small_and_void_black():
    worst = WorstImages(1, PALETTE, 255)
    worst.add("large", *scene(0.5, size=(400, 1200), void=40))
    (example,) = merge_worst([worst], 1)
    height, width = example.picture.shape[:2]
    assert (height, width) == (140, 3 * 420 + 2 * 4)
    image, gap, label, other, ids = np.split(example.picture, (420, 424, 844, 848), axis=1)
    assert (gap == 255).all() and (other == 255).all()
    assert (image == 90).all()
    assert tuple(label[139, 0]) == tuple(reversed(PALETTE[0])) and tuple(ids[139, 419]) == tuple(reversed(PALETTE[2]))
    assert not label[:13].any() and not ids[:13].any()


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.links, self.tags, self.text, self.alts = [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for key, value in attributes if key in ("src", "href")]
        self.alts += [value for key, value in attributes if key == "alt"]

    def handle_data(self, data):
        self.text += data


def page(folder, rows, examples=()):
    matrix = np.array([[90, 10, 0], [1, 299, 0], [0, 0, 0]])
    environment = {"device": "cpu", "started": "2026-01-01", "command": ["<script>alert(1)</script>"]}
    write_report(folder / "report.html", "name: <mine>\n", environment, rows, CLASSES, matrix, examples)
    return (folder / "report.html").read_text(encoding="utf-8")


def test_the_page_tells_the_run_and_needs_nothing_else(tmp_path):
    rows = [
        {"step": 10, "loss": 1.5, "lr": 0.1},
        {"step": 10, "miou": 0.4, "pixel_accuracy": 0.5, "classes": {"road": 0.5, "sky <b>": None, 'car "x"': 0.2}},
        {"step": 20, "miou": 0.3, "pixel_accuracy": 0.6, "classes": {"road": 0.4, "sky <b>": None, 'car "x"': 0.25}},
        {"step": 15, "skipped": ["a"]},
    ]
    worst = WorstImages(1, PALETTE, 255)
    worst.add("<img src=x>", *scene(0.5))
    text = page(tmp_path, rows, merge_worst([worst], 1))
    shown = Page(text)
    assert "40.00 % at step 10" in shown.text and "30.00 %" in shown.text and "60.00 %" in shown.text
    assert [float(x) for x in re.findall(r">(\d\d\.\d\d)</td>", text)] == [40.0, 50.0, 25.0, 25.0]
    assert text.count("<polyline") == 2
    # nothing is loaded, nothing runs, what others wrote stays text
    assert shown.links and all(link.startswith("data:image/png;base64,") for link in shown.links)
    assert "script" not in shown.tags and shown.tags.count("img") == 1 and all(shown.alts)
    assert find_faults(text) == []
    assert "default-src 'none'" in text and "<img src=x>: mIoU" in shown.text and "name: <mine>" in shown.text


def test_a_class_has_its_colour_and_a_line_that_falls_as_its_score_does(tmp_path):
    """By hand: in 260 x 26 pixels with an edge of 2, 0.5 is at the middle, 1 at the top; steps are as far apart."""
    scores = {10: 0.5, 40: 1.0, 130: 0.0}
    rows = [{"step": step, "miou": value, "classes": {"road": value}} for step, value in scores.items()]
    rows[1]["classes"][NAMES[1]] = 0.25
    text = page(tmp_path, rows)
    lines = re.findall(r'<polyline[^>]* points="([^"]*)"', text)
    assert lines == ["2.0,13.0 66.0,2.0 258.0,24.0", "2.0,18.5 258.0,18.5"]
    assert all(colour in text for colour in ("#804080", "#4682b4", "#00008e"))
    # the last and the best score of each class: 0 is one, none is not
    assert re.findall(r">(\d+\.\d\d|-)</td>", text) == ["0.00", "100.00", "-", "25.00", "-", "-"]


def test_the_classes_of_one_evaluation_are_numbers_alone(tmp_path):
    text = page(tmp_path, [{"step": 10, "miou": 0.5, "classes": {"road": 0.5}}])
    assert re.findall(r">(\d+\.\d\d|-)</td>", text) == ["50.00", "-", "-"]
    assert "<polyline" not in text and "over the steps" not in text


ROWS = [
    {"step": 10, "loss": 1.5, "loss/ohem": 1.0, "loss/auxiliary": 0.5, "lr": 0.1, "gamma": -0.25, "seconds": 1.0},
    {"step": 20, "loss": 1.25, "loss/ohem": 1.0, "loss/auxiliary": 0.25, "lr": 0.05, "gamma": 0.5, "seconds": 3.0},
    {"step": 20, "miou": 0.4, "pixel_accuracy": 0.5},
    # resumed: its seconds begin anew
    {"step": 30, "loss": 1.0, "loss/ohem": 0.75, "loss/auxiliary": 0.25, "lr": 0.0, "gamma": 0.5, "seconds": 1.0},
    {"step": 40, "loss": 1.0, "loss/ohem": 0.75, "loss/auxiliary": 0.25, "lr": 0.0, "gamma": 0.5, "seconds": 5.0},
]


def test_a_run_has_a_curve_for_all_that_it_logs_and_a_number_for_one_evaluation(tmp_path):
    text = page(tmp_path, ROWS)
    titles = re.findall(r"<h3>(.*?)</h3>", text)
    assert titles == ["Validation, %", "Training loss", "Learning rate", "Gamma", "Step time, ms"]
    assert '<span class="number">40</span> mIoU, at step 20' in text
    drawings = re.findall(r'aria-label="([^"]*: [^"]*)"', text)
    assert len(drawings) == 5 and "loss/auxiliary from 0.5 at step 10 to 0.25 at step 40" in drawings[0]
    assert drawings[2] == "Gamma: gamma from −0.25 at step 10 to 0.5 at step 40"
    # between the first two rows 0.2 s a step, in the resumed part 0.4
    assert drawings[3].startswith("Step time, ms: step time from 200 at step 20 to 400 at step 40")
    assert drawings[4].startswith("percent of each class that is right: ")
    assert "median step" in text and "300 ms" in text
    shown = Page(text)
    assert shown.tags.count("h1") == 1 and "'<script>alert(1)</script>'" in shown.text


def test_one_evaluation_of_many_is_a_marked_point_each(tmp_path):
    rows = [*ROWS, {"step": 40, "miou": 0.5, "pixel_accuracy": 0.75}]
    text = page(tmp_path, rows)
    assert text.count("<circle") == 4 and 'class="number">40<' not in text


def test_an_evaluation_has_a_page_of_its_measures(tmp_path):
    numbers = dict(zip(NAMES, (0.5, None, 0.25), strict=True))
    result = {
        **{"miou": 0.375, "pixel_accuracy": 0.5, "mean_accuracy": None, "images": 3, "pixels": 12345},
        **{"classes": numbers, "measures": {"dice": numbers, "recall": numbers}, "settings": {"split": "val"}},
    }
    around = {"command": ["/somewhere/bin/ccnet", "eval", "a b"], "device": "cpu", "started": "2026"}
    worst = WorstImages(1, PALETTE, 255)
    worst.add("hard", *scene(0.5))
    matrix = np.array([[90, 10, 0], [1, 299, 0], [0, 0, 0]])
    write_evaluation(tmp_path / "e.html", "best.pt", result, around, CLASSES, (matrix, merge_worst([worst], 1)))
    text = (tmp_path / "e.html").read_text(encoding="utf-8")
    shown = Page(text)
    assert "ccnet eval 'a b'" in shown.text and "/somewhere" not in shown.text.partition("Environment")[0]
    assert find_faults(text) == []
    assert re.findall(r'<th scope="col"[^>]*>(.*?)</th>', text) == ["class", "IoU %", "Dice %", "recall %"]
    assert re.findall(r">(\d+\.\d\d|-)</td>", text) == ["50.00"] * 3 + ["-"] * 3 + ["25.00"] * 3
    assert "37.50 %" in shown.text and "12,345" in shown.text and "hard: mIoU" in shown.text
    assert "<h2>Curves" not in text


def test_a_run_that_was_never_scored_has_a_page_too(tmp_path):
    shown = Page(page(tmp_path, []))
    assert "mIoU" not in shown.text.partition("Classes")[0] and "road" in shown.text
