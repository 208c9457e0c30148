"""``python -m numerics.predict``: learning curves of teacher and student on your own data, before training, beside real fits."""

from __future__ import annotations

from numerics.deferred import starting

with starting(__name__):
    from numerics.cli.predict import predict_command

if __name__ == "__main__":
    predict_command(prog_name="python -m numerics.predict")
