"""The policies that safeclaw's promise was first made with, as they stand there."""

CC61 = """\
version: "1.0"
description: "SOC 2 CC6.1 — Logical access controls"

rules:
  - action: file.read
    path: "src/**"
    effect: allow
    reason: "CC6.1: Scoped read access to application source"

  - action: file.write
    path: "src/**"
    effect: allow
    reason: "CC6.1: Scoped write access to application source"

  - action: file.read
    path: "secrets/**"
    effect: deny
    reason: "CC6.1: Block agent access to credential stores"

  - action: shell.execute
    command: "sudo *"
    effect: deny
    reason: "CC6.1: Prevent privilege escalation"

  - action: "*"
    effect: deny
    reason: "CC6.1: Deny-by-default baseline"
"""

ROLE = """\
version: "1.0"
description: "Production agent — read-only with deployment capability"

rules:
  - action: file.read
    path: "dist/**"
    effect: allow
    reason: "CC6.3: Read built artifacts"

  - action: shell.execute
    command: "kubectl apply *"
    effect: allow
    reason: "CC6.3: Deploy to production cluster"

  - action: shell.execute
    command: "kubectl delete *"
    effect: deny
    reason: "CC6.3: Block destructive production operations"

  - action: "*"
    effect: deny
"""
