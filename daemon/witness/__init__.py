"""A witness: it has seen checkpoints, and signs only what continues them.

``protocol`` (pure) says what a request is and what the answer has to be, ``store``
keeps what was seen, ``server`` speaks HTTP, ``push`` is the other side: it hands a
chain's checkpoints to a witness.  The protocol is C2SP's tlog-witness.
"""
