#!/usr/bin/env bash
# What only a GPU can show of the trainer, a stage at a time. (dev/cuda/all times its kernels one by
# one, dev/cuda/profile.sh shows where an update's time goes.) No GPU has run it: the minutes are
# estimates for an H100 with 16 cores.
#
#   dev/cuda/gpu_check.sh build      4 min: both precisions, for the GPU of this machine
#   dev/cuda/gpu_check.sh test       3 min: test_gpt2cu in both precisions, and that it fails on
#                                    planted faults; FIXTURES=folder: fixtures too
#   dev/cuda/gpu_check.sh cpu        3 min: 30 updates, losses as those of the CPU trainer; by two
#                                    processes too: NCCL, or MPI where there is one GPU
#   dev/cuda/gpu_check.sh bits       3 min: 20 updates of GPT-2 124M, run twice, are the same
#   dev/cuda/gpu_check.sh speed      4 min: 124M, T 1024: steady ms per update, tokens/s, MFU, of
#                                    several patterns and R, folded
#   dev/cuda/gpu_check.sh hide       3 min: how much of an emulated network's time l and d hide
#   dev/cuda/gpu_check.sh text       3 min: ms per generated token of 124M's blocks, and whether
#                                    drafts (-sd) leave the text what it is
#   dev/cuda/gpu_check.sh train      6 min: 4x4x128 and 6x6x384 on the default text, t s sppp p;
#                                    losses as known, if that text is tinyshakespeare
#   dev/cuda/gpu_check.sh sanitize   9 min: compute-sanitizer's memcheck and racecheck, tiny models
#   dev/cuda/gpu_check.sh all        one after the other
#
# Where a call may take ten minutes only, each stage is a call of its own, build the first. A
# program is ended after 300 s, and what a stage has not begun after STAGE seconds is skipped.
#
# What a stage prints is kept in RESULTS (default dev/results), with date, GPU, driver, versions and
# command. Exit status 1 if a check failed. Ends with "gpu_check: N passed, N failed, N skipped".
#
#   STAGE=540     seconds
#   BATCH=64      sequences per micro-batch of the stage speed
#   PEAK=989e12   dense bf16 peak in FLOP/s for MFU (H100 and H200 SXM)
#   SHAPE, PATTERNS   what the stage cpu trains (-e 4x6x384 -t 256 -b 8; t sppp l d)
#   TRAIN, TRAINER, TRAINER_FP32   other programs than ./train_gpt2, ./train_gpt2cu and ..._fp32
# shellcheck disable=SC2086 # options are words
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
RESULTS="${RESULTS:-dev/results}" STAGE="${STAGE:-540}" BATCH="${BATCH:-64}" PEAK="${PEAK:-989e12}"
SHAPE="${SHAPE:--e 4x6x384 -t 256 -b 8}" PATTERNS="${PATTERNS:-t sppp l d}"
TRAIN="${TRAIN:-./train_gpt2}" TRAINER="${TRAINER:-./train_gpt2cu}"
TRAINER_FP32="${TRAINER_FP32:-./train_gpt2cu_fp32}"
export PATH="$PATH:/usr/local/cuda/bin"
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0 failed=0 skipped=0

holds() { # holds NAME COMMAND...: what it prints is in $work/out
    local name=$1 status
    shift
    "$@" >"$work/out" 2>&1
    status=$?
    if [ "$status" -eq 0 ]; then
        passed=$((passed + 1)) && echo "ok      $name"
        return
    fi
    failed=$((failed + 1))
    case $status in
    124 | 137) echo "FAILED  $name: took too long" ;;
    *) echo "FAILED  $name: exit status $status" ;;
    esac
    tail -n 40 "$work/out"
    return 1
}
check() { # check NAME PROGRAM...: as holds, within what is left of the stage
    local name=$1 left=$((deadline - SECONDS))
    if [ "$left" -le 0 ]; then
        skip "$name" "$STAGE s of this stage are over"
        return 1
    fi
    shift
    holds "$name" timeout -k 5 $((left < limit ? left : limit)) "$@"
}
skip() { skipped=$((skipped + 1)) && echo "skip    $1: $2"; }

# ----------------------------------------------------------------------------
# what is here

