"""``python -m numerics.simulate``: one point of simulation, beside theory."""

import gc
import sys

from numerics.deferred import importing, starting

with importing(), starting(__name__):
    from numerics.cli.simulate import simulate_command as main
    from numerics.simulation.run import simulate

if __name__ == "__main__":
    gc.freeze()  # what was imported stays: searching it for garbage would take a fifth of the run
    main(prog_name="python -m numerics.simulate")
else:
    # ``numerics.simulate`` is a function of the package; importing this module of the same name must not hide it.
    sys.modules[__name__] = simulate
