"""The network of a session: its own loopback, hosts by rule and by name, and nothing else.

The world outside is a network namespace with a nameserver and web servers of its own; what
must not be reached is there too, and says whether it was.
"""

from __future__ import annotations

import json
import subprocess

from tests.system.conftest import Person
from tests.system.outside import ALLOW_GOOD, TRY, Outside, outside, run
from tests.system.outside_world import EVIL, GOOD, GOOD6, LAN, META, NAMESERVER

__all__ = ["outside"]


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
        sock.settimeout(60)
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


def test_a_name_that_a_person_is_asked_about_holds_up_no_other(
    person: Person, outside: Outside
) -> None:
    ask = "action: network, host: asked.test, effect: ask"
    agent = (
        TRY
        + f"""
asked = bytes((0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0)) + b"\\x05asked\\x04test\\0\\0\\1\\0\\1"
# the resolver takes up what is asked of it in its order
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(asked, ("{NAMESERVER}", 53))
print(fetch("good.test", 8443), end="")
"""
    )
    done = run(person, (ask, ALLOW_GOOD), agent)
    assert "waiting for approval" in done.stderr
    assert done.stdout == f"hello from tcp {GOOD}:8443\n"


#: Addresses as programs get them wrong, and as only old ones write them.
ODD_ADDRESSES = (
    TRY
    + """
import ctypes, struct
libc = ctypes.CDLL(None, use_errno=True)
def tell(name, sock, raw):
    failed = getattr(libc, name)(sock.fileno(), raw, len(raw)) < 0
    return failed and errno.errorcode[ctypes.get_errno()]
UNIX, path = struct.pack("=H", 1), b"p" * 109
print(json.dumps([
    *(tell(name, socket.socket(socket.AF_UNIX), UNIX + text)
      for name in ("connect", "bind") for text in (path, b"\\0" + path, path[:108])),
    *(tell("connect", socket.socket(socket.AF_UNIX), raw) for raw in (b"", UNIX[:1], UNIX)),
    *(tell("bind", socket.socket(family), raw) for family, raw in (
        (socket.AF_INET, bytes(16)), (socket.AF_INET, bytes(15)), (socket.AF_INET6, bytes(28)),
        (socket.AF_INET, bytes(4) + socket.inet_aton("127.0.0.1") + bytes(8)))),
    libc.sendto(socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)[0].fileno(), b"x", 1, 0,
                UNIX + b"/none", 7),
    tell("connect", socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), UNIX + b"/none"),
]))
"""
)


def test_an_odd_address_is_answered_as_outside(person: Person) -> None:
    done = run(person, ("action: network, path: '**', effect: allow",), ODD_ADDRESSES)
    assert done.returncode == 0, done.stderr
    (person.workspace / ("p" * 108)).unlink()
    bare = subprocess.run(
        ["/usr/bin/python3", "agent.py"],
        cwd=person.workspace, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == json.loads(bare.stdout)


#: The second message's only vector lies where the first one's length is written.
ONE_BY_ONE = """
import ctypes, socket, struct
data = ctypes.create_string_buffer(b"abcdefgh")
at = ctypes.addressof(data)
first = struct.pack("=QQ", at, 5)
vector = ctypes.create_string_buffer(first, 16)
messages = ctypes.create_string_buffer(128)
base = ctypes.addressof(messages)
messages[0:128] = (
    struct.pack("=QQQQQQQQ", 0, 0, ctypes.addressof(vector), 1, 0, 0, at, 0)
    + struct.pack("=QQQQQQQQ", 0, 0, base + 48, 1, 0, 0, 0, 0)
)
here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
there.settimeout(60)
print(ctypes.CDLL(None).sendmmsg(here.fileno(), messages, 2, 0), there.recv(9), there.recv(9))
"""


def test_the_messages_of_one_call_are_read_each_in_its_turn(person: Person) -> None:
    done = run(person, (), ONE_BY_ONE)
    assert done.stdout == "2 b'abcde' b'abcde'\n", done.stderr
