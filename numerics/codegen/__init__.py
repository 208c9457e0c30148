"""From theory to machine: SymPy expressions become Python source, which numba compiles and which is kept on disk.

Three kinds of module are generated: one for each loss formula, one for each position in a chain (equations of the prior and
of the conjugates), and one for the channel averages, which :mod:`numerics.scalar.kernels.generated` takes into the compiled core.
The core calls the others through pointers, so that a new loss compiles in a second.  Modules are named by a hash of their source;
they and their machine code are kept by :mod:`numerics.codegen.cache`; :mod:`numerics.codegen.ahead` compiles on all processors.
"""
