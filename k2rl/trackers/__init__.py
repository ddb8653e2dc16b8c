"""Other places where a run's metrics are shown: TensorBoard, Weights & Biases, MLflow, Trackio; docs/trackers.md.

A tracker is one small file here, which imports its package when it is chosen and not before. Whatever it does or fails
to do holds no run up: see `feed.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from k2rl.errors import UserError

TRACKERS = {
    "tensorboard": "k2rl.trackers.tensorboard:TensorBoard",
    "wandb": "k2rl.trackers.wandb:Wandb",
    "mlflow": "k2rl.trackers.mlflow:Mlflow",
    "trackio": "k2rl.trackers.trackio:Trackio",
}
"""By the name of the package each needs, which is that of the extra too."""


def check_installed(names: Sequence[str]) -> None:
    """Raise `UserError` where the package of one of them is not here."""
    for name in names:
        spec = find_spec(name)
        # A mere folder of that name, such as wandb makes where it is used, is found too, and has no origin.
        if spec is None or spec.origin is None:
            raise UserError(f"run.trackers: {name} is not installed: pip install 'k2rl[{name}]', or leave it out")
