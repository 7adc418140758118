"""What is kept between runs is what would be made, or it is made again."""

from __future__ import annotations

from pathlib import Path

import pytest

from safeclaw.daemon import kept
from safeclaw.errors import PolicyError
from safeclaw.policies import loader, source
from safeclaw.sandbox.filters import build

ALLOW = b'version: "1.0"\nrules:\n  - {action: file.read, path: "src/**", effect: allow}\n'
DENY = b'version: "1.0"\nrules:\n  - {action: "*", effect: deny}\n'


def files(state: Path) -> dict[Path, int]:
    return {path: path.stat().st_ino for path in (state / "kept").iterdir()}


def test_a_policy_is_the_same_from_what_was_kept(tmp_path: Path) -> None:
    wanted = loader.load(ALLOW, name="policy.yaml")
    assert kept.policy(str(tmp_path), "policy.yaml", ALLOW) == wanted
    (before,) = files(tmp_path).items()
    assert kept.policy(str(tmp_path), "policy.yaml", ALLOW) == wanted
    assert files(tmp_path) == dict([before]), "it was made twice"


def test_the_runtime_rules_and_the_filters_are_the_same_from_what_was_kept(tmp_path: Path) -> None:
    for _ in range(2):
        assert kept.runtime(str(tmp_path)) == source.runtime_rules()
        for network in (False, True):
            assert kept.filters(str(tmp_path), network=network) == build(network=network)
    assert len(files(tmp_path)) == 3


def test_another_text_or_another_name_is_another_policy(tmp_path: Path) -> None:
    first = kept.policy(str(tmp_path), "policy.yaml", ALLOW)
    assert kept.policy(str(tmp_path), "policy.yaml", DENY) != first
    assert kept.policy(str(tmp_path), "other.yaml", ALLOW).name == "other"


@pytest.mark.parametrize("place", [0, 31, 32, -1])
def test_a_damaged_file_is_made_again(tmp_path: Path, place: int) -> None:
    wanted = kept.policy(str(tmp_path), "policy.yaml", ALLOW)
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[place] ^= 1
    path.write_bytes(damaged)
    assert kept.policy(str(tmp_path), "policy.yaml", ALLOW) == wanted
    assert path.read_bytes() == whole


@pytest.mark.parametrize("length", [0, 16, 40])
def test_a_cut_file_is_made_again(tmp_path: Path, length: int) -> None:
    wanted = kept.policy(str(tmp_path), "policy.yaml", ALLOW)
    (path,) = files(tmp_path)
    path.write_bytes(path.read_bytes()[:length])
    assert kept.policy(str(tmp_path), "policy.yaml", ALLOW) == wanted


def test_one_policy_does_not_pass_for_another(tmp_path: Path) -> None:
    kept.policy(str(tmp_path), "policy.yaml", ALLOW)
    (allowing,) = files(tmp_path)
    wanted = kept.policy(str(tmp_path), "policy.yaml", DENY)
    (denying,) = set(files(tmp_path)) - {allowing}
    denying.write_bytes(allowing.read_bytes())
    assert kept.policy(str(tmp_path), "policy.yaml", DENY) == wanted


def test_a_link_in_a_files_place_is_not_followed(tmp_path: Path) -> None:
    wanted = kept.policy(str(tmp_path), "policy.yaml", ALLOW)
    (path,) = files(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    assert kept.policy(str(tmp_path), "policy.yaml", ALLOW) == wanted
    assert not path.is_symlink(), "it was read through the link"


def test_an_invalid_policy_is_refused_each_time_and_not_kept(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(PolicyError, match="rules"):
            kept.policy(str(tmp_path), "policy.yaml", b'version: "1.0"\n')
    assert not (tmp_path / "kept").exists()


def test_nothing_can_be_kept_and_nothing_is_lost(tmp_path: Path) -> None:
    nowhere = tmp_path / "file"
    nowhere.write_text("")
    assert kept.policy(str(nowhere), "policy.yaml", ALLOW) == loader.load(ALLOW, name="policy.yaml")


def test_no_more_than_so_many_are_kept(tmp_path: Path) -> None:
    for number in range(70):
        kept.policy(str(tmp_path), f"{number}.yaml", ALLOW)
    assert 0 < len(files(tmp_path)) <= 64
