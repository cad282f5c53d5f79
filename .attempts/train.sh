#!/usr/bin/env bash
# train.sh start | wait SECONDS: from the root of a checkout on two GPUs, CORE_QM9 naming the compact QM9
# (data.save_compact), .whl/ carried in each call. Results go to $OUT at the end of each wait.
set -u
home=/tmp/train p=packages/core-3d-molecule
if [ "$1" = start ]; then
  mkdir -p $home/out $home/claims
  python3 -m pip install -q --no-deps --no-index $(ls .whl/*.whl | grep -v 'gsplat\|smact') 2>&1 | tail -2
  tools/gpu core-3d-molecule -- true 2>&1 | tail -2
  cp -a build/gpu/site $home/site && cp -a $p $home/package && cp "$CORE_QM9" $home/qm9.npz
  export PYTHONPATH=$home/site CORE_QM9=$home/qm9.npz OUT=$home/out
  cd $home/package
  for job in "0 uni3dar" "1 udm3d"; do
    read -r gpu name <<< "$job"
    CUDA_VISIBLE_DEVICES=$gpu setsid nohup bash -c "python3 benchmarks/gpu_claims.py $home/claims -o $home/claims --only $name \
      --oriented --minutes 18.5 6.5 13 --weights 1 1; echo exit \$? ; touch $home/$name.done" > $home/$name.log 2>&1 &
  done
  exit
fi
end=$((SECONDS + $2))
while [ $SECONDS -lt $end ] && ! { [ -e $home/uni3dar.done ] && [ -e $home/udm3d.done ]; }; do sleep 3; done
for name in uni3dar udm3d; do
  echo "== $name"
  grep -v '^{"\(train\|autoencoder\|transformer\|trials\|measured\)"' $home/$name.log | cut -c1-400 | tail -6
  grep '^{"\(train\|autoencoder\|transformer\)"' $home/$name.log | tail -1
done
tar czf "$OUT/train.tgz" -C $home --exclude='weights-*' out uni3dar.log udm3d.log
cp $home/out/weights-uni3dar-[0-4].safetensors $home/out/weights-udm3d-0.safetensors "$OUT" 2>/dev/null
