"""The generated function behind `native`: LLVM IR text. What it does is told in `native.py`."""

from __future__ import annotations

import re

# Functions that the door calls, by address: torch's stable C interface, four C++ functions of torch, memcmp, and the
# engine's launcher. In this order in @functions.
FUNCTIONS = (
    "get_dim", "get_dtype", "get_sizes", "get_strides", "get_data_ptr", "delete_tensor", "list_size", "list_item",
    "delete_list", "delete_ivalue", "empty_strided", "call_dispatcher", "what", "version", "num_threads",
    "context", "mkldnn", "profiling", "is_defined", "fail", "memcmp", "run",
)  # fmt: skip

# Words of a call's description: eight of its own, a tensor's for each of input, weight and bias, a list's for each of
# stride, padding, dilation and output padding. A tensor: dimensions, dtype, sizes, strides; a list: length, numbers.
HEAD, MOST_DIMENSIONS, MOST_NUMBERS = 8, 5, 3
TENSOR, LIST = 2 + 2 * MOST_DIMENSIONS, 1 + MOST_NUMBERS
DESCRIPTION = HEAD + 3 * TENSOR + 4 * LIST

# An entry: words that the door reads, then the description that it answers.
ENTRY = (
    "next", "block", "packed", "shared", "scratch", "flush", "threads", "need",
    "sample_count", "sample_step", "sample_bytes", "sample", "dimensions", "dtype",
    *(f"size_{i}" for i in range(MOST_DIMENSIONS)), *(f"stride_{i}" for i in range(MOST_DIMENSIONS)),
)  # fmt: skip
BUCKETS, SLOTS, MULTIPLIER = 1024, 8, 0x9E3779B97F4A7C15

