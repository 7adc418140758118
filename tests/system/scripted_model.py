"""A model that says what it was told to: just enough of two APIs for a coding agent to obey it.

Anthropic's Messages (``/v1/messages``) and OpenAI's Responses (``/v1/responses``), both streamed as
server-sent events.
"""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

Event = tuple[str, dict[str, Any]]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def model(self) -> ScriptedModel:
        """Whose it is."""
        assert isinstance(self.server, ScriptedModel)
        return self.server

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Whatever else is asked for: there is nothing."""
        self._reply(b"{}", "application/json")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """Say the next step, or that all is done."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.startswith("/v1/messages") and "count_tokens" not in self.path:
            events = self._messages(body)
        elif self.path.startswith("/v1/responses"):
            events = self._responses(body)
        else:
            self._reply(b"{}", "application/json")
            return
        lines = (
            f"event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n"
            for name, data in events
        )
        self._reply("".join(lines).encode(), "text/event-stream")

    def _reply(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _messages(self, body: dict[str, Any]) -> list[Event]:
        results = [
            str(block["content"])
            for message in body["messages"]
            if isinstance(message["content"], list)
            for block in message["content"]
            if block["type"] == "tool_result"
        ]
        command = self.model.next(results) if body.get("tools") else None
        usage = {"input_tokens": 1, "output_tokens": 1}
        message: dict[str, Any] = {
            "id": "msg",
            "type": "message",
            "role": "assistant",
            "model": body["model"],
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }
        block: dict[str, Any]
        delta: dict[str, Any]
        if command is None:
            stop, block = "end_turn", {"type": "text", "text": ""}
            delta = {"type": "text_delta", "text": "done"}
        else:
            ident = f"toolu_{len(results)}"
            stop = "tool_use"
            block = {"type": "tool_use", "id": ident, "name": "Bash", "input": dict[str, Any]()}
            text = json.dumps({"command": command, "description": "a step"})
            delta = {"type": "input_json_delta", "partial_json": text}
        end = {"stop_reason": stop, "stop_sequence": None}
        return [
            ("message_start", {"message": message}),
            ("content_block_start", {"index": 0, "content_block": block}),
            ("content_block_delta", {"index": 0, "delta": delta}),
            ("content_block_stop", {"index": 0}),
            ("message_delta", {"delta": end, "usage": {"output_tokens": 1}}),
            ("message_stop", {}),
        ]

    def _responses(self, body: dict[str, Any]) -> list[Event]:
        results = [str(item["output"]) for item in body["input"] if "output" in item]
        command = self.model.next(results)
        item: dict[str, Any] = {"id": f"item_{len(results)}", "status": "completed"}
        if command is None:
            said = {"type": "output_text", "text": "done", "annotations": list[Any]()}
            item |= {"type": "message", "role": "assistant", "content": [said]}
        else:
            item |= {"type": "function_call", "call_id": f"call_{len(results)}"}
            item |= {"name": "exec_command", "arguments": json.dumps({"cmd": command})}
        usage = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
        begun: dict[str, Any] = {
            "id": "resp",
            "object": "response",
            "status": "in_progress",
            "output": [],
        }
        ended = {**begun, "status": "completed", "output": [item], "usage": usage}
        return [
            ("response.created", {"response": begun}),
            ("response.output_item.added", {"output_index": 0, "item": item}),
            ("response.output_item.done", {"output_index": 0, "item": item}),
            ("response.completed", {"response": ended}),
        ]


class ScriptedModel(http.server.ThreadingHTTPServer):
    """See the module.  It has each of ``commands`` run in turn, and keeps what they gave."""

    def __init__(self, commands: list[str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self._commands = commands
        #: What the agent said that its commands printed.
        self.results: list[str] = []

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server_port}"

    def next(self, results: list[str]) -> str | None:
        """Return what to run after so many results; None at the end."""
        self.results = max(self.results, results, key=len)
        return self._commands[len(results)] if len(results) < len(self._commands) else None


@contextmanager
def scripted_model(commands: list[str]) -> Generator[ScriptedModel]:
    """Serve a model on the loopback until the end of the block."""
    with ScriptedModel(commands) as model:
        thread = threading.Thread(target=model.serve_forever)
        thread.start()
        try:
            yield model
        finally:
            model.shutdown()
            thread.join()
