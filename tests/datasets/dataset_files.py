"""Small data sets of every kind, and their settings."""

import numpy as np
from bad_inputs import photograph, png

from ccnet_cli.datasets import settings_of

# FACTS of the data set, written down a second time
LABEL_TO_TRAIN = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13}


LABEL_TO_TRAIN |= {27: 14, 28: 15, 31: 16, 32: 17, 33: 18}


STREET = np.array([[7, 8, 11, 23], [26, 33, 0, 4], [24, 31, 29, 3]], np.uint8)


def settings(root, dataset="folder", **keys):
    if dataset == "folder":
        keys.setdefault("classes", ["a", "b", "c"])
    return settings_of(dataset)(dataset=dataset, root=None if root is None else str(root), crop=(4, 4), **keys)


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def picture(values):
    return png(photograph(*np.shape(values)), colour=2)
