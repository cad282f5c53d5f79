#!/usr/bin/env bash
# splat_claims.sh [PAPER]: once without an argument (2503.16422), once with 2503.16413; stops by itself, a second call on the same
# machine goes on.
tools/gpu splatting -- true 2>&1 | tail -2
PYTHONPATH=$PWD/build/gpu/site python3 packages/core-splatting/benchmarks/claims.py --size gpu -o build/claims --resume --only "${1:-2503.16422}" --seconds 420
mkdir -p "$OUT/claims" && cp build/claims/*.json build/claims/*.png "$OUT/claims/" 2>/dev/null
