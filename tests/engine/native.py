"""Small kernels as IR text, and a process of one's own, for the tests of compile, cache and threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from hubel import errors

# x[i] += value for begin <= i < end; x is p0
ADD_IR = """
define void @add(ptr %args, i64 %begin, i64 %end, ptr %scratch) #0 {
entry:
  %x = load ptr, ptr %args
  br label %loop
loop:
  %i = phi i64 [ %begin, %entry ], [ %i_next, %loop ]
  %at = getelementptr float, ptr %x, i64 %i
  %old = load float, ptr %at, align 4
  %new = fadd float %old, VALUE
  store float %new, ptr %at, align 4
  %i_next = add i64 %i, 1
  %more = icmp slt i64 %i_next, %end
  br i1 %more, label %loop, label %out
out:
  ret void
}
attributes #0 = { nounwind }
"""


def add_ir(value: float = 1.0) -> str:
    return ADD_IR.replace("VALUE", repr(float(value)))


def vector_add_ir(lanes: int) -> str:
    """p0[0:lanes] += 1.5 in one vector."""
    bits = 32 * lanes
    return f"""
define void @add(ptr %args, i64 %begin, i64 %end, ptr %scratch) #0 {{
  %x = load ptr, ptr %args
  %old = load <{lanes} x float>, ptr %x, align 4
  %new = fadd <{lanes} x float> %old, splat (float 1.5)
  store <{lanes} x float> %new, ptr %x, align 4
  ret void
}}
attributes #0 = {{ nounwind "min-legal-vector-width"="{bits}" "prefer-vector-width"="{bits}" }}
"""


# The package without what its __init__ imports, torch above all: the engine needs none of it, and starts four times as
# fast.
ALONE = """
import sys, types
hubel = types.ModuleType("hubel")
hubel.__path__ = [PATH]
sys.modules["hubel"] = hubel
"""


def start(code: str, cache_dir: Path) -> subprocess.Popen[str]:
    """A Python process running ``code``, which uses the engine alone, with a cache folder of its own choice."""
    code = ALONE.replace("PATH", repr(str(Path(errors.__file__).parent))) + code
    # The root too, so that the code can import this file.
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "HUBEL_CACHE_DIR": str(cache_dir)}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    """What the process printed; fails the test when it did not end well."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, f"exit {process.returncode}\n{out}\n{err}"
    return out.strip()
