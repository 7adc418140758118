"""``safeclaw policy test``: cases, and what a policy decides on them; for people and pipelines."""

from __future__ import annotations

import os
from pathlib import Path
from xml.etree import ElementTree

import click
import msgspec

from safeclaw.daemon.cli.judging import canonical, compiled_for, echo_json, started_with
from safeclaw.errors import UsageError
from safeclaw.policies import explain as words
from safeclaw.policies import source
from safeclaw.policies.cases import Case, load_cases
from safeclaw.policies.compiled import CompiledPolicy
from safeclaw.policies.model import Attempt, describe, printable


class _Result(msgspec.Struct, frozen=True):
    """What was decided on one case; ``place`` is where the deciding rule stands."""

    line: int
    case: str
    expected: str
    expected_rule: str
    ok: bool
    decision: str
    rule: str
    place: str
    reason: str

    @property
    def mismatch(self) -> str:
        """What is not as expected."""
        rule = f" by {self.expected_rule}" if self.expected_rule else ""
        return f"expects {self.expected}{rule}; decided at {self.place}"


@click.command(
    name="test",
    help="Check that a policy decides the cases of FILE as they say.\n\n"
    "FILE is YAML: cases, each with action, target and expect (allow, deny or ask), if wanted "
    "name and rule; and, for all of them, policy and workspace (relative to FILE).\n\n"
    "Exit status: 0 all as expected, 1 not, 125 a file cannot be used.",
)
@click.argument("file", metavar="FILE")
@click.option("--policy", "ref", metavar="FILE|NAME", help="The policy; else the file's.")
@click.option("--workspace", metavar="DIR", help="The workspace; else the file's, else its place.")
@click.option("--junit", metavar="FILE", help="Write the results as JUnit XML, too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON value.")
def test_command(
    file: str, ref: str | None, workspace: str | None, junit: str | None, as_json: bool
) -> int:
    """Print each case, what was decided, and by which rule."""
    base = Path(os.path.realpath(os.path.dirname(file) or "."))
    text = source.read(Path(file))
    # Read twice: the targets stand in a workspace that the file itself may name.
    stated = load_cases(text, name=file, workspace=str(base))
    directory = Path(os.path.realpath(workspace or base / stated.workspace))
    if not directory.is_dir():
        raise UsageError(f"{directory}: no such directory", hint="look for a slip in the path")
    found = load_cases(text, name=file, workspace=str(directory))
    if ref is None and found.policy:
        ref = found.policy
        if "/" in ref or ref.endswith((".yaml", ".yml")):
            ref = os.path.join(os.path.dirname(file), ref)
    name, compiled = compiled_for(ref, directory)
    results = [_result(case, name, compiled) for case in found.cases]
    failed = sum(not one.ok for one in results)
    if junit is not None:
        Path(junit).write_bytes(_junit(file, results))
    if as_json:
        echo_json({"policy": name, "sha256": compiled.policy.sha256, "cases": results})
        return 1 if failed else 0
    for one in results:
        click.echo(f"{'ok  ' if one.ok else 'FAIL'} {one.case}: {one.decision} by {one.rule}")
        if not one.ok:
            click.echo(f"     {file}:{one.line} {one.mismatch}")
    count = len(results)
    click.echo(f"{count} {'case' if count == 1 else 'cases'}, {failed} failed", err=True)
    return 1 if failed else 0


def _result(case: Case, name: str, compiled: CompiledPolicy) -> _Result:
    target = started_with(compiled, canonical(case.attempt.target), dict(case.environment))
    attempt = Attempt(case.attempt.action, target)
    verdict, effect = compiled.evaluate(attempt), compiled.outcome(attempt)
    return _Result(
        line=case.line,
        case=printable(case.name) or f"{attempt.action} {describe(attempt.target)}",
        expected=str(case.expect),
        expected_rule=printable(case.rule),
        ok=effect is case.expect and case.rule in ("", verdict.rule),
        decision=str(effect),
        rule=verdict.rule,
        place=words.place_of(compiled, attempt, name),
        reason=printable(verdict.reason),
    )


def _junit(file: str, results: list[_Result]) -> bytes:
    """Return the results in the XML that CI systems read (the Ant and Maven "JUnit" format)."""
    failed = str(sum(not one.ok for one in results))
    whole = {"name": printable(file), "tests": str(len(results)), "failures": failed}
    top = ElementTree.Element("testsuites", whole)
    suite = ElementTree.SubElement(top, "testsuite", {**whole, "errors": "0", "skipped": "0"})
    for one in results:
        named = {
            "classname": printable(file),
            "name": one.case,
            "file": printable(file),
            "line": str(one.line),
            "time": "0",
        }
        case = ElementTree.SubElement(suite, "testcase", named)
        if not one.ok:
            said = f"{one.decision} by {one.rule}, {one.mismatch}"
            ElementTree.SubElement(
                case, "failure", {"message": said}
            ).text = f"{printable(file)}:{one.line}: {said}"
    ElementTree.indent(top)
    text: str = ElementTree.tostring(top, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'.encode()
