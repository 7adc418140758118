"""What agents really run, in the walls, under the default policy: it works, and is not refused.

Each test gives the agent a script and looks at what is on disk afterwards, from outside.
"""

from __future__ import annotations

import shutil
import sqlite3
import zipfile
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest

from tests.system.conftest import ROOT, Person, fields, needed_to_run

_GIT = ("git", "-c", "user.name=Agent", "-c", "user.email=agent@example.com")


def run(person: Person, script: str, *, policy: str = "extends: default\n") -> str:
    """Run a shell script as the agent; return what it said.  Nothing may be refused."""
    person.write("agent.sh", "set -eu\n" + script)
    person.write("policy.yaml", f'version: "1.0"\n{policy}')
    ended = person.safeclaw("run", "--policy", "policy.yaml", "--", "sh", "agent.sh")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert refusals(person) == [], "\n".join(refusals(person))
    return ended.stdout


def refusals(person: Person) -> list[str]:
    """Return what was refused, though it is there, as action and path."""
    denied = person.records("--decision", "deny")
    return [
        f"{record['action']} {fields(record['target'])}"
        for record in denied
        if record["enforced_by"] != "absent"
    ]


def outside(person: Person, *command: str, where: str = "") -> str:
    """Run a command outside the walls as the same person; return what it printed."""
    ended = person.finish(person.start(list(command), person.workspace / where))
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


# --- git --------------------------------------------------------------------------------


def test_git_clones_commits_and_rebases(person: Person) -> None:
    person.write("origin/README", "first\n")
    for command in (
        ("git", "init", "-q", "-b", "main"),
        ("git", "add", "."),
        (*_GIT, "commit", "-q", "-m", "first"),
    ):
        outside(person, *command, where="origin")
    run(
        person,
        """\
        git clone -q origin clone
        cd clone
        export GIT_AUTHOR_NAME=Agent GIT_AUTHOR_EMAIL=a@example.com
        export GIT_COMMITTER_NAME=Agent GIT_COMMITTER_EMAIL=a@example.com
        git checkout -q -b topic
        for n in 1 2 3; do echo $n > topic$n; git add .; git commit -q -m "topic $n"; done
        git checkout -q main
        echo second >> README
        git commit -q -a -m second
        git checkout -q topic
        git rebase -q main
        git gc -q
        git push -q origin topic
        git status --porcelain
        """,
    )
    log = outside(person, "git", "log", "--format=%s", "topic", where="origin")
    assert log.split("\n")[:-1] == ["topic 3", "topic 2", "topic 1", "second", "first"]
    outside(person, "git", "fsck", "--strict", where="clone")
    assert (person.workspace / "clone/topic3").read_text() == "3\n"


# --- Python -----------------------------------------------------------------------------


def _wheel(package: Distribution, folder: Path) -> None:
    """Make an installed distribution into the wheel that it was."""
    about = (package.read_text("WHEEL") or "").splitlines()
    tags = [line.partition(": ")[2] for line in about if line.startswith("Tag: ")]
    tag = next(tag for tag in tags if not tag.startswith("py2-"))
    name = package.metadata["Name"].replace("-", "_")
    with zipfile.ZipFile(folder / f"{name}-{package.version}-{tag}.whl", "w") as out:
        for file in package.files or ():
            source = Path(str(file.locate()))
            if ".." not in file.parts and "__pycache__" not in file.parts and source.is_file():
                out.write(source, str(file))


