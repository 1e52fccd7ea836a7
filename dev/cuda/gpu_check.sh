#!/usr/bin/env bash
# What only a GPU can show of the trainer, a stage at a time, each under 9 minutes on
# one Hopper GPU. (dev/cuda/all times its kernels one by one, dev/cuda/profile.sh
# shows where an update's time goes.)
#
#   dev/cuda/gpu_check.sh build      both precisions, for the GPU of this machine
#   dev/cuda/gpu_check.sh test       test_gpt2cu in both precisions, and that it fails on planted
#                                    faults; FIXTURES=folder: fixtures too
#   dev/cuda/gpu_check.sh sanitize   compute-sanitizer's memcheck and racecheck, tiny models
#   dev/cuda/gpu_check.sh train      4x4x128 and 6x6x384 on the default text, t s sppp p
#   dev/cuda/gpu_check.sh speed      GPT-2 124M, T 1024: steady ms per update, tokens/s, MFU;
#                                    t at R 1, t and sppp at R 2 folded
#   dev/cuda/gpu_check.sh text       12x12x768 on characters, 500 greedy tokens: ms per token, and
#                                    whether drafts (-sd) leave the text what it is
#   dev/cuda/gpu_check.sh all        one after the other
#
# What a stage prints is kept in RESULTS (default dev/results), with date, GPU, driver and command.
# Exit status 1 if a check failed. Ends with "gpu_check: N passed, N failed, N skipped".
#
#   BATCH=64      sequences per micro-batch of the stage speed
#   PEAK=989e12   dense bf16 peak in FLOP/s for MFU (H100 and H200 SXM)
set -uo pipefail
cd "$(dirname "$0")/../.."
RESULTS="${RESULTS:-dev/results}" BATCH="${BATCH:-64}" PEAK="${PEAK:-989e12}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0 failed=0 skipped=0

check() { # check NAME COMMAND...
    local name=$1
    shift
    if "$@" >"$work/out" 2>&1; then
        passed=$((passed + 1)) && echo "ok      $name"
    else
        failed=$((failed + 1)) && echo "FAILED  $name: exit status $?" && tail -n 40 "$work/out"
    fi
}
skip() { skipped=$((skipped + 1)) && echo "skip    $1: $2"; }

stage_build() {
    check "build, bf16 and fp32" \
        make -j4 train_gpt2cu train_gpt2cu_fp32 test_gpt2cu test_gpt2cu_fp32 \
        dev/test/faults_gpt2cu dev/test/faults_gpt2cu_fp32
}

stage_test() {
    for program in test_gpt2cu_fp32 test_gpt2cu dev/test/faults_gpt2cu_fp32 \
        dev/test/faults_gpt2cu; do
        check "$program" "./$program"
        grep -E "^FAILED|passed," "$work/out" || tail -n 5 "$work/out"
    done
}

stage_sanitize() {
    if ! command -v compute-sanitizer >/dev/null; then
        skip sanitize "compute-sanitizer is not installed (it is part of the CUDA toolkit)"
        return
    fi
    local tool precision
    for tool in memcheck racecheck; do
        for precision in "" _fp32; do
            check "$tool, train_gpt2cu$precision" \
                compute-sanitizer --tool "$tool" --error-exitcode 9 \
                "./train_gpt2cu$precision" -e 2x2x64 -t 72 -b 3 -x 3 -v 3 -m 1 -p sp -tp 2 -vp 0 \
                -r 2
            check "$tool, train_gpt2cu$precision -vp 1" \
                compute-sanitizer --tool "$tool" --error-exitcode 9 \
                "./train_gpt2cu$precision" -e 2x2x128 -t 65 -b 2 -x 2 -v 0 -p t -tp 2 -vp 1
        done
    done
}

# Of what the last command printed: median of ms over the updates after number $1.
median_ms() {
    sed -nE "s/^s:([0-9]+) trl.* ms:([0-9.]+).*/\1 \2/p" "$work/out" |
        awk -v after="$1" '$1 > after { print $2 }' | sort -g |
        awk '{ x[NR] = $1 } END { print NR ? x[int((NR + 1) / 2)] : "nan" }'
}

stage_train() {
    local run shape pattern
    for run in "t 4x4x128" "s 4x4x128" "sppp 4x4x128" "p 4x4x128" "t 6x6x384" "s 6x6x384" \
        "spp 6x6x384" "p 6x6x384"; do
        set -- $run # six blocks are no multiple of sppp: spp there
        pattern=$1 shape="$2 -t 64 -b 12 -x 2000"
        [ "$2" = 4x4x128 ] || shape="$2 -t 256 -b 64 -x 5000"
        check "train $shape -p $pattern" ./train_gpt2cu -e $shape -p "$pattern" -l 1e-3 -q 0.1 \
            -u 100 -b2 0.99 -c 0.1 -v 250 -m -1
        sed -nE 's/^s:[0-9]+ tel:(.*)/\1/p' "$work/out" >"$work/losses"
        echo "        $pattern: validation loss $(tail -n 1 "$work/losses"), lowest" \
            "$(sort -g "$work/losses" | head -n 1), $(median_ms 50) ms per update"
    done
}

