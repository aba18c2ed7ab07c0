"""As much of W&B's API as `wandb agent` calls, on loopback: it gives cells to agents, and never sees a run's data.

wandb 0.31 posts GraphQL to <WANDB_BASE_URL>/graphql: Viewer (the key), SweepWithRuns (for the command), CreateAgent,
and Heartbeat every five seconds, whose answer holds a list of commands as JSON text.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml


class AgentServer:
    """Gives each cell to one agent, the next when the agent's heartbeat no longer names the one before, then `exit`."""

    def __init__(self, sweep: dict[str, Any], cells: dict[str, dict[str, Any]]):
        """
        Args:
            sweep: content of the sweep file.
            cells: parameters by run id.
        """
        self.unknown: list[str] = []
        self.given: list[str] = []
        self._sweep, self._cells = sweep, cells
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "AgentServer":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any] | None:
        if "query Viewer" in query:
            names = {"id": "u", "entity": "me", "username": "me", "email": "me@localhost", "flags": "{}"}
            return {"viewer": names | {"teams": {"edges": []}}}
        if "query SweepWithRuns" in query:
            return {"project": {"sweep": {"config": yaml.safe_dump(self._sweep), "runs": {"edges": []}}}}
        if "mutation CreateAgent" in query:
            return {"createAgent": {"agent": {"id": "agent"}}}
        if "mutation Heartbeat" in query:
            commands = self._commands(json.loads(variables["runState"]))
            return {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": json.dumps(commands)}}
        self.unknown.append(query)
        return None

    def _commands(self, running: dict[str, bool]) -> list[dict[str, Any]]:
        if running:
            return []
        for run_id, parameters in self._cells.items():
            if run_id not in self.given:
                self.given.append(run_id)
                values = {name: {"value": value} for name, value in parameters.items()}
                return [{"type": "run", "run_id": run_id, "program": self._sweep["program"], "args": values}]
        return [{"type": "exit"}]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                data = server.answer(request["query"], request.get("variables") or {})
                body = json.dumps({"data": data} if data else {"errors": [{"message": "not here"}]}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_) -> None:
                pass

        return Handler
