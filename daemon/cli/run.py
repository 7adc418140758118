"""``safeclaw run``: one session, from the command line to the exit status."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from safeclaw.daemon import client, display, places, protocol
from safeclaw.daemon.channel import Channel
from safeclaw.daemon.cli.options import USAGE, Options, parse
from safeclaw.daemon.gate import Gate
from safeclaw.daemon.line import GRACE, Reconnect
from safeclaw.errors import SafeclawError, UsageError, WallError
from safeclaw.policies.model import Attempt, Verdict, printable

if TYPE_CHECKING:
    from safeclaw.policies.compiled import CompiledPolicy
    from safeclaw.policies.document import Policy

#: How long a fresh broker may take to write what a lost one has not, in seconds for each answer:
#: nobody else has those records, and a disk that is busy takes seconds for a sync.
_RECOVERY = 30.0


def run(words: list[str]) -> int:
    """Run an agent; return the exit status to end with."""
    options = parse(words)
    if options.help:
        sys.stdout.write(USAGE)
        return 0
    _require_utf8()
    ignored = _ignored()
    workspace = _workspace(options)
    _import_nothing_from(workspace)
    state = client.state_directory(dict(os.environ))
    # The broker is forked before anything else is imported, and imports on its own.
    connection = client.Client.choose(options.broker, state)
    try:
        return _Run(options, workspace, state, connection, ignored).run()
    finally:
        connection.finish()


def _require_utf8() -> None:
    """Raise WallError where the locale has names read otherwise than policies, which are UTF-8.

    SAFETY: a rule that denies a name with letters beyond ASCII would match nothing.
    """
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8":
        raise WallError(
            f"this locale has names of files read as {encoding}, and policies are UTF-8: no rule "
            "on a name with letters beyond ASCII could hold",
            hint="LC_ALL=C.UTF-8 safeclaw run …; and PYTHONUTF8 unset, if it is 0",
        )


def _ignored() -> tuple[int, ...]:
    """Return the signals that were ignored when this was started, as nohup(1) has it.

    The agent ignores them as well.  Those that Python itself ignores cannot be told apart.
    """
    ignored = [one for one in signal.valid_signals() if signal.getsignal(one) is signal.SIG_IGN]
    # where it is ignored nobody could be waited for
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return tuple(int(one) for one in ignored if one not in (signal.SIGPIPE, signal.SIGXFSZ))


def _workspace(options: Options) -> Path:
    given = options.workspace or Path(".")
    try:
        os.close(os.open(given, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        return given.resolve(strict=True)
    except OSError as problem:
        raise UsageError(
            f"the workspace {printable(str(given))} cannot be used: {problem.strerror}",
            hint="--workspace DIR names another one",
        ) from problem


def _import_nothing_from(workspace: Path) -> None:
    """Have nothing imported from the workspace (PYTHONPATH, python -m) that is not safeclaw's.

    SAFETY: an agent could put a module there by the time that it is imported.  What is safeclaw's,
    and no directory with the workspace in it, it may not change: see ``launching.code``.
    """

    def is_safe(place: str) -> bool:
        real = Path(os.path.realpath(place))
        if workspace.is_relative_to(real):
            return False
        own = real.is_relative_to(os.path.realpath(sys.prefix)) or (real / "safeclaw").is_dir()
        return own or not real.is_relative_to(workspace)

    sys.path[:] = [place for place in sys.path if is_safe(place)]


def _credential() -> str:
    """Return a registered agent's key: from the unit's credentials, else the environment."""
    place = os.environ.get("CREDENTIALS_DIRECTORY")
    if place:
        try:
            return (Path(place) / "api-key").read_text().strip()
        except FileNotFoundError:
            pass
        except (OSError, UnicodeDecodeError) as problem:
            raise UsageError(
                f"the credential api-key cannot be read: {problem}",
                hint="in the unit: LoadCredential=api-key:FILE, with the key alone in FILE",
            ) from problem
    return os.environ.get("SAFECLAW_API_KEY", "").strip()


class _Run:
    """One run, after the broker has been found."""

    def __init__(
        self,
        options: Options,
        workspace: Path,
        state: Path,
        connection: client.Client,
        ignored: tuple[int, ...],
    ) -> None:
        self._options = options
        self._ignored = ignored
        self._workspace = workspace
        self._state = state
        self._client = connection
        # Set once the agent can be killed; the loss of the broker may come first.
        self._kill_lock = threading.Lock()
        self._kill: Callable[[], None] | None = None
        self._signalled = 0
        self._by_switch = False
        self._kill_reason = ""
        self._observe = options.observe
        self._teller = display.Teller()
        #: Whether a denial was not shown that would have been.
        self._unshown = False

    def run(self) -> int:
        """Open the session, launch, wait, and close the record."""
        from safeclaw.policies import source

        options = self._options
        credential = _credential() if options.agent is not None else ""
        if credential and options.policy is None:
            name, text = "", b""
        else:
            name, text = source.find(options.policy, self._workspace)
        parents = source.gather(name, text)
        hello = protocol.Hello(
            protocol.VERSION,
            printable(options.agent or os.path.basename(options.command[0])),
            tuple(printable(word) for word in options.command),
            printable(str(self._workspace)),
            printable(name),
            text,
            options.observe,
            policy_parents=tuple(
                msgspec.structs.replace(one, child=printable(one.child), name=printable(one.name))
                for one in parents
            ),
            home=printable(os.path.realpath(places.home())),
            credential=credential,
        )
        self._client.hello(hello)
        # While the broker reads the policy and opens the journal:
        from safeclaw.daemon import kept, launching
        from safeclaw.policies.compiled import compile_policy
        from safeclaw.policies.document import Assurance, Mode
        from safeclaw.sandbox import group
        from safeclaw.sandbox.caseless import Look
        from safeclaw.sandbox.session import launch
        from safeclaw.sandbox.spec import Degraded, Isolation

        runtime = kept.runtime(str(self._state))
        look = Look(str(self._workspace))
        lease = self._client.lease(client.START if options.grace is None else options.grace)
        policy = lease.policy
        command = self._command()
        in_force = self._in_force(name, *(parent.name for parent in parents))
        files = (*in_force, *lease.read_only, *launching.code())

        def compiled_for(policy: Policy) -> CompiledPolicy:
            context = source.context(
                policy,
                workspace=self._workspace,
                home=places.home(),
                protected=(*lease.protected, str(self._state), *client.SYSTEM_PLACES),
                read_only=files,
                path=os.environ.get("PATH"),
                runtime=runtime,
            )
            known = launching.with_programs(context, command, len(options.command))
            known = launching.with_caseless(known, policy, look)
            return compile_policy(policy, known, runtime)

        def adopt(policy: Policy) -> tuple[CompiledPolicy, bool, bool]:
            observes = options.observe or policy.mode is Mode.OBSERVE
            return compiled_for(policy), policy.assurance is Assurance.STRICT, observes

        compiled = compiled_for(policy)
        observe = self._observe = options.observe or policy.mode is Mode.OBSERVE
        gate = Gate(
            self._client.channel,
            compiled,
            on_lost=self._lost,
            on_denied=self._denied,
            strict=policy.assurance is Assurance.STRICT,
            observe=observe,
            grace=(lease.reconnect or GRACE) if options.grace is None else options.grace,
            on_started=self._show_walls if options.verbose else None,
            on_limit=self._limited,
            on_shut=self._shut,
            on_asked=self._asked,
            on_killed=self._killed,
            adopt=adopt,
            adopted=policy.sha256,
            on_adopted=self._adopted,
            reconnect=self._reconnect(hello, lease) if lease.reconnect else None,
        )
        status: int | None = None
        reason = "the session could not be started"
        if options.verbose:
            display.tell(f"safeclaw: broker: {self._broker_in_words()}")
        # Ctrl-C is for the agent, which is in the same terminal; its status is ours.
        # SAFETY: nor is this stopped for the terminal: an agent that puts itself before it
        # (tcsetpgrp(3)) would go on when whoever watches over it next says something.
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTTIN, signal.SIGTTOU):
            signal.signal(number, signal.SIG_IGN)
        woken = self._pass_on()
        holding = contextlib.ExitStack()
        try:
            launching.require_case(compiled.context)
            spec = launching.spec(
                compiled,
                command,
                dict(os.environ),
                state=str(self._state),
                observe=observe,
                isolation=Isolation(options.isolation),
                degraded=tuple(Degraded(layer) for layer in options.allow_degraded),
                ignored=self._ignored,
            )
            for place in launching.absent(spec):
                display.tell(
                    f"safeclaw: {printable(place)}, which the policy lets the agent write, is not "
                    "there, and cannot be made in the walls; make it, and start again"
                )
            group_held = holding.enter_context(group.held())
            session = launch(spec, gate, look, group_held)
            gc.freeze()  # what is there stays: no collection needs to look at it again
            gc.enable()
            with self._kill_lock:
                self._kill = session.kill
            if gate.lost is not None or self._by_switch or self._signalled:
                session.kill()
            status = session.wait(woken)
            reason = self._kill_reason or "the agent has ended"
            if self._signalled:
                status = self._signalled
                reason = f"stopped by {signal.Signals(status - 128).name}"
            return status
        except SafeclawError as problem:
            reason = problem.message
            raise
        finally:
            holding.close()
            self._close(gate, hello, lease, gate.lost or reason, status)
            if self._unshown:
                what = "attempts that would be denied" if self._observe else "attempts denied"
                self._teller.tell(
                    f"safeclaw: {what}: {gate.denials}; "
                    f"safeclaw audit show --session {printable(lease.session)} --decision deny",
                    last=True,
                )
            self._teller.settle()

    def _command(self) -> tuple[str, ...]:
        """Return the command with its program's path; without one, the session ends here."""
        from safeclaw.sandbox.session import resolve_command

        path = os.environ.get("PATH", os.defpath)
        try:
            return resolve_command(self._options.command, path, str(self._workspace))
        except SafeclawError as problem:
            # There is no gate yet that would say so.
            end = protocol.encode(protocol.End(printable(problem.message), None))
            with contextlib.suppress(OSError):
                self._client.channel.send(end, client.ANSWER)
            raise

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
                self._client,
                msgspec.structs.replace(hello, resume=lease.session),
                gate.unacknowledged,
                reason=lost,
                status=status,
                timeout=1.0 if gate.silent else _RECOVERY,
            )
        except SafeclawError as problem:
            count = len(gate.unacknowledged)
            self._teller.tell("\n".join(problem.diagnostics()))
            self._teller.tell(
                f"safeclaw: nobody confirms the last {count} records, nor the session's end"
            )

    def _broker_in_words(self) -> str:
        place = self._client.socket
        whose = f"your own, state {self._client.state}" if place is None else f"at {place}"
        return f"pid {self._client.broker_pid} ({whose})"

    def _reconnect(self, hello: protocol.Hello, lease: protocol.Lease) -> Reconnect:
        """Return how a broker that was restarted is found again."""

        def again() -> tuple[Channel, protocol.Lease]:
            found = self._client.again()
            try:
                found.hello(msgspec.structs.replace(hello, resume=lease.session))
                resumed = found.lease()
            except BaseException:
                found.channel.close()
                raise
            self._client.channel, self._client.broker_pid = found.channel, found.broker_pid
            return found.channel, resumed

        return again

    def _asked(self, asked: protocol.Asked, attempt: Attempt) -> None:
        from safeclaw.daemon.cli import prompt

        def ask() -> None:
            prompt.tell(asked, attempt)
            if self._options.prompt:
                prompt.start(asked, attempt, self._client)

        self._teller.put(ask)

    def _adopted(self, policy: Policy) -> None:
        self._teller.tell(
            f"safeclaw: policy {printable(policy.name)} {policy.sha256[:12]} is in force from "
            "now on; files and networks it adds need a new session"
        )

    def _killed(self, reason: str) -> None:
        """Kill the agent: somebody has thrown the switch."""
        self._kill_reason = f"kill switch: {reason}"
        with self._kill_lock:
            self._by_switch = True
            if self._kill is not None:
                self._kill()
        self._teller.tell(f"safeclaw: {printable(reason)}; the agent is stopped")

    def _lost(self, reason: str) -> None:
        """Kill the agent: nobody is there to decide for it."""
        with self._kill_lock:
            if self._kill is not None:
                self._kill()
        self._teller.tell(
            f"safeclaw: {printable(reason)}; nothing is allowed any more, the agent is stopped\n"
            f"hint: the broker is {self._broker_in_words()}"
        )

    def _denied(self, attempt: Attempt, verdict: Verdict) -> None:
        if self._options.quiet:
            self._unshown = True
            return
        workspace = str(self._workspace)
        line = display.denial_line(attempt, verdict, workspace, observed=self._observe)
        display.tell(line, patient=False)

    @staticmethod
    def _limited(name: str, reason: str) -> None:
        text = f"safeclaw: limit {printable(name)}: {printable(reason)}"
        display.tell(text, patient=False)  # whoever says this watches the other limits, too

    @staticmethod
    def _shut(places: tuple[str, ...]) -> None:
        for place in places:
            display.tell(
                f"safeclaw: {printable(place)} was mounted, where names are, or may be, without "
                "regard to case; nothing in it is allowed",
                patient=False,
            )

    def _show_walls(self, walls: dict[str, object]) -> None:
        for name, value in walls.items():
            if not value:
                display.tell(f"safeclaw: {name}: none")
            elif isinstance(value, list):
                display.tell(f"safeclaw: {name}:")
                for item in value:  # pyright: ignore[reportUnknownVariableType]
                    display.tell(f"safeclaw:   {item}")  # pyright: ignore[reportUnknownArgumentType]
            else:
                display.tell(f"safeclaw: {name}: {value}")

    def _pass_on(self) -> int:
        """Let SIGTERM and SIGHUP end the agent, and the session in good order.

        Not what was ignored when this was started: nohup(1).  Return what can be read once one
        of them has come: Python's handler waits for the main thread, and whatever blocks that is
        not always interrupted (signal.set_wakeup_fd).
        """

        def stop(number: int, _: object) -> None:
            self._signalled = 128 + number
            # not under the lock, which this thread may hold; launched meanwhile, run() looks
            if self._kill is not None:
                self._kill()

        woken, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGHUP):
            if number not in self._ignored:
                signal.signal(number, stop)
        return woken

    def _in_force(self, *names: str) -> list[str]:
        """Return the policy files that the agent must not change."""
        files = [str(self._workspace / ".safeclaw")]
        return files + [os.path.abspath(name) for name in names if name and os.path.exists(name)]