said() { # said NAME COMMAND...: what it prints of a version
    local name=$1 line
    shift
    line=$("$@" 2>/dev/null | grep -m 1 -E 'release|[Vv]ersion |MPI.*[0-9]')
    printf '%-18s%s\n' "$name" "${line:-not here}"
}
in_header() { # in_header NAME HEADER MACROS: the version that a library's header has
    printf '#include <%s>\nversion %s\n' "$2" "$3" | nvcc -x cu -E - | grep '^version'
}
environment() {
    local of=name,driver_version,memory.total,clocks.max.sm,power.limit
    echo "gpu               $(nvidia-smi --query-gpu=$of --format=csv,noheader | head -n 1)"
    echo "cpu               $(nproc --all) cores"
    said nvcc nvcc --version
    said cublas in_header cublas cublas_v2.h "CUBLAS_VER_MAJOR.CUBLAS_VER_MINOR.CUBLAS_VER_PATCH"
    said nccl in_header nccl nccl.h "NCCL_MAJOR.NCCL_MINOR.NCCL_PATCH"
    said mpi mpirun --version
    said ncu ncu --version
    said nsys nsys --version
    said compute-sanitizer compute-sanitizer --version
}

# ----------------------------------------------------------------------------
# builds, tests

stage_build() {
    limit=$STAGE check "build, bf16 and fp32" \
        make -j8 train_gpt2 train_gpt2cu train_gpt2cu_fp32 test_gpt2cu test_gpt2cu_fp32 \
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
    local tool trainer options
    # Libraries call what the driver may not have, and go on without: no error. Of the kernels ours,
    # as those of cuBLASLt take their time too.
    for tool in "memcheck --report-api-errors no" racecheck; do
        for trainer in "$TRAINER" "$TRAINER_FP32"; do
            for options in "-e 2x2x64 -t 72 -b 3 -x 3 -v 3 -m 1 -p sp -tp 2 -vp 0 -r 2" \
                "-e 2x2x128 -t 65 -b 2 -x 3 -v 0 -p t -tp 2 -vp 1"; do
                check "${tool%% *}, $trainer $options" compute-sanitizer --tool $tool \
                    --kernel-name kns=_kernel --error-exitcode 9 "$trainer" $options &&
                    cp "$work/out" "$work/ran" && holds "and all ran" grep '^s:3 ' "$work/ran"
            done
        done
    done
}

# ----------------------------------------------------------------------------
# numbers

# Of what the last program printed: median of a field over the updates after number $2.
median() {
    sed -nE "s/^s:([0-9]+) trl.* $1:([0-9.]+).*/\1 \2/p" "$work/out" |
        awk -v after="$2" '$1 > after { print $2 }' | sort -g |
        awk '{ x[NR] = $1 } END { print NR ? x[int((NR + 1) / 2)] : "nan" }'
}

near() { # near A B TOLERANCE: two files of 30 losses, and how far apart they are
    paste -d ' ' "$1" "$2" | awk -v tolerance="$3" '
        NF != 4 || $1 != $3 { exit }
        { d = $2 - $4; d = d < 0 ? -d : d; if (!(d <= worst)) worst = d }
        END { printf "        %d losses, at most %.1e apart\n", NR, worst
              exit !(NR == 30 && worst <= tolerance) }'
}

# losses_of FILE PROGRAM OPTIONS...
losses_of() {
    check "${*:2}" "${@:2}" && sed -nE 's/^s:([0-9]+) trl:([^ ]+).*/\1 \2/p' "$work/out" >"$1"
}

stage_cpu() {
    local pattern options comm=auto
    [ "$(nvidia-smi -L | grep -c .)" -gt 1 ] || comm=mpi
    for pattern in $PATTERNS; do
        options="$SHAPE -p $pattern -tp 2 -x 30 -v 0 -l 1e-3 -u 10"
        losses_of "$work/cpu" "$TRAIN" -fold 2 $options || continue
        losses_of "$work/fp32" "$TRAINER_FP32" -fold 2 $options &&
            holds "$pattern, fp32: its losses to 1e-4" near "$work/cpu" "$work/fp32" 1e-4 &&
            cat "$work/out"
        losses_of "$work/bf16" "$TRAINER" -fold 2 $options &&
            holds "$pattern, bf16: its losses to 2e-2" near "$work/cpu" "$work/bf16" 2e-2 &&
            cat "$work/out"
        if ! command -v mpirun >/dev/null; then
            skip "$pattern, two processes" "no mpirun here"
            continue
        fi
        losses_of "$work/two" mpirun -n 2 --bind-to none "$TRAINER_FP32" $options -cm $comm &&
            holds "$pattern, two processes, fp32: to 1e-4" near "$work/cpu" "$work/two" 1e-4 &&
            cat "$work/out"
    done
}

