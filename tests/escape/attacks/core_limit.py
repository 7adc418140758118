"""Have a core dump written: by a helper of the host, outside the walls (core(5))."""

import resource

resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20))
if resource.getrlimit(resource.RLIMIT_CORE)[0] > 1:
    print("WON")
