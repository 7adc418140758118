"""Honest programs on the network of a session: they find what Linux gives them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

from tests.system.conftest import Person
from tests.system.outside import ALLOW_GOOD, TRY, Outside, outside, policy, run
from tests.system.outside_world import EVIL, GOOD

__all__ = ["outside"]


MIXED = (
    TRY
    + """
import asyncio
async def main():
    async def serve(reader, writer):
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    own = server.sockets[0].getsockname()
    reader, writer = await asyncio.open_connection(*own)
    writer.writelines([b"own ", b"loopback\\n"])
    said = [(await reader.readline()).decode()]
    reader, writer = await asyncio.open_connection("api.good.test", 80)
    writer.write(b"GET /hello.txt HTTP/1.0\\r\\n\\r\\n")
    said.append((await reader.read()).decode().splitlines()[-1])
    said.append(writer.get_extra_info("peername")[0])
    loop = asyncio.get_running_loop()
    got = loop.create_future()
    class Datagrams(asyncio.DatagramProtocol):
        def datagram_received(self, data, address):
            got.set_result((data.decode(), address[0]))
    # watched by epoll before its first use outside
    transport, _ = await loop.create_datagram_endpoint(
        Datagrams, local_addr=("0.0.0.0", 0))
    await asyncio.sleep(0)
    transport.sendto(b"statistics", ("203.0.113.10", 9999))
    said.append(await asyncio.wait_for(got, 20))
    print(json.dumps(said))
asyncio.run(main())
"""
)


def test_asyncio_serves_itself_and_talks_to_the_world_at_once(
    person: Person, outside: Outside
) -> None:
    done = run(person, (ALLOW_GOOD,), MIXED)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        "own loopback\n", "hello from the world", GOOD, ["statistics", GOOD],
    ]  # fmt: skip
    assert outside.seen()["web"] == ["/hello.txt"]


NODE = """
const http = require('http'), dgram = require('dgram');
const server = http.createServer((_, out) => out.end('own')).listen(0, '127.0.0.1', () => {
  const get = (url, then) => http.get(url, (r) => {
    let text = ''; r.on('data', (d) => text += d); r.on('end', () => then(text.trim()));
  }).on('error', (e) => then(e.code));
  get(`http://127.0.0.1:${server.address().port}/`, (own) =>
    get('http://api.good.test/hello.txt', (world) =>
      get('http://evil.test/', (evil) => {
        const udp = dgram.createSocket('udp4');
        udp.on('message', (m) => {
          console.log(JSON.stringify([own, world, evil, m.toString()]));
          udp.close(); server.close();
        });
        udp.send('metrics', 9999, 'good.test');
      })));
});
"""


def test_node_serves_itself_and_talks_to_the_world(person: Person, outside: Outside) -> None:
    node = shutil.which("node")
    assert node is not None, "nodejs is not installed"
    chosen = person.write("policy.yaml", policy(ALLOW_GOOD))
    person.write("agent.js", NODE)
    done = person.safeclaw("run", "--policy", str(chosen), "--", node, "agent.js")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["own", "hello from the world", "ENOTFOUND", "metrics"]
    assert f"tcp {EVIL}:80" not in outside.seen()


def test_curl_git_and_pip_reach_the_hosts_a_policy_names(person: Person, outside: Outside) -> None:
    repository = outside.web / "project.git"
    place = outside.web.parent / "project"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "safe.directory=*"]
    subprocess.run([*git, "init", "-q", str(place)], check=True)
    (place / "file").write_text("content\n")
    subprocess.run([*git, "-C", str(place), "add", "file"], check=True)
    subprocess.run([*git, "-C", str(place), "commit", "-qm", "one"], check=True)
    subprocess.run([*git, "clone", "-q", "--bare", str(place), str(repository)], check=True)
    subprocess.run([*git, "-C", str(repository), "update-server-info"], check=True)
    index = outside.web / "simple" / "demo"
    index.mkdir(parents=True)
    (index / "index.html").write_text('<a href="demo-1.0.tar.gz">demo-1.0.tar.gz</a>')
    (index / "demo-1.0.tar.gz").write_bytes(b"not opened: only downloaded")
    chosen = person.write("policy.yaml", policy(ALLOW_GOOD))
    script = (
        "curl -sS http://api.good.test/hello.txt && "
        "! curl -sS http://evil.test/ && "
        "HOME=$PWD git clone -q http://good.test/project.git && cat project/file && "
        'python3 -c "import urllib.request as u; '
        "print(u.urlopen('http://good.test/simple/demo/').status)\""
    )
    done = person.safeclaw("run", "--policy", str(chosen), "--", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "hello from the world\ncontent\n200\n"
    assert f"tcp {EVIL}:80" not in outside.seen()


SERVE = """
server = socket.create_server(("0.0.0.0", 8080))
print("ready", flush=True)
if os.path.exists("go"):
    open("go").read()
