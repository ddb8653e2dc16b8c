"""From a name to a class: `"math"` (an entry point), `"my_module:MyEnv"` or `"my_file.py:MyEnv"`.

The current folder is on the import path, so a plug-in needs no packaging. This is the only road from `k2rl`
to `k2rl_envs` and `k2rl_rewards`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

import gymnasium

from k2rl.env import Env, GymTextEnv
from k2rl.errors import UserError, did_you_mean, failed, users_code
from k2rl.protocols import Reward

Kind = Literal["envs", "rewards"]


def installed(kind: Kind) -> dict[str, str]:
    """Name -> `module:Class` of every installed plug-in of a kind, sorted by name."""
    return {e.name: e.value for e in sorted(entry_points(group=f"k2rl.{kind}"), key=lambda e: e.name)}


def resolve(kind: Kind, name: str) -> type[Any]:
    """The class behind a plug-in name.

    Raises:
        UserError: no such entry point, module, file or class.
    """
    known = installed(kind)
    target = known.get(name, name)
    if ":" not in target:
        raise UserError(
            f"unknown {kind[:-1]} {name!r}{did_you_mean(name, known)}: installed are {', '.join(known) or 'none'}; "
            "or give module:Class or file.py:Class"
        )
    return load_class(target, name)


def load_class(target: str, name: str) -> type[Any]:
    """The class at `module:Class` or `file.py:Class`; `name` is what the user called it. Raises `UserError` as
    `resolve` does."""
    module_name, _, class_name = target.partition(":")
    module = _load_file(Path(module_name)) if module_name.endswith(".py") else _load_module(module_name, name)
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        classes = [n for n, c in vars(module).items() if isinstance(c, type) and c.__module__ == module.__name__]
        raise UserError(
            f"{module_name} has no class {class_name!r}{did_you_mean(class_name, classes)}: "
            f"it defines {', '.join(classes) or 'none'}"
        )
    return found


def make_env(name: str, args: Mapping[str, Any] | None = None) -> Env:
    """An environment by plug-in name; a plain gymnasium env (also by its `gym:Id-v0`) is wrapped.

    Raises:
        UserError: unknown name, a class that is no environment, arguments it does not take, or a constructor that
            raises.
    """
    if name.startswith("gym:"):
        try:
            return GymTextEnv(gymnasium.make(name.removeprefix("gym:"), **(args or {})))
        except gymnasium.error.Error as error:
            raise UserError(f"{name}: {str(error).splitlines()[0]}") from None
        except Exception as error:
            raise failed(f"making {name}", error) from error
    made = _instantiate(name, resolve("envs", name), args or {})
    if isinstance(made, Env):
        return made
    if isinstance(made, gymnasium.Env):
        return GymTextEnv(made)
    raise UserError(f"{name} is a {type(made).__name__}, not an environment: subclass k2rl.SingleTurnEnv or k2rl.Env")


def make_reward(name: str, args: Mapping[str, Any] | None = None) -> Reward:
    """A reward by plug-in name. Raises `UserError` as `make_env` does."""
    made = _instantiate(name, resolve("rewards", name), args or {})
    if not callable(made):
        raise UserError(f"{name} is a {type(made).__name__}, not a reward: give it __call__(response, reference)")
    return made  # type: ignore[no-any-return]


def register_gymnasium() -> None:
    """Register each installed environment as `k2rl/<name>-v0`."""
    for name, target in installed("envs").items():
        env_id = f"k2rl/{name}-v0"
        if env_id not in gymnasium.registry:
            gymnasium.register(id=env_id, entry_point=target, disable_env_checker=True, order_enforce=False)


def _instantiate(name: str, cls: Callable[..., Any], args: Mapping[str, Any]) -> Any:
    parameters = inspect.signature(cls).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for arg in args:
            if arg not in parameters:
                raise UserError(
                    f"{name} takes no argument {arg!r}{did_you_mean(arg, parameters)}: "
                    f"allowed are {', '.join(parameters) or 'none'}"
                )
    missing = [
        p.name
        for p in parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in args
    ]
    if missing:
        raise UserError(f"{name} needs the argument {missing[0]!r}: set it under args")
    with users_code(f"making {name}"):
        return cls(**args)


def _load_module(module_name: str, name: str) -> Any:
    cwd = os.getcwd()
    if cwd not in sys.path:
        sys.path.insert(0, cwd)
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and module_name.split(".")[: error.name.count(".") + 1] == error.name.split("."):
            raise UserError(f"{name}: no module {error.name!r} (looked in {cwd} and the installed packages)") from None
        raise failed(f"importing {module_name}", error) from error
    except Exception as error:
        raise failed(f"importing {module_name}", error) from error


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"no file {path} (looked in {os.getcwd()})")
    digest = hashlib.blake2b(str(path.resolve()).encode(), digest_size=6).hexdigest()
    module_name = f"_k2rl_plugin_{path.stem}_{digest}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[module_name]
        if isinstance(error, Exception):
            raise failed(f"importing {path}", error) from error
        raise
    return module
