"""A suggested policy allows what was done, what it states beyond that, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeclaw.policies.compiled import CompiledPolicy, compile_policy
from safeclaw.policies.context import Context, Program
from safeclaw.policies.document import Policy
from safeclaw.policies.explain import remedy, suggest_line
from safeclaw.policies.generalise import (
    Place,
    command_patterns,
    patterns,
    temporary_names,
)
from safeclaw.policies.loader import load
from safeclaw.policies.model import (
    AddressTarget,
    Attempt,
    Decision,
    FileTarget,
    NameTarget,
    OtherTarget,
    ProgramTarget,
    SocketTarget,
    Target,
    Verdict,
    printable,
    target_fields,
)
from safeclaw.policies.observed import Observed, plain, target_of
from safeclaw.policies.source import find
from safeclaw.policies.suggest import GUARDED, Source, Suggestion, suggest

PLACE = Place("/ws", "/home/u")
PROGRAMS = {"git": "/usr/bin/git", "python3": "/usr/bin/python3.11", "ls": "/usr/bin/ls"}


def context(policy: Policy) -> Context:
    programs = tuple(Program(name, path, path) for name, path in PROGRAMS.items())
    return Context(workspace="/ws", home="/home/u", programs=programs)


def read(path: str) -> Attempt:
    return Attempt("file.read", FileTarget(path))


def write(kind: str, path: str, to: str | None = None) -> Attempt:
    return Attempt(f"file.write.{kind}", FileTarget(path, to))


def ran(program: str, *arguments: str) -> Attempt:
    path = PROGRAMS.get(program, program)
    return Attempt("shell.execute", ProgramTarget(path, (program, *arguments)))


def suggestion(*attempts: Attempt, place: Place = PLACE) -> Suggestion:
    seen = [Observed(attempt, 1) for attempt in attempts]
    return suggest(seen, place, Source("a test"), context=context, names=PROGRAMS.get)


def compiled(*attempts: Attempt) -> CompiledPolicy:
    policy = load(suggestion(*attempts).text, name="s.yaml")
    return compile_policy(policy, context(policy))


def allows(policy: CompiledPolicy, attempt: Attempt) -> bool:
    return policy.evaluate(attempt).decision is Decision.ALLOW


def test_one_file_gets_no_more_than_itself() -> None:
    policy = compiled(read("/ws/src/a.py"))
    assert allows(policy, read("/ws/src/a.py"))
    assert not allows(policy, read("/ws/src/b.py"))
    assert not allows(policy, read("/ws/src"))
    assert not allows(policy, write("modify", "/ws/src/a.py"))


def test_three_names_stand_for_their_directory() -> None:
    policy = compiled(*(read(f"/ws/src/{name}") for name in "abc"))
    assert allows(policy, read("/ws/src/other"))
    assert not allows(policy, read("/ws/elsewhere"))
    assert not allows(policy, write("create", "/ws/src/a"))


def test_a_summed_up_directory_opens_no_secret_in_it() -> None:
    policy = compiled(*(read(f"/ws/src/{name}") for name in "abc"))
    for secret in (".env", "id_rsa", "deep/server.key", "secrets/any", ".aws/config"):
        assert not allows(policy, read(f"/ws/src/{secret}"))


def test_writing_in_git_opens_neither_its_hooks_nor_its_settings() -> None:
    policy = compiled(*(write("create", f"/ws/.git/{name}") for name in ("index", "x/y", "z")))
    assert allows(policy, write("create", "/ws/.git/new"))
    assert not allows(policy, write("create", "/ws/.git/hooks/post-commit"))
    assert not allows(policy, write("modify", "/ws/.git/config"))


@pytest.mark.parametrize(
    "directory", ["/ws", "/home/u", "/", "/etc", "/var/lib", "/home", "/home/u/.config", "/proc/7"]
)
def test_what_belongs_to_everybody_is_never_summed_up(directory: str) -> None:
    base = directory.rstrip("/")
    policy = compiled(*(read(f"{base}/{name}") for name in ("a", "b", "c", "d")))
    assert allows(policy, read(f"{base}/a"))
    assert not allows(policy, read(f"{base}/other"))


def test_the_sessions_own_tmp_is_all_its_own_unless_the_workspace_lies_there() -> None:
    assert allows(compiled(read("/tmp/a")), read("/tmp/b/c"))
    inside = Place("/tmp/ws", "/home/u")
    found = patterns([("file.read", "/tmp/a", 1)], {}, inside)
    assert [pattern.text for pattern in found] == ["/tmp/a"]


def test_a_secret_is_a_comment_with_a_warning_not_a_rule() -> None:
    made = suggestion(read("/ws/.env"), read("/ws/a"), read("/home/u/.ssh/id_ed25519"))
    assert not allows(compiled(read("/ws/.env"), read("/ws/a")), read("/ws/.env"))
    assert sum("SECRET" in line for line in made.text.splitlines()) == 2
    assert len(made.set_aside) == 2


def test_a_secret_is_allowed_once_a_person_takes_the_mark_away() -> None:
    text = suggestion(read("/ws/.env")).text
    taken = text.replace("  # - {", "  - {")
    policy = load(taken, name="s.yaml")
    assert allows(compile_policy(policy, context(policy)), read("/ws/.env"))


def test_a_hook_that_was_written_is_set_aside() -> None:
    made = suggestion(write("create", "/ws/.git/hooks/pre-commit"))
    assert "RUNS OUTSIDE THE WALLS" in made.text
    assert made.rules == 1


def test_a_program_without_a_file_is_set_aside() -> None:
    made = suggestion(Attempt("shell.execute", ProgramTarget("/memfd:x (deleted)", ())))
    assert (made.rules, len(made.set_aside)) == (1, 1)


def test_certificates_of_a_package_are_no_secrets() -> None:
    path = "/ws/.venv/lib/site-packages/certifi/cacert.pem"
    policy = compiled(read(path))
    assert allows(policy, read(path))
    assert not allows(policy, read("/ws/server.pem"))
    # and no others, nor are they written
    inside = "/home/u/.venv/lib/site-packages/certifi/cacert.pem"
    for other in (read(path.replace("certifi", "other")), write("modify", path), read(inside)):
        assert not allows(policy, other)
    policy = compiled(write("create", inside), read("/ws/.env.example"))
    assert allows(policy, write("modify", inside))
    assert not allows(policy, write("delete", inside))
    assert not allows(policy, write("modify", "/ws/.env.example"))
    # a rule on the home would have all of it shown
    assert "/home/u" not in policy.view()


@pytest.mark.parametrize(
    "path",
    [
        *("/srv/app/.env", "/opt/other/id_ed25519", "/run/secrets/db", "/run/credentials/x/key"),
        *("/home/other/.aws/config", "/etc/krb5.keytab", "/var/lib/app/server.key"),
    ],
)
def test_a_secret_is_one_wherever_it_lies(path: str) -> None:
    made = suggestion(read(path))
    assert (made.rules, len(made.set_aside)) == (1, 1)


def test_a_summed_up_directory_elsewhere_opens_no_secret_in_it() -> None:
    names = ("a", "b", "cacert.pem")
    policy = compiled(*(read(f"/opt/app/etc/{name}") for name in names))
    assert all(allows(policy, read(f"/opt/app/etc/{name}")) for name in (*names, "c"))
    for secret in (".env", "id_rsa", "deep/server.key", "secrets/any"):
        assert not allows(policy, read(f"/opt/app/etc/{secret}"))
    policy = compiled(*(write("create", f"/home/other/x/{name}") for name in "abc"))
    assert allows(policy, write("create", "/home/other/x/d"))


@pytest.mark.parametrize(
    "path",
    [
        *("/home/u/.bash_login", "/home/u/.local/bin/ls", "/home/u/.config/fish/config.fish"),
        *("/home/other/.zprofile", "/root/.bashrc", "/etc/cron.d/x", "/usr/local/bin/ls"),
    ],
)
def test_what_a_login_runs_is_set_aside(path: str) -> None:
    made = suggestion(write("create", path))
    assert "RUNS OUTSIDE THE WALLS" in made.text
    assert made.rules == 1


def test_the_presets_and_suggestions_guard_the_same() -> None:
    for preset in ("default", "coding-agent"):
        name, text = find(preset, Path("/ws"))
        rules = load(text, name=name).rules
        assert any(rule.paths == GUARDED for rule in rules), preset


@pytest.mark.parametrize("address", ["169.254.169.254", "100.100.100.200", "fd00:ec2::254"])
def test_a_clouds_credentials_are_a_secret(address: str) -> None:
    reached = Attempt("network.connect", AddressTarget("tcp", address, 80))
    made = suggestion(reached)
    assert (made.rules, len(made.set_aside)) == (1, 1)
    assert "SECRET" in made.text
    taken = load(made.text.replace("  # - {", "  - {"), name="s.yaml")
    assert allows(compile_policy(taken, context(taken)), reached)


def test_a_temporary_name_stands_for_the_next_one() -> None:
    policy = compiled(
        write("create", "/ws/out/tmpab12cd_9"),
        write("rename", "/ws/out/tmpab12cd_9", "/ws/out/final"),
    )
    assert allows(policy, write("create", "/ws/out/tmpzzzzzzzz"))
    assert allows(policy, write("rename", "/ws/out/tmpzzzzzzzz", "/ws/out/final"))
    assert not allows(policy, write("create", "/ws/out/other"))


def test_a_word_that_is_a_name_deep_in_a_library_is_still_what_a_program_is_asked_to_do() -> None:
    library = read("/ws/venv/lib/python3/site-packages/pip/install")
    policy = compiled(library, read("/ws/src/notes"), ran("git", "install"), ran("ls", "notes"))
    assert allows(policy, ran("git", "install", "x"))
    assert not allows(policy, ran("git", "push"))
    assert allows(policy, ran("ls", "other"))


def test_a_time_in_a_name_stands_for_the_next_one() -> None:
    for name, later, other in (
        ("2026-11-26T22_58_39_081Z-debug-0.log", "2027-01-02T03_04_05_678Z-debug-0.log", "x.log"),
        ("run-20261126-225839.txt", "run-20270102-030405.txt", "run-.txt"),
        ("20261126225839", "20270102030405", "2027010203040"),
    ):
        policy = compiled(write("create", f"/ws/out/{name}"))
        assert allows(policy, write("create", f"/ws/out/{name}"))
        assert allows(policy, write("create", f"/ws/out/{later}")), name
        assert not allows(policy, write("create", f"/ws/out/{other}"))
    for name in ("2026-11-26.log", "v20.26.11", "120261126225839"):  # no time of day
        policy = compiled(write("create", f"/ws/out/{name}"))
        assert not allows(policy, write("create", f"/ws/out/{name.replace('26', '27')}"))


@pytest.mark.parametrize(
    ("name", "glob"),
    [
        ("sedFTtP8n", "sed??????"),
        ("sedGqU123", "sed??????"),
        ("sedabcdef", "sed??????"),
        ("ccABCDEF.o", "cc??????.o"),
        ("XX4Dm123", "XX??????"),
        ("tmp.abcdefghij", "tmp.??????????"),
        ("tmp_obj_PaWlPX", "tmp_obj_??????"),
        ("tmpabcdefgh", "tmp????????"),
        ("x.cpython-311.pyc.139822123", "x.cpython-311.pyc.[0-9]*"),
        ("tmpq8_ab2cd.json", "tmp????????.json"),
        # random letters that end in digits, and numbers
        ("tmpppejp123", "tmp????????"),
        ("tmp12345678", "tmp????????"),
        ("tmp_obj_PaW123", "tmp_obj_??????"),
        ("tmp_pack_abc123", "tmp_pack_??????"),
        ("own-PaW123", "own-??????"),
        ("own.PaWlPX", "own.??????"),
        (".own.c.PaW123", ".own.c.??????"),
        ("own-PaWlPX.c", "own-??????.c"),
        ("own-3ie8z4", "own-??????"),
        ("own-oilckroy.c", "own-????????.c"),
        ("own-a_bcedef.c", "own-????????.c"),
        ("own-a1b_cdef.tar.gz", "own-????????.tar.gz"),
        ("own-a1b_c678", "own-????????"),
        ("own-12345678", "own-[0-9]*"),
        ("output123", "output[0-9]*"),
        ("OUTPUT_1234", "OUTPUT_[0-9]*"),
    ],
)
def test_only_the_random_part_of_a_name_is_open(name: str, glob: str) -> None:
    assert temporary_names([f"/ws/{name}"], [f"/ws/{name}"]) == {f"/ws/{name}": glob}


@given(st.text("abcdefghijklmnopqrstuvwxyz0123456789_", min_size=8, max_size=8))
def test_every_name_that_pythons_tempfile_makes_up_stands_for_the_next_one(drawn: str) -> None:
    assert temporary_names([f"/ws/tmp{drawn}"], [f"/ws/tmp{drawn}"]) == {
        f"/ws/tmp{drawn}": "tmp????????"
    }


@pytest.mark.parametrize(
    "name",
    ["index.lock", "HEAD.lock", "build", "maintenance.lock", "out", "x-original", "x-report"],
)
def test_a_plain_name_that_came_and_went_is_itself(name: str) -> None:
    assert temporary_names([f"/ws/{name}"], [f"/ws/{name}"]) == {}


def test_what_came_and_went_in_the_sessions_own_tmp_had_no_name_that_anybody_chose() -> None:
    assert temporary_names(["/tmp/oilickoy"], ["/tmp/oilickoy"]) == {"/tmp/oilickoy": "????????"}


def test_a_name_that_stayed_is_not_temporary() -> None:
    assert temporary_names(["/ws/tmpab12cd_9"], []) == {}


def test_what_was_made_may_be_changed_but_not_deleted() -> None:
    policy = compiled(write("create", "/ws/out"))
    assert allows(policy, write("modify", "/ws/out"))
    assert not allows(policy, write("delete", "/ws/out"))


def test_a_command_keeps_its_program_and_its_first_word() -> None:
    policy = compiled(ran("git", "commit", "-m", "x"), ran("git", "status"))
    assert allows(policy, ran("git", "commit", "-q", "--amend"))
    assert not allows(policy, ran("git", "push"))
    assert not allows(policy, ran("ls"))


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (("-B", "-m", "unittest", "tests/a.py"), "python3 -B -m unittest *"),
        (("-c", "print(1)"), "python3 -c *"),
        (("tool.py", "--fast"), "python3 tool.py *"),
        (("/tmp/x1.py",), "python3 /tmp/* *"),
        ((), "python3"),
    ],
)
def test_an_interpreter_keeps_what_it_was_asked_to_run(
    arguments: tuple[str, ...], pattern: str
) -> None:
    assert command_patterns([("python3", arguments, 2)], frozenset()) == [(pattern, 2)]


def test_a_file_is_an_argument_not_a_word_of_the_command() -> None:
    assert command_patterns([("ls", ("src",), 1)], frozenset({"src"})) == [("ls *", 1)]


def test_a_program_that_is_not_what_its_name_leads_to_goes_by_its_path() -> None:
    fake = Attempt("shell.execute", ProgramTarget("/ws/git", ("git", "status")))
    text = suggestion(fake).text
    assert '"./git status *"' in text
    assert not allows(compiled(fake), ran("git", "status"))


def test_what_the_runtime_allows_is_not_repeated() -> None:
    made = suggestion(read("/usr/lib/x.so"), Attempt("session.start", OtherTarget("x")))
    assert (made.rules, made.used) == (1, 0)


def test_addresses_are_named_one_by_one() -> None:
    policy = compiled(Attempt("network.connect", AddressTarget("tcp", "192.0.2.1", 443)))
    assert allows(policy, Attempt("network.connect", AddressTarget("tcp", "192.0.2.1", 443)))
    assert not allows(policy, Attempt("network.connect", AddressTarget("tcp", "192.0.2.1", 80)))
    assert not allows(policy, Attempt("network.connect", AddressTarget("tcp", "192.0.2.2", 443)))


def test_an_address_that_was_looked_up_is_named_by_its_name() -> None:
    named = AddressTarget("tcp", "192.0.2.1", 443, ("api.example.com",))
    made = suggestion(Attempt("network.connect", named))
    assert 'host: "api.example.com", port: 443, protocol: tcp' in made.text
    policy = compiled(Attempt("network.connect", named))
    assert allows(policy, Attempt("network.connect", named))
    assert allows(policy, Attempt("network.connect", NameTarget("api.example.com")))
    assert not allows(policy, Attempt("network.connect", AddressTarget("tcp", "192.0.2.1", 443)))


def test_a_name_that_was_only_looked_up_may_be_again() -> None:
    attempt = Attempt("network.resolve", NameTarget("api.example.com"))
    assert allows(compiled(attempt), attempt)


@pytest.mark.parametrize(
    "name", ["localhost", "own-loopback", "127.0.0.1", "169.254.169.254", "a\\032b.test", "-a.test"]
)
def test_what_is_looked_up_and_is_no_hosts_name_is_no_rule(name: str) -> None:
    lookup = Attempt("network.resolve", NameTarget(name))
    made = suggestion(lookup, read("/ws/a"))
    assert made.set_aside == (printable(name),)
    policy = load(made.text, name="s.yaml")
    assert not any(rule.hosts for rule in policy.rules)
    assert remedy(lookup, Verdict(Decision.DENY, "default-deny", "")) is None

    # nor does such a name stand for an address that was found by it
    reached = Attempt("network.connect", AddressTarget("tcp", "203.0.113.7", 443, (name,)))
    assert 'host: "203.0.113.7", port: 443' in suggestion(reached).text
    assert 'host: "203.0.113.7", port: 443' in suggest_line(reached)


def test_nothing_done_gives_a_policy_that_allows_nothing() -> None:
    made = suggestion()
    assert made.rules == 1
    assert not allows(compiled(), read("/ws/a"))


NAME = st.text(min_size=1, max_size=8).filter(
    lambda name: "/" not in name and "\0" not in name and name not in (".", "..")
)
PATH = st.lists(NAME, min_size=1, max_size=4).map("/".join)
BASE = st.sampled_from(["/ws/", "/home/u/", "/opt/", "/tmp/", "/"])


def _touched(base: str, path: str, action: str) -> Attempt:
    return Attempt(action, FileTarget(base + path))


def _started(program: str, words: list[str]) -> Attempt:
    return ran(program, *words)


FILES = st.builds(
    _touched,
    BASE,
    PATH,
    st.sampled_from(["file.read", "file.write.create", "file.write.delete", "file.write.modify"]),
)
RUNS = st.builds(
    _started,
    st.sampled_from(["git", "python3", "/ws/tool", "/opt/a b"]),
    st.lists(st.text(max_size=6).filter(lambda word: "\0" not in word), max_size=4),
)


@given(st.lists(FILES | RUNS, max_size=12))
def test_whatever_was_done_is_allowed_or_set_aside(attempts: list[Attempt]) -> None:
    made = suggestion(*dict.fromkeys(attempts))
    policy = load(made.text, name="s.yaml")
    ready = compile_policy(policy, context(policy))
    refused = [attempt for attempt in dict.fromkeys(attempts) if not allows(ready, attempt)]
    assert len(refused) <= len(made.set_aside), made.text


@pytest.mark.parametrize(
    "target",
    [
        FileTarget("/a\\x41\n\udcff"),
        FileTarget("/a", "/b"),
        ProgramTarget("/bin/x", ("x", "\x1b"), ("/bin/sh",)),
        AddressTarget("tcp", "::1", 1),
        SocketTarget("/run/x"),
        OtherTarget("words"),
    ],
)
def test_a_recorded_target_is_read_back(target: Target) -> None:
    assert target_of(target_fields(target)) == target


@given(st.text())
def test_printable_text_is_read_back(text: str) -> None:
    assert plain(printable(text)) == text
