"""``python -m numerics.solve``: one point of theory."""

import sys

from numerics.commands import solve_command as main
from numerics.solver import solve

if __name__ == "__main__":
    main(prog_name="python -m numerics.solve")
else:
    # ``numerics.solve`` is a function of the package; importing this module of the same name must not hide it.
    sys.modules[__name__] = solve
