"""Give the secret a second name where reading is allowed."""

import os

os.link("secrets/key", "src/second")
print(open("src/second").read())
