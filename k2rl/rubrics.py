"""What a judge looks for in a response: rubrics, the files of them, and the words a judge is told.

A file holds a set of rubrics, name by name; its first comment says what it is about::

    # How our support desk answers.
    polite:
      text: It is friendly without being familiar.
      short: polite
      weight: 2
      phrasings: [It keeps the manners of a good shop.]

Recipes, environments and tasks name what they mean in one list: `[core, no_praise, ours.yaml, "It names the town."]`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import yaml

from k2rl import assets, rng
from k2rl.errors import UserError, did_you_mean
from k2rl.types import content_hash

_NAME = re.compile(r"[A-Za-z]\w*(-\w+)*", re.ASCII)
_SUFFIXES = (".yaml", ".yml")
_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True)
class Rubric:
    """One thing to judge by.

    `short` is the text for models too small to follow a sentence. `weight` and `mandatory` are told to the judge in
    words: nothing is computed from them, and a must is no veto. `phrasings` are other ways to say `text`: a policy that
    is trained against one wording learns to please the wording.
    """

    name: str
    text: str
    short: str
    weight: float = 1.0
    mandatory: bool = False
    phrasings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "phrasings": list(self.phrasings)}


@dataclass(frozen=True)
class RubricSet:
    """Rubrics of one origin: a file, whose name without suffix is `name` and whose first comment `description`, or (no
    path) a recipe, an environment or a task that has the text itself."""

    name: str
    description: str
    path: Path | None
    rubrics: tuple[Rubric, ...]

    def to_json(self) -> dict[str, Any]:
        path = None if self.path is None else str(self.path)
        return {
            "name": self.name,
            "description": self.description,
            "path": path,
            "rubrics": [rubric.to_json() for rubric in self.rubrics],
        }


def shipped() -> dict[str, RubricSet]:
    """The shipped sets by name."""
    return {path.stem: load(path) for path in sorted(assets.folder("rubrics").glob("*.yaml"))}


def load(path: str | Path) -> RubricSet:
    """Read a file of rubrics.

    Raises:
        UserError: it can't be read, or is no valid file of rubrics: with line and field.
    """
    path = Path(path)
    try:
        text = path.expanduser().read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: not UTF-8 text ({error.reason})") from None
    except OSError as error:
        raise UserError(f"can't read the rubrics {path}: {error.strerror}") from None
    return RubricSet(path.stem, _first_comment(text), path, _parse(text, str(path)))


def find(item: str) -> RubricSet:
    """What one item of a list of rubrics means: the set of a shipped name or of a path to a .yaml, one rubric of a
    shipped set by its name, or, where it has white space, the rubric that it is the text of.

    Raises:
        UserError: a word that is neither, or a file that can't be used.
    """
    item = item.strip()
    words = len(item.split())
    if Path(item).suffix in _SUFFIXES and (words == 1 or os.path.isfile(Path(item).expanduser())):
        return load(item)
    if words > 1:
        return RubricSet("text", "", None, (Rubric(f"text-{content_hash(item)}", item, item),))
    sets = shipped()
    if item in sets:
        return sets[item]
    named = {rubric.name: replace(found, rubrics=(rubric,)) for found in sets.values() for rubric in found.rubrics}
    if item in named:
        return named[item]
    raise UserError(
        f"no rubric {item!r}{did_you_mean(item, [*sets, *named])}: give a name of `k2rl rubrics list`, the path of a "
        ".yaml, or a rubric's text (more than one word)"
    )


def resolve(names: Sequence[str]) -> tuple[Rubric, ...]:
    """The rubrics that a list of names, paths and texts means (see `find`), in its order, each once.

    Raises:
        UserError: an item that means none.
    """
    return tuple(dict.fromkeys(rubric for item in names for rubric in find(item).rubrics))


def criteria(rubrics: Sequence[Rubric], *key: str | int | float, short: bool = False) -> tuple[str, ...]:
    """What a judge is told, a line for each rubric.

    Args:
        key: what the draw of one of its phrasings is for (seed, iteration, task id, …); without, its text is taken.
        short: the short texts, without a word on weights and musts.
    """
    if short:
        return tuple(rubric.short for rubric in rubrics)
    return tuple(_in_words(rubric, key) for rubric in rubrics)


def _in_words(rubric: Rubric, key: Sequence[str | int | float]) -> str:
    ways = (rubric.text, *rubric.phrasings)
    said = ways[int(rng.generator("rubric", *key, rubric.name).integers(len(ways)))] if key else rubric.text
    must = "A must: " if rubric.mandatory else ""
    counts = "" if rubric.weight == 1 else f" (Counts {rubric.weight:g} times as much as an ordinary criterion.)"
    return f"{must}{said}{counts}"


def _first_comment(text: str) -> str:
    comments = (line.lstrip("# ").rstrip() for line in text.splitlines() if line.startswith("#"))
    return next((c for c in comments if c), "")


# --- reading: nodes instead of values, because they know their lines ------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """Where a value stands: in which file, and in which field of which rubric."""

    source: str
    field: str = ""

    def fail(self, node: yaml.Node, problem: str) -> NoReturn:
        field = f", field {self.field!r}" if self.field else ""
        raise UserError(f"{self.source}, line {node.start_mark.line + 1}{field}: {problem}")

    def inside(self, name: str) -> _Place:
        return _Place(self.source, f"{self.field}.{name}" if self.field else name)


@lru_cache(maxsize=64)
def _parse(text: str, source: str) -> tuple[Rubric, ...]:
    place = _Place(source)
    root = _compose(text, source)
    if root is None:
        raise UserError(f"{source} holds no rubrics: write NAME: {{text: …}}")
    rubrics = []
    for name, key, node in _entries(root, place, f"a file of rubrics is a mapping: NAME: {{{', '.join(_READERS)}}}"):
        if not _NAME.fullmatch(name):
            place.fail(key, f"{name!r} is no name of a rubric: use letters, digits, - and _")
        rubrics.append(_rubric(name, key, node, place.inside(name)))
    if not rubrics:
        place.fail(root, "no rubrics: write NAME: {text: …}")
    return tuple(rubrics)


def _compose(text: str, source: str) -> yaml.Node | None:
    try:
        node: yaml.Node | None = yaml.compose(text, yaml.SafeLoader)
    except RecursionError:
        raise UserError(f"{source}: not a file of rubrics: nested too deeply") from None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise UserError(f"{source}, line {line}: not valid YAML: {error.reason}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{source}{at}: not valid YAML: {error.problem or error.context}") from None
    return node


def _entries(node: yaml.Node, place: _Place, form: str) -> list[tuple[str, yaml.Node, yaml.Node]]:
    """A mapping's keys as text, with the nodes of key and value."""
    if not isinstance(node, yaml.MappingNode):
        place.fail(node, f"{form}, this is {_kind(node)}")
    seen: dict[str, int] = {}
    entries = []
    for key, value in node.value:
        name = str(key.value) if isinstance(key, yaml.ScalarNode) else place.fail(key, f"{_kind(key)} is no name")
        if name in seen:
            place.fail(key, f"{name!r} is there twice, first in line {seen[name]}")
        seen[name] = key.start_mark.line + 1
        entries.append((name, key, value))
    return entries


