#!/usr/bin/env bash
# Installs what is missing, then runs the linter and all tests. Arguments go to pytest:
#   bash tests/run.sh                     everything
#   bash tests/run.sh -m "not slow"       without the tests that launch training
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
source examples/scripts/bootstrap.sh
bootstrap

say "ruff"
ruff check --quiet .
ruff format --quiet --check . || die "ruff format would change files; run: ruff format ."

say "pytest"
python -m pytest -q --numprocesses=2 --dist=loadfile --no-loadscope-reorder \
    --durations=15 "$@"
