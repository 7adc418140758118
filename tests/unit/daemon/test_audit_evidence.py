"""``safeclaw audit evidence`` on a real chain, with a real Git history."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest

from safeclaw.daemon.evidence import derived, history
from safeclaw.daemon.evidence import package as package_module
from safeclaw.daemon.evidence.package import Contents, File, check, check_directory, unpack
from safeclaw.daemon.journal import Entry, Journal, PolicyRef, RecordType, files, keys
from safeclaw.daemon.journal.report import Status
from safeclaw.errors import JournalError, UsageError
from tests.standalone import PATH, standalone
from tests.unit.daemon.auditing import run
from tests.unit.daemon.fortnight import ALL, POLICY, git, repository, state

__all__ = ["repository", "state"]


def test_a_package_names_rules_never_used_and_policies_in_no_commit(
    repository: Path, tmp_path: Path
) -> None:
    state = tmp_path / "unused"
    policy = PolicyRef(name="p", sha256=sha256(POLICY).hexdigest(), version="1.0")
    with Journal.open(state / "journal") as journal:
        journal.append(Entry(type=RecordType.POLICY_LOAD, policy=policy, detail={"rules": 1}))
        journal.append(
            Entry(
                type=RecordType.DECISION,
                decision="deny",
                rule="default-deny",
                policy=policy,
            )
        )
    output = tmp_path / "evidence.zip"
    uncommitted = tmp_path / "uncommitted"
    (uncommitted / ".safeclaw").mkdir(parents=True)
    (uncommitted / ".safeclaw" / "policy.yaml").write_bytes(POLICY)
    for place, said in (
        (repository, "never used: p:1, allow file.read"),
        (uncommitted, "in .safeclaw/policy.yaml, and in no commit"),
        (tmp_path, "neither in a commit nor in a file"),
    ):
        result = run("evidence", "--state", str(state), *ALL, "--output", str(output),
                     "--repository", str(place))  # fmt: skip
        assert result.exit_code == 0, result.output
        with zipfile.ZipFile(output) as archive:
            drift = json.loads(archive.read("summary.json"))["drift"]
            assert any(said in line for line in drift), drift
            assert said in archive.read("summary.html").decode()


@pytest.fixture
def package(state: Path, repository: Path, tmp_path: Path) -> Path:
    target = tmp_path / "evidence.zip"
    result = run(
        "evidence", "--state", str(state), *ALL, "--output", str(target),
        "--repository", str(repository),
    )  # fmt: skip
    assert result.exit_code == 0, (result.output, result.exception)
    return target


def test_a_package_maps_policies_to_commits_and_counts(
    package: Path, repository: Path, state: Path
) -> None:
    with zipfile.ZipFile(package) as archive:
        policies = json.loads(archive.read("policies.json"))
        population = json.loads(archive.read("population.json"))
        verdict = json.loads(archive.read("verification.json"))
        assert archive.read(f"policies/{sha256(POLICY).hexdigest()}.yaml") == POLICY
        assert b"policy: change 1" in archive.read("policies-git-log.txt")
        lines = archive.read("export.jsonl").split(b"\n")[:-1]
        oscal = json.loads(archive.read("oscal.json"))
    log = subprocess.run(
        ["git", "-C", str(repository), "log", "--format=%H"], check=True, capture_output=True
    )
    newest, oldest = log.stdout.decode().split()
    assert [item["commit"] for item in policies] == [oldest, newest]
    assert population["records"] == len(lines)
    assert population["control_totals"]["evaluations"] == 280
    seqs = [json.loads(line)["seq"] for line in lines]
    assert population["control_totals"]["sum_of_sequence_numbers"] == sum(seqs)
    assert verdict["verdict"] == "internally consistent"
    controls = oscal["assessment-results"]["results"][0]["reviewed-controls"]
    assert len(controls["control-selections"][0]["include-controls"]) == 8


def test_a_package_checks_out_elsewhere(package: Path, state: Path, tmp_path: Path) -> None:
    public_key = state / "keys" / files.PUBLIC_KEY
    result = run("evidence", "verify", str(package), "--public-key", str(public_key))
    assert result.exit_code == 0, result.output
    assert ": intact" in result.stdout
    # By itself it vouches only for itself.
    alone = run("evidence", "verify", str(package))
    assert ": internally consistent" in alone.stdout
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copyfile(public_key, empty / "keys")
    shutil.copyfile(PATH, empty / "verify.py")
    with zipfile.ZipFile(package) as archive:
        archive.extractall(empty / "package")
    result_of = subprocess.run(
        [sys.executable, "-I", "verify.py", "package", "--public-key", "keys"],
        cwd=empty, capture_output=True, text=True, check=False,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )  # fmt: skip
    assert (result_of.returncode, result_of.stdout.splitlines()[0]) == (0, "INTACT")


def test_any_changed_byte_of_any_file_of_a_package_is_found(
    package: Path, state: Path, tmp_path: Path
) -> None:
    place = tmp_path / "unpacked"
    place.mkdir()
    unpack(package, place)
    given = keys.read_public_keys(state / "keys" / files.PUBLIC_KEY)
    assert check_directory(place, given).status is Status.INTACT
    paths = sorted(path for path in place.rglob("*") if path.is_file())
    assert len(paths) > 20
    for path in paths:
        content = path.read_bytes()
        for at in {0, len(content) // 2, len(content) - 1} if content else set[int]():
            damaged = bytearray(content)
            damaged[at] ^= 1
            path.write_bytes(damaged)
            assert check_directory(place, given).exit_status == 1, (path, at)
            assert standalone(place) == 1, (path, at)
        path.unlink()
        assert check_directory(place, given).exit_status == 1, path
        path.write_bytes(content)
    (place / "more").write_text("")
    assert check_directory(place, given).exit_status == 1
    assert standalone(place) == 1


def test_a_package_signed_by_someone_else_is_found(
    package: Path, state: Path, tmp_path: Path
) -> None:
    """All of it is made anew, and fits itself."""
    other = tmp_path / "other"
    with Journal.open(other / "journal") as journal:
        journal.append(Entry(type=RecordType.KILL))
    forged = tmp_path / "forged.zip"
    result = run("evidence", "--state", str(other), *ALL, "--output", str(forged),
                 "--repository", str(tmp_path))  # fmt: skip
    assert result.exit_code == 0, result.output
    given = keys.read_public_keys(state / "keys" / files.PUBLIC_KEY)
    assert check(forged, None).status is Status.INTACT
    assert check(forged, given).status is Status.TAMPERED


@pytest.mark.parametrize("name", ["../out", "/etc/passwd", "a/../../out", "a\\b", "\x1b[2J"])
def test_a_package_lands_nowhere_else(tmp_path: Path, name: str) -> None:
    path = tmp_path / "bad.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, "x")
    place = tmp_path / "a" / "b"
    place.mkdir(parents=True)
    with pytest.raises(JournalError, match="a name that no package has"):
        unpack(path, place)
    assert not list(place.iterdir())
    assert run("evidence", "verify", str(path)).exit_code == 3


def test_a_damaged_zip_is_unreadable_and_says_so(package: Path, tmp_path: Path) -> None:
    content = package.read_bytes()
    for number, damaged in enumerate((b"", b"PK", content[:-30], content[: len(content) // 2])):
        path = tmp_path / f"{number}.zip"
        path.write_bytes(damaged)
        result = run("evidence", "verify", str(path))
        assert result.exit_code == 3, result.output
        assert "Traceback" not in result.output
    broken = bytearray(content)
    broken[len(content) // 3] ^= 0xFF
    path = tmp_path / "broken.zip"
    path.write_bytes(broken)
    assert run("evidence", "verify", str(path)).exit_code in (1, 3)


def test_usage_errors(state: Path, tmp_path: Path) -> None:
    result = run("evidence", "--state", str(state), "--since", "soon", "--output", "x")
    assert isinstance(result.exception, UsageError)
    result = run("evidence", "--state", str(tmp_path / "no"), "--output", str(tmp_path / "x"))
    assert isinstance(result.exception, JournalError)
    assert not (tmp_path / "x").exists()
    result = run("evidence", "verify", str(tmp_path / "x"), "--public-key", str(tmp_path / "none"))
    assert isinstance(result.exception, UsageError)
    assert result.exception.hint is None or "safeclaw" in result.exception.hint


def test_keys_are_shown_exported_and_rolled(state: Path, tmp_path: Path) -> None:
    shown = run("keys", "show", "--state", str(state), "--json").stdout.splitlines()
    assert len(shown) == 2
    target = tmp_path / "keys.out"
    assert run("keys", "export", "--state", str(state), "--output", str(target)).exit_code == 0
    with Journal.open(state / "journal") as journal:
        journal.append(Entry(type=RecordType.KILL))
        busy = run("keys", "roll", "--state", str(state))
        assert isinstance(busy.exception, JournalError)
    result = run("keys", "roll", "--state", str(state))
    assert result.exit_code == 0, (result.output, result.exception)
    assert len(run("keys", "show", "--state", str(state)).stdout.splitlines()) == 3
    verified = run("verify", "--state", str(state), "--public-key", str(target), "--json")
    assert json.loads(verified.stdout)["verdict"] == "intact"
    assert json.loads(verified.stdout)["epochs"] == 3
    refused = run("keys", "roll", "--state", str(tmp_path / "none"))
    assert isinstance(refused.exception, JournalError)
    assert not (tmp_path / "none").exists()


def test_pruning_by_hand_needs_an_override_under_90_days(state: Path) -> None:
    before = files.segments(state / "journal")
    refused = run("prune", "--state", str(state), "--retention", "30")
    assert isinstance(refused.exception, JournalError)
    assert "--override" in (refused.exception.hint or "")
    assert files.segments(state / "journal") == before
    result = run("prune", "--state", str(state), "--retention", "0", "--override")
    assert result.exit_code == 0, (result.output, result.exception)
    assert len(files.segments(state / "journal")) < len(before)
    assert run("verify", "--state", str(state)).exit_code == 0


def test_a_package_of_a_chain_that_is_being_written_is_whole(
    tmp_path: Path, repository: Path
) -> None:
    state = tmp_path / "live"
    with Journal.open(state / "journal") as journal:
        for _ in range(50):
            journal.append(Entry(type=RecordType.KILL))
        journal.checkpoint()
        journal.commit()
        with (state / "journal" / files.segment_name(1)).open("rb+") as stream:
            stream.seek(0, os.SEEK_END)
            end = stream.tell()
            stream.write(b'{"half')  # as a reader may see a line that is being written
            stream.flush()
            target = tmp_path / "live.zip"
            result = run("evidence", "--state", str(state), *ALL, "--output", str(target),
                         "--repository", str(repository))  # fmt: skip
            stream.truncate(end)
        assert result.exit_code == 0, result.output
    given = keys.read_public_keys(state / "keys" / files.PUBLIC_KEY)
    report = check(target, given)
    assert (report.status, report.records) == (Status.INTACT, 52)


def test_every_verb_is_listed_and_has_help() -> None:
    listed = run("--help").stdout
    for verb in ("show", "tail", "verify", "export", "summary", "sample", "evidence", "keys",
                 "prune"):  # fmt: skip
        assert f"  {verb} " in listed
        result = run(verb, "--help")
        assert result.exit_code == 0, verb
        assert "Usage:" in result.stdout


def test_a_repositorys_configuration_runs_no_program(repository: Path, tmp_path: Path) -> None:
    """An agent can write its workspace's .git/config; evidence is made outside the walls."""
    marker, program = tmp_path / "ran", tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {marker}\n")
    program.chmod(0o755)

    def plumb(*arguments: str, text: str | None = None) -> str:
        command = ["git", "-C", str(repository), *arguments]
        done = subprocess.run(command, input=text, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    # A commit that claims a signature has git ask the configured program about it.
    head, _, message = plumb("cat-file", "commit", "HEAD").partition("\n\n")
    signature = "gpgsig -----BEGIN PGP SIGNATURE-----\n \n x\n -----END PGP SIGNATURE-----"
    text = f"{head}\n{signature}\n\n{message}\n"
    plumb("update-ref", "HEAD", plumb("hash-object", "-t", "commit", "-w", "--stdin", text=text))
    settings = {"log.showSignature": "true", "gpg.program": str(program),
                "core.fsmonitor": str(program), "diff.external": str(program),
                "diff.mine.textconv": str(program)}  # fmt: skip
    for name, value in settings.items():
        plumb("config", name, value)
    (repository / ".gitattributes").write_text("*.yaml diff=mine\n")
    plumb("log", "--", ".safeclaw")
    assert marker.exists()  # the control: plain git runs it
    marker.unlink()
    digest = sha256(POLICY).hexdigest()
    kept = tmp_path / "policies"
    kept.mkdir()
    (kept / f"{digest}.yaml").write_bytes(POLICY + b"# changed\n")
    assert history.origins([digest], None, kept)[0][0].kind == "unknown"
    (kept / f"{digest}.yaml").write_bytes(POLICY)
    assert history.origins([digest], None, kept)[0][0].kind == "kept"
    found, content = history.origins([digest], repository, kept)
    assert found[0].kind == "git"
    assert list(content.values()) == [POLICY]
    assert "policy: change 0" in history.log_text(repository)
    assert not marker.exists()


def test_history_is_read_whoever_commits_and_whoever_owns_it(tmp_path: Path) -> None:
    place = tmp_path / "work"
    (place / ".safeclaw").mkdir(parents=True)
    git(place, "init", "-q")
    (place / ".safeclaw" / "policy.yaml").write_bytes(POLICY)
    git(place, "add", ".safeclaw")
    # what separates commits in the text that is parsed
    git(place, "-c", "user.name=A\x01B", "commit", "-qm", "one \x01two")
    if os.geteuid() == 0:
        for path in (place, *place.rglob("*")):
            os.chown(path, 65534, 65534)
    digest = sha256(POLICY).hexdigest()
    (origin,), _ = history.origins([digest], place)
    assert (origin.kind, origin.author) == ("git", "A\x01B <a@example.com>")
    assert origin.subject == "one \x01two"
    assert "policy.yaml" in history.log_text(place)


def test_a_package_takes_no_devices_place(state: Path, tmp_path: Path) -> None:
    device = tmp_path / "null"
    os.mkfifo(device)
    result = run("evidence", "--state", str(state), "--output", str(device))
    assert isinstance(result.exception, JournalError)
    assert device.is_fifo()


def test_what_whoever_made_a_package_chose_ends_in_one_plain_line(
    package: Path, tmp_path: Path
) -> None:
    place = tmp_path / "unpacked"
    place.mkdir()
    unpack(package, place)

    def said() -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, str(PATH), str(place)], check=False, capture_output=True, text=True
        )
        assert done.stderr == ""
        return done.returncode, done.stdout

    assert "evidence package: every file is the one" in said()[1]
    strange = place / "a\x1b[31m\u202eb"
    strange.touch()
    status, text = said()
    assert (status, text) == (1, "TAMPERED: a\\x1b[31m\\u202eb: missing, or not in the manifest\n")
    strange.unlink()
    keyring = (place / "journal" / "keyring").read_bytes()
    (place / "journal" / "keyring").write_text("[" * 100_000)
    assert said()[0] == 1
    (place / "journal" / "keyring").write_bytes(keyring)
    for content in ("[" * 100_000, '{"files": ' + "[" * 100_000, '{"a": ' + "[" * 100_000):
        (place / "manifest.json").write_text(content)
        assert said() == (1, "TAMPERED: manifest.json: not a manifest\n")
        report = check_directory(place, None)
        assert report.status is Status.TAMPERED
        assert report.finding is not None
        assert report.finding.what == "not a manifest"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_package_that_is_broken_off_leaves_no_copy_of_the_chain(
    state: Path, tmp_path: Path, number: signal.Signals
) -> None:
    place = tmp_path / "temporary"
    place.mkdir()
    public = state / "keys" / files.PUBLIC_KEY
    public.unlink()
    os.mkfifo(public)  # what comes after the copy waits for its writer, for ever
    command = [sys.executable, "-m", "safeclaw.daemon.cli", "audit", "evidence", *ALL]
    with subprocess.Popen(
        [*command, "--state", str(state), "--output", str(tmp_path / "e.zip")],
        env={**os.environ, "TMPDIR": str(place)},
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stderr is not None
        assert b"copying" in process.stderr.readline()
        process.send_signal(number)
        assert process.wait(timeout=60) == 128 + number
    assert not list(place.iterdir())


def _signed_again(place: Path, state: Path) -> None:
    """Sign what is there now, as whoever holds the chain's key can."""
    listed = msgspec.json.decode((place / package_module.MANIFEST).read_bytes(), type=Contents)
    files_now = [
        File(file.path, sha256((place / file.path).read_bytes()).hexdigest(),
             (place / file.path).stat().st_size)
        for file in listed.files
    ]  # fmt: skip
    content = msgspec.json.encode(msgspec.structs.replace(listed, files=files_now))
    (place / package_module.MANIFEST).write_bytes(content)
    signer = files.load_key(state / "keys")
    (place / package_module.NOTE).write_text(
        signer.sign(package_module.statement(listed.chain, content)), "utf-8"
    )


def test_false_figures_beside_a_true_chain_are_found_whoever_signed_them(
    package: Path, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "unpacked"
    place.mkdir()
    unpack(package, place)
    given = keys.read_public_keys(state / "keys" / files.PUBLIC_KEY)
    _signed_again(place, state)
    assert check_directory(place, given).status is Status.INTACT
    denied = json.loads((place / "summary.json").read_bytes())["denied"]

    def no_problem(*_: object) -> None:
        return None

    changes: list[tuple[str, bytes, bytes, str]] = [
        ("summary.json", b'"denied": %d' % denied, b'"denied": 0',
         f"denied is 0, by the chain {denied}"),
        ("population.json", b'"evaluations": 280', b'"evaluations": 281',
         "control_totals.evaluations is 281, by the chain 280"),
        ("population.json", b'"query": {', b'"query": {"decision": "allow", ', "line "),
        ("export.jsonl", b'"deny"', b'"allow"', "is not what the chain says"),
        ("export.manifest.json", b'"left_out": 0', b'"left_out": 1', "left_out is 1"),
        ("verification.json", b"internally consistent", b"intact", "verdict is"),
        ("policies.json", b'"kind": "git"', b'"kind": "unknown"', "against its text"),
        ("summary.html", b"</", b"<!-- --></", "does not show the chain's figures"),
    ]  # fmt: skip
    for name, old, new, said in changes:
        content = (place / name).read_bytes()
        assert old in content, name
        (place / name).write_bytes(content.replace(old, new, 1))
        _signed_again(place, state)
        report = check_directory(place, given)
        assert report.exit_status == 1, name
        assert said in str(report.finding), report.finding
        assert name in str(report.finding) or said == "line "
        with monkeypatch.context() as patched:  # without that check it is taken for true
            patched.setattr(derived, "problem", no_problem)
            assert check_directory(place, given).status is Status.INTACT
        (place / name).write_bytes(content)
    sheet = (place / "population.json").read_bytes()
    page = (place / "summary.html").read_bytes()
    (place / "population.json").write_bytes(sheet.replace(b': "safeclaw ', b': "safeclaw 0.'))
    (place / "summary.html").write_bytes(page + b"another version's words")
    _signed_again(place, state)
    report = check_directory(place, given)
    assert report.status is Status.INTACT, report.finding
    assert any("summary.html" in said for said in report.open_questions())
    (place / "population.json").write_bytes(sheet)
    (place / "summary.html").write_bytes(page)
    lines = (place / "export.jsonl").read_bytes().splitlines(keepends=True)
    for wrong in (lines[:-1], [*lines, lines[-1]]):
        (place / "export.jsonl").write_bytes(b"".join(wrong))
        _signed_again(place, state)
        finding = check_directory(place, given).finding
        assert finding is not None
        assert finding.segment == "export.jsonl"
    (place / "export.jsonl").write_bytes(b"".join(lines))
    for content in (b"[" * 100_000, b"[]", b"{", b'{"query": 1}', b'{"query": {"x": "y"}}'):
        (place / "population.json").write_bytes(content)
        _signed_again(place, state)
        finding = check_directory(place, given).finding
        assert finding is not None
        assert finding.segment == "population.json"


def test_a_package_that_unpacks_to_more_than_any_is_refused_before_it_does(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(package) as archive:
        total = sum(member.file_size for member in archive.infolist())
    place = tmp_path / "unpacked"
    place.mkdir()
    monkeypatch.setattr(package_module, "_TOTAL_MAX", total - 1)
    with pytest.raises(JournalError, match=f"unpacks to {total} bytes, more than {total - 1}"):
        unpack(package, place)
    assert not list(place.iterdir())
    monkeypatch.setattr(package_module, "_TOTAL_MAX", total)
    unpack(package, place)
