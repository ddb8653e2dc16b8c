"""The environment under test, seen from outside: a child process that is killed when a call is late."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing.connection import wait
from typing import Any

import gymnasium

from k2rl.env import Env, GymTextEnv
from k2rl.errors import UnavailableError, UserError

START_S = 120.0


class SubjectError(Exception):
    """A call gave no answer; the message says why."""


class HungError(SubjectError):
    """It took longer than its deadline, and its process was killed."""


class DiedError(SubjectError):
    """Its process ended."""


def origin_of(env: gymnasium.Env[Any, Any] | str, args: Mapping[str, Any] | None) -> dict[str, Any]:
    """How another process makes the same environment: by id and arguments, or from a pickled instance.

    An instance that equals a new one without arguments is made anew, so that its constructor is checked as well.

    Raises:
        UserError: the instance can't be carried to another process.
    """
    if isinstance(env, str):
        return {"id": env, "args": dict(args or {})}
    wrapped = env if isinstance(env, Env) else GymTextEnv(env)
    cls = type(env)
    where = f"{cls.__module__}.{cls.__qualname__}"
    if cls.__module__ == "__main__" or "<locals>" in cls.__qualname__:
        raise UserError(
            f"{where} can't be checked in another process: define the class at the top of a module, "
            "or give check_env its id, such as 'my_env.py:MyEnv'"
        )
    try:
        data = pickle.dumps(wrapped)
    except Exception as error:
        raise UserError(
            f"{where} can't be carried to another process ({type(error).__name__}: {error}): load such things in "
            "setup(), or give check_env its id, such as 'my_env.py:MyEnv'"
        ) from None
    with contextlib.suppress(Exception):  # a class with required arguments
        if isinstance(env, Env) and pickle.dumps(cls()) == data:
            data = pickle.dumps(cls)
    file = getattr(sys.modules[cls.__module__], "__file__", None)
    return {"pickle": base64.b64encode(data).decode(), "modules": {cls.__module__: file}}


class Subject:
    """An environment in a fresh interpreter.

    Args:
        origin: how to make it (`origin_of`).
        hash_seed: the interpreter's PYTHONHASHSEED.

    Raises:
        UserError: it can't be made or set up, or takes longer than two minutes for it; `UnavailableError` is handed on.
    """

    def __init__(self, origin: Mapping[str, Any], hash_seed: int) -> None:
        self.origin, self.hash_seed = origin, hash_seed
        self.about: dict[str, Any] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._start()

    def ask(self, do: str, deadline_s: float, **request: Any) -> Any:
        """The result of one of the worker's methods.

        Raises:
            HungError, DiedError: no answer; a later call starts anew.
            SubjectError: the method raised.
            UserError: the worker says that the user has to act.
        """
        if self._process is None:
            self._start()
        return self._exchange({"do": do, **request}, deadline_s)

    def close(self) -> None:
        """Kill the process; a later call starts another."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with contextlib.suppress(OSError):
                    pipe.close()
            process.wait()

    def _start(self) -> None:
        code = (
            "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from k2rl.envcheck.worker import serve; serve()"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONHASHSEED": str(self.hash_seed)},
            start_new_session=True,
        )
        try:
            self.about = self._exchange(self.origin, START_S)
        except SubjectError as error:
            raise UserError(f"the environment can't be made: {error}") from None
        finally:
            if not self.about:
                self.close()

    def _exchange(self, request: Mapping[str, Any], deadline_s: float) -> Any:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            if not wait([self._process.stdout.fileno()], timeout=deadline_s):
                raise HungError(f"no answer within {deadline_s:g} s")
            line = self._process.stdout.readline()
            if not line:
                raise DiedError(f"its process ended with code {self._process.wait()}")
        except OSError:
            code = self._process.wait()
            self.close()
            raise DiedError(f"its process ended with code {code}") from None
        except BaseException:  # Its late reply must not answer the next call.
            self.close()
            raise
        reply = json.loads(line)
        if "user_error" in reply:
            raise (UnavailableError if reply["unavailable"] else UserError)(reply["user_error"])
        if "raised" in reply:
            raise SubjectError(reply["raised"])
        return reply["value"]
