"""What is printed of each table's values, and what their JSON is."""

import json

import pytest

from ccnet_cli.bench import attention, cost, data, evaluation, gpu, growth, kernels, loss, model, step
from ccnet_cli.bench.report import Column, Report, Spread, Table, spread_columns

TIME = Spread(12.345, 11.25, 13.75)
# each value differs from the others: cell by cell, what a row becomes
TABLES = [
    (
        attention.COLUMNS,
        {
            **{"name": "gemm", "what": "words", "forward": TIME, "both": Spread(40.06, 1, 99), "forward_ratio": 0.754},
            **{"both_ratio": 1.256, "forward_memory": 7.6, "both_memory": 8.4, "gflop": 16.541, "counted": 16.678},
            **{"gbytes": 5.0, "bandwidth": 21.34, "rate": 0.12345},
        },
        "gemm 12.3 0.75 40.1 1.26 8 8 16.54 16.68 21.3 0.123 words",
    ),
    (
        cost.COLUMNS,
        {
            **{"name": "R=2", "gflop": 16.541, "counted": 16.678, "inference_memory": 66.71, "training_memory": 90.04},
            **{"step_memory": 137.26, "published": {"gflop": 16.5, "memory": 127}},
        },
        "R=2 16.54 16.68 66.7 90.0 137.3 16.5 127",
    ),
    (data.COLUMNS, {"name": "whole", "what": "words", "time": TIME, "ratio": 0.5}, "whole 12.3 11.2 13.8 0.50 words"),
    (data.RATE_COLUMNS, {"workers": 2, "median": 30.04, "least": 20.5, "greatest": 40.96}, "2 30.0 20.5 41.0"),
    (
        evaluation.COLUMNS,
        {
            **{"size": (64, 96), "mode": "whole", "name": "numba", "median": 5.04, "least": 4.0, "greatest": 6.0},
            **{"ratio": 3.26, "memory": 8.4},
        },
        "64x96 whole numba 5.0 4.0 6.0 3.3 8",
    ),
    (
        growth.COLUMNS,
        {
            **{"name": "non-local", "size": (9, 4), "time": TIME, "constant": 1.234, "memory": 20.06},
            **{"memory_constant": 4.567, "time_ratio": 8.88, "memory_ratio": 2.22},
        },
        "9x4 non-local 12.35 11.25 13.75 1.23 8.9 20.1 4.57 2.2",
    ),
    (
        loss.COLUMNS,
        {"size": (33, 41), "name": "ohem", "what": "words", "both": TIME, "ratio": 2.345, "memory": 5.6, "floor": 0.25},
        "33x41 ohem 12.3 11.2 13.8 2.35 6 25% words",
    ),
    (
        model.COLUMNS,
        {
            **{"name": "plain", "precision": "bf16", "size": (33, 41), "forward": TIME, "times": 1.237, "gflop": 75.04},
            **{"rate": 250.6, "fraction": 0.456, "error": 0.000123, "agreement": 0.98765},
        },
        f"plain bf16 33x41 12.3 11.2 13.8 1.24 75.0 251 0.46 1.2e-04 98.77 {model.DESCRIPTIONS['plain']}",
    ),
    (
        step.COLUMNS,
        {
            **{"size": (33, 41), "name": "bf16", "what": "words", "step": TIME, "ratio": 0.4567, "memory": 99.5},
            **{"tflop": 0.126, "rate": 0.4321, "floor": 0.777},
        },
        "33x41 bf16 12 11 14 0.46 100 0.13 0.432 78% words",
    ),
    (
        kernels.KERNELS,
        {
            **{"kernel": "nt", "arch": "sm_80", "size": "5x7", "registers": 126, "stack": 1, "spills": 2, "shared": 9},
            **{"ffma": 128, "hmma": 0, "lds": 8, "occupancy": 0.25, "launches": 3, "bytes": 4_560_000},
            **{"flops": 7_890_000_000},
        },
        "nt sm_80 5x7 126 1 2 9 128:8 25% 3 4.6 7.89",
    ),
    (
        kernels.FLOORS,
        {
            **{"size": "5x7", "work": "forward", "formulation": "gemm", "gpu": "A100", "bytes": 4_560_000},
            **{"flops": 1, "modelled_ms": 0.12345},
        },
        "5x7 forward gemm A100 4.6 0.123",
    ),
    (
        kernels.COUNTERS,
        {
            **{"work": "forward", "kernel": "nt", "load_sector_bytes": 4_560_000, "load_efficiency": 0.912},
            **{"store_sector_bytes": 1_230_000, "store_efficiency": 0.456, "wavefronts": 200, "bank_conflicts": 25},
            **{"ffma_flops": 2_000_000_000, "mma_flops": 340_000_000},
        },
        "forward nt 4.6 91.2% 1.2 45.6% 12.5% 2.34",
    ),
    (gpu.CHECKS, {"name": "graph", "passed": False, "found": "words"}, "graph FAILED words"),
    (
        gpu.TIMINGS,
        {
            **{"size": (97, 97), "precision": "bf16", "name": "numba", "forward": TIME, "both": Spread(3.4567, 1, 9)},
            **{"bandwidth": 912.6, "rate": 12.34},
        },
        "97x97 bf16 numba 12.345 3.457 913 12.3",
    ),
    (gpu.CORES, {"name": "97x97-float32", "without": 1.23456, "with": 0.98765}, "97x97-float32 1.235 0.988"),
]


@pytest.mark.parametrize(("columns", "row", "cells"), TABLES, ids=[cells.split()[0] for _, _, cells in TABLES])
def test_each_cell_is_the_value_under_its_heading(columns, row, cells):
    assert " ".join(column.cell(row) for column in columns) == cells


def test_headings_name_what_stands_below_them():
    headings = {column.value: column.heading for columns, _, _ in TABLES for column in columns}
    expected = {"forward_memory": "MiB", "both_memory": "MiB both", "bandwidth": "GB/s", "agreement": "same class %"}
    expected |= {"inference_memory": "MiB infer", "training_memory": "MiB forward", "step_memory": "MiB + backward"}
    assert expected.items() <= headings.items()
    assert [column.heading for column in spread_columns("forward", ".1f")] == ["ms", "least", "greatest"]
    assert [column.heading for column in growth.COLUMNS][5:] == ["constant", "ratio", "MiB", "constant", "ratio"]


def test_nothing_is_printed_of_what_is_not_known():
    row = {"memory": None, "published": None}
    cells = [column.cell(row) for column in (evaluation.COLUMNS[-1], *cost.COLUMNS[-2:])]
    assert cells == ["", "", ""]


def test_a_spread_is_the_middle_and_the_ends():
    assert Spread.of([9.0, 1.0, 2.0]) == Spread(2, 1, 9) and Spread.of([4.0, 1.0]) == Spread(2.5, 1, 4)


def test_values_become_json_and_rows_become_cells():
    rows = [{"size": (2, 3), "time": Spread(1.5, 1, 2)}]
    report = Report({"tile": (4, 5), "rows": rows}, [Table("above", [Column("HxW", "size")], rows)])
    spread = {"median": 1.5, "least": 1, "greatest": 2}
    assert report.to_mapping() == {"tile": [4, 5], "rows": [{"size": [2, 3], "time": spread}]}
    assert json.loads(json.dumps(report.to_mapping())) == report.to_mapping()
    assert list(report.sheets()) == [("above", ["HxW"], [["2x3"]])]
