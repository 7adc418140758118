"""``python -m safeclaw.daemon.cli``: the command without its script."""

from __future__ import annotations

import sys

from safeclaw.daemon.cli.main import main

sys.exit(main())
