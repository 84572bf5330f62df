"""Kernels that copy by cp.async and read by ldmatrix as PTX without either, which ptxrun executes.

A copy is made at once, or late: then its destination is nan until the wait that the copy must be made by, as a queue in
each thread's local memory, where those of the newest groups stay that a wait leaves pending. Hardware is between these.
"""

import re
from itertools import count

# copies of a thread that are pending at most, and bytes of each in the queue
PENDING, ENTRY = 64, 32
_COPY = re.compile(r"cp\.async\.c[ag]\.shared\.global \[(\S+)\+(\d+)\], \[(\S+)\], (4|16), (\S+);")
_WAIT = re.compile(r"cp\.async\.wait_group (\d+);")
_MATRICES = re.compile(r"ldmatrix\.sync\.aligned\.m8n8\.x4\.trans\.shared\.b16 \{(.*?)\}, \[([^+\]]+)\+(\d+)\];")

_QUEUE = f"""
.local .align 16 .b8 copies_queue[{PENDING * ENTRY}];
.reg .b64 %copies_queue, %late_entry, %late_to, %late_source;
.reg .b32 %copies_first, %copies_next, %copies_group, %late_slot, %late_group, %late_size, %late_width;
.reg .b32 %word0, %word1, %word2, %word3;
.reg .pred %late_inside, %late_stop;
mov.u64 %copies_queue, copies_queue;
mov.b32 %copies_first, 0;
mov.b32 %copies_next, 0;
mov.b32 %copies_group, 0;
"""

_PLACE = f"""
and.b32 %late_slot, %copies_{{which}}, {PENDING - 1};
mul.wide.u32 %late_entry, %late_slot, {ENTRY};
add.s64 %late_entry, %late_entry, %copies_queue;
"""


def rewrite(text: str, late: bool) -> str:
    """The same kernel without the instructions that ptxrun lacks."""
    labels = count()
    text = _MATRICES.sub(lambda found: _read_matrices(*found.groups()), text)
    if late:
        text = _COPY.sub(lambda found: _begin(*found.groups()), text)
        text = text.replace("cp.async.commit_group;", "add.s32 %copies_group, %copies_group, 1;")
        text = _WAIT.sub(lambda found: _finish(int(found.group(1)), next(labels)), text)
        head, brace, body = text.partition("\n{\n")
        text = head + brace + _QUEUE + body
    else:
        text = _COPY.sub(lambda found: _copy(*found.groups()), text)
        text = _WAIT.sub("", text.replace("cp.async.commit_group;", ""))
    # whatever is left is unknown here, and to ptxrun
    assert not re.search(r"cp\.async|ldmatrix", text)
    return text


def _registers(kind: str, *names: str) -> str:
    return f".reg .{kind} {', '.join(f'%{name}' for name in names)};\n"


