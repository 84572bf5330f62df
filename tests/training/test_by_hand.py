"""A run's weights against the same steps written out: order of the data, loss, gradients, optimiser, average."""

import json
import math

import numpy as np
import pytest
import torch
from runs import make_horizons, preset, train
from torch.nn import functional as F

from ccnet_cli import datasets
from ccnet_cli.models import network as models
from ccnet_cli.runs import checkpoint

IMAGES = 6
PLAIN = (
    *("model.auxiliary=true", "model.auxiliary_channels=8", "model.auxiliary_bias=false", "model.dropout=0.0"),
    *("loss.ohem.enabled=false", "loss.auxiliary=0.3", "seed=3"),
)
RATE = ("schedule.lr=0.02", "schedule.warmup=2", "schedule.power=2.0", "schedule.minimum=1e-3")
SHORT = ("schedule.steps=3", "checkpoint.every=1", "checkpoint.keep=9", "eval.every=0")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_horizons(tmp_path_factory.mktemp("horizons") / "data")


def rates():
    """Of three steps: poly from 0.02 to 0.001 with power 2, and half of it at the first of two steps of warm-up."""
    decayed = [0.001 + 0.019 * (1 - step / 3) ** 2 for step in range(3)]
    return [decayed[0] / 2, decayed[1], decayed[2]]


def micro_batches(made, position, count, size):
    """Images and labels as the network gets them, `size` at a time, from a position of the stream on."""
    source = datasets.open_source(made.data, "train")
    samples = datasets.TrainingSet(source, datasets.Augmentation.from_settings(made.data), seed=made.seed)
    mean, std = (torch.tensor(v)[:, None, None] for v in (made.model.mean, made.model.std))
    pairs = []
    for place in range(position, position + count):
        epoch, index = divmod(place, IMAGES)
        numbers = np.random.Philox(np.random.SeedSequence((made.seed, epoch), spawn_key=(1,)))
        item = samples[epoch, int(np.random.Generator(numbers).permutation(IMAGES)[index])]
        bottom, left, right = item.extent
        image = torch.zeros(3, *item.label.shape)
        picture = torch.from_numpy(item.image).permute(2, 0, 1).float()
        image[:, :bottom, left:right] = ((picture - mean) / std)[:, :bottom, left:right]
        pairs.append((image, torch.from_numpy(item.label).long()))
    for start in range(0, count, size):
        images, labels = zip(*pairs[start : start + size], strict=True)
        yield torch.stack(images), torch.stack(labels)


class Sgd:
    """v = momentum v + g + decay w; w -= rate v."""

    def __init__(self, made):
        self.momentum, self.decay = made.train.momentum, made.train.weight_decay
        self.velocity = {}

    def __call__(self, name, weight, gradient, rate):
        step = gradient + self.decay * weight
        self.velocity[name] = step + self.momentum * self.velocity[name] if name in self.velocity else step
        return weight - rate * self.velocity[name]


class AdamW:
    """The two moments, corrected for their start; decay, by the rate, of all that is not a vector."""

    def __init__(self, made):
        self.momentum, self.decay = made.train.momentum, made.train.weight_decay
        self.moments = {}

    def __call__(self, name, weight, gradient, rate):
        first, second, times = self.moments.get(name, (0.0, 0.0, 0))
        first = self.momentum * first + (1 - self.momentum) * gradient
        second = 0.999 * second + 0.001 * gradient**2
        self.moments[name] = first, second, times + 1
        root = (second / (1 - 0.999 ** (times + 1))).sqrt() + 1e-8
        decayed = weight * (1 - rate * self.decay) if weight.dim() > 1 else weight
        return decayed - rate * first / (1 - self.momentum ** (times + 1)) / root


