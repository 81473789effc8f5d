"""The only place where tensors meet pointers: torch's convolutions on Hubel's kernels.

override.py    enable(): aten::convolution and its backward on the CPU
library.py     hubel::convolution: op, fake, autograd
functional.py  hubel.conv1d ... conv_transpose3d
calls.py       from torch's arguments to a prepared call        strides.py   torch's output strides, exactly
weights.py     packed weights, kept while provably right        fallback.py  torch's own kernels
native.py      calls that came before, answered without Python  native_ir.py its generated function
log.py         what ran where, and why                          planning.py  hubel.plan
"""
