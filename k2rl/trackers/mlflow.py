"""MLflow: a server where MLFLOW_TRACKING_URI or `tracking_uri` names one, else MLflow's own local store."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from k2rl.trackers.base import TrackedRun

_PARAMS = 100
"""As many parameters MLflow takes at once."""


class Mlflow:
    """Further options become tags of the run."""

    def __init__(self, run: TrackedRun, tracking_uri: str | None = None, experiment: str = "k2rl", **tags: str) -> None:
        self._client = MlflowClient(tracking_uri)
        if run.id is not None:
            self.id = run.id
            self._client.update_run(self.id, status="RUNNING")
            return
        found = self._client.get_experiment_by_name(experiment)
        where = self._client.create_experiment(experiment) if found is None else found.experiment_id
        self.id = self._client.create_run(where, run_name=run.name, tags=tags).info.run_id
        params = [Param(_key(key), str(value)) for key, value in run.recipe.items()]
        for first in range(0, len(params), _PARAMS):
            self._client.log_batch(self.id, params=params[first : first + _PARAMS])

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        now = int(1000 * time.time())
        self._client.log_batch(self.id, [Metric(_key(key), value, now, step) for key, value in metrics.items()])

    def close(self) -> None:
        self._client.set_terminated(self.id)


def _key(key: str) -> str:
    """In MLflow's letters. In its store of files a key may not be the folder of another: only the first slash stays."""
    first, slash, rest = re.sub(r"[^\w/. :-]", "_", key).partition("/")
    return first + slash + rest.replace("/", ".")
