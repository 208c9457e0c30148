"""``python -m numerics.simulate``: one point of simulation, beside theory."""

import sys

from numerics.commands import simulate_command as main
from numerics.simulation import simulate

if __name__ == "__main__":
    main(prog_name="python -m numerics.simulate")
else:
    # ``numerics.simulate`` is a function of the package; importing this module of the same name must not hide it.
    sys.modules[__name__] = simulate
