"""Runs plans for ARM machines in an emulator: kernels and launcher as object code for Linux, a small driver around them
(`emulated.c`), and memory as a file.

The memory is laid out here, at addresses that hold there: tensors, tables, scratch, all of it full of NaN (`poison`)
where nothing is given, with guards around every part, so that reads and writes out of place are found as in
`tests.engine.guards`.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import as_strided

from hubel.engine.algorithms import ALGORITHMS
from hubel.engine.compile import emit_object
from hubel.engine.epilogue import operand_words
from hubel.engine.invoke import laid_out
from hubel.engine.launcher import launcher_ir
from hubel.engine.machine import Machine
from hubel.engine.plan import Plan, PlannedJob
from hubel.engine.spec import Direction
from hubel.engine.threads import Block, Job

TOOLS = ("qemu-aarch64", "aarch64-linux-gnu-gcc", "aarch64-linux-gnu-objcopy")
MISSING = [tool for tool in TOOLS if shutil.which(tool) is None]

# Where the file lies in the emulated process: far from what Linux puts anywhere.
ARENA = 0x10_0000_0000
# Words at the file's beginning: the number of launches, and eleven a launch, as `emulated.c` reads them.
HEAD = 64
GUARD = 512
# NaNs that no arithmetic makes, by the size of a number.
CANARY = {4: np.uint32(0x7FC0BEEF), 2: np.uint16(0x7FC1), 8: np.uint64(0x7FC0BEEF7FC0BEEF)}


class Memory:
    """The emulated process's memory while it is laid out, and after it has run."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = [np.zeros(HEAD, np.int64)]
        self._size = 8 * HEAD
        self._names: dict[str, tuple[int, np.ndarray]] = {}

    def put(self, name: str, content: np.ndarray) -> int:
        """The address of this content, a run of numbers, with guards around it."""
        guard = np.full(GUARD, CANARY[content.itemsize]).view(content.dtype)
        part = np.concatenate(
            [guard, content, guard, np.zeros(-len(content) % (64 // content.itemsize), content.dtype)]
        )
        offset = self._size + guard.nbytes
        self._parts.append(part)
        self._size += part.nbytes
        self._names[name] = (offset, content)
        return ARENA + offset

    def empty(self, name: str, numbers: int, dtype: type = np.float32) -> int:
        """The address of so many canaries."""
        size = np.dtype(dtype).itemsize
        return self.put(name, np.full(numbers, CANARY[size]).view(dtype))

    def write(self, path: Path, launches: Sequence[Sequence[int]]) -> None:
        head = [len(launches), *(word for launch in launches for word in launch)]
        assert len(head) <= HEAD
        self._parts[0][: len(head)] = head
        path.write_bytes(b"".join(part.tobytes() for part in self._parts))

    def read(self, path: Path, written: Sequence[str]) -> dict[str, np.ndarray]:
        """What lies under these names now. Fails if anything else changed, but for what launches patch in blocks."""
        data = np.fromfile(path, np.uint8)
        found = {}
        for name, (offset, content) in self._names.items():
            size, guard = content.nbytes, GUARD * content.itemsize
            around = np.concatenate([data[offset - guard : offset], data[offset + size : offset + size + guard]])
            touched = np.flatnonzero(around.view(CANARY[content.itemsize].dtype) != CANARY[content.itemsize])
            assert not touched.size, f"written beside {name}, at {touched[:8]} of its guards"
            now = data[offset : offset + size].view(content.dtype)
            if name in written:
                found[name] = now
            elif not name.startswith("block"):
                assert now.tobytes() == content.tobytes(), f"{name} changed"
        return found


@dataclass(frozen=True)
class Tensor:
    """Numbers as they are stored (uint16 for bfloat16), seen with strides in their memory."""

    memory: np.ndarray
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def like(cls, values: np.ndarray, filled: bool = True) -> Tensor:
        """With the shape, strides and dtype of `values`: its numbers, and canaries between them or everywhere."""
        size = values.itemsize
        strides = tuple(s // size if n > 1 else 0 for s, n in zip(values.strides, values.shape, strict=True))
        reach = sum((n - 1) * s for s, n in zip(strides, values.shape, strict=True)) + 1 if values.size else 0
        tensor = cls(np.full(reach, CANARY[size]).view(values.dtype), values.shape, strides)
        if filled:
            tensor.view(tensor.memory)[...] = values
        return tensor

    def view(self, memory: np.ndarray) -> np.ndarray:
        return as_strided(memory, self.shape, tuple(s * memory.itemsize for s in self.strides))

    def take(self, memory: np.ndarray, name: str) -> np.ndarray:
        """A copy of what was written to `memory`. Fails if anything was written between its elements."""
        result = self.view(memory).copy()
        left = memory.copy()
        self.view(left)[...] = np.full(1, CANARY[memory.itemsize]).view(memory.dtype)
        assert (left.view(CANARY[memory.itemsize].dtype) == CANARY[memory.itemsize]).all(), f"written between {name}"
        return result


@dataclass(frozen=True)
class Operands:
    """What a problem reads, stored as it says, and the result's strides: first and second as `tests.engine.guards`."""

    first: np.ndarray
    second: np.ndarray
    result: np.ndarray
    bias: np.ndarray | None = None
    scale: np.ndarray | None = None
    shift: np.ndarray | None = None
    residual: np.ndarray | None = None

    def by_position(self, direction: Direction) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(x, w, y) or their gradients."""
        first, second, result = self.first, self.second, self.result
        if direction is Direction.FORWARD:
            return first, second, result
        return (result, second, first) if direction is Direction.INPUT_GRADIENT else (first, result, second)

    def strides(self, direction: Direction) -> list[tuple[int, ...]]:
        return [tuple(s // a.itemsize for s in a.strides) for a in self.by_position(direction)]


class Emulator:
    """Builds programs and runs them; every kernel is compiled once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._objects: dict[str, tuple[str, Path]] = {}
        self._programs: dict[tuple[str, ...], Path] = {}
        self._driver = folder / "driver.o"
        source = Path(__file__).with_name("emulated.c")
        _call("aarch64-linux-gnu-gcc", "-O2", f"-DARENA={ARENA:#x}", "-c", source, "-o", self._driver)
        self._launcher = folder / "launcher.o"
        machine = Machine.named("neoverse-n1")
        self._launcher.write_bytes(emit_object(launcher_ir(machine), machine))

    def run(
        self, plan: Plan, given: Operands, team: int = 1, parts: int = 1, control: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """(result, bias gradient or nothing) of a plan.

        team: threads; more than one are made by the launcher. parts: ranges that the items of every job are handed
        out in, at most. control: FPCR of the caller.
        """
        problem = plan.problem
        x, w, y = given.strides(problem.direction)
        assert laid_out(problem, x, y) == problem
        bound = ALGORITHMS[plan.algorithm].bind(plan, x, w, y)
        names = tuple(sorted({job.kernel for job in (*bound.jobs, *bound.packing)}))
        memory = Memory()
        moved = _tables(memory, bound.tables)
        flush = 0 if plan.policy.accuracy == "strict" else 1

        def launch(kind: str, jobs: Sequence[PlannedJob], pointers: Sequence[int], shared: int) -> list[int]:
            native = [
                Job(names.index(j.kernel), j.items, _chunk(j, parts), [moved.get(word, word) for word in j.words])
                for j in jobs
            ]
            block = memory.put(f"block of {kind}", Block(native).words)
            # Behind each part of the scratch lies a gap.
            sizes = [-(-4 * n // 64) * 64 + 4 * GUARD for n in (shared, bound.scratch)]
            scratch = memory.empty(f"scratch of {kind}", (sizes[0] + team * sizes[1]) // 4)
            return [block, *pointers, team, sizes[0], sizes[1], flush, scratch, control]

        first, second = Tensor.like(given.first), Tensor.like(given.second)
        result = Tensor.like(given.result, filled=False)
        at_first, at_second = memory.put("first", first.memory), memory.put("second", second.memory)
        at_result = memory.put("result", result.memory)
        launches = []
        if bound.packed:
            # Read through its canaries: what packing leaves out makes NaN.
            at_packed = memory.empty("packed", bound.packed)
            launches.append(launch("packing", bound.packing, (at_second, at_packed, 0, 0), 0))
            at_second = at_packed
        third = self._third(memory, plan, given, at_result)
        launches.append(launch("jobs", bound.jobs, (at_first, at_second, third, at_result), bound.shared))

        path = self._folder / "memory"
        memory.write(path, launches)
        _call("qemu-aarch64", self._program(plan, names), path)
        gradient = ["bias gradient"] if problem.bias and problem.direction is Direction.WEIGHT_GRADIENT else []
        now = memory.read(path, ["result", "packed", "scratch of packing", "scratch of jobs", *gradient])
        for kind, shared in (("packing", 0), ("jobs", bound.shared)):
            if f"scratch of {kind}" in now:
                _check_gaps(now[f"scratch of {kind}"], shared, bound.scratch, team, kind)
        return result.take(now["result"], "the result"), now["bias gradient"] if gradient else np.empty(0, np.float32)

    def _third(self, memory: Memory, plan: Plan, given: Operands, at_result: int) -> int:
        """What p2 points to: bias, bias gradient, operands of an epilogue, or nothing."""
        problem = plan.problem
        if problem.direction is Direction.WEIGHT_GRADIENT:
            return memory.empty("bias gradient", problem.spec.out_channels) if problem.bias else 0

        def put(name: str, values: np.ndarray | None) -> int:
            return 0 if values is None else memory.put(name, Tensor.like(values).memory)

        bias = put("bias", given.bias)
        if problem.epilogue is None:
            return bias
        scale, shift = put("scale", given.scale), put("shift", given.shift)
        residual = put("residual", given.residual) or at_result
        words = operand_words(bias, scale, shift, residual, at_result)
        return memory.put("operands", np.array(words[:], np.int64))

    def _program(self, plan: Plan, names: tuple[str, ...]) -> Path:
        """Driver, launcher and these kernels, linked."""
        if names in self._programs:
            return self._programs[names]
        sources = ALGORITHMS[plan.algorithm].emit(plan)
        for name in names:
            if name not in self._objects:
                symbol, path = f"kernel_{len(self._objects)}", self._folder / f"kernel_{len(self._objects)}.o"
                path.write_bytes(emit_object(sources[name](), plan.machine))
                _call("aarch64-linux-gnu-objcopy", "--redefine-sym", f"kernel={symbol}", path)
                self._objects[name] = symbol, path
        found = [self._objects[name] for name in names]
        table, program = self._folder / "kernels.c", self._folder / f"program_{len(self._programs)}"
        declared = "".join(f"extern void {symbol}(void);\n" for symbol, _ in found)
        entries = ", ".join(f"(void *){symbol}" for symbol, _ in found)
        table.write_text(f"{declared}void *const kernels[] = {{ {entries} }};\n")
        objects = [path for _, path in found]
        _call("aarch64-linux-gnu-gcc", "-static", table, self._driver, self._launcher, *objects, "-o", program)
        self._programs[names] = program
        return program


def _chunk(job: PlannedJob, parts: int) -> int:
    return max(1, -(-job.items // parts))


def _tables(memory: Memory, tables: Sequence[object]) -> dict[int, int]:
    """Puts all tables into the memory; the addresses they had, and have there."""
    moved = {}
    for number, table in enumerate(tables):
        assert isinstance(table, np.ndarray), "tables are arrays"
        moved[table.ctypes.data] = memory.put(f"table {number}", table)
    return moved


def _check_gaps(scratch: np.ndarray, shared: int, own: int, team: int, kind: str) -> None:
    """Behind shared and threads' scratch everything is as it was."""
    words, at = scratch.view(np.uint32), 0
    for number, used in enumerate([shared] + [own] * team):
        room = -(-used // 16) * 16 + GUARD
        assert (words[at + used : at + room] == CANARY[4]).all(), f"{kind}: written behind scratch {number} (0: shared)"
        at += room


def _call(*words: object) -> None:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{words[0]} exits with {done.returncode}: {done.stdout}{done.stderr}"
