"""Functions, values and loops: the words in which kernels are written.

A kernel is LLVM IR, and this file writes its text. It knows three types of number (`I64` for sizes, `F32`, vectors of
F32) and pointers, and keeps everything in SSA form, so that no IR pass has to run before code generation:

    f = Function("scale", [("x", PTR), ("n", I64)])
    with f.loop("i", 0, f.arg("n")) as i:
        f.store(f.load(f.arg("x") + i.index, F32) * 2.0, f.arg("x") + i.index)
    f.ret()

Adding an integer to a pointer counts in numbers, as C's `float *` does. What is loaded and stored is float32; a
pointer of another type (`pointer_to("bfloat16")`) converts on the way. Python numbers are constants and are folded, so
`x + 0` emits nothing. Every value has a name, so that a disassembly explains itself.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from hubel.engine.ir.storage import PTR, Pointer, check_same_storage, converts, narrowed, of_shape, stored_as, widened

I64, F32, I1 = "i64", "float", "i1"


def vector_of(lanes: int) -> str:
    """The type of a vector of `lanes` float32 numbers."""
    return f"<{lanes} x float>"


def float_constant(number: float) -> str:
    """LLVM's spelling of a float32 constant: the bits of the double that equals it."""
    (rounded,) = struct.unpack("<f", struct.pack("<f", number))
    return f"0x{struct.unpack('<Q', struct.pack('<d', rounded))[0]:016X}"


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """One SSA value: its type and how it is spelled in the text."""

    function: Function
    type: str
    text: str

    def __add__(self, other: Value | int | float) -> Value:
        if self.type == PTR:
            return self.function.offset(self, other)  # type: ignore[arg-type]
        return self.function.binary("add", self, other)

    __radd__ = __add__

    def __sub__(self, other: Value | int | float) -> Value:
        return self.function.binary("sub", self, other)

    def __rsub__(self, other: int | float) -> Value:
        return self.function.binary("sub", self.function.constant(other, self.type), self)

    def __mul__(self, other: Value | int | float) -> Value:
        return self.function.binary("mul", self, other)

    __rmul__ = __mul__

    def __floordiv__(self, other: Value | int) -> Value:
        return self.function.binary("sdiv", self, other)

    def __mod__(self, other: Value | int) -> Value:
        return self.function.binary("srem", self, other)

    def __and__(self, other: Value) -> Value:
        return self.function.binary("and", self, other)

    def __or__(self, other: Value) -> Value:
        return self.function.binary("or", self, other)

    def __lt__(self, other: Value | int) -> Value:
        return self.function.compare("slt", self, other)

    def __le__(self, other: Value | int) -> Value:
        return self.function.compare("sle", self, other)

    def __gt__(self, other: Value | int) -> Value:
        return self.function.compare("sgt", self, other)

    def __ge__(self, other: Value | int) -> Value:
        return self.function.compare("sge", self, other)

    def equals(self, other: Value | int) -> Value:
        return self.function.compare("eq", self, other)

    def seen_as(self, pointer: Pointer) -> Value:
        """The same address, as a pointer of another type."""
        return Value(self.function, pointer, self.text)

    @property
    def number(self) -> int | None:
        """The value as a Python integer where it is an integer constant."""
        return int(self.text) if self.type == I64 and self.text.lstrip("-").isdigit() else None


@dataclass(slots=True)
class Loop:
    """A counted loop being written: its index, the values it carries, and afterwards their last state."""

    index: Value
    carried: list[Value]
    results: list[Value] = field(default_factory=list)

    def carry(self, *values: Value) -> None:
        """Say what the carried values are after this turn."""
        self.carried = list(values)


