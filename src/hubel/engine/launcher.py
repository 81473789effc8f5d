"""The generated function behind ``threads.launch``: LLVM IR text. What it does is told in ``threads.py``."""

from __future__ import annotations

from hubel.engine.machine import Machine
from hubel.errors import UnsupportedError

# The words of %Region: jobs, number of jobs, counters, scratch, bytes of shared scratch, bytes of a thread's scratch,
# flush denormals, whether a team runs it.
LAUNCHER_IR = """
%Region = type { ptr, i64, ptr, ptr, i64, i64, i64, i64 }

; GOMP_parallel, GOMP_barrier, omp_get_thread_num; filled in after loading
@openmp = global [3 x ptr] zeroinitializer

declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
DECLARE_FLOATING_POINT_CONTROL

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
  %counter_words = shl i64 %jobs_count, 3        ; a cache line each
  %counters = alloca i64, i64 %counter_words, align 64
  br label %fill

fill:                                            ; base pointers into every job, counters to zero
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
  %counter_word = shl i64 %filled, 3
  %counter = getelementptr i64, ptr %counters, i64 %counter_word
  store i64 0, ptr %counter
  %job_length = add i64 %args_count, 4
  %offset_next = add i64 %offset, %job_length
  %filled_next = add i64 %filled, 1
  br label %fill

start:
  %region = alloca %Region, align 64
  %jobs = getelementptr i64, ptr %own, i64 1
  %region0 = insertvalue %Region poison, ptr %jobs, 0
  %region1 = insertvalue %Region %region0, i64 %jobs_count, 1
  %region2 = insertvalue %Region %region1, ptr %counters, 2
  %region3 = insertvalue %Region %region2, ptr %scratch, 3
  %region4 = insertvalue %Region %region3, i64 %shared_bytes, 4
  %region5 = insertvalue %Region %region4, i64 %stride, 5
  %region6 = insertvalue %Region %region5, i64 %flush, 6
  %several = icmp sgt i64 %threads, 1
  %as_team = and i1 %several, %splits
  %team_word = zext i1 %as_team to i64
  %region7 = insertvalue %Region %region6, i64 %team_word, 7
  store %Region %region7, ptr %region
  br i1 %as_team, label %parallel, label %serial
parallel:
  %parallel_at = load ptr, ptr @openmp
  %team_size = trunc i64 %threads to i32
  call void %parallel_at(ptr @member, ptr %region, i32 %team_size, i32 0)
  ret void
serial:
  call void @work(ptr %region, i64 0)
  ret void
}

define internal void @member(ptr %region) #0 {
  %thread_num_at = load ptr, ptr getelementptr ([3 x ptr], ptr @openmp, i64 0, i64 2)
  %thread = call i32 %thread_num_at()
  %thread_word = zext i32 %thread to i64
  call void @work(ptr %region, i64 %thread_word)
  ret void
}

define internal void @work(ptr %region, i64 %thread) #0 {
entry:
  %saved_control = alloca i32
  %flush_control = alloca i32
  %all = load %Region, ptr %region
  %jobs = extractvalue %Region %all, 0
  %jobs_count = extractvalue %Region %all, 1
  %counters = extractvalue %Region %all, 2
  %scratch = extractvalue %Region %all, 3
  %shared_bytes = extractvalue %Region %all, 4
  %stride = extractvalue %Region %all, 5
  %flush = extractvalue %Region %all, 6
  %team_word = extractvalue %Region %all, 7
  %flushing = icmp ne i64 %flush, 0
  %team = icmp ne i64 %team_word, 0
  %stride_up = add i64 %stride, 63               ; rounded up to cache lines
  %stride_lines = and i64 %stride_up, -64
  %shared_up = add i64 %shared_bytes, 63
  %shared_lines = and i64 %shared_up, -64
  %thread_offset = mul i64 %thread, %stride_lines
  %own_offset = add i64 %shared_lines, %thread_offset
  %own = getelementptr i8, ptr %scratch, i64 %own_offset
  br i1 %flushing, label %set_flush, label %next_job
set_flush:
SET_FLUSH
  br label %next_job

next_job:
  %done = phi i64 [ 0, %entry ], [ 0, %set_flush ], [ %done_next, %job_done ], [ %done_next, %barrier ]
  %job = phi ptr [ %jobs, %entry ], [ %jobs, %set_flush ], [ %job_next, %job_done ], [ %job_next, %barrier ]
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

grab:
  %begin = atomicrmw add ptr %counter, i64 %chunk monotonic
  %left = icmp slt i64 %begin, %items
  br i1 %left, label %grab_call, label %job_done
grab_call:
  %begin_chunk = add i64 %begin, %chunk
  %partial = icmp slt i64 %items, %begin_chunk
  %end = select i1 %partial, i64 %items, i64 %begin_chunk
  call void %kernel(ptr %args, i64 %begin, i64 %end, ptr %own)
  br label %grab

job_done:
  %last = icmp eq i64 %done_next, %jobs_count
  %alone_or_last = select i1 %team, i1 %last, i1 true
  br i1 %alone_or_last, label %next_job, label %barrier
barrier:
  %barrier_at = load ptr, ptr getelementptr ([3 x ptr], ptr @openmp, i64 0, i64 1)
  call void %barrier_at()
  br label %next_job

finish:
  br i1 %flushing, label %restore, label %out
restore:
RESTORE
  br label %out
out:
  ret void
}

attributes #0 = { nounwind }
"""

# FTZ and DAZ are bits 15 and 6 of MXCSR; FZ is bit 24 of FPCR and flushes inputs and outputs alike.
FLOATING_POINT_CONTROL = {
    "x86_64": {
        "DECLARE_FLOATING_POINT_CONTROL": """declare void @llvm.x86.sse.stmxcsr(ptr)
declare void @llvm.x86.sse.ldmxcsr(ptr)""",
        "SET_FLUSH": """  call void @llvm.x86.sse.stmxcsr(ptr %saved_control)
  %control = load i32, ptr %saved_control
  %control_flushing = or i32 %control, 32832
  store i32 %control_flushing, ptr %flush_control
  call void @llvm.x86.sse.ldmxcsr(ptr %flush_control)""",
        "RESTORE": "  call void @llvm.x86.sse.ldmxcsr(ptr %saved_control)",
    },
    "aarch64": {
        "DECLARE_FLOATING_POINT_CONTROL": """declare i64 @llvm.aarch64.get.fpcr()
declare void @llvm.aarch64.set.fpcr(i64)""",
        "SET_FLUSH": """  %control = call i64 @llvm.aarch64.get.fpcr()
  %control_low = trunc i64 %control to i32
  store i32 %control_low, ptr %saved_control
  %control_flushing = or i64 %control, 16777216
  call void @llvm.aarch64.set.fpcr(i64 %control_flushing)""",
        "RESTORE": """  %control_saved = load i32, ptr %saved_control
  %control_word = zext i32 %control_saved to i64
  call void @llvm.aarch64.set.fpcr(i64 %control_word)""",
    },
}


def launcher_ir(machine: Machine) -> str:
    """The IR module for ``machine``. Raises UnsupportedError for architectures without a denormal switch known here."""
    if machine.arch not in FLOATING_POINT_CONTROL:
        raise UnsupportedError(f"no launcher for {machine.arch}; known: {', '.join(FLOATING_POINT_CONTROL)}")
    text = LAUNCHER_IR
    for name, lines in FLOATING_POINT_CONTROL[machine.arch].items():
        text = text.replace(name, lines)
    return text
