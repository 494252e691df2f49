#!/usr/bin/env bash
# The wheel that CANN-Bench's evaluation installs, into dist/. npu_rope is installed beside it.
set -eu
cd "$(dirname "$0")"
python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
