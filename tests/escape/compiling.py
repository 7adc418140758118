"""Compiles the attacks, and the programs that they want to run."""

from __future__ import annotations

import subprocess
from pathlib import Path

HERE = Path(__file__).parent


def compile_all(out: Path, compiler: str = "gcc") -> None:
    """Compile every attack, and the programs it wants to run, into a directory."""

    def compile_one(source: Path, name: str, *options: str) -> None:
        subprocess.run(
            [compiler, "-Wall", "-Werror", "-O1", *options, "-o", out / name, source, "-lpthread"],
            check=True,
        )

    for source in sorted((HERE / "attacks").glob("*.c")):
        # int80 needs its data below 4 GiB
        compile_one(source, source.name.removesuffix(".c"), "-no-pie")
    compile_one(HERE / "program.c", "xa", "-static")
    compile_one(HERE / "program.c", "xd", "-static", "-DDENIED")
    compile_one(HERE / "program.c", "xd-dynamic", "-DDENIED")
    for library in ("audit", "preload"):
        compile_one(HERE / f"{library}.c", f"{library}.so", "-shared", "-fPIC")
