"""The policy language as JSON Schema (draft 2020-12), so that editors complete and check.

Written from the loader's own tables: what the loader does not know, the schema does
not either.  It is wider than the loader where a schema cannot tell: whether a glob or a
size is written rightly, and which conditions fit which actions.
"""

from __future__ import annotations

import enum
from typing import Any

import msgspec

from safeclaw.policies import fields, loader, network
from safeclaw.policies.document import Assurance, Mode, Runtime

Json = dict[str, Any]

_ABOUT = {
    "version": "The version of the policy language.",
    "description": "What the policy is for, for a person.",
    "extends": "Policies whose rules stand behind these: a file, or a shipped policy's name.",
    "rules": "Read in order: the first rule that matches decides; none is a deny.",
    "runtime": "Whether the rules for what any program needs stand before the final catch-all.",
    "mode": "enforce, or observe: record what would be denied, but let it through.",
    "assurance": "strict: every attempt waits until its record is on disk.",
    "resources": "Limits of the session.",
    "environment": "Which variables the agent inherits, which are set, forbidden and pinned.",
    "pseudonymise": "What is recorded under a pseudonym (a keyed HMAC) instead of by name.",
    "action": "What is tried: a dotted name, which covers everything below it, or *.",
    "path": "Globs on the canonical path; relative ones stand in the workspace, ~ is the home.",
    "command": "Shell-quoted tokens, each a glob; a last * takes all remaining arguments.",
    "host": "Names, *.example.com, addresses, networks (CIDR), or *.",
    "port": "A port, or a range like 8000-8999.",
    "protocol": "tcp or udp.",
    "effect": "What happens with an attempt that matches; require_approval is ask.",
    "reason": "Why; it is shown and recorded.",
}


def schema() -> Json:
    """Return the JSON Schema of a policy."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "safeclaw policy",
        "type": "object",
        "properties": {key: _described(key, _top(key)) for key in loader.TOP_KEYS},
        "required": ["version"],
        "anyOf": [{"required": ["rules"]}, {"required": ["extends"]}],
        "additionalProperties": False,
        "$defs": {"rule": _rule()},
    }


def text() -> str:
    """Return the schema as it is printed and shipped."""
    return msgspec.json.format(msgspec.json.encode(schema()), indent=2).decode() + "\n"


def _described(key: str, value: Json) -> Json:
    return {"description": _ABOUT[key], **value}


def _top(key: str) -> Json:
    match key:
        case "version":
            return {"enum": [*loader.VERSIONS, 1]}
        case "description":
            return {"type": "string"}
        case "extends":
            return _one_or_more({"type": "string", "minLength": 1})
        case "rules":
            return {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/rule"}}
        case "runtime":
            return _enum(Runtime)
        case "mode":
            return _enum(Mode)
        case "assurance":
            return _enum(Assurance)
        case "resources":
            value: Json = {"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 1}]}
            share: Json = {"type": "string", "pattern": "^[0-9]{1,6}%$"}
            return _object(dict.fromkeys(loader.RESOURCES, value) | {"cpu": share})
        case "environment":
            names = _one_or_more({"type": "string", "pattern": f"^{fields.VARIABLE}\\*?$"})
            settings: Json = {"type": "object", "additionalProperties": {"type": "string"}}
            kinds = {"pass": names, "set": settings, "forbid": names, "pin": settings}
            return _object({key: kinds[key] for key in loader.ENVIRONMENT_KEYS})
        case "pseudonymise":
            properties = {key: _condition(key) for key in loader.PSEUDONYMISE_KEYS}
            return _object(properties) | {"minProperties": 1}
        case _:
            raise NotImplementedError(f"the schema does not know the key {key}")


def _rule() -> Json:
    properties = {key: _described(key, _condition(key)) for key in loader.RULE_KEYS}
    return _object(properties) | {"required": ["action", "effect"]}


def _condition(key: str) -> Json:
    match key:
        case "action":
            return _one_or_more(
                {
                    "type": "string",
                    "pattern": f"^({loader.ACTION.pattern})$",
                    "examples": ["*", *loader.KNOWN_ACTIONS],
                }
            )
        case "effect":
            return {"enum": list(loader.EFFECTS)}
        case "reason":
            return {"type": "string"}
        case "port":
            text: Json = {"type": "string", "pattern": "^[0-9]{1,5}(-[0-9]{1,5})?$"}
            number: Json = {"type": "integer", "minimum": 0, "maximum": 65535}
            return _one_or_more({"anyOf": [text, number]})
        case "protocol":
            return _one_or_more({"enum": list(network.PROTOCOLS)})
        case "path" | "command" | "host":
            return _one_or_more({"type": "string", "minLength": 1})
        case _:
            raise NotImplementedError(f"the schema does not know the condition {key}")


def _enum(kind: type[enum.StrEnum]) -> Json:
    return {"enum": [str(item) for item in kind]}


def _object(properties: dict[str, Json]) -> Json:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _one_or_more(item: Json) -> Json:
    return {"anyOf": [item, {"type": "array", "minItems": 1, "items": item}]}
