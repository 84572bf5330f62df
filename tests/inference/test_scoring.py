"""Scoring leaves a network's modes as they were."""

from torch import nn

from ccnet_cli.inference.scoring import evaluation_mode


def test_modules_come_back_in_the_mode_that_each_had():
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5)))
    # a norm that is frozen while the rest trains
    network[1][0].eval()
    before = [module.training for module in network.modules()]
    with evaluation_mode(network):
        assert not any(module.training for module in network.modules())
    assert [module.training for module in network.modules()] == before == [True, True, True, False, True]
