"""safeclaw: run AI agents in walls, under a policy, with a record."""