else:
    server.accept()[0].sendall(b"served")
"""


def test_a_server_is_seen_outside_only_where_a_rule_says_so(
    person: Person, outside: Outside
) -> None:
    rule = "action: network.bind, host: 0.0.0.0, port: 8080, effect: allow"
    chosen = person.write("policy.yaml", policy(rule))
    person.write("agent.py", "import os, socket\n" + SERVE)
    code = f"import socket; print(socket.create_connection(('{GOOD}', 8080)).recv(9).decode())"
    fetch = [*outside.enter, "/usr/bin/python3", "-c", code]
    words = ("run", "--policy", str(chosen), "--", "/usr/bin/python3", "agent.py")
    with person.popen(*words) as agent:
        assert agent.stdout is not None
        assert agent.stdout.readline() == "ready\n"
        got = subprocess.run(fetch, capture_output=True, text=True, check=False)
        agent.communicate(timeout=60)
    assert got.stdout.strip() == "served", got.stderr

    person.write("policy.yaml", policy())
    os.mkfifo(person.workspace / "go")
    person.own()
    with person.popen(*words) as agent:
        assert agent.stdout is not None
        assert agent.stdout.readline() == "ready\n"
        got = subprocess.run(fetch, capture_output=True, text=True, check=False)
        (person.workspace / "go").write_text("")
        agent.communicate(timeout=60)
    assert "ConnectionRefusedError" in got.stderr


PIPE = """
import signal
one, two = socket.socketpair()
two.close()
hit = []
signal.signal(signal.SIGPIPE, lambda *_: hit.append(1))
said = []
for flags in (0, socket.MSG_NOSIGNAL):
    try:
        one.sendmsg([b"x"], [], flags)
    except BrokenPipeError:
        said.append("broken")
os.getpid()
said.append(len(hit))
full, reader = socket.socketpair()
full.setblocking(False)
sent = full.sendmsg([b"y" * 50_000_000])
said.append(0 < sent < 50_000_000)
try:
    full.sendmsg([b"z"])
except BlockingIOError:
    said.append("would block")
signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError()))
full.setblocking(True)
try:
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    full.sendmsg([b"z" * 1000])
except TimeoutError:
    said.append("interrupted")
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
peer, _ = server.accept()
client.setsockopt(socket.SOL_SOCKET, 60, 1)
said.append(client.sendmsg([b"a" * 70000], [], 0x4000000))
got = b""
while len(got) < 70000:
    got += peer.recv(70000)
said.append(got == b"a" * 70000)
left, right = socket.socketpair()
r, w = os.pipe()
socket.send_fds(left, [b"fd"], [w])
_, fds, _, _ = socket.recv_fds(right, 10, 1)
os.write(fds[0], b"passed")
said.append(os.read(r, 10).decode())
print(json.dumps(said))
"""


def test_sends_block_fail_and_signal_as_in_linux(person: Person) -> None:
    done = run(person, (), PIPE)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        "broken", "broken", 1, True, "would block", "interrupted", 70000, True, "passed",
    ]  # fmt: skip