def by_hand(made, micro, optimizer, clip):
    """Losses of the micro-batches, weights and their moving average after each of three steps."""
    torch.manual_seed(made.seed)
    model = models.build(made.model, 2).train()
    weights = {name: value.detach().clone() for name, value in model.named_parameters()}
    averaged, results = dict(weights), []
    for step, rate in enumerate(rates()):
        model.load_state_dict(weights, strict=False)
        losses, gradients = [], dict.fromkeys(weights, 0.0)
        batches = list(micro_batches(made, step * made.train.batch, made.train.batch, micro))
        for image, label in batches:
            loss, outputs = 0.0, model.outputs(image)
            for scores, weight in ((outputs.main, 1.0), (outputs.auxiliary["auxiliary"], 0.3)):
                large = F.interpolate(scores, label.shape[1:], mode="bilinear", align_corners=True)
                loss = loss + weight * F.cross_entropy(large, label, ignore_index=255)
            found = torch.autograd.grad(loss, list(model.parameters()))
            for name, gradient in zip(weights, found, strict=True):
                gradients[name] = gradients[name] + gradient / len(batches)
            losses.append(loss.item())
        norm = math.sqrt(sum(gradient.square().sum().item() for gradient in gradients.values()))
        assert clip is None or norm > 2 * clip
        factor = 1.0 if clip is None else clip / norm
        with torch.no_grad():
            weights = {name: optimizer(name, weights[name], factor * gradients[name], rate) for name in weights}
        decay = min(made.train.ema, (2 + step) / (11 + step))
        averaged = {name: decay * averaged[name] + (1 - decay) * weights[name] for name in weights}
        results.append((losses, weights, averaged))
    return results


def assert_by_hand(run, expected, own=None):
    """own is how many of a step's micro-batches are those of rank 0, whose loss is logged; None for all."""
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    assert [row["lr"] for row in rows] == pytest.approx(rates(), rel=1e-9)
    start = None
    for step, (losses, weights, averaged) in enumerate(expected, start=1):
        content = checkpoint.read(run / f"checkpoints/step_{step:08d}.pt")
        assert rows[step - 1]["loss"] == pytest.approx(sum(losses[:own]) / len(losses[:own]), rel=1e-4), step
        for of, state, wanted in (
            ("weights", content["training"]["model"], weights),
            ("average", content["model"], averaged),
        ):
            for name, value in wanted.items():
                moved = (value - start[name]).abs().max() if start else value.abs().max()
                worst = (state[name] - value).abs().max()
                assert worst <= 1e-2 * moved + 1e-6, f"step {step}, {of} {name}: {worst:.2e} off, moved {moved:.2e}"
        start = weights


@pytest.mark.parametrize(
    ("options", "optimizer", "micro", "clip"),
    [
        (("train.optimizer=sgd", "train.weight_decay=0.05", "train.clip_norm=null"), Sgd, 4, None),
        (
            ("train.optimizer=sgd", "train.weight_decay=0.05", "train.clip_norm=0.05", "train.micro_batch=2"),
            Sgd,
            2,
            0.05,
        ),
        (("train.optimizer=adamw", "train.weight_decay=0.5", "train.clip_norm=0.05"), AdamW, 4, 0.05),
    ],
    ids=["sgd", "sgd-accumulated-clipped", "adamw"],
)
def test_three_steps_are_those_written_out(data, tmp_path, options, optimizer, micro, clip):
    made = preset(data, *PLAIN, *RATE, *SHORT, "train.ema=0.6", *options)
    run = train(made, run=tmp_path / "run")
    assert_by_hand(run, by_hand(made, micro, optimizer(made), clip))


def test_two_processes_take_the_steps_written_out(data, tmp_path, forked_workers):
    """Each has half of a batch of eight in two micro-batches: four of two images, whose gradients are averaged once."""
    options = ("train.optimizer=sgd", "train.clip_norm=0.05", "train.batch=8", "train.micro_batch=2")
    made = preset(data, *PLAIN, *RATE, *SHORT, "train.ema=0.6", *options)
    run = train(made, run=tmp_path / "run", processes=2)
    assert_by_hand(run, by_hand(made, 2, Sgd(made), 0.05), own=2)