@pytest.mark.timeout(400)
def test_pip_installs_wheels_and_xdist_runs_a_real_project(person: Person) -> None:
    wheels = person.workspace / "wheels"
    wheels.mkdir()
    found: dict[str, Distribution] = {}
    for name in ("pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "jsonschema"):
        needed_to_run(name, found)
    needed_to_run("safeclaw", found)
    del found["safeclaw"]
    for package in found.values():
        _wheel(package, wheels)
    project = person.workspace / "project"
    for part in (
        *("policies", "sandbox", "daemon", "src", "pyproject.toml"),
        *("tests/conftest.py", "tests/escape/summary.py"),
        *("tests/seed_policies.py", "tests/unit/policies"),
    ):
        source, target = ROOT / part, project / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(source, target, symlinks=True, ignore=ignored)
        else:
            shutil.copy(source, target)
    person.own()
    policy = """\
extends: default
rules:
  - action: [file.read, file.write]
    path: "/tmp/pytest-of-*/**"
    effect: allow
    reason: "What tests call secrets is made up"
"""
    run(
        person,
        """\
        export PIP_CONFIG_FILE=/dev/null PIP_NO_CACHE_DIR=1
        python3 -m venv venv
        venv/bin/pip install -q --no-index --find-links wheels wheels/*.whl
        cd project
        PYTHONPATH=src ../venv/bin/python -m pytest -q -n 2 -p no:cacheprovider \\
            --junit-xml=../result.xml tests/unit/policies
        """,
        policy=policy,
    )
    result = (person.workspace / "result.xml").read_text()
    assert 'errors="0" failures="0"' in result
    assert int(result.partition('tests="')[2].partition('"')[0]) > 100
    listed = outside(person, "venv/bin/pip", "list", "--format=freeze")
    assert f"pytest-xdist=={distribution('pytest-xdist').version}" in listed


# --- node -------------------------------------------------------------------------------


def test_npm_installs_a_local_folder_and_builds(person: Person) -> None:
    person.write("lib/package.json", '{"name": "lib", "version": "1.2.3", "main": "index.js"}')
    person.write("lib/index.js", "exports.shout = (text) => text.toUpperCase();\n")
    person.write(
        "app/package.json",
        """{"name": "app", "version": "1.0.0", "dependencies": {"lib": "file:../lib"},
            "scripts": {"prebuild": "mkdir -p dist", "build": "node build.mjs"}}""",
    )
    person.write("app/in/one.txt", "one")
    person.write("app/in/two.txt", "two")
    person.write(
        "app/build.mjs",
        """\
        import { readdir, readFile, writeFile } from 'node:fs/promises';
        import { Worker } from 'node:worker_threads';
        import { spawnSync } from 'node:child_process';
        import { shout } from 'lib';
        const names = await readdir('in');
        await Promise.all(names.map(async (name) =>
            writeFile('dist/' + name, shout(await readFile('in/' + name, 'utf8')))));
        const code = `require('node:fs').writeFileSync('dist/worker', 'done')`;
        await new Promise((done) => new Worker(code, { eval: true }).on('exit', done));
        const said = spawnSync(process.execPath, ['-p', '6 * 7'], { encoding: 'utf8' });
        await writeFile('dist/child', said.stdout);
        """,
    )
    run(
        person,
        """\
        export npm_config_cache=$PWD/cache npm_config_userconfig=/dev/null
        export npm_config_update_notifier=false
        cd app
        npm install --offline --no-audit --no-fund
        npm run build
        """,
    )
    dist = person.workspace / "app/dist"
    assert {path.name: path.read_text() for path in dist.iterdir()} == {
        "one.txt": "ONE",
        "two.txt": "TWO",
        "worker": "done",
        "child": "42\n",
    }


# --- C ----------------------------------------------------------------------------------


def test_make_builds_a_c_project_with_four_jobs(person: Person) -> None:
    count = 24
    for number in range(count):
        person.write(
            f"src/part{number}.c",
            f'#include <stdio.h>\n#include <math.h>\n#include "parts.h"\n'
            f"int part{number}(void) {{ return (int)pow({number}, 2); }}\n",
        )
    names = [f"part{number}" for number in range(count)]
    person.write("src/parts.h", "".join(f"int {name}(void);\n" for name in names))
    calls = " + ".join(f"{name}()" for name in names)
    person.write(
        "src/main.c",
        f'#include <stdio.h>\n#include "parts.h"\n'
        f'int main(void) {{ printf("%d\\n", {calls}); return 0; }}\n',
    )
    person.write(
        "Makefile",
        """\
OBJECTS = $(patsubst src/%.c,build/%.o,$(wildcard src/*.c))
sum: build/libparts.a build/main.o
\t$(CC) -o $@ build/main.o -Lbuild -lparts -lm
build/libparts.a: $(filter-out build/main.o,$(OBJECTS))
\t$(AR) rcs $@ $^
build/%.o: src/%.c src/parts.h | build
\t$(CC) -O2 -Wall -MMD -c -o $@ $<
build:
\tmkdir -p build
""",
    )
    said = run(person, "make -s -j4 && ./sum && make -q")
    expected = f"{sum(number**2 for number in range(count))}\n"
    assert said == expected
    assert outside(person, "./sum") == expected


# --- databases --------------------------------------------------------------------------


def test_sqlite_writes_ahead_from_several_processes(person: Person) -> None:
    person.write(
        "write.py",
        """\
import sqlite3, sys
base = sqlite3.connect("base.db", timeout=60)
base.execute("PRAGMA journal_mode = WAL")
base.execute("CREATE TABLE IF NOT EXISTS entry (writer INTEGER, number INTEGER)")
for number in range(100):
    with base:
        base.execute("INSERT INTO entry VALUES (?, ?)", (int(sys.argv[1]), number))
if sys.argv[1] == "0":
    print(base.execute("PRAGMA journal_mode").fetchone()[0])
""",
    )
    said = run(person, "python3 write.py 0; for n in 1 2 3; do python3 write.py $n & done; wait")
    assert said == "wal\n"
    with sqlite3.connect(person.workspace / "base.db") as base:
        assert base.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        counts = base.execute("SELECT writer, count(*) FROM entry GROUP BY writer").fetchall()
    base.close()
    assert counts == [(writer, 100) for writer in range(4)]


_POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))


