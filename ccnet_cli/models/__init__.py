"""The network: backbones, heads and the layers they share."""