# Random tokens of GPT-2's vocabulary, and a text for each: speed does not depend on what they say.
random_data() {
    python3 - "$work" <<'PY'
import array, random, struct, sys
random.seed(1)
n = 4 << 20
with open(sys.argv[1] + "/tokens.bin", "wb") as file:
    file.write(struct.pack("<256i", 20240520, 1, n, *[0] * 253))
    array.array("H", (random.randrange(50257) for _ in range(n))).tofile(file)
with open(sys.argv[1] + "/tokenizer.bin", "wb") as file:
    file.write(struct.pack("<256i", 20240328, 2, 50257, 50256, *[0] * 252))
    for i in range(50257):
        word = b"%d " % i
        file.write(bytes([len(word)]) + word)
PY
    random="-i $work/tokens.bin -j $work/tokens.bin -e d12 -t 1024"
}

# lines_of FILE OPTIONS...: of 20 updates, without times
lines_of() {
    check "124M, 20 updates, ${*:2}" "$TRAINER" $random -b 16 -x 20 -v 0 "${@:2}" &&
        sed -nE '/^s:/ { s/ ms:.* ar:/ ar:/; s/ comm:.*//; p }' "$work/out" >"$1"
}

same_lines() { [ "$(wc -l <"$work/first")" = 20 ] && cmp "$work/first" "$work/second"; }

stage_bits() {
    local options
    random_data
    for options in "-p t -tp 1" "-p sppp -tp 2 -fold 2" "-p l -tp 2 -fold 2 -vp 0"; do
        lines_of "$work/first" $options && lines_of "$work/second" $options &&
            holds "the same again" same_lines
    done
}

stage_train() {
    local run pattern shape expected last text
    text=$(head -n 1 data/shakespeare_char/source.txt 2>/dev/null)
    echo "        text: ${text:-unknown}"
    [ "${text#tinyshakespeare}" != "$text" ] || echo "        another text: losses are not compared"
    # Expected: dev/results, means of three seeds on the CPU; of 6x6x384 only that it does better.
    for run in "t 4x4x128 1.898" "s 4x4x128 1.883" "sppp 4x4x128 1.871" "p 4x4x128 1.890" \
        "t 6x6x384" "s 6x6x384" "spp 6x6x384" "p 6x6x384"; do
        set -- $run # six blocks are no multiple of sppp: spp there
        pattern=$1 shape="$2 -t 64 -b 12 -x 2000" expected=${3:-}
        [ "$2" = 4x4x128 ] || shape="$2 -t 256 -b 64 -x 5000"
        check "train $shape -p $pattern" "$TRAINER" -e $shape -p "$pattern" -tp 2 -vp 0 -l 1e-3 \
            -q 0.1 -u 100 -b2 0.99 -c 0.1 -v 250 -m -1 || continue
        sed -nE 's/^s:[0-9]+ tel:(.*)/\1/p' "$work/out" >"$work/losses"
        last=$(tail -n 1 "$work/losses") lowest=$(sort -g "$work/losses" | head -n 1)
        echo "        $pattern: validation loss $last, lowest $lowest," \
            "$(median ms 50) ms per update"
        [ "${text#tinyshakespeare}" != "$text" ] || continue
        if [ -n "$expected" ]; then
            holds "within 0.03 of $expected" awk "BEGIN {
                d = $last - $expected; exit !(d <= 0.03 && d >= -0.03) }"
        else
            holds "lowest below 1.7" awk "BEGIN { exit !($lowest < 1.7) }"
        fi
    done
}

# ----------------------------------------------------------------------------
# times

