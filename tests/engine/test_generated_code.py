"""The inner loops of kernels for named machines, read as assembly: whole vectors, fused, nothing on the stack.

Golden texts in tests/engine/golden show in a diff what a change of the code generator did. To accept one:

    pytest tests/engine/test_generated_code.py --update-golden
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hubel.engine import Direction, Policy, choose, kernel_text
from hubel.engine.algorithms import ALGORITHMS
from hubel.engine.algorithms.direct import TINY_FLOPS
from hubel.engine.compile import emit_assembly
from hubel.engine.ir import module_text
from hubel.engine.ir.tile import dot_product_tile, outer_product_tile, panel_tile
from hubel.engine.machine import MACHINES, Machine
from hubel.engine.plan import Plan, Tile
from hubel.engine.problem import Problem
from hubel.engine.spec import ConvSpec
from tests.engine.guards import STRICT

GOLDEN = Path(__file__).parent / "golden"
# One machine of each kind, and its relatives, for which LLVM schedules differently.
NAMES = (
    "haswell",
    "skylake-avx512",
    "neoverse-n1",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("zen3", "zen4", "alderlake", "neoverse-v2", "apple-m1")),
)
LAYERS = (
    "n1c64o128i56x56k3x3s1p1",
    "n16c64o64i14x14k1x1s1p0",
    "n1c32o32i112x112k3x3s1p1g32",
    "n1c3o64i224x224k7x7s2p3",
    pytest.param("n1c16o16i5x5k3x3s1p1", marks=pytest.mark.slow),
    pytest.param("n4c30o50i10k3s1p1", marks=pytest.mark.slow),
)
# Algorithms whose inner loop is one register tile; the others sweep over rows.
TILED = ("direct", "pointwise", "dot_products")
# One multiply-add of whole vectors as LLVM writes it, by lanes: AVX-512, AVX2, NEON.
FUSED = {
    16: r"vfn?m(?:add|sub)\d+ps\t.*%zmm",
    8: r"vfn?m(?:add|sub)\d+ps\t.*%ymm",
    4: r"fmla(?:\.4s)?\t.*v\d+",
}
# Multiplications and additions of vectors that are not fused.
UNFUSED = r"^\s*(?:v?(?:mul|add|sub)[ps]s|fmul|fadd|fsub)\b"
# A vector on the stack, or anything stored there. Pointers may be loaded from it: there are too few integer registers.
SPILLED_VECTOR = r"%[xyz]mm.*\(%rsp|\b[qvsd]\d+,.*\[sp\b"
SPILL = SPILLED_VECTOR + r"|\(%rsp\)$|\bst[rp]\b.*\[sp\b"
BRANCH = re.compile(r"^\s*(?:j[a-z]+|b(?:\.\w+)?|cbn?z|tbn?z)\s.*?(\.?L\w+)$")


def inner_loops(assembly: str) -> list[list[str]]:
    """The instructions of every innermost loop: from a label to a branch back to it, with no such pair inside."""
    lines = [line.split("##")[0].rstrip() for line in assembly.splitlines()]
    lines = [line for line in lines if line and not re.match(r"\s*[.#;](?!L\w+:)", line)]
    # Modules have the same labels: the one meant is the last before the branch.
    labels: dict[str, int] = {}
    spans = []
    for at, line in enumerate(lines):
        branch = BRANCH.match(line)
        if re.fullmatch(r"\.?L\w+:", line):
            labels[line[:-1]] = at
        elif branch and branch[1] in labels:
            spans.append((labels[branch[1]], at))
    innermost = [a for a in spans if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in spans)]
    return [[line for line in lines[first : last + 1] if not line.endswith(":")] for first, last in innermost]


def arithmetic_loops(assembly: str, lanes: int) -> list[list[str]]:
    """Those of the inner loops that multiply and add vectors of so many lanes."""
    fused = re.compile(FUSED[lanes])
    return [loop for loop in inner_loops(assembly) if any(fused.search(line) for line in loop)]


def multiply_adds(loop: list[str], lanes: int) -> int:
    return sum(re.search(FUSED[lanes], line) is not None for line in loop)


def check_loop(loop: list[str], tile: Tile, arch: str) -> None:
    """As many multiply-adds as accumulators, each into a register of its own, and nothing on the stack."""
    text, lanes, accumulators = "\n".join(loop), tile.lanes, tile.rows * tile.vectors
    fused = [line for line in loop if re.search(FUSED[lanes], line)]
    assert len(fused) == accumulators, text
    assert not [line for line in loop if re.search(UNFUSED, line)], text
    assert not [line for line in loop if re.search(SPILL, line)], f"the stack in the inner loop:\n{text}"
    assert not [line for line in loop if re.search(r"\b(?:call|bl|blr)\b", line)], text
    assert len({target(line, arch) for line in fused}) == accumulators, f"a sum is shared or moved:\n{text}"
    stores = [line for line in loop if stored_vector(line)]
    assert not stores, f"a store in the inner loop:\n{text}"
    # Copies of accumulators between registers would be a sign of wrong operand order.
    assert not [
        line for line in loop if re.match(r"\s*vmov[au]ps\t%[xyz]mm\d+, %[xyz]mm\d+$|\s*mov\tv\d+\.16b", line)
    ], text


def stored_vector(line: str) -> bool:
    """Whether an instruction writes a vector to memory."""
    return re.match(r"\s*(?:st[rp]|st1)\b|\s*vmovu?a?ps\t%[xyz]mm\d+, [^%]*\(", line) is not None


def check_sweep(loop: list[str], lanes: int) -> None:
    """The column of a depthwise kernel: hundreds of multiply-adds, few of them with a vector on the stack."""
    fused = [line for line in loop if re.search(FUSED[lanes], line)]
    assert not [line for line in loop if re.search(UNFUSED, line)]
    spilled = [line for line in loop if re.search(SPILLED_VECTOR, line)]
    assert len(spilled) <= len(fused) / 8, "\n".join(spilled)


# A layer of every algorithm, of the kind that it is for.
OWN_LAYERS = {
    "depthwise": "n1c32o32i112x112k3x3s1p1g32",
    "depthwise_channels": "n1c32o32i112x112k3x3s1p1g32/channels_last",
    "depthwise_weight_gradient": "n1c32o32i112x112k3x3s1p1g32/weight_gradient",
    "depthwise_weight_channels": "n1c32o32i112x112k3x3s1p1g32/weight_gradient/channels_last",
    "winograd": "n1c64o64i56x56k5x5s1p2",
    "fft": "n1c64o64i56x56k31x31s1p15g64",
    "pointwise": "n16c64o64i14x14k1x1s1p0",
    "pointwise_channels": "n1c960o160i7x7k1x1s1p0",
    "grouped": "n1c128o128i28x28k3x3s1p1g32",
    "images": "n16c64o64i7x7k3x3s1p1",
    "channels": "n1c64o128i56x56k3x3s2p1",
    "direct": "n1c3o64i224x224k7x7s2p3",
    "winograd_weight_gradient": "n16c64o64i56x56k3x3s1p1/weight_gradient",
    "fft_weight_gradient": "n1c64o64i56x56k31x31s1p15g64/weight_gradient",
    "pointwise_weight_gradient": "n16c64o64i14x14k1x1s1p0/weight_gradient",
    "outer_products": "n16c64o64i56x56k3x3s2p1/weight_gradient",
    "dot_products": "n16c64o64i14x14k3x3s1p1/weight_gradient",
}
# Vectors on the stack in the inner loops, for each multiply-add; none where nothing stands here. All are in the columns
# at a plane's borders: their masks take registers of haswell's 16, and on NEON masked loads are branches, over which
# rows are kept. (With AVX-512 all columns are masked where rows are asked for ahead.) Counted in 2026-11: 0.004, 0.077,
# 0.024, 0.30.
SPILLS = {
    ("depthwise", "haswell"): 0.01,
    ("depthwise_weight_gradient", "haswell"): 0.08,
    ("depthwise_weight_gradient", "skylake-avx512"): 0.025,
    ("depthwise_weight_gradient", "neoverse-n1"): 0.32,
}
# Plain additions, for each multiply-add: the sums of a tile of seven pixels are added to those in memory.
ADDED = {"depthwise_weight_channels": 1 / 7}


@pytest.mark.parametrize("name", ["haswell", "skylake-avx512", "neoverse-n1"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_inner_loops_of_every_algorithm(algorithm: str, name: str) -> None:
    """Multiply-adds of whole vectors, fused, and nothing on the stack, or as little as was counted."""
    machine = Machine.named(name)
    policies = (Policy(accuracy) for accuracy in ("strict", "default"))
    problem = Problem.parse(OWN_LAYERS[algorithm])
    answers = [ALGORITHMS[algorithm].propose(problem, machine, policy) for policy in policies]
    plan = next(answer for answer in answers if isinstance(answer, Plan))
    assert plan.tile.lanes == machine.lanes
    loops = arithmetic_loops(kernel_text(plan, "asm"), machine.lanes)
    counts = [multiply_adds(loop, machine.lanes) for loop in loops]
    # One of them holds all sums of the register tile at least.
    assert max(counts) >= min(plan.tile.rows * plan.tile.vectors, 8)
    spills = [[line for line in loop if re.search(SPILLED_VECTOR, line)] for loop in loops]
    assert [] in [lines for lines, count in zip(spills, counts, strict=True) if count == max(counts)], spills
    spilled = sum(len(lines) for lines in spills)
    assert spilled <= SPILLS.get((algorithm, name), 0) * sum(counts), f"{spilled} of {sum(counts)}: {spills}"
    lines = [line for loop in loops for line in loop]
    unfused = [line for line in lines if re.search(UNFUSED, line)]
    assert len(unfused) <= ADDED.get(algorithm, 0) * sum(counts), unfused
    narrow = {16: r"fn?m(?:add|sub).*%[xy]mm", 8: r"fn?m(?:add|sub).*%xmm", 4: r"fmla.*\bv\d+\.2s"}[machine.lanes]
    # For a few pixels pointwise has a tile whose rows are half a vector.
    halves = [line for line in lines if re.search(narrow, line)]
    assert len(halves) <= (algorithm == "pointwise"), f"narrow vectors: {halves}"


def test_every_algorithm_has_a_layer_of_its_own() -> None:
    """Above: whoever adds an algorithm adds one, and looks at its inner loops."""
    assert list(OWN_LAYERS) == list(ALGORITHMS)


def target(line: str, arch: str) -> str:
    """The register that an instruction writes: last in AT&T syntax, first on ARM."""
    operands = line.split("\t", 2)[-1] if arch == "x86_64" else line.strip().split("\t")[1]
    return operands.split(",")[-1].split("#")[0].strip() if arch == "x86_64" else operands.split(",")[0].split(".")[0]


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", NAMES)
def test_inner_loops(name: str, layer: str, direction: Direction) -> None:
    machine = Machine.named(name)
    plan = choose(Problem(ConvSpec.parse(layer), direction), machine, STRICT)
    tile = plan.tile
    assert tile.lanes == machine.lanes or plan.estimate.flops < TINY_FLOPS
    loops = arithmetic_loops(kernel_text(plan, "asm"), tile.lanes)
    assert loops, "no loop with multiply-adds"
    if plan.algorithm not in TILED:
        # The loops of a plane's inside, and those of its borders, whose masks need registers too.
        check_sweep(min(loops, key=len), tile.lanes)
        return
    # The last run of pixels of a row has a narrower tile, or one for a pixel more, whose rows are half a vector.
    widths = [*range(1, tile.vectors + 1)] if plan.algorithm == "pointwise" else [tile.vectors]
    if plan.algorithm == "pointwise" and machine.registers >= 32 and tile.rows <= tile.lanes:
        assert tile.rows <= 8 < tile.lanes
        widths.append(tile.vectors)
    tiles = [Tile(tile.rows, vectors, tile.lanes) for vectors in widths]
    if plan.algorithm == "pointwise":
        # The tile that reads pixels where they lie stores each vector of them once, for those behind it.
        (fresh,) = [loop for loop in loops if any(stored_vector(line) for line in loop)]
        loops.remove(fresh)
        kept = [line for line in fresh if not stored_vector(line)]
        assert len(fresh) - len(kept) == tile.vectors if machine.arch == "x86_64" else len(fresh) > len(kept)
        check_loop(kept, tile, machine.arch)
    assert len(loops) == len(tiles)
    for loop, part in zip(sorted(loops, key=lambda loop: multiply_adds(loop, tile.lanes)), tiles, strict=True):
        check_loop(loop, part, machine.arch)


@pytest.mark.parametrize("name", NAMES)
def test_every_tile_that_the_engine_may_choose_stays_in_registers(name: str) -> None:
    """Over the layers of common networks: the tiles' functions alone, each once."""
    machine = Machine.named(name)
    seen = set()
    for channels in (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 28, 29, 30, 32, 96, 100, 512):
        for size in (1, 5, 14, 56):
            for direction in Direction:
                for taps in (1, 3):
                    problem = Problem(ConvSpec(1, channels, channels, (size, size), taps, padding=taps // 2), direction)
                    plan = choose(problem, machine, STRICT)
                    seen.add((plan.algorithm, plan.tile))
    makers = {"dot_products": dot_product_tile, "pointwise": panel_tile, "direct": outer_product_tile}
    for algorithm, tile in sorted(seen, key=str):
        if algorithm not in makers:
            continue
        function = makers[algorithm](tile.rows, tile.vectors, tile.lanes)
        function.private = False
        (loop,) = arithmetic_loops(emit_assembly(module_text(function, tile.lanes), machine), tile.lanes)
        check_loop(loop, tile, machine.arch)


@pytest.mark.parametrize("name", MACHINES)
def test_every_machine_gets_assembly(name: str) -> None:
    plan = choose(Problem.parse(LAYERS[0]), Machine.named(name), STRICT)
    text = kernel_text(plan, "asm")
    assert all(f"; {kernel}" in text for kernel in plan.kernels)
    assert arithmetic_loops(text, plan.tile.lanes)


def test_wide_vectors_are_whole() -> None:
    """LLVM prefers halves of AVX-512 vectors unless it is told otherwise."""
    for direction in Direction:
        plan = choose(Problem(ConvSpec.parse(LAYERS[0]), direction), Machine.named("skylake-avx512"), STRICT)
        assert '"prefer-vector-width"="512"' in kernel_text(plan, "ir")
        for loop in arithmetic_loops(kernel_text(plan, "asm"), plan.tile.lanes):
            assert not [line for line in loop if "%ymm" in line]


def test_the_loop_finder_sees_what_it_should_refuse() -> None:
    """On a loop that spills, and one that does not fuse."""
    tile = Tile(1, 1, 8)
    spilled = ".LBB0_1:\n\tvfmadd231ps\t%ymm1, %ymm2, %ymm0\n\tvmovups\t%ymm0, 32(%rsp)\n\tjne\t.LBB0_1\n"
    (loop,) = arithmetic_loops(spilled, 8)
    with pytest.raises(AssertionError, match="stack"):
        check_loop(loop, tile, "x86_64")
    unfused = ".LBB0_1:\n\tvfmadd231ps\t%ymm1, %ymm2, %ymm0\n\tvaddps\t%ymm1, %ymm0, %ymm3\n\tjne\t.LBB0_1\n"
    (loop,) = arithmetic_loops(unfused, 8)
    with pytest.raises(AssertionError):
        check_loop(loop, tile, "x86_64")


GOLDEN_KERNELS = {
    "direct_haswell": ("haswell", "n1c64o128i56x56k3x3s1p1"),
    "dot_products_skylake-avx512": ("skylake-avx512", "n16c64o64i28x28k3x3s1p1g8/weight_gradient"),
    "outer_products_skylake-avx512": ("skylake-avx512", "n16c64o64i28x28k3x3s1p1/weight_gradient"),
}


@pytest.mark.parametrize("name", GOLDEN_KERNELS)
def test_golden(name: str, update_golden: bool) -> None:
    """The plan, and the inner loop of its kernel, as they were last accepted."""
    machine, text = GOLDEN_KERNELS[name]
    plan = ALGORITHMS[name.rsplit("_", 1)[0]].propose(Problem.parse(text), Machine.named(machine), STRICT)
    assert isinstance(plan, Plan)
    lines = [
        f"{text} on {machine}",
        f"algorithm {plan.algorithm}",
        f"kernel {plan.kernel_key}",
        f"tile {plan.tile}",
        f"channel block {plan.channel_block}",
        f"partial sums {plan.partial_sums}",
    ]
    for loop in arithmetic_loops(kernel_text(plan, "asm"), plan.tile.lanes):
        lines += ["", "inner loop", *(line.expandtabs(12).rstrip() for line in loop)]
    made = "\n".join(lines) + "\n"
    path = GOLDEN / f"{name}.txt"
    if update_golden:
        path.parent.mkdir(exist_ok=True)
        path.write_text(made)
    assert path.exists(), f"no golden text {path.name}; run with --update-golden"
    assert made == path.read_text(), "the generated code changed; if that is right, run with --update-golden"
