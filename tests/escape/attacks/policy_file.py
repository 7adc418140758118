"""Rewrite the policy in force: in place, by a new file, by moving its directory."""

import os

try:
    open("frozen-policy/policy.yaml", "a").write("# mine now\n")
except OSError:
    pass
open("src/policy.yaml", "w").write("# mine now\n")
try:
    os.rename("src/policy.yaml", "frozen-policy/policy.yaml")
except OSError:
    os.rename("frozen-policy", "src/frozen-policy")
