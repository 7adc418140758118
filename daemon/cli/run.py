"""``safeclaw run``: one session, from the command line to the exit status."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from safeclaw.daemon import client, display, protocol
from safeclaw.daemon.cli.options import USAGE, Options, parse
from safeclaw.daemon.gate import Gate
from safeclaw.errors import SafeclawError, UsageError
from safeclaw.policies.model import Attempt, Verdict, printable


def run(words: list[str]) -> int:
    """Run an agent; return the exit status to end with."""
    options = parse(words)
    if options.help:
        sys.stdout.write(USAGE)
        return 0
    workspace = _workspace(options)
    state = client.state_directory(dict(os.environ))
    # The broker is forked before anything else is imported, and imports on its own.
    connection = client.Client.connect(state)
    try:
        return _Run(options, workspace, state, connection).run()
    finally:
        connection.finish()


def _workspace(options: Options) -> Path:
    given = options.workspace or Path.cwd()
    try:
        return given.resolve(strict=True)
    except OSError as problem:
        raise UsageError(
            f"the workspace {printable(str(given))} cannot be used: {problem.strerror}"
        ) from problem


class _Run:
    """One run, after the broker has been found."""

    def __init__(
        self, options: Options, workspace: Path, state: Path, connection: client.Client
    ) -> None:
        self._options = options
        self._workspace = workspace
        self._state = state
        self._client = connection
        # Set once the agent can be killed; the loss of the broker may come first.
        self._kill_lock = threading.Lock()
        self._kill: Callable[[], None] | None = None
        self._signalled = 0

    def run(self) -> int:
        """Open the session, launch, wait, and close the record."""
        from safeclaw.policies import source

        options = self._options
        name, text = source.find(options.policy, self._workspace)
        hello = protocol.Hello(
            protocol.VERSION,
            printable(options.agent or os.path.basename(options.command[0])),
            tuple(printable(word) for word in options.command),
            printable(str(self._workspace)),
            name,
            text,
            options.observe,
        )
        self._client.hello(hello)
        # While the broker reads the policy and opens the journal:
        from safeclaw.daemon import launching
        from safeclaw.policies.compiled import compile_policy
        from safeclaw.policies.document import Assurance, Mode
        from safeclaw.sandbox.session import launch, resolve_command

        lease = self._client.lease()
        policy = lease.policy
        context = source.context(
            policy,
            workspace=self._workspace,
            home=Path(os.environ.get("HOME") or "/"),
            protected=(*lease.protected, str(self._state)),
            read_only=tuple(self._in_force(name)),
            path=os.environ.get("PATH"),
        )
        command = resolve_command(
            options.command, os.environ.get("PATH", os.defpath), str(self._workspace)
        )
        compiled = compile_policy(
            policy, launching.with_programs(context, command, len(options.command))
        )
        gate = Gate(
            self._client.channel,
            compiled,
            on_lost=self._lost,
            on_denied=self._denied,
            strict=policy.assurance is Assurance.STRICT,
            observe=options.observe or policy.mode is Mode.OBSERVE,
            grace=options.grace,
            on_started=self._show_walls if options.verbose else None,
        )
        status: int | None = None
        reason = "the session could not be started"
        # Ctrl-C is for the agent, which is in the same terminal; its status is ours.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGQUIT, signal.SIG_IGN)
        try:
            spec = launching.spec(compiled, command, dict(os.environ))
            session = launch(spec, gate)
            with self._kill_lock:
                self._kill = session.kill
            if gate.lost is not None:
                session.kill()
            self._pass_on(session.kill)
            status = session.wait()
            reason = "the agent has ended"
            if self._signalled:
                status = self._signalled
                reason = f"stopped by {signal.Signals(status - 128).name}"
            return status
        except SafeclawError as problem:
            reason = problem.message
            raise
        finally:
            self._close(gate, hello, lease, gate.lost or reason, status)

    def _close(
        self,
        gate: Gate,
        hello: protocol.Hello,
        lease: protocol.Lease,
        reason: str,
        status: int | None,
    ) -> None:
        """Have everything on disk, by this broker or by a fresh one."""
        if gate.end(reason, status):
            self._client.finish()
            return
        lost = gate.lost or reason
        # A broker that is silent has had its grace; one that is going closes at once.
        self._client.finish(timeout=1.0)
        try:
            client.recover(
                self._state,
                msgspec.structs.replace(hello, resume=lease.session),
                gate.unacknowledged,
                reason=lost,
                status=status,
                timeout=1.0 if gate.silent else client.ANSWER,
            )
        except SafeclawError as problem:
            count = len(gate.unacknowledged)
            display.tell("\n".join(problem.diagnostics()))
            display.tell(
                f"safeclaw: nobody confirms the last {count} records, nor the session's end"
            )

    def _lost(self, reason: str) -> None:
        """Kill the agent: nobody is there to decide for it."""
        with self._kill_lock:
            if self._kill is not None:
                self._kill()
        display.tell(
            f"safeclaw: {printable(reason)}; nothing is allowed any more, the agent is stopped\n"
            f"hint: the broker is pid {self._client.broker_pid}, its state {self._state}"
        )

    def _denied(self, attempt: Attempt, verdict: Verdict) -> None:
        display.tell(display.denial_line(attempt, verdict, str(self._workspace)))

    def _show_walls(self, walls: dict[str, object]) -> None:
        for name, value in walls.items():
            if isinstance(value, list):
                display.tell(f"safeclaw: {name}:")
                for item in value:  # pyright: ignore[reportUnknownVariableType]
                    display.tell(f"safeclaw:   {printable(str(item))}")  # pyright: ignore[reportUnknownArgumentType]
            else:
                display.tell(f"safeclaw: {name}: {printable(str(value))}")

    def _pass_on(self, kill: Callable[[], None]) -> None:
        """Let SIGTERM and SIGHUP end the agent, and the session in good order."""

        def stop(number: int, _: object) -> None:
            self._signalled = 128 + number
            kill()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGHUP, stop)

    def _in_force(self, name: str) -> list[str]:
        """Return the policy files that the agent must not change."""
        files = [str(self._workspace / ".safeclaw")]
        if os.path.exists(name):
            files.append(os.path.abspath(name))
        return files