@pytest.mark.parametrize("person", ["ordinary"], indirect=True)
def test_a_postgresql_server_lives_in_the_workspace(person: Person) -> None:
    # As an ordinary user only: PostgreSQL refuses to run as root, inside as outside.
    assert _POSTGRES, "PostgreSQL is missing: see packages_dev in ./dev"
    binaries = _POSTGRES[-1].parent
    script = f"""\
        export PATH={binaries}:$PATH PGDATA=$PWD/data PGHOST=$PWD/run PGDATABASE=postgres
        mkdir run
        export PGGSSENCMODE=disable
        initdb --auth=trust --username=agent --no-instructions >/dev/null
        export PGUSER=agent
        pg_ctl -s -w -l server.log -o "-k $PGHOST -c listen_addresses=127.0.0.1 -p 54329" start
        export PGPORT=54329
        psql -q -c 'CREATE TABLE entry (number integer)'
        psql -q -c 'INSERT INTO entry SELECT generate_series(1, 1000)'
        psql -q -h 127.0.0.1 -c 'UPDATE entry SET number = number + 1'
        pgbench -q -i -s 1 2>/dev/null
        pgbench -n -c 4 -j 2 -t 50 | grep 'actually processed'
        psql -Atc 'SELECT sum(number) FROM entry'
        pg_ctl -s -w stop
        """
    policy = """\
extends: default
rules:
  - {action: network, path: "run/**", effect: allow}
"""
    said = run(person, script, policy=policy)
    assert said.splitlines() == [
        "number of transactions actually processed: 200/200",
        str(sum(range(2, 1002))),
    ]
    data = person.workspace / "data"
    assert not (data / "postmaster.pid").exists()
    state = outside(person, str(binaries / "pg_controldata"), str(data))
    assert "shut down\n" in state
    assert "shut down" in (person.workspace / "server.log").read_text()
