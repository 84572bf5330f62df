"""What the CUDA kernels are made of, without a GPU: machine code, traffic and arithmetic, and modelled floors."""

import re
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec

from ccnet_cli.bench.report import Column, Report, Row, Table
from ccnet_cli.errors import InputError
from ccnet_cli.ops.cuda import attention, launch, steps
from ccnet_cli.ops.cuda import plan as fused
from ccnet_cli.ops.cuda.steps import Buffer, Grid, Kernel, Step

# Published peaks: float32 and dense TF32 FLOP/s (bfloat16 has twice as many), bytes/s. NVIDIA's data sheets of
# A100 80GB SXM, H100 SXM and HGX B200.
PEAKS = {
    "A100": (19.5e12, 156e12, 2.039e12),
    "H100": (66.9e12, 494.7e12, 3.35e12),
    "B200": (75e12, 1125e12, 7.7e12),
}
# of a multiprocessor, by compute capability: threads, bytes of shared memory, blocks (CUDA programming guide)
LIMITS = {
    (7, 5): (1024, 64 << 10, 16),
    (8, 0): (2048, 164 << 10, 32),
    (8, 6): (1536, 100 << 10, 16),
    (8, 9): (1536, 100 << 10, 24),
    (9, 0): (2048, 228 << 10, 32),
    (10, 0): (2048, 228 << 10, 32),
    (12, 0): (1536, 100 << 10, 24),
}
REGISTERS = 65536  # of a multiprocessor
RESERVED = 1024  # bytes of shared memory that the system takes per block since sm_80
PASSES = ("forward", "backward")
TENSOR = "gathering on tensor cores"  # off by default, so no part of a pass


# one kernel on one architecture; bytes and flops of its launches at a size, each buffer moved once per launch; ffma,
# hmma and lds are the multiply-adds, the products on tensor cores and the vector loads of the inner loop; occupancy is
# the fraction of resident warps
KERNELS = (
    *(Column(key, key) for key in ("kernel", "arch", "size", "registers", "stack", "spills", "shared")),
    Column("FFMA or HMMA:LDS", lambda row: f"{row['ffma'] or row['hmma']}:{row['lds']}"),
    Column("occupancy", "occupancy", ".0%"),
    Column("launches", "launches"),
    Column("MB", "bytes", ".1f", 1e6),
    Column("GFLOP", "flops", ".2f", 1e9),
)
# milliseconds that a formulation's pass cannot go below on a GPU
FLOORS = (
    Column("size", "size"),
    Column("pass", "work"),
    Column("formulation", "formulation"),
    Column("GPU", "gpu"),
    Column("MB", "bytes", ".1f", 1e6),
    Column("ms, modelled", "modelled_ms", ".3f"),
)
# what ptxrun counted in one launch of a pass
COUNTERS = (
    Column("pass", "work"),
    Column("kernel", "kernel"),
    Column("MB loaded", "load_sector_bytes", ".1f", 1e6),
    Column("efficiency", "load_efficiency", ".1%"),
    Column("MB stored", "store_sector_bytes", ".1f", 1e6),
    Column("efficiency", "store_efficiency", ".1%"),
    Column("conflicts", lambda row: row["bank_conflicts"] / max(row["wavefronts"], 1), ".1%"),
    Column("GFLOP issued", lambda row: row["ffma_flops"] + row["mma_flops"], ".2f", 1e9),
)


def analyse(
    archs: Sequence[str] = ("sm_80", "sm_90"),
    sizes: Sequence[tuple[int, int]] = ((97, 97), (129, 257)),
    channels: int = 512,
    dtype: str = "float32",
    counters: bool = False,
) -> Report:
    """Compile the kernels of a forward and a backward pass of one image for each architecture.

    Their machine code is left in the cache folder, for a machine with a GPU and no compiler; fused kernels copy as the
    environment says. counters executes both
    passes at the first architecture and size with ptxrun, where it can be imported.
    InputError without the compiler, for an unknown architecture, or for counters without ptxrun.
    """
    chosen = [_arch(name) for name in archs]
    launch.require()
    rows: list[Row] = []
    for H, W in sizes:
        planned = plan(H, W, channels, dtype)
        on_chip = [step for steps_of in plan_fused(H, W, channels, dtype).values() for step in steps_of]
        for arch in chosen:
            launches = [step for work in _works(planned, arch) for step in planned[work]]
            launches += on_chip if arch >= (8, 0) else []
            rows += [_row(kernel, arch, launches, f"{H}x{W}") for kernel in dict.fromkeys(x.kernel for x in launches)]
    floors = [floor for size in sizes for floor in _floors(*size, channels, dtype)]
    counted = _count(chosen[0], sizes[0], channels, dtype) if counters else []
    tables = [
        Table("one image; compiled, not run", KERNELS, rows),
        Table("floors modelled from published peaks, nothing measured", FLOORS, floors),
        Table("counted by ptxrun in 32-byte sectors", COUNTERS, counted),
    ]
    values = {"channels": channels, "dtype": dtype, "kernels": rows, "floors": floors, "counters": counted}
    return Report(values, tables if counted else tables[:2])