stage_speed() {
    local run ms T=1024 options
    random_data
    echo "        pattern R | ms per update | tokens/s | MFU (6 N + 6 L C T FLOP per token, as" \
        "llm.c counts) | MiB"
    # 12 heads: R may be 2, 3, 4, 6 or 12
    for run in "t 1" "t 1 -ms 8" "t 2" "t 2 -vp 1" "s 2" "sppp 2" "p 2" "l 2" "d 2" "t 4" "sppp 4" \
        "sppp 6"; do
        set -- $run
        options="-vp 0 ${*:3}"
        check "speed -p $1 -tp $2 $options, B $BATCH" "$TRAINER" $random -b "$BATCH" -x 40 -v 0 \
            -p "$1" -tp "$2" -fold "$2" $options || continue
        grep '^# products' "$work/out"
        ms=$(median ms 15)
        sed -n 's/^# memory_MiB//p' "$work/out" |
            awk -v p="$1" -v R="$2" -v ms="$ms" -v B="$BATCH" -v T=$T -v peak="$PEAK" '{
            MiB = $2 + $4 + $6 + $8
            tokens = B * T / ms * 1e3; flops = 6 * 124475904 + 6 * 12 * 768 * T
            printf "        %-5s %d | %8.2f | %9.0f | %5.1f%% | %6.0f\n", p, R, ms, tokens,
                   100 * tokens * flops / peak, MiB }'
    done
}

# Both ranks on one GPU, with a network between them that is emulated: 100 us and 200 Gbit/s.
stage_hide() {
    local pattern alone
    random_data
    echo "        pattern | ms alone | with the network | its all-reduces | of which waited for"
    for pattern in t sppp l d; do
        alone="$random -b 16 -x 30 -v 0 -p $pattern -tp 2 -fold 2 -vp 0"
        check "-p $pattern" "$TRAINER" $alone || continue
        median ms 10 >"$work/alone"
        check "-p $pattern, network" "$TRAINER" $alone -nl 100 -nb 200 || continue
        echo "$(cat "$work/alone") $(median ms 10) $(median comm 10) $(median ar 10)" \
            "$(median mb 10)" | awk -v p="$pattern" '{
            ms = ($4 * 2 * 100 + $5 * 1048576 * 8 / 200e3) / 1e3
            printf "        %-5s | %8.2f | %8.2f | %8.2f | %8.2f\n", p, $1, $2, ms, $3 }'
    done
}

# 124M's blocks with random weights. cuBLASLt may take other algorithms for a check of several
# tokens than for one, so the texts need not be equal: it is said.
stage_text() {
    local run same
    random_data
    for run in "-gt 0" "-gt 0.8" "-gt 0.8 -gk 50"; do
        check "text of GPT-2's vocabulary, $run" "$TRAINER" $random -tk "$work/tokenizer.bin" -x 0 \
            -g 200 -gp "" -p t -tp 1 $run && echo "        $(grep -a '^g:' "$work/out")"
    done
    for run in "-p t -tp 1" "-p t -tp 1 -sd 4 -sp t" "-p t -tp 2 -fold 2" \
        "-p t -tp 2 -fold 2 -sd 4 -sp p" "-p p -tp 2 -fold 2"; do
        check "text, $run" "$TRAINER" -x 0 -e 12x12x768 -t 1024 -g 500 -gt 0 -gp "ROMEO:" $run
        sed -n '/^--- sample/,/^---$/p' "$work/out" >"$work/text"
        same=""
        if [ "$run" = "${run#*-sd}" ]; then
            cp "$work/text" "$work/plain"
        elif cmp -s "$work/text" "$work/plain"; then
            same="| the text without drafts"
        else
            same="| another text than without drafts"
        fi
        echo "        $(grep -a '^g:' "$work/out") $same"
    done
}

# ----------------------------------------------------------------------------

every="build test cpu bits speed hide text train sanitize"
stage=${1:-}
case " $every all " in
*" $stage "*) stages=${stage/#all/$every} ;;
*)
    echo "usage: dev/cuda/gpu_check.sh ${every// /|}|all" >&2
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
    echo "date              $(date -u +%Y-%m-%dT%H:%MZ)"
    echo "commit            $(git rev-parse --short HEAD 2>/dev/null || echo unknown)"
    echo "command           BATCH=$BATCH PEAK=$PEAK dev/cuda/gpu_check.sh $stage"
    environment
} | tee "$report"
for s in $stages; do
    echo "== $s" | tee -a "$report"
    begin=$SECONDS deadline=$((SECONDS + STAGE)) limit=300
    exec {out}> >(tee -a "$report"); tee=$!
    "stage_$s" >&$out 2>&1
    exec {out}>&-; wait $tee # its lines come before the next
    echo "   $s took $((SECONDS - begin)) s" | tee -a "$report"
done
echo "gpu_check: $passed passed, $failed failed, $skipped skipped" | tee -a "$report"
[ "$failed" -eq 0 ]