def _move(width: int, inside: str, source: str, to: str) -> str:
    """Load `width` bytes where a predicate holds, else zeros, and store them."""
    words = [f"%word{i}" for i in range(width // 4)]
    vector, several = (".v4", "{" + ", ".join(words) + "}") if width == 16 else ("", words[0])
    zeros = "".join(f"mov.b32 {word}, 0;\n" for word in words)
    return f"{zeros}@{inside} ld.global{vector}.b32 {several}, [{source}];\nst.shared{vector}.b32 [{to}], {several};\n"


def _copy(to: str, offset: str, source: str, width: str, size: str) -> str:
    return (
        "{\n"
        + _registers("pred", "inside")
        + _registers("b32", "word0", "word1", "word2", "word3")
        + f"setp.ne.s32 %inside, {size}, 0;\n"
        + _move(int(width), "%inside", source, f"{to}+{offset}")
        + "}\n"
    )


def _begin(to: str, offset: str, source: str, width: str, size: str) -> str:
    """Put a copy into the queue, and nan where it will be."""
    words = ", ".join(f"%word{i}" for i in range(int(width) // 4))
    where, nan = ("", words) if width == "4" else (".v4", "{" + words + "}")
    return (
        f"sub.s32 %late_slot, %copies_next, %copies_first;\nsetp.ge.s32 %late_stop, %late_slot, {PENDING};\n"
        + "@%late_stop trap;\n"
        + _PLACE.format(which="next")
        + f"add.s64 %late_to, {to}, {offset};\n"
        + f"st.local.u64 [%late_entry], %late_to;\nst.local.u64 [%late_entry+8], {source};\n"
        + f"mov.b32 %late_size, {size};\nmov.b32 %late_width, {width};\n"
        + "st.local.v4.b32 [%late_entry+16], {%late_size, %late_width, %copies_group, %copies_group};\n"
        + "add.s32 %copies_next, %copies_next, 1;\n"
        + "".join(f"mov.b32 {word}, -1;\n" for word in words.split(", "))
        + f"st.shared{where}.b32 [%late_to], {nan};\n"
    )


def _finish(newest: int, label: int) -> str:
    """Make all copies but those of the newest groups, and those of none yet."""
    begin, small, end = (f"$copies_{name}_{label}" for name in ("begin", "small", "end"))
    return (
        f"{begin}:\nsetp.eq.s32 %late_stop, %copies_first, %copies_next;\n@%late_stop bra {end};\n"
        + _PLACE.format(which="first")
        + "ld.local.v4.b32 {%late_size, %late_width, %late_group, %late_slot}, [%late_entry+16];\n"
        + f"add.s32 %late_group, %late_group, {newest};\n"
        + f"setp.ge.s32 %late_stop, %late_group, %copies_group;\n@%late_stop bra {end};\n"
        + "ld.local.u64 %late_to, [%late_entry];\nld.local.u64 %late_source, [%late_entry+8];\n"
        + "setp.ne.s32 %late_inside, %late_size, 0;\nadd.s32 %copies_first, %copies_first, 1;\n"
        + f"setp.eq.s32 %late_stop, %late_width, 4;\n@%late_stop bra {small};\n"
        + _move(16, "%late_inside", "%late_source", "%late_to")
        + f"bra {begin};\n{small}:\n"
        + _move(4, "%late_inside", "%late_source", "%late_to")
        + f"bra {begin};\n{end}:\n"
    )


def _read_matrices(words: str, base: str, offset: str) -> str:
    """By two numbers for each word, from rows whose addresses other threads have.

    Before, each thread reads its own row: eight at a turn, as the hardware does it, which counts conflicts of banks.
    """
    lines = [
        "{\n",
        _registers("b32", "lane", "low", "from", "row", "column", "none0", "none1", "none2", "none3"),
        _registers("b64", "own", "high", "shift", "first", "second"),
        _registers("b16", "near", "far"),
        f"add.s64 %own, {base}, {offset};\nld.shared.v4.b32 {{%none0, %none1, %none2, %none3}}, [%own];\n",
        "mov.u32 %lane, %tid.x;\nand.b32 %lane, %lane, 31;\n",
        "cvt.u32.u64 %low, %own;\nand.b64 %high, %own, -4294967296;\n",
        "shr.u32 %column, %lane, 2;\nmul.wide.u32 %shift, %column, 2;\n",
    ]
    for i, word in enumerate(words.split(", ")):
        lines.append("and.b32 %from, %lane, 3;\nshl.b32 %from, %from, 1;\n" + f"add.s32 %from, %from, {8 * i};\n")
        for place in ("first", "second"):
            lines.append(
                "shfl.sync.idx.b32 %row, %low, %from, 31, -1;\n"
                f"cvt.u64.u32 %{place}, %row;\nor.b64 %{place}, %{place}, %high;\n"
                f"add.s64 %{place}, %{place}, %shift;\nadd.s32 %from, %from, 1;\n"
            )
        lines.append("ld.shared.u16 %near, [%first];\nld.shared.u16 %far, [%second];\n")
        lines.append(f"mov.b32 {word}, {{%near, %far}};\n")
    return "".join([*lines, "}\n"])
