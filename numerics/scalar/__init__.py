"""One logit a stage: the saddle point of a chain whose stages are trained one after the other.

The compiled core is in :mod:`numerics.scalar.kernels`; here is what fills its arrays (``compiled``), the law of earlier stages
(``nodes``), the prior (``prior``), stages without ridge (``limits``) and without weights (``constant_targets``).
"""
