"""Runs plans for ARM machines in an emulator: kernels and launcher as object code for Linux, a small driver around them
(`emulated.c`), and memory as a file.

The memory is laid out here, at addresses that hold there: tensors, tables and scratch, with guards around every part,
as in `tests.engine.guards`.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hubel.engine.algorithms import ALGORITHMS
from hubel.engine.compile import emit_object
from hubel.engine.epilogue import operand_words
from hubel.engine.invoke import laid_out
from hubel.engine.launcher import launcher_ir
from hubel.engine.machine import Machine
from hubel.engine.plan import Bound, Plan, PlannedJob
from hubel.engine.problem import Direction
from hubel.engine.threads import Block, Job
from tests.engine import guards
from tests.engine.guards import CANARY, GUARD, Guarded

TOOLS = ("qemu-aarch64", "aarch64-linux-gnu-gcc", "aarch64-linux-gnu-objcopy")
MISSING = [tool for tool in TOOLS if shutil.which(tool) is None]

# Where the file lies in the emulated process: far from what Linux puts anywhere.
ARENA = 0x10_0000_0000
# Words at the file's beginning: the number of launches, and eleven a launch, as `emulated.c` reads them.
HEAD = 64


class Memory:
    """The emulated process's memory: laid out, written to a file, and read when the process has ended."""

    def __init__(self) -> None:
        self._words = [np.zeros(HEAD, np.uint32).repeat(2)]
        self._size = 4 * 2 * HEAD
        self._parts: dict[str, tuple[int, np.ndarray]] = {}

    def put(self, name: str, content: np.ndarray) -> int:
        """The address of these numbers, a multiple of 64, among guards."""
        guard = np.full(GUARD, CANARY, np.uint32)
        padding = np.zeros(-content.nbytes % 64, np.uint8)
        words = np.concatenate([content.view(np.uint8), padding]).view(np.uint32)
        offset = self._size + guard.nbytes
        self._parts[name] = offset, content
        self._words += [guard, words, guard]
        self._size = offset + words.nbytes + guard.nbytes
        return ARENA + offset

    def put_tensor(self, name: str, tensor: Guarded) -> int:
        """The address of the tensor's first number."""
        return self.put(name, tensor.memory) + GUARD * tensor.memory.itemsize

    def empty(self, name: str, numbers: int) -> int:
        """The address of so many canaries."""
        return self.put(name, np.full(numbers, CANARY, np.uint32))

    def write(self, path: Path, launches: Sequence[Sequence[int]]) -> None:
        head = np.array([len(launches), *(word for launch in launches for word in launch)], np.int64)
        self._words[0].view(np.int64)[: len(head)] = head
        path.write_bytes(np.concatenate(self._words).tobytes())

    def read(self, path: Path, written: Sequence[str]) -> dict[str, np.ndarray]:
        """What lies under these names now. Fails if anything else changed, but for the blocks."""
        data = np.fromfile(path, np.uint8)
        now = {}
        for name, (offset, before) in self._parts.items():
            end = offset + -(-before.nbytes // 64) * 64
            around = np.concatenate([data[offset - 4 * GUARD : offset], data[end : end + 4 * GUARD]]).view(np.uint32)
            assert (around == CANARY).all(), f"written beside {name}"
            now[name] = data[offset : offset + before.nbytes].view(before.dtype)
            if name not in written and not name.startswith("block"):
                assert now[name].tobytes() == before.tobytes(), f"{name} changed"
        return now


class Emulator:
    """Builds programs and runs them; every kernel is compiled once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._objects: dict[str, tuple[str, Path]] = {}
        self._programs: dict[tuple[str, ...], Path] = {}
        self._driver, self._launcher = folder / "driver.o", folder / "launcher.o"
        source = Path(__file__).with_name("emulated.c")
        _call("aarch64-linux-gnu-gcc", "-O2", f"-DARENA={ARENA:#x}", "-c", source, "-o", self._driver)
        machine = Machine.named("neoverse-n1")
        self._launcher.write_bytes(emit_object(launcher_ir(machine), machine))

    def run(
        self,
        plan: Plan,
        first: np.ndarray,
        second: np.ndarray,
        bias: np.ndarray | None = None,
        *,
        layout: str = "contiguous",
        team: int = 1,
        parts: int = 1,
        control: int = 0,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(result, bias gradient) of a plan, as `tests.engine.guards.convolve`.

        team: threads; the launcher makes those that are more than one. parts: into how many ranges the items of a job
        are cut, if there are so many. control: FPCR of the caller.
        """
        problem, memory = plan.problem, Memory()
        a, b = (Guarded(operand, dtype=problem.dtype) for operand in (first, second))
        result = guards._result(problem, layout)
        x, w, y = guards._by_position(problem, a.strides, b.strides, result.strides)
        assert laid_out(problem, x, y) == problem
        bound = ALGORITHMS[plan.algorithm].bind(plan, x, w, y)
        names = tuple(sorted({job.kernel for job in (*bound.jobs, *bound.packing)}))
        moved = _moved(memory, bound)
        at_first, at_second = memory.put_tensor("first operand", a), memory.put_tensor("second operand", b)
        at_result = memory.put_tensor("result", result)
        third = _third(memory, plan, bias, result, at_result)

        def launch(kind: str, jobs: Sequence[PlannedJob], shared: int, *pointers: int) -> list[int]:
            native = [
                Job(names.index(j.kernel), j.items, max(1, -(-j.items // parts)), [moved.get(w, w) for w in j.words])
                for j in jobs
            ]
            block = memory.put(f"block of {kind}", Block(native).words)
            rooms = [4 * _room(shared), 4 * _room(bound.scratch)]
            scratch = memory.empty(f"scratch of {kind}", (rooms[0] + team * rooms[1]) // 4)
            flush = 0 if plan.policy.accuracy == "strict" else 1
            return [block, *pointers, team, *rooms, flush, scratch, control]

        launches = []
        if bound.packed:
            packed = memory.empty("packed weights", bound.packed)
            launches.append(launch("packing", bound.packing, 0, at_second, packed, 0, 0))
            at_second = packed
        launches.append(launch("jobs", bound.jobs, bound.shared, at_first, at_second, third, at_result))

        path = self._folder / "memory"
        memory.write(path, launches)
        _call("qemu-aarch64", self._program(plan, names), path)
        gradients = problem.bias and problem.direction is Direction.WEIGHT_GRADIENT
        scratch = ["scratch of packing", "scratch of jobs"]
        now = memory.read(path, ["result", "packed weights", *scratch, *["bias gradient"] * gradients])
        for name, shared in zip(scratch, (0, bound.shared), strict=True):
            _check_gaps(name, now.get(name), shared, bound.scratch, team)
        result.memory[...] = now["result"]
        return result.take("result"), now["bias gradient"].view(np.float32) if gradients else np.empty(0, np.float32)

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


def _third(memory: Memory, plan: Plan, bias: np.ndarray | None, result: Guarded, at_result: int) -> int:
    """What p2 points to: bias, bias gradient, the operands of an epilogue, or nothing."""
    problem = plan.problem
    if problem.direction is Direction.WEIGHT_GRADIENT:
        return memory.empty("bias gradient", problem.spec.out_channels) if problem.bias else 0
    at_bias = 0 if bias is None else memory.put_tensor("bias", Guarded(bias, dtype=problem.dtype))
    if problem.epilogue is None:
        return at_bias
    more = guards._following(problem, result)
    scale, shift, residual = (memory.put_tensor(name, more[name]) for name in ("scale", "shift", "residual"))
    return memory.put("operands", np.array(operand_words(at_bias, scale, shift, residual, at_result), np.int64))


def _moved(memory: Memory, bound: Bound) -> dict[int, int]:
    """Puts all tables into the memory: where each lay, and lies there. A table may hold addresses of earlier ones."""
    moved: dict[int, int] = {}
    for number, table in enumerate(bound.tables):
        assert isinstance(table, np.ndarray) and table.dtype == np.int64
        content = np.array([moved.get(word, word) for word in table.tolist()], np.int64)
        moved[table.ctypes.data] = memory.put(f"table {number}", content)
    return moved


def _room(numbers: int) -> int:
    """Numbers of scratch with a gap behind them, whole cache lines."""
    return -(-numbers // 16) * 16 + GUARD


def _check_gaps(name: str, scratch: np.ndarray | None, shared: int, own: int, team: int) -> None:
    """Behind the scratch of all threads, and of each, everything is as it was."""
    at = 0
    for part, used in enumerate([shared] + [own] * team if scratch is not None else []):
        gap = scratch[at + used : at + _room(used)] if scratch is not None else np.empty(0)
        assert (gap == CANARY).all(), f"written behind part {part} of the {name} (0: shared)"
        at += _room(used)


def _call(*words: object) -> None:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{words[0]} exits with {done.returncode}: {done.stdout}{done.stderr}"
