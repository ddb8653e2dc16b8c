"""`k2rl sandbox serve`: this machine's jails for others, by HTTP.

`POST /run` takes a job (`wire.py`) and answers with its outcome; `GET /health` tells level and workers. A token, if
there is one, is asked for as `Authorization: Bearer …`.
"""

from __future__ import annotations

import hmac
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from k2rl import __version__
from k2rl.errors import UserError
from k2rl.sandbox.local import LocalSandbox
from k2rl.sandbox.wire import job_from_json, outcome_to_json

MAX_BODY = 32 << 20
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def make_server(sandbox: LocalSandbox, host: str, port: int, token: str | None) -> ThreadingHTTPServer:
    """A server, not yet serving; port 0 takes a free one.

    Raises:
        UserError: open to other machines without a token, or an address that can't be had.
    """
    if host not in LOOPBACK and not token:
        raise UserError(f"--host {host} lets others in: set K2RL_SANDBOX_TOKEN here and where it is used")

    class Handler(_Handler):
        pass

    Handler.sandbox, Handler.token = sandbox, token
    try:
        return ThreadingHTTPServer((host, port), Handler)
    except OSError as error:
        raise UserError(f"can't serve on {host}:{port}: {error.strerror}; choose another --port") from None


class _Handler(BaseHTTPRequestHandler):
    sandbox: LocalSandbox
    token: str | None
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        if self.path != "/health":
            self._reply(404, {"error": "GET /health or POST /run"})
            return
        self._reply(200, {"k2rl": __version__, "level": self.sandbox.level, "workers": self.sandbox.workers})

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > MAX_BODY:
            self.close_connection = True
            self._reply(413, {"error": f"a body of at most {MAX_BODY} bytes with its Content-Length"})
            return
        body = self.rfile.read(int(length))
        if self.token and not hmac.compare_digest(
            self.headers.get("Authorization", "").encode(), f"Bearer {self.token}".encode()
        ):
            self._reply(401, {"error": "the token is missing or wrong (K2RL_SANDBOX_TOKEN)"})
            return
        if self.path != "/run":
            self._reply(404, {"error": "GET /health or POST /run"})
            return
        try:
            program, tests, limits = job_from_json(json.loads(body))
            outcome = self.sandbox.run(program, tests, limits)
        except (ValueError, SyntaxError, RecursionError) as error:  # the job's fault
            self._reply(400, {"error": f"{error}"[:500]})
            return
        self._reply(200, outcome_to_json(outcome))

    def _reply(self, code: int, data: dict[str, Any]) -> None:
        body = json.dumps(data).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: a busy trainer would fill the screen."""
