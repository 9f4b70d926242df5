#!/usr/bin/env bash
# Checks and measures, in at most eight minutes, all that needs a GPU: bash tools/dev/gpu_check.sh OUT [cuda|cpu]
#
# Needs python3 (or PY) with PyTorch, pytest and this project's other requirements, and nvcc for the kernels. Each part
# runs by itself, with a time limit, and one that fails leaves the others alone: OUT/parts.jsonl says how each ended,
# OUT/*.log what it printed, OUT/*.json what it measured. PARTS="step metrics" runs only these. With cpu it is a
# rehearsal of the script, at tiny sizes.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

OUT=${1:?usage: bash tools/dev/gpu_check.sh OUT [cuda|cpu]}
DEVICE=${2:-cuda}
PY=${PY:-python3}
LIMIT=${LIMIT:-470} # seconds of the whole
TINY=$([[ $DEVICE == cpu ]] && echo --tiny || true)
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
export DNNLIB_CACHE_DIR=${DNNLIB_CACHE_DIR:-$OUT/cache} PYTHONUNBUFFERED=1
: > "$OUT/parts.jsonl"

part() { # NAME SECONDS COMMAND...: runs a part and notes how it ended (124: it ran out of time, its own or the script's)
    local name=$1 limit=$2 start=$SECONDS status
    shift 2
    [[ -z ${PARTS:-} || " $PARTS " == *" $name "* ]] || return 0
    (( limit < LIMIT - SECONDS )) || limit=$(( LIMIT > SECONDS ? LIMIT - SECONDS : 1 ))
    timeout --kill-after=5 "$limit" "$@" > "$OUT/$name.log" 2>&1 < /dev/null
    status=$?
    echo "{\"part\": \"$name\", \"status\": $status, \"seconds\": $((SECONDS - start))}" | tee -a "$OUT/parts.jsonl"
}

parts() { $PY tools/dev/gpu_parts.py "$@" --device="$DEVICE" $TINY; }
export -f parts
export PY DEVICE TINY

part machine 40 bash -c "parts machine --json='$OUT/machine.json'"
part build 120 $PY -m torch_utils.ops.build --device="$DEVICE"

# Parts that others contain, for PARTS.
asked() { [[ -z ${PARTS:-} ]] || part "$@"; }
asked agree 60 bash -c "parts agree --json='$OUT/agree.json'"

# Checks, side by side.
part tests 100 $PY -m pytest -q -m cuda $(grep -l "mark.cuda" tests/*.py) ${TINY:+--collect-only} &
if command -v compute-sanitizer > /dev/null; then
    for tool in memcheck racecheck; do
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 part $tool 120 compute-sanitizer --tool=$tool --kernel-name=kns=stylegan_di \
            --error-exitcode=3 $PY tools/dev/gpu_parts.py ops --device="$DEVICE" &
    done
else
    part ops 60 $PY tools/dev/gpu_parts.py ops --device="$DEVICE"
fi
wait

# Measurements, one after the other.
part step 110 bash -c "parts step --machine='$OUT/machine.json' --json='$OUT/step.json'"
for only in graphs compiled; do
    asked $only 110 bash -c "parts step --$only --machine='$OUT/machine.json' --json='$OUT/$only.json'"
done
part gan 60 bash -c "parts gan --json='$OUT/gan.json'"
part metrics 90 bash -c "parts metrics --json='$OUT/metrics.json'"
part processes 40 bash -c "parts processes --json='$OUT/processes.json'"
ROWS=${TINY:+FIR chain forward}
part benchmark-bf16 60 $PY tools/dev/benchmark.py --device="$DEVICE" --amp=bf16 --rounds=3 --rows="$ROWS" \
    --json="$OUT/benchmark-bf16.json"
part benchmark 60 $PY tools/dev/benchmark.py --device="$DEVICE" --rounds=3 --rows="$ROWS" --json="$OUT/benchmark.json"
rm -rf "$OUT/cache"