_RUN_ARGUMENTS = (
    "(ptr %block, ptr %p0, ptr %p1, ptr %p2, ptr %p3, i64 %team, i64 %shared, i64 %own, i64 %flush, ptr %memory)"
)
_IR = """
@functions = global [FUNCTIONS_COUNT x ptr] zeroinitializer
@buckets = global [BUCKETS x ptr] zeroinitializer
@slots = global [SLOT_WORDS x i64] zeroinitializer     ; a cache line a slot: taken, address, bytes
@generation = global i64 0                             ; of the optimizers' steps
@count = global i64 0                                  ; calls that were answered here
@readers = global i64 0                                ; calls that may hold an entry
@name = internal constant [20 x i8] c"_hubel::convolution\\00"
@overload = internal constant [1 x i8] c"\\00"
@file = internal constant [6 x i8] c"hubel\\00"

declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)

; Fills in what describes a tensor; false if it has too many dimensions.
define internal i1 @tensor(ptr %tensor, ptr %words) #0 {
entry:
  %long = alloca i64
  %short = alloca i32
  %sizes_at = alloca ptr
  %strides_at = alloca ptr
  CALL(get_dim, i32, (ptr %tensor, ptr %long), dim_code)
  CALL(get_dtype, i32, (ptr %tensor, ptr %short), dtype_code)
  CALL(get_sizes, i32, (ptr %tensor, ptr %sizes_at), sizes_code)
  CALL(get_strides, i32, (ptr %tensor, ptr %strides_at), strides_code)
  %dimensions = load i64, ptr %long
  %dtype_short = load i32, ptr %short
  %dtype_long = zext i32 %dtype_short to i64
  %sizes_from = load ptr, ptr %sizes_at
  %strides_from = load ptr, ptr %strides_at
  store i64 %dimensions, ptr %words
  %dtype_to = getelementptr i64, ptr %words, i64 1
  store i64 %dtype_long, ptr %dtype_to
  %few = icmp ule i64 %dimensions, MOST_DIMENSIONS
  br i1 %few, label %next, label %out
next:
  %i = phi i64 [ 0, %entry ], [ %i_next, %copy ]
  %more = icmp ult i64 %i, %dimensions
  br i1 %more, label %copy, label %out
copy:
  %size_at = getelementptr i64, ptr %sizes_from, i64 %i
  %size = load i64, ptr %size_at
  %stride_at = getelementptr i64, ptr %strides_from, i64 %i
  %stride = load i64, ptr %stride_at
  %size_index = add i64 %i, 2
  %size_to = getelementptr i64, ptr %words, i64 %size_index
  store i64 %size, ptr %size_to
  %stride_index = add i64 %size_index, MOST_DIMENSIONS
  %stride_to = getelementptr i64, ptr %words, i64 %stride_index
  store i64 %stride, ptr %stride_to
  %i_next = add i64 %i, 1
  br label %next
out:
  ret i1 %few
}

; Fills in a list of numbers; false if it has too many.
define internal i1 @list(ptr %list, ptr %words) #0 {
entry:
  %item = alloca i64
  CALL(list_size, i32, (ptr %list, ptr %words), size_code)
  %count = load i64, ptr %words
  %few = icmp ule i64 %count, MOST_NUMBERS
  br i1 %few, label %next, label %out
next:
  %i = phi i64 [ 0, %entry ], [ %i_next, %copy ]
  %more = icmp ult i64 %i, %count
  br i1 %more, label %copy, label %out
copy:
  CALL(list_item, i32, (ptr %list, i64 %i, ptr %item), item_code)
  %number = load i64, ptr %item
  %i_next = add i64 %i, 1
  %to = getelementptr i64, ptr %words, i64 %i_next
  store i64 %number, ptr %to
  br label %next
out:
  ret i1 %few
}

; Whether the weight at %data still has the sampled values of an entry.
define internal i1 @unchanged(ptr %entry_at, ptr %data) #0 {
entry:
  WORD(entry_at, sample_count, count)
  WORD(entry_at, sample_step, step)
  WORD(entry_at, sample_bytes, bytes)
  POINTER(entry_at, sample, sample)
  %whole = icmp eq i64 %step, 0
  br i1 %whole, label %all, label %which
all:
  CALL(memcmp, i32, (ptr %data, ptr %sample, i64 %count), differs)
  %same = icmp eq i32 %differs, 0
  ret i1 %same
which:
  %narrow = icmp eq i64 %bytes, 2
  br i1 %narrow, label %next16, label %next32
next16:
  %i16 = phi i64 [ 0, %which ], [ %i16_next, %look16 ]
  %more16 = icmp ult i64 %i16, %count
  br i1 %more16, label %look16, label %yes
look16:
  %at16 = mul i64 %i16, %step
  %here16_at = getelementptr i16, ptr %data, i64 %at16
  %here16 = load i16, ptr %here16_at
  %there16_at = getelementptr i16, ptr %sample, i64 %i16
  %there16 = load i16, ptr %there16_at
  %equal16 = icmp eq i16 %here16, %there16
  %i16_next = add i64 %i16, 1
  br i1 %equal16, label %next16, label %no
next32:
  %i32 = phi i64 [ 0, %which ], [ %i32_next, %look32 ]
  %more32 = icmp ult i64 %i32, %count
  br i1 %more32, label %look32, label %yes
look32:
  %at32 = mul i64 %i32, %step
  %here32_at = getelementptr i32, ptr %data, i64 %at32
  %here32 = load i32, ptr %here32_at
  %there32_at = getelementptr i32, ptr %sample, i64 %i32
  %there32 = load i32, ptr %there32_at
  %equal32 = icmp eq i32 %here32, %there32
  %i32_next = add i64 %i32, 1
  br i1 %equal32, label %next32, label %no
yes:
  ret i1 true
no:
  ret i1 false
}

; Takes scratch memory number %slot if nobody has it; 0 if somebody has.
define i64 @take(i64 %slot) #0 {
  %word = shl i64 %slot, 3
  %at = getelementptr i64, ptr @slots, i64 %word
  %before = atomicrmw xchg ptr %at, i64 1 acquire
  %taken = sub i64 1, %before
  ret i64 %taken
}

define void @give_back(i64 %slot) #0 {
  %word = shl i64 %slot, 3
  %at = getelementptr i64, ptr @slots, i64 %word
  store atomic i64 0, ptr %at release, align 8
  ret void
}

; Puts a pointer where the door may be reading it; how many calls may still hold what was there before.
define i64 @exchange(ptr %at, ptr %value) #0 {
  %before = atomicrmw xchg ptr %at, ptr %value seq_cst
  %readers = load atomic i64, ptr @readers seq_cst, align 8
  ret i64 %readers
}

define void @door(ptr %stack, i64 %arguments, i64 %results) #0 {
  %message = call ptr @answer(ptr %stack)
  %fine = icmp eq ptr %message, null
  br i1 %fine, label %done, label %raise
done:
  ret void
raise:                                           ; jumped to, not called: exceptions do not pass through this code
  TAIL(fail, (ptr @file, ptr @file, i32 0, ptr %message))
  ret void
}

; Answers a call whose arguments lie on the stack; null, or the error's text.
define internal ptr @answer(ptr %stack) #1 {
entry:
  %words = alloca [DESCRIPTION x i64], align 64
  %long = alloca i64
  %x_at = alloca ptr
  %w_at = alloca ptr
  %b_at = alloca ptr
  %y_at = alloca ptr
  %out = alloca ptr
  %flag = alloca i8
  STACK(0, x)
  STACK(1, w)
  STACK(2, b_optional)
  STACK(3, stride)
  STACK(4, padding)
  STACK(5, dilation)
  STACK(7, output_padding)
  CALL(profiling, i8, (), profiling)
  %profiled = trunc i8 %profiling to i1
  br i1 %profiled, label %leave, label %describe

describe:
  call void @llvm.memset.p0.i64(ptr align 64 %words, i8 0, i64 DESCRIPTION_BYTES, i1 false)
  %impl = load i64, ptr %w
  %bucket_at = call ptr @bucket(i64 %impl)
  %reading = atomicrmw add ptr @readers, i64 1 seq_cst
  %first = load atomic ptr, ptr %bucket_at seq_cst, align 8
  %none = icmp eq ptr %first, null
  br i1 %none, label %miss, label %fill
fill:
  PUT(0, %impl)
  CALL(get_data_ptr, i32, (ptr %w, ptr %w_at), w_code)
  %w_data = load ptr, ptr %w_at
  %w_number = ptrtoint ptr %w_data to i64
  PUT(1, %w_number)
  %generation = load atomic i64, ptr @generation monotonic, align 8
  PUT(3, %generation)
  CALL(num_threads, i32, (), threads)
  %threads_long = sext i32 %threads to i64
  PUT(4, %threads_long)
  CALL(context, ptr, (), context)
  CALL(mkldnn, i8, (ptr %context), mkldnn)
  %mkldnn_bit = and i8 %mkldnn, 1
  %mkldnn_long = zext i8 %mkldnn_bit to i64
  PUT(5, %mkldnn_long)
  %transposed_at = getelementptr i64, ptr %stack, i64 6
  %transposed = load i64, ptr %transposed_at
  %transposed_bit = and i64 %transposed, 1
  PUT(6, %transposed_bit)
  %groups_at = getelementptr i64, ptr %stack, i64 8
  %groups = load i64, ptr %groups_at
  PUT(7, %groups)
  DESCRIBE(tensor, %x, X_FROM, x)
  DESCRIBE(tensor, %w, W_FROM, w)
  DESCRIBE(list, %stride, LISTS_FROM_0, stride)
  DESCRIBE(list, %padding, LISTS_FROM_1, padding)
  DESCRIBE(list, %dilation, LISTS_FROM_2, dilation)
  DESCRIBE(list, %output_padding, LISTS_FROM_3, output_padding)
  %known_1 = and i1 %known_x, %known_w
  %known_2 = and i1 %known_1, %known_stride
  %known_3 = and i1 %known_2, %known_padding
  %known_4 = and i1 %known_3, %known_dilation
  %known_5 = and i1 %known_4, %known_output_padding
  store ptr null, ptr %b_at
  %no_bias = icmp eq ptr %b_optional, null
  br i1 %no_bias, label %search, label %perhaps
perhaps:                                         ; "none" also comes as an undefined tensor
  %b_handle = load ptr, ptr %b_optional
  store i8 0, ptr %flag
  CALL(is_defined, i32, (ptr %b_handle, ptr %flag), is_defined_code)
  %flag_byte = load i8, ptr %flag
  %defined = icmp ne i8 %flag_byte, 0
  br i1 %defined, label %bias, label %search
bias:
  DESCRIBE(tensor, %b_handle, B_FROM, b)
  CALL(get_data_ptr, i32, (ptr %b_handle, ptr %b_at), b_code)
  br label %search

search:
  %known_b_here = phi i1 [ true, %fill ], [ true, %perhaps ], [ %known_b, %bias ]
  %known = and i1 %known_5, %known_b_here
  br i1 %known, label %look, label %miss
look:
  %found = phi ptr [ %first, %search ], [ %following, %different ]
  %description = getelementptr i64, ptr %found, i64 ENTRY_WORDS
  ; The version last, of a weight that is the entry's for sure: of inference tensors it must not be asked.
  %version_at = getelementptr i64, ptr %description, i64 2
  %version_then = load i64, ptr %version_at
  PUT(2, %version_then)
  CALL(memcmp, i32, (ptr %words, ptr %description, i64 DESCRIPTION_BYTES), differs)
  %alike = icmp eq i32 %differs, 0
  br i1 %alike, label %versions, label %different
different:
  %following = load ptr, ptr %found
  %end = icmp eq ptr %following, null
  br i1 %end, label %miss, label %look
versions:
  CALL(version, i64, (ptr %w), version)
  %current = icmp eq i64 %version, %version_then
  br i1 %current, label %values, label %miss
values:
  POINTER(found, packed, packed)
  %as_they_are = icmp eq ptr %packed, null
  br i1 %as_they_are, label %scratch, label %sampled
sampled:
  %same = call i1 @unchanged(ptr %found, ptr %w_data)
  br i1 %same, label %scratch, label %miss

scratch:
  WORD(found, need, need)
  br label %next_slot
next_slot:
  %slot = phi i64 [ 0, %scratch ], [ %slot_next, %other_slot ]
  %slots_left = icmp ult i64 %slot, SLOTS
  br i1 %slots_left, label %try_slot, label %miss
try_slot:
  %slot_word = shl i64 %slot, 3
  %slot_at = getelementptr i64, ptr @slots, i64 %slot_word
  %bytes_at = getelementptr i64, ptr %slot_at, i64 2
  %bytes_seen = load atomic i64, ptr %bytes_at monotonic, align 8
  %large = icmp ule i64 %need, %bytes_seen
  br i1 %large, label %take_slot, label %other_slot
take_slot:
  %taken = call i64 @take(i64 %slot)
  %mine = icmp ne i64 %taken, 0
  br i1 %mine, label %check_slot, label %other_slot
check_slot:                                      ; it may have been exchanged meanwhile
  %bytes = load atomic i64, ptr %bytes_at monotonic, align 8
  %enough = icmp ule i64 %need, %bytes
  br i1 %enough, label %allocate, label %small_slot
small_slot:
  call void @give_back(i64 %slot)
  br label %other_slot
other_slot:
  %slot_next = add i64 %slot, 1
  br label %next_slot

allocate:
  %memory_at = getelementptr i64, ptr %slot_at, i64 1
  %memory = load ptr, ptr %memory_at
  WORD(found, dimensions, dimensions)
  WORD(found, dtype, dtype)
  %dtype_short = trunc i64 %dtype to i32
  ADDRESS(found, size_0, sizes)
  ADDRESS(found, stride_0, strides)
  CALL(empty_strided, i32, (i64 %dimensions, ptr %sizes, ptr %strides, i32 %dtype_short, i32 0, i32 0, ptr %out), error)
  %allocated = icmp eq i32 %error, 0
  br i1 %allocated, label %start, label %no_memory
no_memory:                                       ; torch says so
  call void @give_back(i64 %slot)
  br label %miss
start:
  %y = load ptr, ptr %out
  CALL(get_data_ptr, i32, (ptr %y, ptr %y_at), y_code)
  CALL(get_data_ptr, i32, (ptr %x, ptr %x_at), x_code)
  %p0 = load ptr, ptr %x_at
  %p1 = select i1 %as_they_are, ptr %w_data, ptr %packed
  %p2 = load ptr, ptr %b_at
  %p3 = load ptr, ptr %y_at
  POINTER(found, block, block)
  WORD(found, threads, team)
  WORD(found, shared, shared)
  WORD(found, scratch, own)
  WORD(found, flush, flush)
  CALL_VOID(run, RUN_ARGUMENTS)
  call void @give_back(i64 %slot)
  %read = atomicrmw sub ptr @readers, i64 1 release
  %counted = atomicrmw add ptr @count, i64 1 monotonic
  CALL(delete_tensor, i32, (ptr %x), x_gone)
  CALL(delete_tensor, i32, (ptr %w), w_gone)
  CALL(delete_list, i32, (ptr %stride), stride_gone)
  CALL(delete_list, i32, (ptr %padding), padding_gone)
  CALL(delete_list, i32, (ptr %dilation), dilation_gone)
  CALL(delete_list, i32, (ptr %output_padding), output_padding_gone)
  br i1 %no_bias, label %answer, label %free_bias
free_bias:
  %b_gone_handle = load ptr, ptr %b_optional
  CALL(delete_tensor, i32, (ptr %b_gone_handle), b_gone)
  CALL(delete_ivalue, i32, (ptr %b_optional), optional_gone)
  br label %answer
answer:
  store ptr %y, ptr %stack
  ret ptr null

miss:
  %missed = atomicrmw sub ptr @readers, i64 1 release
  br label %leave
leave:                                           ; Python's turn, with the same arguments, which become its own
  CALL(call_dispatcher, i32, (ptr @name, ptr @overload, ptr %stack, i64 ABI_VERSION), failed)
  %fine = icmp eq i32 %failed, 0
  br i1 %fine, label %done, label %raised
done:
  ret ptr null
raised:
  CALL(what, ptr, (), message)
  ret ptr %message
}

define internal ptr @bucket(i64 %impl) #0 {
  %mixed = mul i64 %impl, MULTIPLIER
  %index = lshr i64 %mixed, BUCKET_SHIFT
  %at = getelementptr ptr, ptr @buckets, i64 %index
  ret ptr %at
}

attributes #0 = { nounwind }
attributes #1 = { noinline nounwind }
"""


