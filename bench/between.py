"""One thread's products before and after a change of the kernels, in one process and in turn:

    python bench/between.py OLD [NEW]     # revisions of git; NEW is the working tree by default
    python bench/between.py OLD --isa avx512

Builds kernels/isa_ISA.cpp of both with the flags of CMakeLists.txt's build of NEW (or --flags-old, --flags-new).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
FLAGS = {
    "avx2": "-mavx2 -mfma",
    "avx512": "-mavx2 -mfma -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni",
    "portable": "",
}
PLAIN = "-O3 -std=gnu++17 -fPIC -ffp-contract=off -w"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old")
    parser.add_argument("new", nargs="?")
    parser.add_argument("--isa", choices=FLAGS, default="avx2")
    parser.add_argument("--flags-old", default="", help="more flags for the old build")
    parser.add_argument("--flags-new", default="-fno-tree-reassoc -fno-tree-ter", help="and for the new one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = {"A": checked_out(args.old, folder / "A"), "B": checked_out(args.new, folder / "B")}
        for build, more in (("A", args.flags_old), ("B", args.flags_new)):
            flags = f"{PLAIN} {FLAGS[args.isa]} {more}".split()
            text = (sources[build] / f"isa_{args.isa}.cpp").read_text()
            lines = [f"#define LIBREMOE_ISA {build}" if line.startswith("#define LIBREMOE_ISA ") else line
                     for line in text.splitlines()]
            (folder / f"{build}.cpp").write_text("\n".join(lines) + "\n")
            run(["g++", "-c", *flags, "-I", sources[build], folder / f"{build}.cpp", "-o", folder / f"{build}.o"])
        run(["g++", *PLAIN.split(), "-I", sources["B"], ROOT / "bench" / "between.cpp", folder / "A.o", folder / "B.o",
             "-o", folder / "between"])
        run([folder / "between"])


def checked_out(revision: str | None, to: Path) -> Path:
    """The kernels of a revision, or of the working tree."""
    if revision is None:
        return ROOT / "kernels"
    to.mkdir()
    archive = subprocess.run(["git", "-C", ROOT, "archive", revision, "kernels"], capture_output=True, check=True)
    subprocess.run(["tar", "x", "-C", to], input=archive.stdout, check=True)
    return to / "kernels"


def run(command: list[object]) -> None:
    done = subprocess.run([str(word) for word in command])
    if done.returncode:
        sys.exit(f"{command[0]} failed")


if __name__ == "__main__":
    main()