class Function:
    """One function of a module, written instruction by instruction.

    `private` functions are helpers of a kernel (internal linkage); the kernel itself is public.
    """

    def __init__(self, name: str, parameters: Sequence[tuple[str, str]], *, private: bool = False) -> None:
        self.name, self.private = name, private
        self.parameters = list(parameters)
        self.lines: list[str] = []
        self._rooms: list[str] = []
        self.declarations: set[str] = set()
        self.callees: list[Function] = []
        self.block = "entry"
        self._names: dict[str, int] = {"entry": 1}
        self._open("entry")

    # --- names and text ---

    def _unique(self, name: str) -> str:
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        return name if count == 0 else f"{name}.{count}"

    def _open(self, label: str) -> None:
        self.block = label
        self.lines.append(f"{label}:")

    def _emit(self, type_: str, instruction: str, name: str = "v") -> Value:
        unique = self._unique(name)
        self.lines.append(f"  %{unique} = {instruction}")
        return Value(self, type_, f"%{unique}")

    def arg(self, name: str) -> Value:
        """The parameter called `name`."""
        types = dict(self.parameters)
        return Value(self, types[name], f"%{name}.arg")

    def constant(self, number: Value | int | float, type_: str = I64) -> Value:
        """`number` as a constant of `type_` (a value passes through)."""
        if isinstance(number, Value):
            return number
        if type_ == I64:
            return Value(self, I64, str(int(number)))
        if type_ == F32:
            return Value(self, F32, float_constant(number))
        return Value(self, type_, f"splat (float {float_constant(number)})")

    # --- arithmetic ---

    def binary(self, operation: str, a: Value | int | float, b: Value | int | float, name: str = "v") -> Value:
        type_ = a.type if isinstance(a, Value) else b.type if isinstance(b, Value) else I64
        a, b = self.constant(a, type_), self.constant(b, type_)
        folded = self._fold(operation, a, b)
        if folded is not None:
            return folded
        floats = type_ == F32 or type_.startswith("<")
        spelled = ("f" + operation) if floats else operation
        if operation in ("add", "sub", "mul") and type_ == I64:
            spelled += " nsw"
        return self._emit(type_, f"{spelled} {type_} {a.text}, {b.text}", name)

    def _fold(self, operation: str, a: Value, b: Value) -> Value | None:
        """The result where it is known without an instruction."""
        m, n = a.number, b.number
        if m is not None and n is not None and operation in ("add", "sub", "mul", "sdiv", "srem"):
            exact = {"add": m + n, "sub": m - n, "mul": m * n}
            if operation in exact:
                return self.constant(exact[operation])
            if n > 0 and m >= 0:
                return self.constant(m // n if operation == "sdiv" else m % n)
        if n == 0 and operation in ("add", "sub"):
            return a
        if m == 0 and operation == "add":
            return b
        if (m == 0 or n == 0) and operation == "mul":
            return self.constant(0)
        if n == 1 and operation in ("mul", "sdiv"):
            return a
        if m == 1 and operation == "mul":
            return b
        return None

    def compare(self, predicate: str, a: Value | int, b: Value | int) -> Value:
        a, b = self.constant(a), self.constant(b)
        return self._emit(I1, f"icmp {predicate} {a.type} {a.text}, {b.text}", "is")

    def select(self, condition: Value, yes: Value | int, no: Value | int, name: str = "pick") -> Value:
        typed = [v for v in (yes, no) if isinstance(v, Value) and v.text != "null"]
        type_ = typed[0].type if typed else I64
        yes, no = self.constant(yes, type_), self.constant(no, type_)
        check_same_storage(yes, no.type, f"{name} in {self.name}")
        return self._emit(type_, f"select i1 {condition.text}, {type_} {yes.text}, {type_} {no.text}", name)

    def negate(self, condition: Value) -> Value:
        return self._emit(I1, f"xor i1 {condition.text}, true", "not")

    def minimum(self, a: Value | int, b: Value | int) -> Value:
        a, b = self.constant(a), self.constant(b)
        if a.number is not None and b.number is not None:
            return a if a.number <= b.number else b
        return self.select(a < b, a, b, "min")

    def maximum(self, a: Value | int, b: Value | int) -> Value:
        a, b = self.constant(a), self.constant(b)
        if a.number is not None and b.number is not None:
            return a if a.number >= b.number else b
        return self.select(a > b, a, b, "max")

    def fma(self, a: Value, b: Value, c: Value, name: str = "acc") -> Value:
        """a·b + c, rounded once."""
        suffix = "f32" if a.type == F32 else f"v{a.type[1:].split()[0]}f32"
        self.declarations.add(f"declare {a.type} @llvm.fma.{suffix}({a.type}, {a.type}, {a.type})")
        args = ", ".join(f"{v.type} {v.text}" for v in (a, b, c))
        return self._emit(a.type, f"call {a.type} @llvm.fma.{suffix}({args})", name)

    # --- vectors ---

    def splat(self, scalar: Value, lanes: int, name: str = "splat") -> Value:
        """A vector with `scalar` in every lane."""
        type_ = vector_of(lanes)
        first = self._emit(type_, f"insertelement {type_} poison, float {scalar.text}, i64 0", name)
        return self._emit(
            type_, f"shufflevector {type_} {first.text}, {type_} poison, <{lanes} x i32> zeroinitializer", name
        )

    def shuffle(self, a: Value, b: Value, picks: Sequence[int], name: str = "shuffled") -> Value:
        """The lanes `picks` of a and b laid end to end; −1 leaves a lane undefined."""
        mask = ", ".join(f"i32 {p}" if p >= 0 else "i32 poison" for p in picks)
        text = f"shufflevector {a.type} {a.text}, {b.type} {b.text}, <{len(picks)} x i32> <{mask}>"
        return self._emit(vector_of(len(picks)), text, name)

    def lane(self, vector: Value, index: int, name: str = "lane") -> Value:
        return self._emit(F32, f"extractelement {vector.type} {vector.text}, i64 {index}", name)

    # --- memory ---

    def offset(self, pointer: Value, elements: Value | int, unit: str = "", name: str = "p") -> Value:
        """The pointer moved by `elements` numbers of type `unit`, or of what it points to."""
        elements = self.constant(elements)
        if elements.number == 0:
            return pointer
        unit = unit or stored_as(pointer).number
        text = f"getelementptr inbounds {unit}, ptr {pointer.text}, i64 {elements.text}"
        return self._emit(stored_as(pointer), text, name)

    def load(self, pointer: Value, type_: str, name: str = "x") -> Value:
        """A number or vector at `pointer`; float32 from whatever is stored there."""
        if converts(pointer, type_):
            stored = of_shape(stored_as(pointer).number, type_)
            short = self._emit(stored, f"load {stored}, ptr {pointer.text}, align 2", name)
            return widened(self, short, stored_as(pointer), type_)
        align = 8 if type_ in (I64, PTR) else 4
        return self._emit(type_, f"load {type_}, ptr {pointer.text}, align {align}", name)

    def lanes_below(self, count: Value, lanes: int) -> Value:
        """A mask of the lanes whose number is less than `count`."""
        numbers = ", ".join(f"i64 {i}" for i in range(lanes))
        type_ = f"<{lanes} x i64>"
        first = self._emit(type_, f"insertelement {type_} poison, i64 {count.text}, i64 0", "count")
        every = self._emit(
            type_, f"shufflevector {type_} {first.text}, {type_} poison, <{lanes} x i32> zeroinitializer", "count"
        )
        return self._emit(f"<{lanes} x i1>", f"icmp slt {type_} <{numbers}>, {every.text}", "mask")

    def load_masked(self, pointer: Value, mask: Value, lanes: int, name: str = "x") -> Value:
        """The lanes of `mask` from memory, zeros in the others; memory under those is not touched."""
        wide, masks, kind = vector_of(lanes), f"<{lanes} x i1>", stored_as(pointer)
        type_ = of_shape(kind.number, wide)
        callee = f"@llvm.masked.load.v{lanes}{kind.short}.p0"
        self.declarations.add(f"declare {type_} {callee}(ptr, {masks}, {type_})")
        args = f"ptr align {kind.bytes} {pointer.text}, {masks} {mask.text}, {type_} zeroinitializer"
        stored = self._emit(type_, f"call {type_} {callee}({args})", name)
        return widened(self, stored, kind, wide) if converts(pointer, wide) else stored

    def store_masked(self, value: Value, pointer: Value, mask: Value) -> None:
        """Store the lanes of `mask`; memory under the others is not touched."""
        kind = stored_as(pointer)
        if converts(pointer, value.type):
            value = narrowed(self, value, kind)
        callee = f"@llvm.masked.store.v{value.type[1:].split()[0]}{kind.short}.p0"
        self.declarations.add(f"declare void {callee}({value.type}, ptr, {mask.type})")
        args = f"{value.type} {value.text}, ptr align {kind.bytes} {pointer.text}, {mask.type} {mask.text}"
        self.lines.append(f"  call void {callee}({args})")

    def room(self, pointer: Pointer, name: str, count: int = 1) -> Value:
        """Memory on the stack for so many numbers, taken once however often this is reached, and a pointer to it."""
        unique = self._unique(name)
        self._rooms.append(f"  %{unique} = alloca [{count} x {pointer.number}], align 8")
        return Value(self, pointer, f"%{unique}")

    def store(self, value: Value, pointer: Value) -> None:
        """Write a number or vector; float32 is rounded to whatever is stored there."""
        if converts(pointer, value.type):
            short = narrowed(self, value, stored_as(pointer))
            self.lines.append(f"  store {short.type} {short.text}, ptr {pointer.text}, align 2")
            return
        align = 8 if value.type in (I64, PTR) else 4
        self.lines.append(f"  store {value.type} {value.text}, ptr {pointer.text}, align {align}")

    def store_past(self, value: Value, pointer: Value) -> None:
        """Write a vector to memory, past the caches. The pointer is aligned to the vector's size."""
        size = 4 * int(value.type[1:].split()[0])
        self.lines.append(
            f"  store {value.type} {value.text}, ptr {pointer.text}, align {size}, !nontemporal !{{i32 1}}"
        )

    def copy(self, source: Value, target: Value) -> None:
        """Copy one number, just as it is where both places store alike."""
        kind = stored_as(source)
        if kind is stored_as(target):
            number = self._emit(kind.number, f"load {kind.number}, ptr {source.text}, align {kind.bytes}", "x")
            self.lines.append(f"  store {kind.number} {number.text}, ptr {target.text}, align {kind.bytes}")
        else:
            self.store(self.load(source, F32), target)

    def word(self, block: Value, index: int, name: str, type_: str = I64) -> Value:
        """Word `index` of an argument block: sizes, strides and addresses, 8 bytes each."""
        return self.load(self.offset(block, index, I64, f"{name}.at"), type_, name)

    def prefetch(self, pointer: Value, write: bool = False, level: int = 1) -> None:
        """Ask for the cache line at `pointer`, to be read, or written, soon; into the cache of this level."""
        self.declarations.add("declare void @llvm.prefetch.p0(ptr, i32, i32, i32)")
        hints = f"i32 {int(write)}, i32 {4 - level}, i32 1"
        self.lines.append(f"  call void @llvm.prefetch.p0(ptr {pointer.text}, {hints})")

    # --- control ---

    @contextmanager
    def loop(
        self,
        name: str,
        start: Value | int,
        stop: Value | int,
        step: Value | int = 1,
        carry: Sequence[Value] = (),
        at_least_once: bool = False,
    ) -> Iterator[Loop]:
        """for name in range(start, stop, step), carrying `carry` along; `results` holds their last state."""
        start, stop = self.constant(start), self.constant(stop)
        label = self._unique(name)
        before, body, done = self.block, f"{label}.loop", f"{label}.done"
        if start.number is not None and stop.number is not None:
            at_least_once = at_least_once or start.number < stop.number
        if at_least_once:
            self.lines.append(f"  br label %{body}")
        else:
            self.lines.append(f"  br i1 {(start < stop).text}, label %{body}, label %{done}")
        self._open(body)
        phi_at = len(self.lines)
        index = Value(self, I64, f"%{label}.i")
        carried = [Value(self, v.type, f"%{label}.c{i}") for i, v in enumerate(carry)]
        state = Loop(index, list(carried))
        yield state
        if len(state.carried) != len(carry):
            raise ValueError(f"loop {name} carries {len(carry)} values, but was given {len(state.carried)}")
        latch = self.block
        following = self._emit(I64, f"add nsw i64 {index.text}, {self.constant(step).text}", f"{label}.next")
        again = following < stop
        self.lines.append(f"  br i1 {again.text}, label %{body}, label %{done}")
        phis = [f"  {index.text} = phi i64 [ {start.text}, %{before} ], [ {following.text}, %{latch} ]"]
        for first, here, last in zip(carry, carried, state.carried, strict=True):
            phis.append(f"  {here.text} = phi {first.type} [ {first.text}, %{before} ], [ {last.text}, %{latch} ]")
        self.lines[phi_at:phi_at] = phis
        self._open(done)
        for i, (first, last) in enumerate(zip(carry, state.carried, strict=True)):
            edges = f"[ {last.text}, %{latch} ]" + ("" if at_least_once else f", [ {first.text}, %{before} ]")
            state.results.append(self._emit(first.type, f"phi {first.type} {edges}", f"{label}.r{i}"))

    @contextmanager
    def when(self, condition: Value, name: str = "when") -> Iterator[None]:
        """Run the body only where `condition` holds."""
        label = self._unique(name)
        self.lines.append(f"  br i1 {condition.text}, label %{label}.then, label %{label}.end")
        self._open(f"{label}.then")
        yield
        self.lines.append(f"  br label %{label}.end")
        self._open(f"{label}.end")

    def call(self, callee: Function, *arguments: Value | int, at: Value | None = None) -> None:
        """Call a function of the same module. at: the address of another one with the same parameters."""
        if callee not in self.callees:
            self.callees.append(callee)
        typed = [self.constant(a, t) for a, (_, t) in zip(arguments, callee.parameters, strict=True)]
        for value, (name, type_) in zip(typed, callee.parameters, strict=True):
            check_same_storage(value, type_, f"{name} of {callee.name}")
        args = ", ".join(f"{v.type} {v.text}" for v in typed)
        self.lines.append(f"  call void {at.text if at else '@' + callee.name}({args})")

    def one_of(self, functions: Sequence[Function], number: Value) -> Value:
        """The address of functions[number]; all have the same parameters."""
        self.callees += [function for function in functions if function not in self.callees]
        address = Value(self, PTR, f"@{functions[0].name}")
        for i, function in enumerate(functions[1:], 1):
            address = self.select(number.equals(i), Value(self, PTR, f"@{function.name}"), address, "function")
        return address

    def ret(self) -> None:
        self.lines.append("  ret void")

    def text(self) -> str:
        """The function as LLVM IR."""
        parameters = ", ".join(f"{t} noundef %{n}.arg" for n, t in self.parameters)
        linkage = "internal " if self.private else ""
        entry, *rest = self.lines
        lines = [entry, *self._rooms, *rest]
        return "\n".join([f"define {linkage}void @{self.name}({parameters}) nounwind #0 {{", *lines, "}"])
