#!/usr/bin/env bash
# crystals.sh: Perov-5 predicted from composition and powder pattern; about 8 minutes, one H100, with shared/data carried.
set -uo pipefail
tools/gpu core-3d-molecule -- bash -c '
python3 packages/core-3d-molecule/benchmarks/check_conditions.py --device cuda --minutes 0.3 --count 20 --tries 2 | tail -5
python3 packages/core-3d-molecule/benchmarks/check_conditions.py --device cuda --minutes 5 --count 500 --tries 20; echo rc $?'
