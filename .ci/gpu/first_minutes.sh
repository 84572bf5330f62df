#!/usr/bin/env bash
# The first minutes on a GPU, of a machine that may have no network and no compiler. In the repository's root:
#   .ci/gpu/first_minutes.sh prepare   elsewhere, with pip: fills .gpu/ (FIRST_FOLDER) with wheels and kernels for $ARCH (sm_90)
#   .ci/gpu/first_minutes.sh run       there: writes report.json and report.md to $OUT (gpu-report)
# FIRST_DRY=1 makes both walk through it without a GPU. FIRST_SECONDS (480) is all the time that `run` takes.
# Each step has its own limit and leaves its own file: what is finished stays when a later one hangs.
set -u
here=.ci/gpu python=${PY:-python3} dry=${FIRST_DRY:-}
export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
folder=${FIRST_FOLDER:-$PWD/.gpu}
export CCNET_CACHE=$folder/cache

if [[ ${1:-} == prepare ]]; then
  set -e
  mkdir -p "$folder/wheels"
  # what an image for torch lacks: neither torch nor a compiler of kernels
  platforms=(--platform manylinux2014_x86_64)
  for n in 17 24 27 28; do platforms+=(--platform "manylinux_2_${n}_x86_64"); done
  [[ -n $dry ]] || "$python" -m pip download -q --no-deps --only-binary=:all: --implementation cp \
    --python-version "${PYTHON_THERE:-3.12}" "${platforms[@]}" -d "$folder/wheels" \
    $("$python" -m pip freeze | grep -iE '^(pydantic|pydantic_core|annotated-types|typing-inspection|annotated-doc|typer|rich|shellingham)==')
  "$python" $here/compile_kernels.py "${ARCH:-sm_90}" ${dry:+quick}
  du -sh "$folder"
  exit
fi

begin=$(date +%s) limit=${FIRST_SECONDS:-480} out=${OUT:-$PWD/gpu-report} device=${dry:+cpu} name=${dry:+gemm}
device=${device:-cuda} name=${name:-numba} failed=0 runs=$(mktemp -d)
trap 'rm -rf "$runs"' EXIT
mkdir -p "$out" && : >"$out/log.txt" && : >"$out/steps.tsv"
left() { echo $((limit - ($(date +%s) - begin) - 8)); } # 8 s for the report
step() { # name, seconds at most, command
  local name=$1 most=$2 start code outcome
  shift 2
  start=$(date +%s)
  ((most <= $(left))) || most=$(left)
  if ((most < 5)); then
    printf '%s\tskipped: no time\t0\n' "$name" >>"$out/steps.tsv"
    return
  fi
  echo "=== $name (at most $most s)" | tee -a "$out/log.txt"
  timeout -k 5 "$most" "$@" >>"$out/log.txt" 2>&1
  code=$? outcome=ok
  if ((code)); then outcome="exit $code" failed=1; fi
  printf '%s\t%s\t%s\n' "$name" "$outcome" $(($(date +%s) - start)) | tee -a "$out/steps.tsv"
  "$python" $here/report.py "$out" # what is known so far
}
ccnet() { step "$1" "$2" "$python" -m ccnet_cli.cli "${@:3}"; }

if [[ -z $dry ]]; then
  step machine 20 nvidia-smi
  step install 60 "$python" -m pip install -q --no-index --no-deps --no-compile --upgrade "$folder"/wheels/*.whl
fi
step adopt 30 "$python" $here/compile_kernels.py adopt
ccnet doctor 60 doctor
step small 60 "$python" $here/check_small.py $device $name
step tests 100 "$python" -m pytest -q -n 0 --maxfail 8 -m gpu -p no:cacheprovider tests/ops/test_gpu_kernels.py
if [[ -z $dry ]]; then
  ccnet bench-gpu 200 bench gpu -o "$out/bench-gpu.json" --overwrite
  size=769x769 backbone=resnet101 steps=120
else
  ccnet bench-attention 60 bench attention --device cpu --size 9x11 --channels 16 --repeats 1 --json "$out/bench-attention.json"
  size=65x65 backbone=tiny steps=2
fi
ccnet bench-model 60 bench model --size $size --backbone $backbone --repeats 3 --device $device --precision fp32 --precision bf16 \
  --json "$out/bench-model.json"
for how in numba gemm auto; do
  precision=bf16
  [[ $how == auto && -z $dry ]] || precision=fp32
  ccnet "train-$how" 40 train --preset quickstart -o "$runs/$how" --device $device -s schedule.steps=$steps -s schedule.warmup=1 \
    -s model.head.implementation=$how -s train.precision=$precision
  cp "$runs/$how/log.jsonl" "$out/train-$how.jsonl" 2>/dev/null
done
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
if [[ -n $sanitizer && -z $dry ]]; then
  for tool in memcheck racecheck initcheck; do
    step $tool 45 "$sanitizer" --tool $tool --error-exitcode 9 "$python" $here/check_small.py cuda numba
  done
fi
"$python" $here/report.py "$out"
echo "done in $(($(date +%s) - begin)) s: $out/report.md"
exit $failed
