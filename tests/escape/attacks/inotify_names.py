"""Watch a directory that may not be listed: what happens in it is told by name (inotify(7))."""

import ctypes
import os

libc = ctypes.CDLL(None, use_errno=True)
held = os.open("secrets", os.O_PATH)
os.symlink("../secrets", "src/link")
os.chdir("src")
places = ("../secrets", "link", f"/proc/self/fd/{held}", f"/dev/fd/{held}", "../secrets/key")
for place in places:
    for mask in (0xFFF, 0xFFF | 0x01000000, 0xFFF | 0x20000000):  # IN_ONLYDIR, IN_MASK_ADD
        if libc.inotify_add_watch(libc.inotify_init1(0), place.encode(), mask) >= 0:
            print("WON", place)
