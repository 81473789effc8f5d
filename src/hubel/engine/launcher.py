"""The generated function behind ``threads.launch``: LLVM IR text. What it does is told in ``threads.py``."""

from __future__ import annotations

from hubel.engine.machine import Machine
from hubel.errors import UnsupportedError

# The words of %Region: jobs, number of jobs, counters, scratch, bytes of shared scratch, bytes of a thread's scratch,
# floating-point control word (the caller's: a result must not depend on which thread computes it), who runs the region
# (0 the caller alone, 1 an OpenMP team, 2 a team of our own), ranges that the items of a job fall into.
LAUNCHER_IR = """
%Region = type { ptr, i64, ptr, ptr, i64, i64, i64, i64, i64 }

; Addresses, filled in after loading: parallel (GOMP_parallel or @own_parallel), GOMP_barrier, and for @own_parallel
; pthread_create, pthread_join, sched_yield; omp_get_thread_num. Parallel is read once a launch, and may change between
; launches.
@runtime = global [6 x ptr] zeroinitializer

declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)

define void @run(ptr %block, i64 %p0, i64 %p1, i64 %p2, i64 %p3, i64 %threads, i64 %shared_bytes, i64 %stride,
                 i64 %flush, ptr %scratch) #0 {
entry:
  %jobs_count = load i64, ptr %block
  br label %measure

measure:                                         ; how long is the block, and can any job be split at all
  %measured = phi i64 [ 0, %entry ], [ %measured_next, %measure_body ]
  %length = phi i64 [ 1, %entry ], [ %length_next, %measure_body ]
  %splits = phi i1 [ false, %entry ], [ %splits_next, %measure_body ]
  %measure_more = icmp ult i64 %measured, %jobs_count
  br i1 %measure_more, label %measure_body, label %copy
measure_body:
  %head = getelementptr i64, ptr %block, i64 %length
  %head_items_at = getelementptr i64, ptr %head, i64 1
  %head_items = load i64, ptr %head_items_at
  %head_chunk_at = getelementptr i64, ptr %head, i64 2
  %head_chunk = load i64, ptr %head_chunk_at
  %head_args_at = getelementptr i64, ptr %head, i64 3
  %head_args = load i64, ptr %head_args_at
  %head_splits = icmp sgt i64 %head_items, %head_chunk
  %splits_next = or i1 %splits, %head_splits
  %head_length = add i64 %head_args, 4
  %length_next = add i64 %length, %head_length
  %measured_next = add i64 %measured, 1
  br label %measure

copy:
  %own = alloca i64, i64 %length, align 64
  %bytes = shl i64 %length, 3
  call void @llvm.memcpy.p0.p0.i64(ptr align 8 %own, ptr align 8 %block, i64 %bytes, i1 false)
  br label %fill

fill:                                            ; base pointers into every job
  %filled = phi i64 [ 0, %copy ], [ %filled_next, %fill_body ]
  %offset = phi i64 [ 1, %copy ], [ %offset_next, %fill_body ]
  %fill_more = icmp ult i64 %filled, %jobs_count
  br i1 %fill_more, label %fill_body, label %start
fill_body:
  %job = getelementptr i64, ptr %own, i64 %offset
  %args_count_at = getelementptr i64, ptr %job, i64 3
  %args_count = load i64, ptr %args_count_at
  %args = getelementptr i64, ptr %job, i64 4
  store i64 %p0, ptr %args
  %args1 = getelementptr i64, ptr %args, i64 1
  store i64 %p1, ptr %args1
  %args2 = getelementptr i64, ptr %args, i64 2
  store i64 %p2, ptr %args2
  %args3 = getelementptr i64, ptr %args, i64 3
  store i64 %p3, ptr %args3
  %args4 = getelementptr i64, ptr %args, i64 4
  store ptr %scratch, ptr %args4
  %job_length = add i64 %args_count, 4
  %offset_next = add i64 %offset, %job_length
  %filled_next = add i64 %filled, 1
  br label %fill

start:
  %jobs = getelementptr i64, ptr %own, i64 1
  call void @begin(ptr %jobs, i64 %jobs_count, i1 %splits, i64 %threads, i64 %shared_bytes, i64 %stride, i64 %flush,
                   ptr %scratch)
  ret void
}

; A block whose jobs have their base pointers already. It is worked on where it lies, so it runs once at a time.
define void @run_placed(ptr %block, i64 %threads, i64 %shared_bytes, i64 %stride, i64 %flush, ptr %scratch) #0 {
entry:
  %jobs_count = load i64, ptr %block
  br label %fill

fill:                                            ; scratch into every job, and whether any can be split at all
  %filled = phi i64 [ 0, %entry ], [ %filled_next, %fill_body ]
  %offset = phi i64 [ 1, %entry ], [ %offset_next, %fill_body ]
  %splits = phi i1 [ false, %entry ], [ %splits_next, %fill_body ]
  %fill_more = icmp ult i64 %filled, %jobs_count
  br i1 %fill_more, label %fill_body, label %start
fill_body:
  %head = getelementptr i64, ptr %block, i64 %offset
  %items_at = getelementptr i64, ptr %head, i64 1
  %items = load i64, ptr %items_at
  %chunk_at = getelementptr i64, ptr %head, i64 2
  %chunk = load i64, ptr %chunk_at
  %args_count_at = getelementptr i64, ptr %head, i64 3
  %args_count = load i64, ptr %args_count_at
  %args4 = getelementptr i64, ptr %head, i64 8
  store ptr %scratch, ptr %args4
  %head_splits = icmp sgt i64 %items, %chunk
  %splits_next = or i1 %splits, %head_splits
  %job_length = add i64 %args_count, 4
  %offset_next = add i64 %offset, %job_length
  %filled_next = add i64 %filled, 1
  br label %fill

start:
  %jobs = getelementptr i64, ptr %block, i64 1
  call void @begin(ptr %jobs, i64 %jobs_count, i1 %splits, i64 %threads, i64 %shared_bytes, i64 %stride, i64 %flush,
                   ptr %scratch)
  ret void
}

define internal void @begin(ptr %jobs, i64 %jobs_count, i1 %splits, i64 %threads, i64 %shared_bytes, i64 %stride,
                            i64 %flush, ptr %scratch) #0 {
  %lines = add i64 %jobs_count, 3                ; a cache line each: a counter a job, then the state of the team
  %line_words = shl i64 %lines, 3
  %counters = alloca i64, i64 %line_words, align 64
  %line_bytes = shl i64 %line_words, 3
  call void @llvm.memset.p0.i64(ptr align 64 %counters, i8 0, i64 %line_bytes, i1 false)
  %region = alloca %Region, align 64
  %region0 = insertvalue %Region poison, ptr %jobs, 0
  %region1 = insertvalue %Region %region0, i64 %jobs_count, 1
  %region2 = insertvalue %Region %region1, ptr %counters, 2
  %region3 = insertvalue %Region %region2, ptr %scratch, 3
  %region4 = insertvalue %Region %region3, i64 %shared_bytes, 4
  %region5 = insertvalue %Region %region4, i64 %stride, 5
  %callers_control = call i64 @control()
  %flushing = icmp ne i64 %flush, 0
  %flush_bits = select i1 %flushing, i64 FLUSH_BITS, i64 0
  %control = or i64 %callers_control, %flush_bits
  %region6 = insertvalue %Region %region5, i64 %control, 6
  %several = icmp sgt i64 %threads, 1
  %as_team = and i1 %several, %splits
  %parallel_at = load atomic ptr, ptr @runtime acquire, align 8
  %ours = icmp eq ptr %parallel_at, @own_parallel
  %kind = select i1 %ours, i64 2, i64 1
  %team_word = select i1 %as_team, i64 %kind, i64 0
  %region7 = insertvalue %Region %region6, i64 %team_word, 7
  %few = icmp ult i64 %threads, 8                ; a job's counters share a cache line
  %ranges = select i1 %few, i64 %threads, i64 8
  %region8 = insertvalue %Region %region7, i64 %ranges, 8
  store %Region %region8, ptr %region
  br i1 %as_team, label %parallel, label %serial
parallel:
  %team_size = trunc i64 %threads to i32
  call void %parallel_at(ptr @member, ptr %region, i32 %team_size, i32 0)
  ret void
serial:
  call void @work(ptr %region, i64 0)
  ret void
}

; OpenMP's number of a thread is the same in every region, so that its share of the data is still in its caches.
define internal void @member(ptr %region) #0 {
entry:
  %kind_at = getelementptr %Region, ptr %region, i64 0, i32 7
  %kind = load i64, ptr %kind_at
  %ours = icmp eq i64 %kind, 2
  br i1 %ours, label %count, label %ask
count:
  %next_at = call ptr @team_state(ptr %region, i64 0)
  %counted = atomicrmw add ptr %next_at, i64 1 monotonic
  br label %go
ask:
  %number_at = load ptr, ptr getelementptr ([6 x ptr], ptr @runtime, i64 0, i64 5)
  %number = call i32 %number_at()
  %asked = zext i32 %number to i64
  br label %go
go:
  %thread = phi i64 [ %counted, %count ], [ %asked, %ask ]
  call void @work(ptr %region, i64 %thread)
  ret void
}

; 0: threads that have come in; 1: arrivals at barriers; 2: size of our own team, 0 while it is being made
define internal ptr @team_state(ptr %region, i64 %line) alwaysinline #0 {
  %all = load %Region, ptr %region
  %jobs_count = extractvalue %Region %all, 1
  %counters = extractvalue %Region %all, 2
  %index = add i64 %jobs_count, %line
  %word = shl i64 %index, 3
  %at = getelementptr i64, ptr %counters, i64 %word
  ret ptr %at
}

define internal void @work(ptr %region, i64 %thread) #0 {
entry:
  %all = load %Region, ptr %region
  %jobs = extractvalue %Region %all, 0
  %jobs_count = extractvalue %Region %all, 1
  %counters = extractvalue %Region %all, 2
  %scratch = extractvalue %Region %all, 3
  %shared_bytes = extractvalue %Region %all, 4
  %stride = extractvalue %Region %all, 5
  %control = extractvalue %Region %all, 6
  %team_word = extractvalue %Region %all, 7
  %ranges = extractvalue %Region %all, 8
  %team = icmp ne i64 %team_word, 0
  %stride_up = add i64 %stride, 63               ; rounded up to cache lines
  %stride_lines = and i64 %stride_up, -64
  %shared_up = add i64 %shared_bytes, 63
  %shared_lines = and i64 %shared_up, -64
  %thread_offset = mul i64 %thread, %stride_lines
  %own_offset = add i64 %shared_lines, %thread_offset
  %own = getelementptr i8, ptr %scratch, i64 %own_offset
  %saved_control = call i64 @control()
  call void @set_control(i64 %control)
  br label %next_job

next_job:
  %done = phi i64 [ 0, %entry ], [ %done_next, %job_done ],
                 [ %done_next, %openmp_barrier ], [ %done_next, %own_barrier ]
  %job = phi ptr [ %jobs, %entry ], [ %job_next, %job_done ],
                 [ %job_next, %openmp_barrier ], [ %job_next, %own_barrier ]
  %more = icmp ult i64 %done, %jobs_count
  br i1 %more, label %open_job, label %finish
open_job:
  %kernel = load ptr, ptr %job
  %items_at = getelementptr i64, ptr %job, i64 1
  %items = load i64, ptr %items_at
  %chunk_at = getelementptr i64, ptr %job, i64 2
  %chunk = load i64, ptr %chunk_at
  %args_count_at = getelementptr i64, ptr %job, i64 3
  %args_count = load i64, ptr %args_count_at
  %args = getelementptr i64, ptr %job, i64 4
  %job_next = getelementptr i64, ptr %args, i64 %args_count
  %done_next = add i64 %done, 1
  %counter_word = shl i64 %done, 3
  %counter = getelementptr i64, ptr %counters, i64 %counter_word
  br i1 %team, label %grab, label %whole

whole:                                           ; alone: the whole range in one call
  %any = icmp sgt i64 %items, 0
  br i1 %any, label %whole_call, label %job_done
whole_call:
  call void %kernel(ptr %args, i64 0, i64 %items, ptr %own)
  br label %job_done

grab:                                            ; the chunks of the own range first, then what others have left
  %items_up = add i64 %items, %chunk
  %items_up1 = sub i64 %items_up, 1
  %chunks = sdiv i64 %items_up1, %chunk
  br label %range
range:
  %turn = phi i64 [ 0, %grab ], [ %turn_next, %range_done ]
  %turns_left = icmp ult i64 %turn, %ranges
  br i1 %turns_left, label %range_open, label %job_done
range_open:
  %turn_next = add i64 %turn, 1
  %number_up = add i64 %thread, %turn
  %number = urem i64 %number_up, %ranges
  %number_next = add i64 %number, 1
  %first_up = mul i64 %number, %chunks
  %first = udiv i64 %first_up, %ranges
  %stop_up = mul i64 %number_next, %chunks
  %stop = udiv i64 %stop_up, %ranges
  %range_counter = getelementptr i64, ptr %counter, i64 %number
  br label %range_grab
range_grab:
  %taken = atomicrmw add ptr %range_counter, i64 1 monotonic
  %at = add i64 %first, %taken
  %left = icmp slt i64 %at, %stop
  br i1 %left, label %range_call, label %range_done
range_call:
  %begin = mul i64 %at, %chunk
  %begin_chunk = add i64 %begin, %chunk
  %partial = icmp slt i64 %items, %begin_chunk
  %end = select i1 %partial, i64 %items, i64 %begin_chunk
  call void %kernel(ptr %args, i64 %begin, i64 %end, ptr %own)
  br label %range_grab
range_done:
  br label %range

job_done:
  %last = icmp eq i64 %done_next, %jobs_count
  %alone_or_last = select i1 %team, i1 %last, i1 true
  br i1 %alone_or_last, label %next_job, label %barrier
barrier:
  %ours = icmp eq i64 %team_word, 2
  br i1 %ours, label %own_barrier, label %openmp_barrier
openmp_barrier:
  %barrier_at = load ptr, ptr getelementptr ([6 x ptr], ptr @runtime, i64 0, i64 1)
  call void %barrier_at()
  br label %next_job
own_barrier:
  call void @own_barrier(ptr %region, i64 %done_next)
  br label %next_job

finish:
  call void @set_control(i64 %saved_control)
  ret void
}

; Where there is no OpenMP: threads made for this launch and ended with it. It costs some 20 µs a launch, keeps nothing
; alive between launches, and takes the place of GOMP_parallel.
define void @own_parallel(ptr %function, ptr %region, i32 %team_size, i32 %flags) #0 {
entry:
  %others = sub i32 %team_size, 1
  %handles = alloca i64, i32 %others
  %create = load ptr, ptr getelementptr ([6 x ptr], ptr @runtime, i64 0, i64 2)
  %join = load ptr, ptr getelementptr ([6 x ptr], ptr @runtime, i64 0, i64 3)
  br label %make
make:
  %made = phi i32 [ 0, %entry ], [ %made_next, %made_one ]
  %make_more = icmp ult i32 %made, %others
  br i1 %make_more, label %make_one, label %begin
make_one:
  %handle = getelementptr i64, ptr %handles, i32 %made
  %failed = call i32 %create(ptr %handle, ptr null, ptr @own_start, ptr %region)
  %refused = icmp ne i32 %failed, 0              ; no more threads to be had: the team is smaller
  br i1 %refused, label %begin, label %made_one
made_one:
  %made_next = add i32 %made, 1
  br label %make

begin:
  %team = add i32 %made, 1
  %team_word = zext i32 %team to i64
  %team_at = call ptr @team_state(ptr %region, i64 2)
  store atomic i64 %team_word, ptr %team_at release, align 8
  call void @member(ptr %region)
  br label %end
end:
  %joined = phi i32 [ 0, %begin ], [ %joined_next, %join_one ]
  %join_more = icmp ult i32 %joined, %made
  br i1 %join_more, label %join_one, label %out
join_one:
  %ended_at = getelementptr i64, ptr %handles, i32 %joined
  %ended = load i64, ptr %ended_at
  %ignored = call i32 %join(i64 %ended, ptr null)
  %joined_next = add i32 %joined, 1
  br label %end
out:
  ret void
}

define internal ptr @own_start(ptr %region) #0 {
  call void @member(ptr %region)
  ret ptr null
}

; The %times-th meeting of all threads. Giving the core away while waiting keeps it fair when there are too few.
define internal void @own_barrier(ptr %region, i64 %times) #0 {
entry:
  %yield = load ptr, ptr getelementptr ([6 x ptr], ptr @runtime, i64 0, i64 4)
  %arrived_at = call ptr @team_state(ptr %region, i64 1)
  %team_at = call ptr @team_state(ptr %region, i64 2)
  %before = atomicrmw add ptr %arrived_at, i64 1 acq_rel
  br label %look
look:
  %team = load atomic i64, ptr %team_at acquire, align 8
  %arrived = load atomic i64, ptr %arrived_at acquire, align 8
  %needed = mul i64 %team, %times
  %known = icmp ne i64 %team, 0
  %enough = icmp uge i64 %arrived, %needed
  %all_here = and i1 %known, %enough
  br i1 %all_here, label %out, label %wait
wait:
  %ignored = call i32 %yield()
  br label %look
out:
  ret void
}

attributes #0 = { nounwind }
"""

