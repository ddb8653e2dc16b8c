"""The recipe: defaults, overrides, and one clear line for everything that is wrong."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from k2rl import assets, recipe_files
from k2rl.errors import UserError
from k2rl.losses import objective
from k2rl.recipe import Recipe, SftRecipe

ENVS: dict[str, Any] = {"envs": {"m": {"id": "math"}}}


def problem(*overrides: str, data: Mapping[str, Any] = ENVS, schema: type[Any] = Recipe) -> str:
    """The one line with which these keys are refused."""
    with pytest.raises(UserError) as caught:
        recipe_files.resolve(schema, data, overrides)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_defaults_and_overrides() -> None:
    made = recipe_files.resolve(Recipe, ENVS, ["seed=3", "envs.m.budget.tokens=9", "optim.lr.start=1e-3"])
    assert (made.seed, made.model.path, made.rollout.group_size) == (3, "nano", 16)
    assert made.envs["m"].budget.tokens == 9
    assert made.optim.lr.start == 1e-3
    assert made.envs["m"].temperature is None


def test_what_a_recipe_leaves_to_its_user_is_missing_until_given() -> None:
    left = {**ENVS, "model": {"path": "???"}}
    assert "model.path is missing" in problem(data=left)
    assert "model.path is missing" in problem(data=left, schema=SftRecipe)
    assert recipe_files.resolve(Recipe, left, ["model.path=some/model"]).model.path == "some/model"


def test_an_override_can_add_an_env_with_arguments() -> None:
    made = recipe_files.resolve(Recipe, ENVS, ["envs.rev.id=rev.py:Rev", "envs.rev.args.levels=[1,2]"])
    assert list(made.envs) == ["m", "rev"]
    assert made.envs["rev"].args == {"levels": [1, 2]}


@pytest.mark.parametrize(
    ("override", "unknown", "meant"),
    [
        ("sed=1", "sed", "seed"),
        ("rollout.group=4", "rollout.group", "group_size"),
        ("optim.lr.strat=1", "optim.lr.strat", "start"),
        ("envs.m.bugdet.tokens=8", "envs.m.bugdet", "budget"),
        ("envs.m.budget.tokns=8", "envs.m.budget.tokns", "tokens"),
        ("envs.m.temperature.strat=1", "envs.m.temperature.strat", "start"),
    ],
)
def test_unknown_keys_get_a_suggestion(override: str, unknown: str, meant: str) -> None:
    line = problem(override)
    assert f"unknown key {unknown} " in line
    assert f"did you mean {meant!r}" in line


def test_unknown_keys_in_the_file_are_refused_too() -> None:
    assert "did you mean 'weight'" in problem(data={"envs": {"m": {"id": "math", "wieght": 2}}})
    assert "unknown key 3" in problem(data={**ENVS, "3": 4})


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("seed=abc", "seed"),
        ("run.iterations=1.5", "run.iterations"),
        ("optim.lr=0.001", "optim.lr is 0.001: it is a mapping of start"),
        ("envs.m=math", "envs.m is 'math': it is a mapping of id"),
        ("envs.m.reward_range=3", "envs.m.reward_range"),
        ("envs.m.args=3", "envs.m.args is 3: it is a mapping"),
        ("objective=k2", "objective is 'k2': it is a mapping"),
        ("objective=null", "objective is None: it is a mapping"),
        ("objective.tau=much", "objective.tau: Value 'much'"),
        ("objective.tau=null", "objective.tau"),
        ("model=null", "model"),
        ("seed=${nothing}", "seed"),
        ("seed=[1", "seed=[1"),
        ("seed", "write key=value"),
    ],
)
def test_wrong_types(override: str, says: str) -> None:
    assert says in problem(override)


@pytest.mark.parametrize("envs", [{}, [1], "math", None])
def test_envs_are_a_mapping_of_at_least_one(envs: object) -> None:
    assert "envs" in problem(data={"envs": envs})


def test_an_env_without_id() -> None:
    assert "envs.m.id is missing" in problem(data={"envs": {"m": {"weight": 2}}})


@pytest.mark.parametrize(
    "override",
    [
        "envs.m.budget.tokens=0",
        "envs.m.budget.mode=cut",
        "envs.m.budget.penalty=-1",
        "envs.m.weight=0",
        "envs.m.weight=nan",
        "envs.m.pool=0",
        "envs.m.reward_range=[1,0]",
        "envs.m.temperature.start=0",
        "run.iterations=-1",
        "run.max_failure_rate=1.5",
        "rollout.group_size=1",
        "rollout.pause_share=0",
        "rollout.engine=tensorrt",
        "trainer.backend=jax",
        "trainer.updates_per_iteration=99",
        "trainer.correction=clipped",
        "trainer.correction_cap=0.5",
        "trainer.mismatch_bound=0",
        "temperature.end=0",
        "temperature.start=nan",
        "optim.lr.start=-1",
        "optim.lr.start=inf",
        "optim.lr.kind=cubic",
        "optim.betas=[0.9]",
        "optim.weight_decay=-1",
        "ptx.weight.start=-1",
        "objective.name=ppo",
        "objective.tau=0",
    ],
)
def test_values_out_of_range_name_their_key(override: str) -> None:
    key, _, value = override.partition("=")
    line = problem(override)
    assert key.rpartition(".")[0] in line
    assert value in line.replace(".0", "").replace(" ", "") or "temperature" in key


def test_a_list_given_as_a_text_says_how_to_write_one() -> None:
    assert "critic.rubrics: it is a list, write critic.rubrics=[…]" in problem("critic.rubrics=core")


def test_keys_without_effect_are_refused() -> None:
    assert "critic.weights=copy" in problem("critic.enabled=true", "critic.recalibrate=joint", "critic.weights=copy")
    assert "would stay shut" in problem("critic.enabled=true", "critic.degradations=0")
    assert "two float32 masters" in problem("critic.enabled=true", "model.dtype=bfloat16")
    assert "belongs to swiss" in problem("critic.enabled=true", "critic.tournament.rounds=3")
    assert "belongs to bradley_terry" in problem("critic.enabled=true", "critic.tournament.prior=2")
    assert "nothing to learn" in problem("critic.enabled=true", "critic.label=0")
    assert "nothing to learn from" in problem("critic.enabled=true", "critic.pairs=0", "critic.replay=0")
    assert "critic.held_out: there is no env maths" in problem("critic.enabled=true", "critic.held_out=[maths]")
    assert "rollout.engine_args has no effect" in problem("rollout.engine_args={block_size: 8}")
    assert "trainer.correction_cap has no effect" in problem("trainer.correction_cap=3")
    assert "trainer.mismatch_bound has no effect" in problem("trainer.mismatch_bound=0.2")
    truncated, bound = "trainer.correction=truncated", "trainer.mismatch_bound=0.2"
    assert "objective.name=k2_5 masks tokens" in problem(truncated, "objective.name=k2_5")
    assert (
        recipe_files.resolve(Recipe, ENVS, [truncated, bound, "trainer.correction_cap=3"]).trainer.correction_cap == 3
    )
    vllm = "rollout.engine=vllm"
    assert recipe_files.resolve(Recipe, ENVS, [vllm, bound]).trainer.mismatch_bound == 0.2
    assert "max_model_len is k2rl's to set" in problem(vllm, "rollout.engine_args={max_model_len: 8}")
    assert "vLLM samples between 0.01 and 2" in problem(vllm, "temperature.start=2.5")
    override = "envs.m.budget.mode=override"
    assert "envs.m.budget.penalty is 0.5: it has no effect" in problem(override, "envs.m.budget.penalty=0.5")
    assert recipe_files.resolve(Recipe, ENVS, [override]).envs["m"].budget.mode == "override"


def test_an_objective_has_its_own_options_and_no_others() -> None:
    assert problem("objective.clip=0.2") == "recipe: objective.clip: k2 has no such option: its options are tau"
    line = problem("objective.name=dapo", "objective.clip_hihg=0.3")
    assert "did you mean 'clip_high'" in line
    assert line.endswith("its options are clip_low, clip_high, drop_even")
    assert problem("objective.name=rloo", "objective.tau=0.1").endswith("it has none")
    assert "(did you mean 'grpo'?)" in problem("objective.name=gprpo")
    unnamed = recipe_files.resolve(Recipe, {**ENVS, "objective": {"tau": 1}})
    assert unnamed.objective == {"name": "k2", "tau": 1.0}


def test_another_objective_leaves_the_options_of_the_file_behind() -> None:
    data = {**ENVS, "objective": {"name": "k2", "tau": 0.3}}
    assert recipe_files.resolve(Recipe, data, ["objective.name=k2"]).objective == {"name": "k2", "tau": 0.3}
    assert recipe_files.resolve(Recipe, data, ["objective.name=grpo"]).objective == {"name": "grpo", "clip": 0.2}
    # Those among the overrides are not left behind, wherever they stand.
    for overrides in (["objective.tau=2", "objective.name=k2_5"], ["objective.name=k2_5", "objective.tau=2"]):
        assert recipe_files.resolve(Recipe, data, overrides).objective["tau"] == 2
    assert "grpo has no such option" in problem("objective.tau=2", "objective.name=grpo", data=data)


def test_an_objective_of_ones_own_by_import_path(in_folder: Callable[[str, str], Path]) -> None:
    """The example of docs/objectives.md."""
    page = (Path(__file__).parents[1] / "docs" / "objectives.md").read_text(encoding="utf-8")
    text = page.partition('title="mine.py"\n')[2].partition("```")[0]
    in_folder("mine.py", text + "\n\nclass Other:\n    pass\n")
    made = recipe_files.resolve(Recipe, ENVS, ["objective.name=mine.py:Mine", "objective.scale=3"])
    assert made.objective == {"name": "mine.py:Mine", "scale": 3.0}
    assert objective(made.objective).coefficients([[1, 3]]) == [[0.25, 0.25]]
    assert "objective.scale is -1.0: it must be above 0" in problem("objective.name=mine.py:Mine", "objective.scale=-1")
    assert "mine.py:Mine has no such option" in problem("objective.name=mine.py:Mine", "objective.tau=1")
    assert "does not inherit from k2rl.losses.Objective" in problem("objective.name=mine.py:Other")
    assert "has no class 'Mien' (did you mean 'Mine'?)" in problem("objective.name=mine.py:Mien")


def test_sft_recipes_have_their_own_keys() -> None:
    assert "unknown key rollout" in problem("rollout.tasks=2", schema=SftRecipe)
    assert "head_size" in problem("model.scratch.hidden_size=100", schema=SftRecipe)
    assert recipe_files.resolve(SftRecipe, ENVS).model.path is None


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["sft.stages=[]"], "give at least one factor"),
        (["sft.stages=[1,0]"], "each above 0"),
        (["sft.stages=[1,1,1]", "sft.cooldown_share=0.5"], "take less than all time"),
        (["sft.cooldown_share=0.2"], "no effect with a single stage"),
    ],
)
def test_stages_of_sft(overrides: list[str], says: str) -> None:
    assert says in problem(*overrides, schema=SftRecipe)


@pytest.mark.parametrize("schema", [Recipe, SftRecipe])
def test_a_saved_recipe_loads_equal(schema: type[Any], tmp_path: Path) -> None:
    strange = {"text": "1e-5", "flag": "on", "list": [1, {"a": None}], "number": 1e-5}
    made = recipe_files.resolve(
        schema, {"envs": {"m": {"id": "math", "args": strange, "temperature": {"start": 0.5}}}}, ["seed=7"]
    )
    path = tmp_path / "recipe.yaml"
    recipe_files.save(made, path)
    assert recipe_files.load(schema, str(path)) == made


@pytest.mark.parametrize(
    ("text", "says"),
    [("a: [1", "recipe.yaml:1: not valid YAML"), ("- 1", "a recipe is a mapping"), ("", "envs is empty")],
)
def test_damaged_files(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=says):
        recipe_files.load(Recipe, str(path))


def test_a_binary_file_is_no_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not valid YAML"):
        recipe_files.load(Recipe, str(path))


def test_recipes_that_do_not_exist() -> None:
    with pytest.raises(UserError, match=r"no recipe file nowhere\.yaml"):
        recipe_files.load(Recipe, "nowhere.yaml")
    with pytest.raises(UserError, match="did you mean 'quickstart'"):
        recipe_files.load(Recipe, "quikstart")


def test_a_folder_does_not_hide_a_shipped_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()
    assert assets.recipe("quickstart").is_file()


@pytest.mark.parametrize("name", sorted(assets.recipes()))
def test_every_shipped_recipe_loads_and_says_what_it_is(name: str) -> None:
    text = assets.recipe(name).read_text(encoding="utf-8")
    left = sorted(OmegaConf.missing_keys(OmegaConf.create(text)))
    blanks = [f"{key}=some/path" for key in left]
    sft = name.endswith("_sft")
    loaded = recipe_files.load(SftRecipe, name, blanks) if sft else recipe_files.load(Recipe, name, blanks)
    assert loaded.envs
    comment = "".join(itertools.takewhile(lambda line: line.startswith("# "), text.splitlines(keepends=True)))
    assert comment
    assert [key for key in left if key not in comment] == [], "the comment on top names what is left to the user"
