"""``extends``: own rules first, then the parents'; mistakes are named where they stand."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from safeclaw.errors import PolicyError
from safeclaw.policies.compiled import CompiledPolicy, compile_policy
from safeclaw.policies.context import Context
from safeclaw.policies.document import Assurance, Mode, Policy, Runtime
from safeclaw.policies.inherit import MAX_DEPTH
from safeclaw.policies.loader import load
from safeclaw.policies.model import Attempt, Decision, FileTarget
from safeclaw.policies.source import gather, load_file, read

HEAD = 'version: "1.0"\n'
ALL = '  - {action: "*", effect: deny, reason: all}\n'


def rule(path: str, effect: str) -> str:
    return f"  - {{action: file.read, path: {path}, effect: {effect}}}\n"


def put(directory: Path, **files: str) -> None:
    for name, text in files.items():
        (directory / f"{name}.yaml").write_text(HEAD + text)


def problems(path: Path) -> list[str]:
    with pytest.raises(PolicyError) as caught:
        load_file(path)
    return caught.value.message.splitlines()


def ready(policy: Policy) -> CompiledPolicy:
    return compile_policy(policy, Context(workspace="/ws", home="/home/u"))


def decision(policy: Policy, path: str) -> Decision:
    return ready(policy).evaluate(Attempt("file.read", FileTarget(path))).decision


def test_own_rules_come_first_and_a_catch_all_stands_last_once(tmp_path: Path) -> None:
    put(
        tmp_path,
        own="extends: base.yaml\nrules:\n" + rule("a", "deny") + ALL,
        base="rules:\n" + rule('"**"', "allow") + ALL,
    )
    policy = load_file(tmp_path / "own.yaml")
    assert [one.id for one in policy.rules] == ["own:1", "base:1", "own:2"]
    assert [one.file for one in policy.rules] == ["", str(tmp_path / "base.yaml"), ""]
    assert policy.parents == ("base",)
    assert decision(policy, "/ws/a") is Decision.DENY
    assert decision(policy, "/ws/b") is Decision.ALLOW
    assert decision(policy, "/elsewhere") is Decision.DENY


def test_several_parents_are_read_in_order_each_with_its_own(tmp_path: Path) -> None:
    put(
        tmp_path,
        own="extends: [one.yaml, ./two.yaml]\n",
        one="extends: top.yaml\nrules:\n" + rule("a", "allow") + ALL,
        two="extends: top.yaml\nrules:\n" + rule("b", "allow"),
        top="rules:\n" + rule("c", "allow"),
    )
    policy = load_file(tmp_path / "own.yaml")
    assert [one.id for one in policy.rules] == ["one:1", "top:1", "two:1", "one:2"]
    assert policy.parents == ("one", "top", "two")


def test_a_shipped_policy_is_extended_by_name(tmp_path: Path) -> None:
    put(tmp_path, own="extends: soc2-baseline\nrules:\n" + rule("docs/**", "allow"))
    policy = load_file(tmp_path / "own.yaml")
    assert decision(policy, "/ws/docs/a") is Decision.ALLOW
    assert decision(policy, "/ws/src/a") is Decision.ALLOW
    assert decision(policy, "/ws/secrets/a") is Decision.DENY


def test_what_is_not_said_is_taken_from_the_nearest_parent_but_not_the_mode(
    tmp_path: Path,
) -> None:
    put(
        tmp_path,
        own="extends: base.yaml\nresources: {processes: 5}\nenvironment: {set: {A: own}}\n",
        base="mode: observe\nruntime: none\nassurance: strict\n"
        "resources: {processes: 9, memory: 1M}\n"
        "environment: {pass: [X], set: {A: base, B: base}}\nrules:\n" + rule("a", "allow"),
    )
    policy = load_file(tmp_path / "own.yaml")
    assert (policy.mode, policy.runtime) == (Mode.ENFORCE, Runtime.NONE)
    assert policy.assurance is Assurance.STRICT
    assert (policy.resources.processes, policy.resources.memory) == (5, 1 << 20)
    assert policy.environment.inherit == ("X",)
    assert dict(policy.environment.assign) == {"A": "own", "B": "base"}


def test_the_hash_covers_every_file_as_sha256sum_would_list_them(tmp_path: Path) -> None:
    put(tmp_path, own="extends: base.yaml\n", base="rules:\n" + rule("a", "allow"))
    policy = load_file(tmp_path / "own.yaml")
    lines = "".join(
        f"{hashlib.sha256((tmp_path / f'{name}.yaml').read_bytes()).hexdigest()}  {name}\n"
        for name in ("own", "base")
    )
    assert policy.sha256 == hashlib.sha256(lines.encode()).hexdigest()
    with (tmp_path / "base.yaml").open("a") as out:
        out.write("# no rule has changed\n")
    assert load_file(tmp_path / "own.yaml").sha256 != policy.sha256


def test_a_policy_without_parents_keeps_the_hash_of_its_bytes(tmp_path: Path) -> None:
    put(tmp_path, own="rules:\n" + rule("a", "allow"))
    expected = hashlib.sha256((tmp_path / "own.yaml").read_bytes()).hexdigest()
    assert load_file(tmp_path / "own.yaml").sha256 == expected


def test_two_files_of_one_name_have_rules_of_different_names(tmp_path: Path) -> None:
    (tmp_path / "team").mkdir()
    put(tmp_path, policy="extends: team/policy.yaml\nrules:\n" + rule("a", "allow"))
    put(tmp_path / "team", policy="rules:\n" + rule("b", "allow"))
    policy = load_file(tmp_path / "policy.yaml")
    assert [one.id for one in policy.rules] == ["policy:1", "policy-2:1"]


@pytest.mark.parametrize(
    ("files", "place", "said"),
    [
        ({"own": "extends: own.yaml\n"}, "own.yaml:2:10", "extends itself"),
        ({"own": "extends: b.yaml\n", "b": "extends: own.yaml\n"}, "b.yaml:2:10", "itself"),
        ({"own": "extends: gone.yaml\n"}, "own.yaml:2:10", "No such file"),
        ({"own": "extends: nobody\n"}, "own.yaml:2:10", "no shipped policy"),
        ({"own": "extends: [default, gone.yaml]\n"}, "own.yaml:2:20", "No such file"),
        ({"own": "extends: []\n"}, "own.yaml:2:10", "empty"),
        ({"own": "extends: {a: b}\n"}, "own.yaml:2:10", "must be text"),
        ({"own": "extends: b.yaml\n", "b": "rules: 7\n"}, "b.yaml:2:8", "must be a list"),
    ],
)
def test_a_mistake_is_named_in_its_own_file(
    tmp_path: Path, files: dict[str, str], place: str, said: str
) -> None:
    put(tmp_path, **files)
    found = problems(tmp_path / "own.yaml")
    assert any(line.startswith(f"{tmp_path}/{place}: ") and said in line for line in found), found


def test_problems_of_all_files_come_at_once(tmp_path: Path) -> None:
    put(tmp_path, own="extends: b.yaml\nx: 1\nrules: []\n", b="y: 1\nrules: []\n")
    assert len(problems(tmp_path / "own.yaml")) == 4


def test_a_chain_that_is_too_long_is_refused(tmp_path: Path) -> None:
    for number in range(MAX_DEPTH + 2):
        put(tmp_path, **{f"p{number}": f"extends: p{number + 1}.yaml\n"})
    put(tmp_path, **{f"p{MAX_DEPTH + 2}": "rules:\n" + rule("a", "allow")})
    assert any("extends too many" in line for line in problems(tmp_path / "p0.yaml"))


def test_a_symbolic_link_to_itself_ends(tmp_path: Path) -> None:
    put(tmp_path, own="extends: link.yaml\n")
    (tmp_path / "link.yaml").symlink_to("own.yaml")
    assert any("extends itself" in line for line in problems(tmp_path / "own.yaml"))


def test_without_its_parents_a_policy_that_extends_is_refused() -> None:
    text = HEAD + "extends: default\nrules:\n" + rule("a", "allow")
    with pytest.raises(PolicyError):
        load(text, name="p.yaml")


def test_the_parents_that_are_sent_are_enough(tmp_path: Path) -> None:
    put(tmp_path, own="extends: base.yaml\n", base="rules:\n" + rule("a", "allow"))
    name = str(tmp_path / "own.yaml")
    text = read(Path(name))
    parents = gather(name, text)
    expected = load_file(Path(name))
    for path in tmp_path.iterdir():
        path.unlink()
    assert load(text, name=name, parents=parents) == expected


def test_what_all_braces_of_all_files_stand_for_is_bounded(tmp_path: Path) -> None:
    many = "rules:\n" + "".join(rule(f"'{n}/{'{a,b}' * 8}'", "deny") for n in range(40))
    names = ("one", "two", "three", "four")
    put(tmp_path, child=f"extends: [{', '.join(f'{name}.yaml' for name in names)}]\n{many}")
    put(tmp_path, **dict.fromkeys(names, many))
    (line,) = problems(tmp_path / "child.yaml")
    assert line.startswith(f"{tmp_path}/three.yaml:")
    assert "more than 32768 globs" in line
    assert len(load_file(tmp_path / "one.yaml").rules) == 40