# The floating-point control word of a thread, and the bits in it that flush denormals: FTZ and DAZ, bits 15 and 6 of
# MXCSR; FZ, bit 24 of FPCR, which flushes inputs and outputs alike.
FLUSH_BITS = {"x86_64": 0x8040, "aarch64": 0x1000000}
CONTROL_IR = {
    "x86_64": """
declare void @llvm.x86.sse.stmxcsr(ptr)
declare void @llvm.x86.sse.ldmxcsr(ptr)

define internal i64 @control() #0 {
  %at = alloca i32
  call void @llvm.x86.sse.stmxcsr(ptr %at)
  %bits = load i32, ptr %at
  %word = zext i32 %bits to i64
  ret i64 %word
}

define internal void @set_control(i64 %word) #0 {
  %at = alloca i32
  %bits = trunc i64 %word to i32
  store i32 %bits, ptr %at
  call void @llvm.x86.sse.ldmxcsr(ptr %at)
  ret void
}
""",
    "aarch64": """
declare i64 @llvm.aarch64.get.fpcr()
declare void @llvm.aarch64.set.fpcr(i64)

define internal i64 @control() #0 {
  %word = call i64 @llvm.aarch64.get.fpcr()
  ret i64 %word
}

define internal void @set_control(i64 %word) #0 {
  call void @llvm.aarch64.set.fpcr(i64 %word)
  ret void
}
""",
}


def launcher_ir(machine: Machine) -> str:
    """The IR module for ``machine``. Raises UnsupportedError for architectures whose control word is not known here."""
    if machine.arch not in CONTROL_IR:
        raise UnsupportedError(f"no launcher for {machine.arch}; known: {', '.join(CONTROL_IR)}")
    return LAUNCHER_IR.replace("FLUSH_BITS", str(FLUSH_BITS[machine.arch])) + CONTROL_IR[machine.arch]
