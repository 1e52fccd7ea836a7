#!/usr/bin/env bash
# Tests of dev/net/plan, on a made-up log whose answer is worked out by hand; of
# dev/net/bench_allreduce; and of the comparison of replicated tensors between
# processes. Times are not tested.
#
# Prints `ok <name>`, `FAILED <name>: <why>` or `skip <name>: <reason>`, then `test_plan:
# N passed, N failed, N skipped`.
set -u
export LC_ALL=C OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 \
    OMPI_MCA_mpi_yield_when_idle=1
export OMPI_MCA_btl_vader_single_copy_mechanism=none
W=$(mktemp -d) || exit 1
trap 'rm -rf "$W"' EXIT
passed=0 failed=0 skipped=0
check() { # check NAME TEXT...: what the last command printed to $W/out holds every TEXT
    local name=$1 text why=; shift
    for text in "$@"; do
        grep -qE -e "$text" "$W/out" || why="no '$text' in: $(head -c 600 "$W/out")"
    done
    if [ -z "$why" ]; then
        echo "ok $name"; passed=$((passed + 1))
    else
        echo "FAILED $name: $why"; failed=$((failed + 1))
    fi
}

# 4x4x128, R 2, 12 x 64 tokens: a merge moves 12*64*128*4 = 393,216 bytes. With 1 ms per hop and
# 1 Gbit/s it takes 2*1 + 8*393216/1e6 = 5.146 ms.
# Partial gradients: 4 blocks * 6 tensors * 128 * 4 bytes = 12,288 bytes, 2.098 ms.
# l: as t, but 7 of 8 are hidden behind 25/8/3 = 1.04 ms forward, 2.08 backward: 60.5 + 2.1.
# t: 16 merges, 82.3 + 2.1; s: 8, 41.2 + 2.1; sppp: 4, 20.6 + 2.1; p: 2, 10.3 + 2.1.
# Compute is 25.2 - 0.2 = 25 ms.
{
    printf '# %s\n' "-p t" "-tp 2" "-pm sum" "-b 12" "-t 64" "-d 768" "-nl 0" "-nb 0" "-vp 0" \
        "shape L 4 NH 4 C 128 V 65 Vp 128 maxT 64" "update 768 tokens = 1 micro-batches of 12 x 64"
    for s in 1 2 3 4 5 6 7 8; do
        echo "s:$s trl:4.178082 lr:1.000000e-05 norm:4.962334 ms:25.2 tok:38788 ar:16 mb:6.00" \
            "comm:0.2"
    done
} >"$W/main.log"
echo "# the planner: broken by a wrong count of merges, a hop or a byte too many, or the" \
    "measured run's own waits left in"
dev/net/plan "$W/main.log" 1000 1 70 >"$W/out" 2>&1
check "plan: the known answer" '^t +8 +16 +6\.00 +25\.0 +84\.4 +109\.4 ' \
    '^s +4 +8 +3\.00 +25\.0 +43\.3 +68\.3 ' \
    '^sppp +2 +4 +1\.50 +25\.0 +22\.7 +47\.7 ' '^p +1 +2 +0\.75 +25\.0 +12\.4 +37\.4 +65\.8%' \
    '^l +8 +16 +6\.00 +25\.0 +62\.6 +87\.6 '
check "plan: the budget is met by the pattern with the most merges" \
    '^budget 70 ms .*s.* with 4 merges and 68\.3 ms'
dev/net/plan "$W/main.log" 1000 1 5 >"$W/out" 2>&1
check "plan: a budget that nothing meets names the cheapest" '^budget 5 ms.*p'
dev/net/plan "$W/missing.log" 1000 1 >"$W/out" 2>&1
check "plan: a missing log is an error" '^error: .*missing.log'
sed '/shape/d' "$W/main.log" >"$W/cut.log"
dev/net/plan "$W/cut.log" 1000 1 >"$W/out" 2>&1
check "plan: a log without its shape is an error" '^error: .*cut.log.*shape'
dev/net/plan "$W/main.log" fast 1 >"$W/out" 2>&1
check "plan: a latency that is no number is an error" "^error: .*fast"

if ! command -v mpirun >/dev/null || ! ldd dev/test/train_faulty | grep -q 'libmpi[._]'; then
    echo "skip processes: install libopenmpi-dev openmpi-bin and make again"
    skipped=2
else
    echo "# broken by wrong sums, or by a fit that is no option"
    mpirun --oversubscribe -n 2 dev/net/bench_allreduce >"$W/out" 2>&1
    check "bench_allreduce: sums are right, the fit is printed as options" 'sums checked' \
        '^-nl [0-9.]+ -nb [0-9.]+'
    echo "# broken when copies of a replicated tensor may differ without a word"
    data="-i $W/text.bin -e 2x2x16 -t 16 -b 2 -v 0 -x 3"
    python3 -c "
import struct
open('$W/text.bin', 'wb').write(
    struct.pack('<256i', 20240520, 1, 500, 27, *[0] * 252) +
    bytes(b for i in range(500) for b in (i * 7 % 27, 0)))"
    # shellcheck disable=SC2086 # the arguments are words
    { mpirun --oversubscribe -n 2 dev/test/train_faulty $data && echo "well without a fault"
      PLANTED_FAULT=REPLICA_DRIFTS mpirun --oversubscribe -n 2 dev/test/train_faulty $data ||
          echo "stopped with it"
      } >"$W/out" 2>&1
    check "a replica that drifts is found after the update" 'well without a fault' \
        'stopped with it' \
        'error: rank 1: after update 1 .*replicated tensors differs'
fi
echo "test_plan: $passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
