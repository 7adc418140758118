"""Have cores written again, or none, with which the kernel starts the host's handler (core(5))."""

import resource

for most in (1 << 20, 0):
    resource.setrlimit(resource.RLIMIT_CORE, (most, most))
    if resource.getrlimit(resource.RLIMIT_CORE)[0] != 1:
        print("WON")
