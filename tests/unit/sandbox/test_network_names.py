"""Which name an address has, for how long, and which never."""

from __future__ import annotations

from safeclaw.sandbox.dns import Answer
from safeclaw.sandbox.names import Names, nameservers


class _Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_binding_lasts_its_lifetime_within_bounds() -> None:
    clock = _Clock()
    names = Names(clock)
    names.bind("short.example", Answer(("203.0.113.1",), 0))
    names.bind("long.example", Answer(("203.0.113.1",), 10**6))
    assert names.of("203.0.113.1") == ("long.example", "short.example")
    clock.now += 61
    assert names.of("203.0.113.1") == ("long.example",)
    clock.now += 3600
    assert names.of("203.0.113.1") == ()


def test_an_answer_that_leads_inside_binds_nothing() -> None:
    names = Names()
    inside = (
        "127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "0.0.0.0", "::1", "::", "fe80::1", "fd00::1", "::ffff:127.0.0.1", "::127.0.0.1",
        "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "fd00:ec2::254", "224.0.0.1", "ff02::1",
        "168.63.129.16", "64:ff9b:1::a9fe:a9fe", "2001:0:102:304::5601:5601",
    )  # fmt: skip
    names.bind("rebind.example", Answer((*inside, "2001:db8::1"), 300))
    assert {where: names.of(where) for where in inside} == dict.fromkeys(inside, ())
    assert names.of("2001:db8::1") == ("rebind.example",)


def test_a_hosts_file_binds_for_good_but_never_to_this_host() -> None:
    clock = _Clock()
    names = Names(clock)
    names.bind_hosts("10.1.2.3 Intranet.example alias # comment\n127.0.1.1 me\nbroken\n")
    clock.now += 10**9
    assert names.of("10.1.2.3") == ("alias", "intranet.example")
    assert names.of("127.0.1.1") == ()


def test_a_flood_of_names_stays_bounded_and_keeps_the_newest() -> None:
    clock = _Clock()
    names = Names(clock)
    for number in range(20000):
        clock.now += 0.001
        where = f"203.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        names.bind("wild.example", Answer((where,), 300))
    assert names.of("203.0.0.0") == ()
    assert names.of("203.0.78.31") == ("wild.example",)


def test_nameservers_are_read_as_libc_reads_them() -> None:
    text = "search x\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver ::1\nnameserver no"
    assert nameservers(text) == ("192.0.2.1", "::1")
    assert nameservers("") == ("127.0.0.1",)
