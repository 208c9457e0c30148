"""Iterations that know vectors, residuals and Jacobians, and no physics: Newton, homotopy, continuation, refinement.

They are written once, for compiled problems and for those in Python: what is solved comes as functions and named tuples.
``newton_of(evaluate, advance)`` is Newton's method for these functions, which compiled code calls and gets compiled with them;
Python calls the original, ``newton_of(evaluate, advance).py_func(problem, ...)``.
"""
