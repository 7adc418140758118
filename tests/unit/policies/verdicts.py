"""What policies say: verdicts asked for in a word."""

from __future__ import annotations

from safeclaw.policies.compiled import CompiledPolicy, compile_policy
from safeclaw.policies.context import Context
from safeclaw.policies.loader import load
from safeclaw.policies.model import AddressTarget, Attempt, FileTarget, ProgramTarget

CONTEXT = Context(
    workspace="/ws", home="/home/u", protected=("/state",), read_only=("/ws/.safeclaw/policy.yaml",)
)


def policy(*rules: str, extra: str = "", context: Context = CONTEXT) -> CompiledPolicy:
    text = 'version: "1.0"\n' + extra + "rules:\n" + "".join(f"  - {{{rule}}}\n" for rule in rules)
    return compile_policy(load(text, name="p.yaml"), context)


def ask(compiled: CompiledPolicy, action: str, path: str, to: str | None = None) -> tuple[str, str]:
    verdict = compiled.evaluate(Attempt(action, FileTarget(path, to)))
    return str(verdict.decision), verdict.rule


def run(compiled: CompiledPolicy, program: str, *argv: str, via: tuple[str, ...] = ()) -> str:
    target = ProgramTarget(program, argv or (program,), via)
    return str(compiled.evaluate(Attempt("shell.execute", target)).decision)


def connect(compiled: CompiledPolicy, address: str, port: int = 443, protocol: str = "tcp") -> str:
    target = AddressTarget(protocol, address, port)
    return str(compiled.evaluate(Attempt("network.connect", target)).decision)