def bucket_of(weight: int) -> int:
    """Where entries for a weight at this address hang."""
    return (weight * MULTIPLIER) % 2**64 >> (64 - (BUCKETS.bit_length() - 1))


def door_ir(abi_version: int) -> str:
    """The IR module, for any machine. abi_version: of the stable C interface that it was written for."""
    text = "\n".join(
        part for line in _IR.replace("RUN_ARGUMENTS", _RUN_ARGUMENTS).splitlines() for part in _expanded(line)
    )
    numbers = {
        "FUNCTIONS_COUNT": len(FUNCTIONS), "SLOT_WORDS": 8 * SLOTS, "BUCKETS": BUCKETS, "SLOTS": SLOTS,
        "DESCRIPTION_BYTES": 8 * DESCRIPTION, "DESCRIPTION": DESCRIPTION, "MOST_DIMENSIONS": MOST_DIMENSIONS,
        "MOST_NUMBERS": MOST_NUMBERS, "ENTRY_WORDS": len(ENTRY), "ABI_VERSION": abi_version,
        "MULTIPLIER": MULTIPLIER - 2**64, "BUCKET_SHIFT": 64 - (BUCKETS.bit_length() - 1),
        "X_FROM": HEAD, "W_FROM": HEAD + TENSOR, "B_FROM": HEAD + 2 * TENSOR,
        **{f"LISTS_FROM_{i}": HEAD + 3 * TENSOR + i * LIST for i in range(4)},
    }  # fmt: skip
    for name, number in numbers.items():
        text = re.sub(rf"\b{name}\b", str(number), text)
    return text


