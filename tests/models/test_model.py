"""The network's size, geometry and names; the full ResNet-101 runs on the meta device, where nothing is computed."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from variants import variant

from ccnet_cli import config, ops
from ccnet_cli.errors import InputError
from ccnet_cli.models.backbones import BACKBONES
from ccnet_cli.models.backbones.tiny import Tiny
from ccnet_cli.models.network import CCNet, build, build_unfilled, device

PAPER = config.load("cityscapes-r2").model
SMALL = variant(PAPER, **{"width": 8, "channels": 16, "query_channels": None, "auxiliary_channels": 8, "dropout": 0.0})
TINY = variant(SMALL, **{"backbone": "tiny", "width": 16})


def on_meta(model: config.Model = PAPER) -> CCNet:
    with torch.device("meta"):
        return build(model, 19)


def small(backbone: str, **changes: object) -> CCNet:
    torch.manual_seed(0)
    base = TINY if backbone == "tiny" else SMALL
    network = build(variant(base, **{"backbone": backbone, **changes}), 5)
    if network.recurrence:
        network.head.rcca.attention.gamma.data.fill_(0.5)
    return network.eval()


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_paper_s_network_has_its_size():
    network = on_meta()
    assert round(parameters(network) / 1e6, 3) == 71.288
    assert network.recurrence == 2 and network.auxiliary is not None
    without = on_meta(variant(PAPER, **{"auxiliary": False}))
    assert parameters(network) - parameters(without) == 9 * 1024 * 512 + 512 + 2 * 512 + 512 * 19 + 19
    # the passes share their weights
    assert parameters(on_meta(variant(PAPER, **{"recurrence": 3}))) == parameters(network)


def test_every_preset_builds_its_network():
    classes = {"cityscapes": 19, "toyscapes": 19, "toyclips": 19, "camvid": 11, "ade20k": 150, "voc": 21, "folder": 2}
    presets = [config.load(path.stem) for path in config.folder().glob("*.yaml")]
    # many differ in their schedule alone
    networks = {preset.model.model_dump_json() + preset.data.dataset: preset for preset in presets}
    for preset in networks.values():
        with torch.device("meta"), torch.no_grad():
            network = build(preset.model, classes[preset.data.dataset])
            main, named, _ = network.outputs(torch.empty(2, 3, 65, 97))
            auxiliary = named.get("auxiliary")
        assert main.shape[:2] == (2, classes[preset.data.dataset])
        assert (auxiliary is not None) == (preset.model.auxiliary is not None)
        if preset.model.auxiliary:
            assert (network.auxiliary[0].bias is not None) == preset.model.auxiliary.bias
        assert network.align_corners == preset.model.align_corners
    assert len(networks) >= 12


@pytest.mark.parametrize(("size", "grid"), [((769, 769), (97, 97)), ((1024, 2048), (129, 257)), ((8, 8), (2, 2))])
def test_the_paper_s_network_has_stride_8_and_rounds_up(size, grid):
    network = on_meta()
    with torch.no_grad():
        main, named, _ = network.outputs(torch.empty(1, 3, *size, device="meta"))
        auxiliary = named.get("auxiliary")
    assert main.shape == auxiliary.shape == (1, 19, *grid)


def test_weights_that_are_loaded_cost_no_random_numbers():
    model = config.load("quickstart").model
    before = torch.random.get_rng_state()
    network, other = build_unfilled(model, 3), build(model, 3)
    assert not torch.equal(torch.random.get_rng_state(), before)
    torch.random.set_rng_state(before)
    build_unfilled(model, 3)
    assert torch.equal(torch.random.get_rng_state(), before)
    network.load_state_dict(other.state_dict())
    image = torch.randn(1, 3, 33, 41)
    assert torch.equal(network.eval()(image), other.eval()(image))


def test_the_paper_s_network_costs_what_was_measured():
    network = on_meta()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.outputs(torch.empty(1, 3, 769, 769, device="meta"))
    assert round(counter.get_total_flops() / 1e9) == 1396


def test_every_block_of_the_last_layers_is_dilated():
    layers = dict(on_meta().backbone.named_children())
    for name, dilation in (("layer1", 1), ("layer2", 1), ("layer3", 2), ("layer4", 4)):
        assert {block.conv2.dilation for block in layers[name]} == {(dilation, dilation)}
    assert [len(layers[f"layer{i}"]) for i in range(1, 5)] == [3, 4, 23, 3]
    assert layers["conv1"].out_channels == layers["conv2"].out_channels == 64 and layers["conv3"].out_channels == 128
    assert layers["maxpool"].ceil_mode and layers["layer1"][0].conv1.in_channels == 128


def cells(side: int, backbone: str) -> int:
    """Strides round up; the ResNets' max-pool with ceil_mode also looks past an even end: 16 -> 8 -> 5 -> 3."""
    return -(-side // 8) if backbone == "tiny" else (side + 1) // 2 // 4 + 1


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("size", [(64, 64), (33, 57), (1, 1), (1, 70), (9, 1)])
@torch.no_grad()
def test_every_backbone_takes_every_size(backbone, size):
    network, x = small(backbone), torch.randn(2, 3, *size)
    main, named, _ = network.outputs(x)
    auxiliary = named.get("auxiliary")
    assert main.shape[:2] == auxiliary.shape[:2] == (2, 5) and main.shape == auxiliary.shape
    assert main.shape[2:] == tuple(cells(side, backbone) for side in size)
    torch.testing.assert_close(network(x), main)


def test_tiny_sees_less_than_40_pixels():
    torch.manual_seed(0)
    network = Tiny(64).eval()
    assert parameters(network) < 500_000
    x = torch.randn(1, 3, 128, 128, requires_grad=True)
    c3, c4 = network(x)
    for features in (c3, c4):
        (gradient,) = torch.autograd.grad(features[0, :, 8, 8].sum(), x, retain_graph=True)
        rows, columns = (gradient[0].abs().sum(0) > 0).nonzero(as_tuple=True)
        reach = rows.max() - rows.min() + 1, columns.max() - columns.min() + 1
        assert max(reach) < 40
    assert max(reach) == 31


@pytest.mark.parametrize("recurrence", [0, 1, 2, 3])
def test_the_head_reaches_along_the_cross_and_then_everywhere(recurrence):
    network = small("tiny", recurrence=recurrence)
    x = torch.randn(1, 3, 160, 160, requires_grad=True)
    network(x)[0, :, 10, 10].sum().backward()
    seen = x.grad[0].abs().sum(0) > 0
    # the corner, the end of the row, and the neighbourhood
    reached = seen[:16, :16].any(), seen[76:92, :16].any(), seen[80:88, 80:88].any()
    assert reached == {0: (False, False, True), 1: (False, True, True)}.get(recurrence, (True, True, True))


def test_without_recurrence_there_is_no_attention():
    network = small("tiny", recurrence=0)
    assert not [name for name in network.state_dict() if "attention" in name or "rcca" in name]
    assert network.recurrence == 0 and network.gamma == 0
    scores, maps = network.attend(torch.randn(1, 3, 32, 32))
    assert maps == [] and scores.shape == (1, 5, 4, 4)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_names_begin_with_the_part(backbone):
    with torch.device("meta"):
        network = build(variant(SMALL, **{"backbone": backbone}), 5)
    assert {name.partition(".")[0] for name in network.state_dict()} == {"backbone", "head", "auxiliary"}
    with torch.device("meta"):
        network = build(variant(SMALL, **{"backbone": backbone, "auxiliary": False}), 5)
    assert {name.partition(".")[0] for name in network.state_dict()} == {"backbone", "head"}
    assert network.auxiliary is None


@pytest.mark.parametrize("recurrence", [1, 2, 3])
@torch.no_grad()
def test_attending_gives_the_scores_and_a_map_of_each_pass(recurrence):
    network, x = small("tiny", recurrence=recurrence), torch.randn(2, 3, 40, 56)
    scores, maps = network.attend(x)
    torch.testing.assert_close(scores, network(x))
    assert [weights.shape for weights in maps] == [(2, 5 + 7, 5, 7)] * recurrence
    assert network.gamma == 0.5


def test_recomputing_activations_changes_no_gradient():
    torch.manual_seed(1)
    x = torch.randn(2, 3, 33, 33)
    results = []
    for recompute in (False, True):
        torch.manual_seed(0)
        network = build(variant(SMALL, **{"backbone": "resnet18"}), 5, recompute=recompute).train()
        assert network.backbone.recompute == recompute
        main, named, _ = network.outputs(x)
        auxiliary = named.get("auxiliary")
        (main.square().mean() + auxiliary.square().mean()).backward()
        results.append({name: parameter.grad for name, parameter in network.named_parameters()})
    for name, gradient in results[0].items():
        assert torch.equal(gradient, results[1][name]), name


@torch.no_grad()
def test_the_features_that_losses_look_at_are_what_the_attention_answers():
    """Those of a head without such a block are the backbone's last."""
    x = torch.randn(2, 3, 40, 56)
    network = small("tiny", recurrence=2)
    features = network.outputs(x).features
    expected = network.head.rcca(network.head.conva(network.backbone(x)[-1]))
    torch.testing.assert_close(features, expected)
    assert network.feature_channels == features.shape[1] == SMALL.head.channels
    plain = build(TINY.model_copy(update={"head": TINY.auxiliary}), 5).eval()
    features = plain.outputs(x).features
    assert plain.feature_channels == features.shape[1]
    torch.testing.assert_close(features, plain.backbone(x)[-1])


@torch.no_grad()
def test_the_projections_of_each_pass_are_what_its_map_is_made_of():
    network = small("tiny", recurrence=3)
    features = network.backbone(torch.randn(1, 3, 40, 56))
    _, maps = network.head.attend(features)
    pairs = network.head.projections(features)
    for number, ((query, key), attention) in enumerate(zip(pairs, maps, strict=True), start=1):
        made = ops.affinity(query, key, "reference").double().softmax(dim=1)
        worst = (made - attention).abs().max().item()
        assert worst < 1e-6, f"the map of pass {number} is {worst:.1e} away from its query's and key's"
    assert (maps[1] - maps[0]).abs().max() > 1e-4


@pytest.mark.parametrize(("recompute", "training", "runs"), [(True, True, 2), (False, True, 1), (True, False, 1)])
def test_recomputed_blocks_run_again_for_backward_in_training_alone(recompute, training, runs):
    network = build(variant(SMALL, **{"backbone": "resnet18"}), 5, recompute=recompute).train(training)
    calls = []
    for layer in (network.backbone.layer1, network.backbone.layer4):
        layer[1].conv1.register_forward_pre_hook(lambda *_: calls.append(1))
    network(torch.randn(2, 3, 33, 33)).sum().backward()
    assert len(calls) == 2 * runs, f"two blocks ran {len(calls)} times"


def test_dropout_takes_whole_channels_with_the_configured_chance():
    torch.manual_seed(0)
    network = build(variant(TINY, **{"dropout": 0.25}), 5).train()
    for head in (network.head.bottleneck, network.auxiliary):
        kept = head[3](torch.ones(500, 8, 3, 5))
        assert (kept == kept[..., :1, :1]).all(), "cells of one channel were dropped apart"
        assert kept.unique().tolist() == pytest.approx([0, 1 / 0.75])
        assert (kept == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("backbone", ["tiny", "resnet18"])
@torch.no_grad()
def test_channels_last_and_batch_neighbours_change_nothing(backbone):
    network, x = small(backbone), torch.randn(3, 3, 41, 57)
    together = network(x)
    torch.testing.assert_close(network(x[1:2]), together[1:2], rtol=1e-5, atol=1e-5)
    last = network.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, together, rtol=1e-5, atol=1e-5)


def test_the_configuration_reaches_the_network():
    changes = {"align_corners": False, "mean": (1.0, 2.0, 3.0), "std": (4.0, 5.0, 6.0), "channel_order": "rgb"}
    network = small("tiny", query_channels=3, implementation="reference", **changes)
    assert network.align_corners is False
    assert vars(network.normalisation) == {key: changes[key] for key in ("channel_order", "mean", "std")}
    assert network.head.rcca.attention.implementation == "reference"
    assert network.head.rcca.attention.query_conv.out_channels == 3
    assert small("tiny").head.rcca.attention.query_conv.out_channels == SMALL.head.channels // 8


def test_devices_are_checked_by_name():
    assert device("cpu") == torch.device("cpu")
    assert device("auto").type in ("cpu", "cuda")
    here = torch.cuda.is_available()
    for name in ["tpu", "cpu:1", "cuda:x", "cuda:99", "", "gpu", *([] if here else ["cuda", "cuda:0"])]:
        with pytest.raises(InputError) as caught:
            device(name)
        assert "\n" not in str(caught.value)
