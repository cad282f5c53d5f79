#!/usr/bin/env bash
# splat.sh: core-splatting's CUDA tests, then where a step's host time goes; 4 to 6 minutes, one H100.
tools/gpu splatting -- python3 -m pytest -q -p no:cacheprovider -m cuda packages/core-splatting/tests 2>&1 | tail -15
PYTHONPATH=$PWD/build/gpu/site python3 .attempts/splat_host.txt
