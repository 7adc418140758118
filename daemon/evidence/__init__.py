"""What comes out of a journal: exports, summaries, samples, evidence packages.

Reads only.  ``period`` and ``proofs`` are pure; ``selection`` reads a chain once,
from its first segment to its last, in memory that does not grow with it.
"""
