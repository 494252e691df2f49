"""The command line: ``python -m npu_rope demo | doctor``."""

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
    args, rest = parser.parse_known_args()
    if args.command == "doctor":
        from npu_rope.doctor import main as run
    else:
        npu_rope._load()
        from npu_rope.demo import main as run
    return run(rest)


if __name__ == "__main__":
    sys.exit(main())
