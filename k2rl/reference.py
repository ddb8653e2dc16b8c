"""Reference pages made of what the code says: `python -m k2rl.reference docs` writes them anew.

`metrics.md` is the table of `metric_keys.py`. `recipe.md` takes a key's meaning from the `Args` of its dataclass, its
type and default from the field, and its range from what the recipe's check says of a value far outside it.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from k2rl.losses import OBJECTIVES
from k2rl.metric_keys import SECTIONS
from k2rl.recipe import EnvSpec, LoraConfig, Recipe, SftRecipe
from k2rl.recipe_checks import sft_problems, train_problems
from k2rl.recipe_files import flat
from k2rl.schedules import Schedule

_NOTE = "<!-- Made by `python -m k2rl.reference docs` from {}: edit that, and run it again. -->"
_WORDS = {int: "integer", float: "number", str: "text", bool: "true or false", Any: "any"}
_OUTSIDE: dict[Any, tuple[Any, ...]] = {
    int: (-(10**9), 10**9),
    float: (-1e9, 1e9),
    str: ("?",),
    Any: ("?",),
    list[float]: ([],),
    list[str]: (["?"],),
}
"""By type, values that a key with a range does not take."""
_SAID = re.compile(r"^(it must be|it lies at|it lies|it is|this version has|allowed are|give) ")


def metrics_page() -> str:
    """`docs/metrics.md`."""
    lines = [
        "# Metrics",
        _NOTE.format("k2rl/metric_keys.py"),
        "`metrics.jsonl` in a run's directory has a line for each iteration, an object of the keys below; what has no "
        "value in an iteration is not in its line. Trackers ([trackers.md](trackers.md)) are given the same. `<env>` "
        "is an environment's name in the recipe. A share lies between 0 and 1.",
    ]
    for section in SECTIONS:
        lines += [f"## {section.title}", *([section.says] if section.says else [])]
        rows = [(f"`{k.name}`", k.unit, k.says, k.when, f"`{k.source}`") for k in section.keys]
        lines.append(_table(("key", "unit", "what it is", "only with", "where in k2rl/"), rows))
    return "\n\n".join(lines) + "\n"


def recipe_page() -> str:
    """`docs/recipe.md`."""
    of_train, of_sft = _places(Recipe), _places(SftRecipe)
    titles = {config: paths[0] or "k2rl train" for config, paths in of_train.items()}
    new = [config for config in of_sft if config not in titles]
    for config in new:
        title = of_sft[config][0] or "k2rl sft"
        titles[config] = f"{title} of k2rl sft" if title in titles.values() else title
    lines = [
        "# Recipe reference",
        _NOTE.format("k2rl/recipe.py and what it imports"),
        "Every key of the recipes of `k2rl train` and, at the end, of `k2rl sft`. A key is set in the file, nested as "
        "its dots say, or on the command line as `key=value`. Unknown keys, values out of range and keys without "
        "effect in the chosen set-up are errors; what is allowed is given where it is checked as the recipe is read.",
    ]
    for config, paths in of_train.items():
        lines += _section(config, paths, titles, _train_recipe, train_problems)
    lines += ["## Objectives", "What `objective.name` may be, with the further keys of `objective`.", _objectives()]
    for config in new:
        lines += _section(config, of_sft[config], titles, _sft_recipe, sft_problems)
    return "\n\n".join(lines) + "\n"


PAGES = {"metrics.md": metrics_page, "recipe.md": recipe_page}


# --- recipes -----------------------------------------------------------------------------------------------------


def _places(root: type[Any]) -> dict[type[Any], list[str]]:
    """Each dataclass of a recipe with the dotted paths where it stands, outermost first; in the order of the page."""
    found: dict[type[Any], list[str]] = {root: [""]}
    queue: list[tuple[type[Any], str]] = [(root, "")]
    for config, path in queue:
        for name, hint in _fields(config):
            if (inner := _config_of(hint)) is not None:
                named = f"{path}.{name}{'.NAME' if get_origin(hint) is dict else ''}".lstrip(".")
                found.setdefault(inner, []).append(named)
                queue.append((inner, named))
    order = ["", *(name for name, _ in _fields(root))]
    return dict(sorted(found.items(), key=lambda item: order.index(item[1][0].split(".")[0])))


def _section(
    config: type[Any],
    paths: list[str],
    titles: dict[type[Any], str],
    make: Callable[[], Any],
    problems: Callable[[Any], list[str]],
) -> list[str]:
    about, texts = _texts(config)
    rows = []
    for field, (name, hint) in zip(dataclasses.fields(config), _fields(config), strict=True):
        key, inner = f"{paths[0]}.{name}".lstrip("."), _config_of(hint)
        kind = _kind(hint) if inner is None else _link(titles[inner])
        rows.append((f"`{name}`", kind, _default(field), _allowed(key, hint, make, problems), texts[name]))
    also = f"Also at {', '.join(f'`{path}`' for path in paths[1:])}." if paths[1:] else ""
    table = _table(("key", "type", "default", "allowed", "what it is"), rows)
    return [f"## {titles[config]}", *filter(None, (about, also)), table]


def _link(title: str) -> str:
    return f"[{title}](#{re.sub(r'[^a-z0-9_ -]', '', title.lower()).replace(' ', '-')})"


def _fields(config: type[Any]) -> Iterator[tuple[str, Any]]:
    """The keys of a dataclass, with their types."""
    hints = get_type_hints(config)
    yield from ((field.name, hints[field.name]) for field in dataclasses.fields(config))


def _config_of(hint: Any) -> type[Any] | None:
    """The dataclass that a key holds, or holds by name."""
    return next((t for t in (hint, *get_args(hint)) if dataclasses.is_dataclass(t)), None)  # type: ignore[return-value]


def _optional(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


def _kind(hint: Any) -> str:
    if _optional(hint):
        return " or ".join("null" if t is type(None) else _kind(t) for t in get_args(hint))
    if get_origin(hint) is list:
        return f"list of {_kind(get_args(hint)[0])}s"
    return "mapping" if get_origin(hint) is dict else _WORDS[hint]


def _default(field: dataclasses.Field[Any]) -> str:
    """As JSON; of a dataclass only what differs from its own defaults."""
    value: Any = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return "required" if value == "???" else f"`{json.dumps(value)}`"
    kind: Any = type(value)
    own, usual = flat(dataclasses.asdict(value)), flat(dataclasses.asdict(kind()))
    return ", ".join(f"`{key}={json.dumps(x)}`" for key, x in own.items() if x != usual[key])


def _allowed(key: str, hint: Any, make: Callable[[], Any], problems: Callable[[Any], list[str]]) -> str:
    """The range in the words of the check, or nothing where there is none."""
    kind = next(t for t in (*get_args(hint), hint) if t is not type(None)) if _optional(hint) else hint
    for value in _OUTSIDE.get(kind, ()):
        recipe = make()
        *path, name = key.split(".")
        holder = recipe
        for part in path:
            holder = holder[part] if isinstance(holder, dict) else getattr(holder, part)
        setattr(holder, name, value)
        for problem in problems(recipe):
            said, _, range_ = problem.partition(": ")
            if f"{key} is " in said:
                return _SAID.sub("", range_)
    return ""


def _train_recipe() -> Recipe:
    """One in which every key has its place."""
    recipe = Recipe(envs={"NAME": EnvSpec(temperature=Schedule())})
    recipe.model.lora, recipe.critic.enabled = LoraConfig(), True
    return recipe


def _sft_recipe() -> SftRecipe:
    recipe = SftRecipe(envs={"NAME": EnvSpec()})
    recipe.sft.stages = [1.0, 0.5]
    return recipe


def _texts(config: type[Any]) -> tuple[str, dict[str, str]]:
    """What a dataclass's docstring says of the whole, and of each field; parents' docstrings say of what they give."""
    texts: dict[str, str] = {}
    about = ""
    for cls in (c for c in reversed(config.__mro__) if dataclasses.is_dataclass(c)):
        about, _, args = inspect.cleandoc(cls.__doc__ or "").partition("\nArgs:\n")
        for names, text in re.findall(r"^    ([\w, ]+): (.*(?:\n {8}.*)*)", args, re.M):
            texts |= dict.fromkeys(names.split(", "), _joined(text))
    return "\n\n".join(map(_joined, about.split("\n\n"))).strip(), texts


def _joined(text: str) -> str:
    """In one line, with links to other pages."""
    return re.sub(r"docs/([\w-]+\.md)", r"[\1](\1)", " ".join(text.split()))


def _objectives() -> str:
    rows = []
    for name, cls in OBJECTIVES.items():
        options = ", ".join(f"`{field.name}={_default(field).strip('`')}`" for field in dataclasses.fields(cls))
        rows.append((f"`{name}`", options, _joined(inspect.getdoc(cls) or "")))
    return _table(("name", "keys and defaults", "what they are"), rows)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    cells = [head, ("---",) * len(head), *(tuple(cell.replace("|", r"\|") for cell in row) for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


if __name__ == "__main__":
    for page, make_page in PAGES.items():
        (Path(sys.argv[1]) / page).write_text(make_page(), encoding="utf-8")
