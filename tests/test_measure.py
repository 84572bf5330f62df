"""What a call costs, by formula and as it is counted, against figures from elsewhere."""

import torch

from ccnet_cli import measure, ops


def test_the_formula_gives_the_paper_s_figures():
    assert round(measure.formula((97, 97), 512, 1, 1), 2) == 8.27
    assert round(measure.formula((97, 97), 512, 2, 1), 1) == 16.5
    assert round(measure.formula((97, 97), 512, 1, 1, keys=97 * 97), 1) == 108.2
    assert measure.formula((97, 97), 512, 2, 4) == 4 * measure.formula((97, 97), 512, 2, 1)


def test_peak_memory_counts_what_lives_at_once_and_what_custom_operators_use():
    megabyte = 2**20

    def one_after_the_other():
        for _ in range(3):
            torch.empty(megabyte, dtype=torch.uint8)

    def at_once():
        return [torch.empty(megabyte, dtype=torch.uint8) for _ in range(3)]

    cpu = torch.device("cpu")
    assert measure.peak(one_after_the_other, cpu) == megabyte
    assert measure.peak(at_once, cpu) == 3 * megabyte
    x = torch.randn(1, 8, 16, 16)
    # the custom operator's result alone would be 8 kB; its attention has 32 entries for each pixel
    assert measure.peak(lambda: ops.criss_cross(x, x, x, "gemm"), cpu) >= 256 * (8 + 32) * 4
