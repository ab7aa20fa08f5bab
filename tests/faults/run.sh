#!/usr/bin/env bash
# Breaks runs in every way we know of and counts what was lost. The last line is JSON.
#   bash tests/faults/run.sh           a few of each, about a minute
#   bash tests/faults/run.sh --full    200 kills, every fault, 20,000 mutated files; two hours; --done FILE
#                                      takes it up again
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source examples/scripts/bootstrap.sh
bootstrap
python tests/faults/suite.py "$@"
