#!/usr/bin/env bash
# train_lease.sh [SECONDS] [K]: run from the root of a checkout on two GPUs, again and again until it prints "exit 2 2"
# (all trained and drawn; only RDKit is missing). Then twice more with K = 2 and 3 for the rest of the weights.
# CORE_QM9 names the compact QM9 (data.save_compact). $OUT gets at most 8 files: 2 records, 2 samples, 4 pieces of weights.
set -u
seconds=${1:-540} k=${2:-1} d=build/claims p=packages/core-3d-molecule
: "${CORE_QM9:?the compact QM9}"
began=$SECONDS
tools/gpu core-3d-molecule -- true 2>&1 | tail -2
export PYTHONPATH=$PWD/build/gpu/site
mkdir -p $d
if [ ! -e $d/tested ]; then  # what decides: "passed", no failure; a step with Muon replays and resumes on the GPU
  (cd $p && python3 -m pytest -q -p no:cacheprovider tests/test_muon.py tests/test_training.py 2>&1 | tail -15) | tee $d/tested
fi
left=$((seconds - SECONDS + began))
CUDA_VISIBLE_DEVICES=0 python3 $p/benchmarks/gpu_claims.py $d -o $d --only uni3dar --oriented --seconds $left --weights $k 3 > $d/uni.log 2>&1 &
one=$!
CUDA_VISIBLE_DEVICES=1 python3 $p/benchmarks/gpu_claims.py $d -o $d --only udm3d --oriented --seconds $left --weights $k 3 > $d/udm.log 2>&1 &
two=$!
wait $one; a=$?
wait $two; b=$?
for f in uni udm; do echo "== $f"; grep -v '^{"\(train\|autoencoder\|transformer\)"' $d/$f.log | cut -c1-1500 | tail -25; grep '^{"\(train\|autoencoder\|transformer\)"' $d/$f.log | tail -2; done
echo "exit $a $b"