def plan(H: int, W: int, C: int, dtype: str) -> dict[str, list[Step]]:
    """The launches of one image's pass, C // 8 channels in query and key, by name of the pass; and TENSOR's."""
    c = max(C // 8, 1)
    grid = Grid(1, H, W, steps.pad_length(H), dtype)
    widths = {
        "query": c,
        "key": c,
        "value": C,
        "energy": steps.pad_length(H) + steps.pad_length(W),
        "out": C,
        "grad": C,
    }
    widths |= {"pull": widths["energy"], "d_query": c, "d_key": c, "d_value": C}
    b = {name: Buffer(name, width, width % steps.VECTOR == 0) for name, width in widths.items()}
    inputs = b["query"], b["key"], b["value"], b["energy"]
    gradients = b["grad"], b["pull"], b["d_query"], b["d_key"], b["d_value"]
    launches = {
        "forward": steps.forward(grid, c, C, *inputs, b["out"]),
        "backward": steps.backward(grid, c, C, *inputs, *gradients),
    }
    if dtype != "float16":
        launches[TENSOR] = steps.gathering(replace(grid, tensor=True), b["energy"], b["value"], b["out"], C)
    return launches


def _works(planned: dict[str, list[Step]], arch: tuple[int, int]) -> list[str]:
    """The passes that an architecture can run."""
    return [work for work in planned if work != TENSOR or arch >= (8, 0)]


def _arch(name: str) -> tuple[int, int]:
    match = re.fullmatch(r"sm_(\d+)(\d)", name)
    arch = (int(match[1]), int(match[2])) if match else (0, 0)
    if arch not in LIMITS:
        known = ", ".join(f"sm_{major}{minor}" for major, minor in LIMITS)
        raise InputError(f"option --arch {name}", "not an architecture that is known here", f"choose from {known}")
    return arch


def occupancy(threads: int, registers: int, shared: int, arch: tuple[int, int]) -> float:
    """The fraction of a multiprocessor's warps that blocks of such a kernel fill."""
    most, memory, blocks = LIMITS[arch]
    warps = -(-threads // 32)
    # registers are handed out to warps in units of 256
    by_registers = REGISTERS // (-(-registers * 32 // 256) * 256 * warps)
    # what the assembler reports from sm_90 on has the reserved part in it
    per_block = shared + (RESERVED if (8, 0) <= arch < (9, 0) else 0)
    by_memory = memory // per_block if per_block else blocks
    return min(by_registers, by_memory, blocks, most // 32 // warps) * warps / (most // 32)


def _row(kernel: Kernel, arch: tuple[int, int], launches: Sequence[Step], size: str) -> Row:
    from ccnet_cli.ops.cuda import build

    code = launch.compile_to_cache(kernel, arch)
    on_chip = kernel.form in fused.FORMS
    tensor = kernel.form == "tensor" or (on_chip and kernel.form != "fused_delta")
    multiplies, lds = build.inner_loop(code.image, "HMMA" if tensor else "FFMA")
    costs = [(_cost_fused if on_chip else _cost)(step) for step in launches if step.kernel == kernel]
    return {
        "kernel": kernel.name,
        "arch": f"sm_{arch[0]}{arch[1]}",
        "size": size,
        **{key: getattr(code, key) for key in ("registers", "stack", "spills", "shared")},
        "ffma": 0 if tensor else multiplies,
        "hmma": multiplies if tensor else 0,
        "lds": lds,
        "occupancy": occupancy(kernel.threads, code.registers, code.shared, arch),
        "launches": len(costs),
        "bytes": sum(moved for moved, _ in costs),
        "flops": sum(flops for _, flops in costs),
    }


def _cost(step: Step) -> tuple[int, int]:
    """Bytes of a launch whose buffers are each moved once, and FLOPs, 2 per multiply-add, none for padding."""
    itemsize = {"float32": 4}.get(step.kernel.dtype, 2)
    numbers = [x for x in step.arguments if isinstance(x, int)]
    if "softmax" in step.kernel.form:
        stride, *ends, pixels = numbers
        reads = 1 if step.kernel.form == "softmax" else 2
        return 4 * pixels * (reads * (sum(ends[1::2]) - sum(ends[::2])) + stride), 0
    length, _, _, adds, other, *_, image, C = numbers[4:]
    pixels = step.grid[2] * image
    positions = pixels * (length + other)
    operands = pixels * C * itemsize * (2 if other else 1)
    # all arms of nn and tn but the rows add to what is there, and so read it too
    accesses = 3 if adds and step.kernel.form != "nt" else 2
    return 4 * positions + accesses * operands, 2 * positions * C


def _floors(H: int, W: int, C: int, dtype: str) -> list[Row]:
    """This project's kernels beside two formulations of the forward pass in library products."""
    itemsize = {"float32": 4}.get(dtype, 2)
    c, pixels = max(C // 8, 1), H * W
    launches = plan(H, W, C, dtype)
    rows: list[Row] = []
    costs = {work: [sum(x) for x in zip(*map(_cost, launches[work]), strict=True)] for work in PASSES}
    energies, features = 4 * pixels * (H + W), pixels * itemsize * C
    projections = 2 * 4 * pixels * c
    # products in place of both directions, a mask over the diagonal, softmax out of place
    gemm = 2 * projections + energies + 4 * pixels + 2 * energies + energies + 5 * features
    # rows and columns copied and read back, energies joined and split again, two outputs copied back and added
    copying = (
        2 * (3 * projections + 3 * features) + energies + 2 * energies + 2 * energies + 3 * energies + 9 * features
    )
    options = [("forward", "numba", *costs["forward"]), ("backward", "numba", *costs["backward"])]
    options += [("forward", name, moved, costs["forward"][1]) for name, moved in (("gemm", gemm), ("copying", copying))]
    for gpu, (full, tensor, bandwidth) in PEAKS.items():
        for work, name, moved, flops in options:
            peaks = [(full, name)] if itemsize == 4 or name == "numba" else [(2 * tensor, name)]
            if itemsize == 4 and name != "numba":
                peaks.append((tensor, f"{name} tf32"))
            for peak, label in peaks:
                seconds = max(flops / peak, moved / bandwidth)
                row = {"size": f"{H}x{W}", "work": work, "formulation": label, "gpu": gpu}
                rows.append({**row, "bytes": int(moved), "flops": int(flops), "modelled_ms": 1000 * seconds})
    return rows + _floors_of_attention(H, W, C, dtype)


def _floors_of_attention(H: int, W: int, C: int, dtype: str) -> list[Row]:
    """Fused attention and the library's, along rows and columns, on tensor cores."""
    pixels, c = H * W, max(C // 8, 1)
    itemsize, suffix = (4, " tf32") if dtype == "float32" else (2, "")
    narrow, wide, number = itemsize * pixels * c, itemsize * pixels * C, 4 * pixels
    launches = plan_fused(H, W, C, dtype)
    # value in heads of c channels that share query and key, then outputs merged with value for the own pixel
    flash = 2 * (2 * narrow + 2 * wide + number) + 4 * wide + 2 * narrow + 3 * number
    works = [("forward", "flash", flash, 2 * pixels * (H + W) * 2 * C)]
    for work, steps_of in launches.items():
        moved, flops = (sum(x) for x in zip(*map(_cost_fused, steps_of), strict=True))
        works.append((work, "fused", moved, flops))
    rows: list[Row] = []
    for gpu, (_, tensor, bandwidth) in PEAKS.items():
        peak = tensor if dtype == "float32" else 2 * tensor
        for work, name, moved, flops in works:
            row = {"size": f"{H}x{W}", "work": work, "formulation": name + suffix, "gpu": gpu, "bytes": moved}
            rows.append({**row, "flops": flops, "modelled_ms": 1000 * max(flops / peak, moved / bandwidth)})
    return rows


def plan_fused(H: int, W: int, C: int, dtype: str) -> dict[str, list[Step]]:
    """The launches of fused attention for one image, by name of the pass."""
    c, grid = max(C // 8, 1), Grid(1, H, W, 0, dtype, largest=fused.LINE, copies=attention.read_copies())
    vector = 4 * fused.numbers_per_word(dtype)
    query, key, value, out, grad = (
        Buffer(name, width, width % vector == 0)
        for name, width in (("query", c), ("key", c), ("value", C), ("out", C), ("grad", C))
    )
    return {
        "forward": fused.forward(grid, c, C, query, key, value, out),
        "backward": fused.backward(grid, c, C, out, query, key, value, grad),
    }


def _cost_fused(step: Step) -> tuple[int, int]:
    """Bytes of a launch, each buffer moved once for each product that it is in, and FLOPs, none for padding."""
    kernel, numbers = step.kernel, [x for x in step.arguments if isinstance(x, int)]
    itemsize = 4 if kernel.dtype == "float32" else 2
    if kernel.form == "fused_delta":
        C, pixels = numbers[2:]
        return pixels * (2 * itemsize * C + 4), 2 * pixels * C
    H, W, c, C, column = numbers[-5:]
    pixels, length = step.grid[2] * H * W, H if column else W
    if kernel.form == "fused":
        # the columns read what the rows wrote
        return pixels * (itemsize * (2 * c + (3 if column else 2) * C) + (8 if column else 4)), 2 * pixels * length * (
            c + C
        )
    reads, products = (8 * c + 5 * C, 5 * c + 3 * C) if kernel.sizes[2] else (4 * c + 3 * C, 3 * c + 2 * C)
    wide = itemsize * (2 if column else 1) * C
    # what the rows leave of narrow gradients of 16 bits is float32, as wide as a thread's channels
    left = itemsize * c if itemsize == 4 else 4 * fused.scratch_width(c)
    narrow = 2 * (left + itemsize * c if column else left)
    return pixels * (itemsize * reads + wide + narrow + 8), 2 * pixels * length * products


def _count(arch: tuple[int, int], size: tuple[int, int], C: int, dtype: str) -> list[Row]:
    if find_spec("ptxrun") is None:
        raise InputError("option --counters", "ptxrun cannot be imported", "put its folder on PYTHONPATH")
    import numpy as np
    import ptxrun

    from ccnet_cli.ops.cuda import build

    H, W = size
    launches = plan(H, W, C, dtype)
    c, width = max(C // 8, 1), steps.pad_length(H) + steps.pad_length(W)
    stored = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}[dtype]
    sizes = {"query": (c, np.float32), "key": (c, np.float32), "value": (C, stored)}
    sizes |= {"energy": (width, np.float32), "out": (C, stored), "grad": (C, stored), "pull": (width, np.float32)}
    sizes |= {"d_query": (c, np.float32), "d_key": (c, np.float32), "d_value": (C, stored)}
    arrays = {name: np.zeros(H * W * channels, kind) for name, (channels, kind) in sizes.items()}
    rows: list[Row] = []
    for work, step in [(each, step) for each in _works(launches, arch) for step in launches[each]]:
        arguments = [arrays[x] if isinstance(x, str) else x for x in step.arguments]
        result = ptxrun.run(build.ptx(step.kernel, arch), "", step.grid, step.kernel.threads, arguments)
        row = {
            "work": work,
            "kernel": step.kernel.name,
            "arch": f"sm_{arch[0]}{arch[1]}",
            "size": f"{H}x{W}",
            "load_sector_bytes": 32 * result.global_load_sectors,
            "store_sector_bytes": 32 * result.global_store_sectors,
            "load_efficiency": result.load_efficiency,
            "store_efficiency": result.store_efficiency,
            "wavefronts": result.shared_wavefronts,
            "bank_conflicts": result.bank_conflicts,
            "ffma_flops": 2 * result.thread_instructions.get("ffma", 0),
            # a warp's product is 16 x 8 x 8 in TF32, 16 deep in bfloat16
            "mma_flops": 2 * 16 * 8 * (16 if dtype == "bfloat16" else 8) * result.warp_instructions.get("mma", 0),
        }
        rows.append(row)
    return rows
