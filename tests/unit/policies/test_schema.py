"""The JSON Schema says what the loader says, and is shipped as it is generated."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from safeclaw.errors import PolicyError
from safeclaw.policies import loader, schema
from safeclaw.policies.source import PRESETS

HEAD = 'version: "1.0"\nrules:\n'
RULE = "  - {action: file.read, path: x, effect: allow}\n"
ROOT = Path(__file__).resolve().parents[3]


def accepts(text: str) -> bool:
    validators: Any = importlib.import_module("jsonschema")
    return bool(validators.Draft202012Validator(schema.schema()).is_valid(yaml.safe_load(text)))


def loads(text: str) -> bool:
    try:
        loader.load(text, name="p.yaml")
    except PolicyError:
        return False
    return True


def test_the_schema_is_a_schema() -> None:
    validators: Any = importlib.import_module("jsonschema")
    validators.Draft202012Validator.check_schema(schema.schema())


def test_the_shipped_schema_is_the_generated_one() -> None:
    assert (PRESETS.parent / "schema.json").read_text() == schema.text()


def test_every_key_of_the_loader_is_in_the_schema_and_no_other() -> None:
    made = schema.schema()
    assert set(made["properties"]) == set(loader.TOP_KEYS)
    assert set(made["$defs"]["rule"]["properties"]) == set(loader.RULE_KEYS)
    assert set(made["properties"]["resources"]["properties"]) == set(loader.RESOURCES)


@pytest.mark.parametrize(
    "path",
    [
        *(path for path in sorted(PRESETS.rglob("*.yaml")) if path.stem != "runtime"),
        *sorted((ROOT / "examples").glob("*.yaml")),
    ],
    ids=lambda path: path.stem,
)
def test_shipped_policies_and_examples_fit(path: Path) -> None:
    assert accepts(path.read_text())


@pytest.mark.parametrize(
    "text",
    [
        HEAD + RULE,
        "version: 1.0\nrules:\n" + RULE,
        HEAD + RULE + "mode: observe\nruntime: none\nassurance: strict\n",
        HEAD + RULE + "resources: {memory: 2G, processes: 9, wall_time: 1h}\n",
        HEAD + RULE + "environment: {pass: [LANG, LC_*], set: {A: b}}\n",
        HEAD + "  - {action: '*', effect: require_approval}\n",
        HEAD
        + "  - {action: [network, payment.send], host: '*', port: [443, 80-90], effect: ask}\n",
        HEAD + "  - {action: network.send, protocol: [tcp, udp], effect: deny, reason: why}\n",
    ],
)
def test_what_the_loader_takes_the_schema_takes(text: str) -> None:
    assert loads(text)
    assert accepts(text)


@pytest.mark.parametrize(
    "text",
    [
        "rules:\n" + RULE,
        "version: '1.0'\n",
        "version: '2.0'\nrules:\n" + RULE,
        "version: '1.0'\nrules: []\n",
        HEAD + RULE + "ruels: 1\n",
        HEAD + "  - x\n",
        HEAD + "  - {action: file.read}\n",
        HEAD + "  - {effect: deny}\n",
        HEAD + "  - {action: file.read, effect: alow}\n",
        HEAD + "  - {action: File.Read, effect: deny}\n",
        HEAD + "  - {action: [], effect: deny}\n",
        HEAD + "  - {action: file.read, path: [], effect: deny}\n",
        HEAD + "  - {action: network.send, port: -1, effect: deny}\n",
        HEAD + "  - {action: network.send, protocol: icmp, effect: deny}\n",
        HEAD + "  - {action: file.read, effect: deny, why: x}\n",
        HEAD + RULE + "mode: sometimes\n",
        HEAD + RULE + "resources: {tea: 1}\n",
        HEAD + RULE + "environment: {pass: 'A=B'}\n",
        HEAD + RULE + "extends: []\n",
    ],
)
def test_what_the_schema_refuses_the_loader_refuses(text: str) -> None:
    assert not accepts(text)
    assert not loads(text)
