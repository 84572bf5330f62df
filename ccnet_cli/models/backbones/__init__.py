"""Backbones: image (B, 3, H, W) -> feature maps."""