# Random tokens of GPT-2's vocabulary: speed does not depend on what they say.
random_tokens() {
    python3 - "$1" <<'PY'
import array, random, struct, sys
random.seed(1)
n = 4 << 20
with open(sys.argv[1], "wb") as file:
    file.write(struct.pack("<256i", 20240520, 1, n, *[0] * 253))
    array.array("H", (random.randrange(50257) for _ in range(n))).tofile(file)
PY
}

stage_speed() {
    local run ms T=1024
    random_tokens "$work/tokens.bin"
    echo "        pattern R | ms per update | tokens/s | MFU (6 N + 6 L C T FLOP per token, as" \
        "llm.c counts)"
    for run in "t 1" "t 2" "sppp 2"; do
        set -- $run
        check "speed -p $1 -tp $2, B $BATCH" ./train_gpt2cu -i "$work/tokens.bin" \
            -j "$work/tokens.bin" -e d12 -t $T -b "$BATCH" \
            -x 40 -v 0 -p "$1" -tp "$2" -fold "$2"
        ms=$(median_ms 15)
        awk -v p="$1" -v R="$2" -v ms="$ms" -v B="$BATCH" -v T=$T -v peak="$PEAK" 'BEGIN {
            tokens = B * T / ms * 1e3; flops = 6 * 124475904 + 6 * 12 * 768 * T
            printf "        %-5s %d | %8.2f | %9.0f | %5.1f%%\n", p, R, ms, tokens,
                   100 * tokens * flops / peak }'
    done
}

# 124M's blocks with random weights. cuBLASLt may take other algorithms for a check of several
# tokens than for one, so the texts need not be equal: it is said.
stage_text() {
    local run same
    for run in "-p t -tp 1" "-p t -tp 1 -sd 4 -sp t" "-p t -tp 2 -fold 2" \
        "-p t -tp 2 -fold 2 -sd 4 -sp p" "-p p -tp 2 -fold 2"; do
        # shellcheck disable=SC2086 # options are words
        check "text, $run" ./train_gpt2cu -x 0 -e 12x12x768 -t 1024 -g 500 -gt 0 -gp "ROMEO:" $run
        sed -n '/^--- sample/,/^---$/p' "$work/out" >"$work/text"
        same=""
        if [ "$run" = "${run#*-sd}" ]; then
            cp "$work/text" "$work/plain"
        elif cmp -s "$work/text" "$work/plain"; then
            same="| the text without drafts"
        else
            same="| another text than without drafts"
        fi
        echo "        $(grep '^g:' "$work/out") $same"
    done
}

stage=${1:-}
case $stage in
build | test | sanitize | train | speed | text) stages=$stage ;;
all) stages="build test sanitize train speed text" ;;
*)
    echo "usage: dev/cuda/gpu_check.sh build|test|sanitize|train|speed|text|all" >&2
    exit 1
    ;;
esac
if ! command -v nvidia-smi >/dev/null || ! nvidia-smi >/dev/null 2>&1; then
    echo "error: no GPU here (nvidia-smi finds none); make test runs the CUDA trainer on a CPU," \
        "by dev/emu" >&2
    exit 1
fi
mkdir -p "$RESULTS"
report="$RESULTS/gpu_check_$(date +%Y-%m-%d)_$stage.txt"
{
    echo "date     $(date -u +%Y-%m-%dT%H:%MZ)"
    gpu=$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | head -n 1)
    echo "gpu      $gpu"
    echo "nvcc     $(nvcc --version 2>/dev/null | sed -nE 's/.*release ([^,]*),.*/\1/p')"
    echo "commit   $(git rev-parse --short HEAD 2>/dev/null || echo unknown)"
    echo "command  BATCH=$BATCH PEAK=$PEAK dev/cuda/gpu_check.sh $stage"
} | tee "$report"
for s in $stages; do
    echo "== $s" | tee -a "$report"
    begin=$(date +%s)
    "stage_$s" > >(tee -a "$report") 2>&1
    echo "   $s took $(($(date +%s) - begin)) s" | tee -a "$report"
done
echo "gpu_check: $passed passed, $failed failed, $skipped skipped" | tee -a "$report"
[ "$failed" -eq 0 ]
