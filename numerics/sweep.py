"""``python -m numerics.sweep``: theory or simulations over a grid."""

import gc
import sys

from numerics.deferred import importing, starting

with importing(), starting(__name__):
    from numerics.cli.sweep import sweep_command as main
    from numerics.sweeps.run import sweep

if __name__ == "__main__":
    gc.freeze()  # what was imported stays: searching it for garbage would take a fifth of the run
    main(prog_name="python -m numerics.sweep")
else:
    # ``numerics.sweep`` is a function of the package; importing this module of the same name must not hide it.
    sys.modules[__name__] = sweep
