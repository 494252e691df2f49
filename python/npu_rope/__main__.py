"""The command line: ``python -m npu_rope demo | doctor | simulate``."""

from __future__ import annotations

import argparse
import sys

import npu_rope


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m npu_rope", description=npu_rope.__doc__)
    parser.add_argument("--version", action="version", version=npu_rope.__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("demo", help="run the operator on real input beside Hugging Face's code")
    commands.add_parser("doctor", help="say what is installed and which backends are live")
    commands.add_parser("simulate", help="run a command where npu tensors work without an NPU")
    args = parser.parse_args(sys.argv[1:2])
    rest = sys.argv[2:]
    if args.command == "doctor":
        from npu_rope.doctor import main as run
    elif args.command == "simulate":
        from npu_rope.simulate import main as run
    else:
        npu_rope._load()
        from npu_rope.demo import main as run
    return run(rest)


if __name__ == "__main__":
    sys.exit(main())