def _expanded(line: str) -> list[str]:
    """A line of `_IR` that is a macro as lines of IR; any other as it is."""
    macro = re.match(r"\s+([A-Z_]+)\((.*)\)$", line)
    if macro is None:
        return [line]
    name, inside = macro.groups()
    if name == "CALL":
        function, result, rest = (part.strip() for part in inside.split(",", 2))
        arguments, value = (part.strip() for part in rest.rsplit(",", 1))
        return _called(function, f"%{value} = call {result}", arguments, value)
    if name in ("CALL_VOID", "TAIL"):
        function, arguments = (part.strip() for part in inside.split(",", 1))
        return _called(function, "tail call void" if name == "TAIL" else "call void", arguments, function)
    parts = [part.strip() for part in inside.split(",")]
    if name == "STACK":
        index, value = parts
        return [f"  %{value}_from = getelementptr i64, ptr %stack, i64 {index}",
                f"  %{value} = load ptr, ptr %{value}_from"]  # fmt: skip
    if name == "PUT":
        index, value = parts
        return [
            f"  %put_{index} = getelementptr i64, ptr %words, i64 {index}",
            f"  store i64 {value}, ptr %put_{index}",
        ]
    if name == "DESCRIBE":
        what, value, start, label = parts
        return [f"  %to_{label} = getelementptr i64, ptr %words, i64 {start}",
                f"  %known_{label} = call i1 @{what}(ptr {value}, ptr %to_{label})"]  # fmt: skip
    entry, word, value = parts
    address = f"getelementptr i64, ptr %{entry}, i64 {ENTRY.index(word)}"
    if name == "ADDRESS":
        return [f"  %{value} = {address}"]
    type_ = {"WORD": "i64", "POINTER": "ptr"}[name]
    return [f"  %{value}_word = {address}", f"  %{value} = load {type_}, ptr %{value}_word"]


def _called(function: str, call: str, arguments: str, label: str) -> list[str]:
    """A call of one of `FUNCTIONS`, by its address."""
    place = f"getelementptr ([{len(FUNCTIONS)} x ptr], ptr @functions, i64 0, i64 {FUNCTIONS.index(function)})"
    return [f"  %at_{label} = load ptr, ptr {place}", f"  {call} %at_{label}{arguments}"]
