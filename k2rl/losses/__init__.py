"""Policy objectives: one file each, pure functions of log-probs and advantages, found by name or import path.

An objective says three things: how a group's rewards become advantages, which coefficient each rollout gets, and
its loss. Losses are sums of coefficient x term, and the coefficients come from the *whole* mini-batch, so that
micro-batches and ranks only add up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from k2rl import plugins
from k2rl.errors import UserError, did_you_mean
from k2rl.losses.base import LossInputs, Objective
from k2rl.losses.cispo import Cispo
from k2rl.losses.dapo import Dapo
from k2rl.losses.grpo import Grpo
from k2rl.losses.gspo import Gspo
from k2rl.losses.k2 import K2
from k2rl.losses.k2_5 import K2_5
from k2rl.losses.rloo import Rloo

__all__ = ["OBJECTIVES", "LossInputs", "Objective", "objective", "settings"]

OBJECTIVES: dict[str, type[Objective]] = {
    "k2": K2,
    "k2_5": K2_5,
    "grpo": Grpo,
    "rloo": Rloo,
    "dapo": Dapo,
    "gspo": Gspo,
    "cispo": Cispo,
}


def objective(config: Mapping[str, Any]) -> Objective:
    """The objective of a recipe: `name` (or an import path), and options over the objective's defaults.

    Raises:
        UserError: no such objective, an option it does not have, or a value out of its range.
    """
    options = {str(key): value for key, value in config.items()}
    name = options.pop("name", None)
    cls = _class(name)
    known = [f.name for f in fields(cls)]
    for key in options:
        if key not in known:
            raise UserError(
                f"objective.{key}: {name} has no such option{did_you_mean(key, known)}: "
                f"{'its options are ' + ', '.join(known) if known else 'it has none'}"
            )
    try:
        made = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), options))
    except OmegaConfBaseException as error:
        raise UserError(f"objective.{error.full_key}: {str(error).splitlines()[0]}") from None
    except ValueError as error:
        raise UserError(f"objective.{error}") from None
    assert isinstance(made, Objective)
    return made


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """An objective's name and all its options, defaults among them. Raises `UserError` as `objective` does."""
    return {"name": config["name"], **asdict(objective(config))}


def _class(name: object) -> type[Objective]:
    if isinstance(name, str) and name in OBJECTIVES:
        return OBJECTIVES[name]
    if not isinstance(name, str) or ":" not in name:
        raise UserError(
            f"objective.name is {name!r}{did_you_mean(str(name), OBJECTIVES)}: this version has "
            f"{', '.join(OBJECTIVES)}; or give module:Class or file.py:Class"
        )
    cls = plugins.load_class(name, name)
    if not issubclass(cls, Objective):
        raise UserError(f"objective.name is {name}: it does not inherit from k2rl.losses.Objective")
    return cls
