"""Does an environment's verifier accept the gold answer of every row? `k2rl data check`."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from k2rl import plugins, schemas
from k2rl.datatools import row_reader
from k2rl.env import SingleTurnEnv
from k2rl.errors import UserError
from k2rl.progress import bar
from k2rl.records import records
from k2rl.rows import row_of
from k2rl.tables import short
from k2rl.types import Status


@dataclass(frozen=True)
class Finding:
    """What became of a row: `ok`, `no gold` (nothing to check), `unreadable`, or the verdict's status."""

    place: str
    status: str
    detail: str = ""

    @property
    def failed(self) -> bool:
        return self.status not in ("ok", "no gold")


def check(
    source: str,
    env: str,
    args: Mapping[str, Any],
    fields: Mapping[str, str] | None = None,
    form: str | None = None,
    quiet: bool = False,
) -> tuple[dict[str, Any], list[Finding]]:
    """The report (`rows`, `ok`, `no_gold`, `failed`) and the findings, in the order of the file.

    Args:
        env: whose verifier: name, module:Class or file.py:Class.
        fields, form: as the environment's arguments `fields` and `format`.

    Raises:
        UserError: an environment that reads no rows or has no `verify`, a file that can't be read or no schema fits.
    """
    local = threading.local()
    first = plugins.make_env(env, args)
    schema = schemas.detect(row_reader(first, env).row_kind, source, fields, form)
    if not isinstance(first, SingleTurnEnv):
        raise UserError(f"env {env} takes several turns: `k2rl env check` plays its gold answers")
    first.setup()

    def judge(item: tuple[str, object]) -> Finding:
        if not hasattr(local, "env"):
            local.env = plugins.make_env(env, args)
            local.env.setup()
        place, record = item
        try:
            task = local.env.row_task(row_of(place, record, schema.fields, schema.optional))
        except UserError as error:
            return Finding(place, "unreadable", str(error).removeprefix(f"{place}, ").removeprefix(f"{place}: "))
        gold = local.env.gold(replace(task, env=env))
        if gold is None:
            return Finding(place, "no gold")
        verdict = local.env.verify(task, gold)
        # Where responses are compared with each other, all that can be wrong with a gold answer is its form.
        ok = verdict.status in (Status.CORRECT, Status.PENDING)
        return Finding(place, "ok" if ok else str(verdict.status), "" if ok else verdict.detail)

    rows = list(records(source))
    found = []
    with ThreadPoolExecutor(os.cpu_count()) as workers, bar("checking", quiet) as show:
        for finding in workers.map(judge, rows):
            found.append(finding)
            show(len(found), len(rows))
    counts = {name: sum(f.status == status for f in found) for name, status in (("ok", "ok"), ("no_gold", "no gold"))}
    failed = [f for f in found if f.failed]
    report = {"file": source, "env": env, "schema": schema.name, "rows": len(rows), **counts, "failed": len(failed)}
    return {
        **report,
        "failures": [{"row": short(f.place), "status": f.status, "detail": f.detail} for f in failed],
    }, found
