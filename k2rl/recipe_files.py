"""From a recipe file and `key=value` overrides to a checked recipe, and back to a file.

One file, no inheritance between files; the resolved recipe is saved beside the run. An unknown key, a value out of
range, and a key without effect in the chosen set-up are errors.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from k2rl import assets, recipe_checks
from k2rl.errors import UserError, did_you_mean
from k2rl.recipe import Recipe, SftRecipe
from k2rl.types import SCHEMA_VERSION

R = TypeVar("R", Recipe, SftRecipe)


def load(schema: type[R], name: str, overrides: Sequence[str] = ()) -> R:
    """Read a recipe by shipped name or path, apply `key=value` overrides, and check it.

    Raises:
        UserError: not found, not YAML, unknown key, wrong type, value out of range, or a key without effect.
    """
    path = assets.recipe(name)
    data = _read(path)
    data.pop("schema_version", None)
    return resolve(schema, data, overrides, source=str(path))


def load_saved(path: Path) -> Recipe:
    """Read the recipe that `save` wrote beside a run. Raises `UserError` as `load` does, or where it has no version."""
    data = _read(path)
    if "schema_version" not in data:
        raise UserError(f"{path} has no schema_version: no run wrote it; start a new run directory")
    del data["schema_version"]
    return resolve(Recipe, data, source=str(path))


def _read(path: Path) -> dict[str, Any]:
    """A recipe file's keys, its schema version (where it has one) being one that is read here."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys, this is a {type(data).__name__}")
    if data.get("schema_version", SCHEMA_VERSION) != SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema version {data['schema_version']}, this k2rl reads {SCHEMA_VERSION}: "
            "use the version that wrote it"
        )
    return data


def resolve(schema: type[R], data: Mapping[str, Any], overrides: Sequence[str] = (), source: str = "recipe") -> R:
    """A checked recipe from plain data and `key=value` overrides. Raises `UserError` as `load` does."""
    _check_keys(schema, data, "", source)
    try:
        merged: Any = OmegaConf.create(dict(data))  # Its type has other names in other versions of omegaconf.
    except OmegaConfBaseException as error:
        raise UserError(f"{source}: {str(error).splitlines()[0]}") from None
    renamed = [o.partition("=")[2] for o in overrides if o.startswith("objective.name=")]
    if renamed and renamed[-1] != OmegaConf.select(merged, "objective.name", default="k2"):
        # The file's options belong to the objective it names; those among the overrides must be the new one's.
        merged.objective = {}
    for override in overrides:
        if "=" not in override:
            raise UserError(f"override {override!r}: write key=value, such as run.iterations=10")
        try:
            layer = OmegaConf.from_dotlist([override])
        except (OmegaConfBaseException, yaml.YAMLError) as error:
            raise UserError(f"override {override!r}: {str(error).splitlines()[0]}") from None
        _check_keys(schema, OmegaConf.to_container(layer), "", f"override {override!r}")
        key = override.partition("=")[0]
        if key.endswith(".args") and OmegaConf.select(merged, key) is not None:
            # An env's arguments given as a whole replace the old ones: they may belong to another env.
            OmegaConf.update(merged, key, {}, merge=False)
        merged = OmegaConf.merge(merged, layer)
    for name in [n for n, spec in (merged.get("envs") or {}).items() if spec is None]:
        del merged.envs[name]  # envs.NAME=null leaves an environment of the file out.
    try:
        # The schema's default would take the place of a ???.
        if missing := sorted(OmegaConf.missing_keys(merged)):
            raise UserError(f"{source}: {missing[0]} is missing: it has no default here, give {missing[0]}=…")
        recipe = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), merged))
    except MissingMandatoryValue as error:
        raise UserError(f"{source}: {error.full_key} is missing: it has no default") from None
    except OmegaConfBaseException as error:
        where = getattr(error, "full_key", None)
        message = str(getattr(error, "msg", None) or error).splitlines()[0]
        if where and "not a ListConfig" in message:
            message = f"it is a list, write {where}=[…]"
        raise UserError(f"{source}: {where + ': ' if where else ''}{message}") from None
    assert isinstance(recipe, schema)
    if isinstance(recipe, Recipe):
        from k2rl import losses  # Not for `k2rl sft` and its like: it brings torch.

        problems = recipe_checks.train_problems(recipe)
    else:
        problems = recipe_checks.sft_problems(recipe)
    if problems:
        raise UserError(f"{source}: {problems[0]}")
    if isinstance(recipe, Recipe):
        recipe.objective = losses.settings(recipe.objective)
    return recipe


def to_yaml(recipe: Recipe | SftRecipe) -> str:
    """The resolved recipe, as saved beside a run."""
    return OmegaConf.to_yaml(OmegaConf.structured(recipe))


def to_dict(recipe: Recipe | SftRecipe) -> dict[str, Any]:
    """The resolved recipe as plain data."""
    data = OmegaConf.to_container(OmegaConf.structured(recipe))
    assert isinstance(data, dict)
    return {str(k): v for k, v in data.items()}


def differences(a: Recipe, b: Recipe) -> list[str]:
    """The dotted keys in which two recipes differ."""
    left, right = flat(to_dict(a)), flat(to_dict(b))
    return sorted(k for k in left.keys() | right.keys() if left.get(k, math.nan) != right.get(k, math.nan))


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, by dotted keys; an empty one stays."""
    if isinstance(value, Mapping) and value:
        return {k: v for key, sub in value.items() for k, v in flat(sub, f"{prefix}.{key}").items()}
    return {prefix[1:]: value}


def _check_keys(schema: Any, data: Any, prefix: str, source: str) -> None:
    """Refuse keys the schema does not have, naming the closest one it has."""
    args = [a for a in get_args(schema) if a is not type(None)]
    named = get_origin(schema) is dict
    schema = next((a for a in args if dataclasses.is_dataclass(a)), schema)
    if named and not dataclasses.is_dataclass(schema) and not isinstance(data, Mapping):
        raise UserError(f"{source}: {prefix[:-1]} is {data!r}: it is a mapping, write {prefix}KEY=VALUE")
    if not dataclasses.is_dataclass(schema) or data is None:
        return
    hints = get_type_hints(schema)
    if not isinstance(data, Mapping):
        keys = f"names, each with {', '.join(hints)}" if named else ", ".join(hints)
        raise UserError(f"{source}: {prefix[:-1]} is {data!r}: it is a mapping of {keys}")
    if named:
        for key, value in data.items():
            _check_keys(schema, value, f"{prefix}{key}.", source)
        return
    for key, value in data.items():
        if key not in hints:
            raise UserError(
                f"{source}: unknown key {prefix}{key}{did_you_mean(str(key), hints)}: "
                f"allowed here are {', '.join(hints)}"
            )
        _check_keys(hints[key], value, f"{prefix}{key}.", source)


def save(recipe: Recipe | SftRecipe, path: Path) -> None:
    """Write the resolved recipe, with the version of its schema."""
    path.write_text(f"schema_version: {SCHEMA_VERSION}\n{to_yaml(recipe)}", encoding="utf-8")
