"""The calibration error against its formula, that no process changes a bit of it, and no batch a millionth."""

import json
import math
from dataclasses import replace

import calls
import cv2
import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F

from ccnet_cli.datasets.source import open_source
from ccnet_cli.inference import scoring
from ccnet_cli.inference.artifact import load_model
from ccnet_cli.inference.metrics import Calibration
from ccnet_cli.inference.views import Views
from ccnet_cli.parallel.group import Group


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return tiny.save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make_camvid(tmp_path_factory.mktemp("camvid"), [(33, 40), (33, 40), (17, 23), (9, 64)])


def plain_error(pairs, bins=15):
    """Guo et al.'s sum over the pixels, one by one, of (confidence, whether right)."""
    total = 0.0
    for number in range(1, bins + 1):
        inside = [pair for pair in pairs if (number - 1) / bins < pair[0] <= number / bins]
        if inside:
            accuracy = sum(right for _, right in inside) / len(inside)
            total += len(inside) / len(pairs) * abs(accuracy - sum(each for each, _ in inside) / len(inside))
    return total


def plain_pairs(scores, label):
    probability = np.exp(scores.astype(np.float64))
    probability /= probability.sum(0)
    return [
        (probability[:, y, x].max(), probability[:, y, x].argmax() == label[y, x]) for y, x in np.argwhere(label != 255)
    ]


@pytest.mark.parametrize(("classes", "spread"), [(2, 0.5), (3, 4.0), (19, 1.0), (5, 40.0)])
def test_the_error_is_the_formula_s(classes, spread):
    random = np.random.default_rng(classes)
    calibration, pairs = Calibration(), []
    for size in [(7, 9), (1, 5), (16, 3)]:
        scores = random.normal(0, spread, (classes, *size)).astype(np.float32)
        label = random.integers(0, classes, size).astype(np.uint8)
        label[random.random(size) < 0.2] = 255
        calibration.update(torch.from_numpy(scores), torch.from_numpy(label))
        pairs += plain_pairs(scores, label)
    assert calibration.counts[0].sum() == len(pairs) and calibration.counts[1].sum() == sum(right for _, right in pairs)
    assert calibration.error() == pytest.approx(plain_error(pairs), abs=2e-7)


def test_a_confidence_of_one_and_one_of_chance_have_bins():
    calibration = Calibration()
    calibration.update(torch.zeros(15, 1, 2), torch.tensor([[0, 3]]))
    assert calibration.counts[0].tolist() == [2, *[0] * 14]
    assert calibration.error() == pytest.approx(0.5 - 1 / 15)
    calibration.update(torch.tensor([[[200.0]], [[0.0]]]), torch.tensor([[1]]))
    assert calibration.counts[0, 14] == 1
    assert math.isnan(Calibration().error())


def test_eval_reports_it_of_every_valid_pixel(saved, data):
    model, pairs = load_model(saved).network, []
    for path in sorted((data / "val").glob("*.png")):
        image, label = cv2.imread(str(path)), cv2.imread(str(data / "valannot" / path.name), cv2.IMREAD_UNCHANGED)
        pixels = ((image - np.array(model.normalisation.mean)) / model.normalisation.std).astype(np.float32)
        with torch.no_grad():
            logits = model.eval()(torch.from_numpy(pixels.transpose(2, 0, 1)[None]))
        scores = F.interpolate(logits, size=label.shape, mode="bilinear", align_corners=True)[0].numpy()
        pairs += plain_pairs(scores, np.where(label == 11, 255, label))
    result = calls.evaluate(saved, data, device="cpu", calibration_error=True)
    assert result.pixels == len(pairs) and result.calibration_error == pytest.approx(plain_error(pairs), abs=1e-6)
    assert calls.evaluate(saved, data, device="cpu").calibration_error is None


def test_no_part_changes_a_bit_and_no_batch_what_is_printed(saved, data):
    restored = load_model(saved)
    source = open_source(restored.preset.data.model_copy(update={"root": str(data)}), "val")
    views = Views.of(restored.preset.eval, source.classes)

    def counts(views, *samples):
        calibration = Calibration()
        own = replace(source, samples=source.samples[slice(*samples)])
        scoring.score_network(restored.network, own, views, Group(), calibration=calibration)
        return calibration.counts

    alone = counts(views, None)
    assert torch.equal(counts(views, 2) + counts(views, 2, None), alone)
    # the network's scores differ in their last bits
    together = counts(replace(views, batch=2), None)
    assert torch.equal(together[:2].sum(1), alone[:2].sum(1))
    assert together[2].sum() / Calibration.UNIT == pytest.approx(float(alone[2].sum() / Calibration.UNIT), rel=1e-6)
    errors = [calls.evaluate(saved, data, calibration_error=True, overrides=[f"eval.batch={n}"]) for n in (1, 2)]
    assert errors[0].calibration_error == pytest.approx(errors[1].calibration_error, abs=1e-6)


def test_two_processes_report_what_one_does_and_the_table_has_it(saved, data, ccnet, forked_workers):
    alone = calls.evaluate(saved, data, device="cpu", calibration_error=True)
    assert calls.evaluate(saved, data, device="cpu", calibration_error=True, processes=2) == alone
    done = ccnet("eval", saved, "--data", data, "--device", "cpu", "--calibration-error")
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if "calibration error" in line)
    assert f"{100 * alone.calibration_error:.2f}" in row
    assert json.loads(json.dumps(alone.to_mapping()))["calibration_error"] == alone.calibration_error
