"""Look at a file outside of the view: not even stat may find it."""

import os
import sys

os.stat(sys.argv[1] + "/key")
print("WON")
