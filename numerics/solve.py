"""``python -m numerics.solve``: one point of theory."""

import gc
import sys

from numerics.deferred import importing, starting

with importing(), starting(__name__):
    from numerics.cli.solve import solve_command as main
    from numerics.solver import solve

if __name__ == "__main__":
    gc.freeze()  # what was imported stays: searching it for garbage would take a fifth of the run
    main(prog_name="python -m numerics.solve")
else:
    # ``numerics.solve`` is a function of the package; importing this module of the same name must not hide it.
    sys.modules[__name__] = solve
