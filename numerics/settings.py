"""Every tolerance and node density, by name, in one place."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Settings:
    """How accurately the saddle point is computed.

    Attributes
    ----------
    rtol
        Relative accuracy asked of the order parameters; quadrature is refined until its error estimate is below.
    newton_tolerance
        Scaled size of the last Newton step at which iteration stops (Newton's error is about its square).
    residual_tolerance
        Largest undamped, scaled residual of a solution that counts as converged.  It is about 1e-10 as a rule; where responses
        reach 1e8 (ridge 1e-8) rounding leaves up to 1e-8.
    max_iterations
        Channel evaluations allowed in one Newton solve.
    field_step, outer_step
        Trapezoid steps of a stage's own average and of the nodes later stages integrate over.
    refinement
        Factor on the steps from one quadrature level to the next.
    max_levels
        Levels tried before the error estimate is reported as it is; fewer where the last ones no longer halve it.
    tail
        Relative weight of what may be cut from an average at the first level; a tenth of it at each further one.
    coarse_factor, coarse_tolerance
        Factor on the steps, and Newton tolerance, of the rough solution that a cold start begins with.
    check_factor
        Factor on the steps of the coarser rule that the first level is compared with.
    first_ridge, ridge_steps
        Where the fallback homotopy starts, and how many steps in log(ridge) it may take.
    memory
        Bytes that the nodes of one solve may take; a chain that needs more is refused before they are made.
    common
        How weights are treated where inputs are ``Dense`` or ``Clusters``: None takes eigenvectors that all stages and clusters
        have in common for coordinates wherever there are such, False never does; True refuses what has none.  The numbers are the
        same.  What was done is the ``prior`` of a solution.
    """

    rtol: float = 1e-8
    newton_tolerance: float = 3e-10
    residual_tolerance: float = 1e-8
    max_iterations: int = 60
    field_step: float = 0.76
    outer_step: float = 0.72
    refinement: float = 0.75
    max_levels: int = 10
    tail: float = 1e-12
    coarse_factor: float = 2.2
    coarse_tolerance: float = 1e-1
    check_factor: float = 1.5
    first_ridge: float = 30.0
    ridge_steps: int = 200
    memory: float = 8e9
    common: bool | None = field(default=None, repr=False)


DEFAULT = Settings()
