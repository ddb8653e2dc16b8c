"""Where the shipped recipes, rubrics and the nano model are: inside the installed package, else beside the checkout."""

from __future__ import annotations

from pathlib import Path

from k2rl.errors import UserError, did_you_mean

_PACKAGE = Path(__file__).parent
NANO = _PACKAGE / "_assets" / "nano"
SCHEMAS = _PACKAGE / "_assets" / "schemas.yaml"


def folder(name: str) -> Path:
    """The folder of a kind of asset (`recipes`, `rubrics`)."""
    inside = _PACKAGE / "_assets" / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def recipes() -> dict[str, Path]:
    """Shipped recipes by name."""
    return {p.stem: p for p in sorted(folder("recipes").glob("*.yaml"))}


def recipe(name: str) -> Path:
    """A recipe by shipped name or path; a file or folder of the same name does not hide a shipped one.

    Raises:
        UserError: neither exists.
    """
    path, shipped = Path(name), recipes()
    if name in shipped:
        return shipped[name]
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml") or path.exists():
        raise UserError(f"no recipe file {name}: give an existing .yaml file, or a name from `k2rl recipes`")
    raise UserError(f"no recipe {name!r}{did_you_mean(name, shipped)}: shipped are {', '.join(shipped)}")