def _rubric(name: str, key: yaml.Node, node: yaml.Node, place: _Place) -> Rubric:
    fields: dict[str, Any] = {"short": name.replace("_", " ")}
    for field, at, value in _entries(node, place, f"a rubric is a mapping of {', '.join(_READERS)}"):
        if field not in _READERS:
            place.fail(at, f"unknown field {field!r}{did_you_mean(field, _READERS)}: allowed are {', '.join(_READERS)}")
        fields[field] = _READERS[field](value, place.inside(field))
    if "text" not in fields:
        place.fail(key, "it has no text")
    return Rubric(name, **fields)


def _text(node: yaml.Node, place: _Place) -> str:
    if not (isinstance(node, yaml.ScalarNode) and node.tag == f"{_TAG}str"):
        place.fail(node, f"must be text, got {_kind(node)}")
    text = str(node.value).strip()
    if not text:
        place.fail(node, "is empty")
    if any("\ud800" <= c <= "\udfff" for c in text):
        place.fail(node, "holds half of a surrogate pair, which is no character")
    return text


def _texts(node: yaml.Node, place: _Place) -> tuple[str, ...]:
    if not isinstance(node, yaml.SequenceNode):
        place.fail(node, f"must be a list of texts, got {_kind(node)}")
    return tuple(_text(item, place.inside(str(n))) for n, item in enumerate(node.value, start=1))


def _flag(node: yaml.Node, place: _Place) -> bool:
    value = yaml.SafeLoader.bool_values.get(str(node.value).lower()) if node.tag == f"{_TAG}bool" else None
    if value is None:
        place.fail(node, f"must be true or false, got {_kind(node)}")
    return bool(value)


def _weight(node: yaml.Node, place: _Place) -> float:
    if node.tag not in (f"{_TAG}int", f"{_TAG}float"):
        place.fail(node, f"must be a number, got {_kind(node)}")
    try:
        weight = float(yaml.constructor.SafeConstructor().construct_object(node))
    except (ValueError, OverflowError):
        weight = math.inf
    if not 0 < weight < math.inf:
        place.fail(node, f"must be above 0 and finite, got {node.value}")
    return weight


def _kind(node: yaml.Node) -> str:
    """A node in words, for who wrote it."""
    if isinstance(node, yaml.ScalarNode):
        return f"{node.value[:40]!r}" if node.value else "nothing"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"


_READERS: Mapping[str, Callable[[yaml.Node, _Place], object]] = {
    "text": _text,
    "short": _text,
    "weight": _weight,
    "mandatory": _flag,
    "phrasings": _texts,
}
