"""From a network and an image to class scores and to a score."""
