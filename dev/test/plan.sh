#!/usr/bin/env bash
# Tests of dev/net/plan, on made-up logs whose answers are worked out by hand; of
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
# A cut vocabulary: 2 sums of 393,216 bytes, one of 768*4 and one of twice that are 10.291 + 2.025 +
# 2.049 = 14.365 ms in every row, and (2*128 + 3)*768*4 bytes are 0.758789 MiB.
{ sed 's/# -vp 0/# -vp 1/; s/ ms:25.2/ ms:28.2/' "$W/main.log"
  echo "# vocabulary per update: 4 all-reduces, 0.758789 MiB, 3.0000 ms"; } >"$W/vocabulary.log"
dev/net/plan "$W/vocabulary.log" 1000 1 >"$W/out" 2>&1
check "plan: the known answer with a cut vocabulary" 'the cut vocabulary 14\.4 ms$' \
    '^t +8 +16 +6\.00 +25\.0 +98\.8 +123\.8 ' '^p +1 +2 +0\.75 +25\.0 +26\.8 +51\.8 '
sed -i 's/4 all-red/3 all-red/' "$W/vocabulary.log"
dev/net/plan "$W/vocabulary.log" 1000 1 >"$W/out" 2>&1
check "plan: sums of a cut vocabulary that are not the trainer's" \
    '^error: .*executed 3 all-reduces of 0\.758789 MiB per update, expected 4 of 0\.758789'
dev/net/plan "$W/main.log" 1000 1 5 >"$W/out" 2>&1
check "plan: a budget that nothing meets names the cheapest" '^budget 5 ms.*p'
# With -pe the updates of t are 5 of 8; those of p, and the last, have other times and all-reduces.
sed -E '/^s:/ s/$/ pe:t/; /^s:[368]/ { s/ms:25.2/ms:95.2/; s/ar:16 mb:6.00/ar:2 mb:0.75/; s/t$/p/ }
    ' "$W/main.log" >"$W/drawn.log"
dev/net/plan "$W/drawn.log" 1000 1 >"$W/out" 2>&1
check "plan: of a run with -pe the updates of its own pattern" \
    '^t +8 +16 +6\.00 +25\.0 +84\.4 +109\.4 ' '^p +1 +2 +0\.75 +25\.0 +12\.4 +37\.4 '
for most in 2 0; do
    awk -v most=$most '!/ pe:t$/ || ++n <= most' "$W/drawn.log" >"$W/few.log"
    dev/net/plan "$W/few.log" 1000 1
done >"$W/out" 2>&1
check "plan: a run with -pe that drew its own pattern too seldom is an error" \
    '^error: .*few.log: 2 updates of -p t in the last run, expected at least 3' \
    '^error: .*few.log: neither updates nor samples of -p t in the last run'
dev/net/plan "$W/missing.log" 1000 1 >"$W/out" 2>&1
check "plan: a missing log is an error" '^error: .*missing.log'
sed '/shape/d' "$W/main.log" >"$W/cut.log"
dev/net/plan "$W/cut.log" 1000 1 >"$W/out" 2>&1
check "plan: a log without its shape is an error" '^error: .*cut.log.*shape'
dev/net/plan "$W/main.log" fast 1 >"$W/out" 2>&1
check "plan: a latency that is no number is an error" "^error: .*fast"

# Tokens of GPT-2's width: 4x12x768, R 4 in one process, V 65, 1 ms per hop, 1 Gbit/s. A merge of a
# token is 6*1 + 2*3/4 * 8*3072/1e6 = 6.036864 ms. Compute is 2.2 - 0.2 = 2 ms.
# Weights: in blocks 4*(12*768*768 + 7*768) are cut, 28,333,056; whole are 4*6*768 of their vectors,
# 768 of wpe, 65*768 of wte, 2*768 of lnf: 70,656. Apart a rank reads
# (28333056/4 + 70656) / (28333056 + 70656) = 0.251866 of them: 0.503731 ms.
# t: 8 merges, 48.295 + 2; s: 24.147 + 2; sppp: 12.074 + 2; p: 6.037 + 2.
# l: 7 of 8 are hidden behind 2*28333056/28403712/8 = 0.249378 ms: 48.295 - 1.746 + 2.
# Apart 0.062345 of these, 0.436 of 7.
sample="g:0 new:200 prompt:6 prompt_ms:9.0 ms:2.200 p99:3.000 comm:0.200 ar:8"
{
    printf '# %s\n' "-p t" "-tp 4" "-pm sum" "-b 4" "-t 64" "-d 256" "-nl 0" "-nb 0" "-vp 0" \
        "shape L 4 NH 12 C 768 V 65 Vp 128 maxT 64" "update 256 tokens = 1 micro-batches of 4 x 64"
    echo "# mesh 1 process = DP 1 x TP 4, of which each process runs 4 tensor ranks, 1 thread each"
    echo "$sample"
} >"$W/tokens.log"
echo "# tokens: broken by a backward pass, a batch, the gradients' sum or the head in what is" \
    "counted"
dev/net/plan "$W/tokens.log" 1000 1 26.2 >"$W/out" 2>&1
check "tokens: the known answer" \
    '^t +8 +2\.000 +48\.295 +50\.295 +0\.0% +19\.9 +48\.799 +20\.5 *$' \
    '^s +4 +2\.000 +24\.147 +26\.147 +48\.0% +38\.2 +24\.651 +40\.6 *$' \
    '^sppp +2 +2\.000 +12\.074 +14\.074 +72\.0% +71\.1 +12\.577 +79\.5 *$' \
    '^p +1 +2\.000 +6\.037 +8\.037 +84\.0% +124\.4 +6\.541 +152\.9 *$' \
    '^l +8 +2\.000 +46\.549 +48\.549 +3\.5% +20\.6 +48\.362 ' \
    '^apart: +0\.504 ms .*0\.252 of the weights'
check "tokens: the budget" '^budget 26\.2 ms per token: s, sp with 4 merges and 26\.147 ms'
# A cut vocabulary: sums of 768 and of 65 elements, 6.036864 + 6.003120 ms, in every row. The 49,920
# of wte are cut too: (28333056/4 + 49920/4 + 20736) / 28403712 = 0.250548 of the weights.
{ sed 's/# -vp 0/# -vp 1/; s/ ms:2.2/ ms:5.2/' "$W/tokens.log"
  echo "# vocabulary per token: 2 all-reduces, 0.003178 MiB, 3.0000 ms"; } >"$W/vocabulary.log"
dev/net/plan "$W/vocabulary.log" 1000 1 >"$W/out" 2>&1
check "tokens: the known answer with a cut vocabulary" 'the cut vocabulary 12\.040 ms' \
    '^t +8 +2\.000 +60\.335 +62\.335 .* 60\.836 ' '^s +4 +2\.000 +36\.187 +38\.187 ' \
    '^apart: +0\.501 ms .*0\.251 of the weights'
# Two samples more: their median; the first is of ranks apart already, and waited on a network.
sed -e 's/runs 4 tensor ranks/runs 1 tensor rank/' -e 's/# -nl 0/# -nl 1000/' \
    -e 's/ms:2.200 p99:3.000 comm:0.200/ms:50.0 p99:60 comm:48.0/' "$W/tokens.log" >"$W/apart.log"
printf '%s\n' "${sample/ms:2.200/ms:2.000}" "${sample/ms:2.200/ms:9.000}" >>"$W/apart.log"
dev/net/plan "$W/apart.log" 1000 1 >"$W/out" 2>&1
check "tokens: ranks apart, three samples" '3 samples of 200 tokens' \
    '^t +8 +2\.000 +48\.295 +50\.295 +0\.0% +19\.9 *$'
cat "$W/main.log" >"$W/both.log"
grep -E '^(# mesh|g:)' "$W/tokens.log" | sed 's/TP 4\(.*\) 4 t/TP 2\1 2 t/' >>"$W/both.log"
dev/net/plan "$W/both.log" 1000 1 >"$W/out" 2>&1
check "updates and samples give both tables" '^t +8 +16 +6\.00 +25\.0 +84\.4 +109\.4 ' \
    '^t +8 +2\.000 +16\.033 +18\.033 '
# refused NAME EDIT TEXT: the log of tokens, edited, is an error that holds the text.
refused() {
    sed -E "$2" "$W/tokens.log" >"$W/cut.log"
    dev/net/plan "$W/cut.log" 1000 1 >"$W/out" 2>&1
    check "tokens: $1 is an error" "^error: .*cut.log.*$3"
}
refused "a log with neither" '/^g:/d' 'neither updates nor samples'
refused "a short sample" 's/new:200/new:15/' '15 tokens .*expected at least 16'
refused "another count of all-reduces" 's/ar:8/ar:9/' '9 all-reduces per token, expected 8'
refused "a log without its mesh" '/mesh/d' 'mesh'
refused "a mesh that R does not fit" 's/runs 4/runs 3/' 'divides -tp 4'
refused "waits longer than the time" 's/comm:0.2/comm:2.2/' 'more than 0'
refused "a cut vocabulary" 's/# -vp 0/# -vp 1/' '-vp 1.*embedding and head'

echo "# networks by name: broken by names whose numbers are not those of --help"
dev/net/plan --help >"$W/help" 2>&1
for name in nvlink pcie 10gbe 1gbe wifi pi5 laptops; do
    numbers=$(sed -nE "s/^ +$name +-nl ([0-9.]+) -nb ([0-9.]+)$/\1 \2/p" "$W/help")
    dev/net/plan "$W/both.log" --network $name 70 tpps >"$W/named" 2>&1
    # shellcheck disable=SC2086 # two words
    dev/net/plan "$W/both.log" $numbers 70 tpps >"$W/numbers" 2>&1
    { echo "numbers: $numbers"; diff "$W/named" "$W/numbers" && echo same; } >"$W/out" 2>&1
    check "--network $name" '^numbers: [0-9.]+ [0-9.]+$' '^same$'
done
# 2 * 174 us + 8*2780/1e3 us, and of 3,072 bytes 2 * 174 + 24.576.
sed 's/-tp 4/-tp 2/; s/TP 4/TP 2/; s/runs 4/runs 2/' "$W/tokens.log" >"$W/two.log"
dev/net/plan --network pi5 "$W/two.log" >"$W/out" 2>&1
check "an all-reduce of two Raspberry Pi is 0.37 ms" 'of a token takes 0\.373 ms' \
    '^p +1 +2\.000 +0\.373 '
dev/net/plan --network laptops "$W/two.log" >"$W/out" 2>&1
check "and of two laptops 2.2 ms" 'of a token takes 2\.191 ms'
dev/net/plan "$W/main.log" --network lan >"$W/out" 2>&1
check "a name that is none is an error" "^error: .*'lan'.* nvlink pcie 10gbe 1gbe wifi pi5 laptops"
dev/net/plan "$W/main.log" --network >"$W/out" 2>&1
check "a missing name is an error" "^error: --network"

if ! command -v mpirun >/dev/null || ! ldd dev/test/train_faulty | grep -q 'libmpi[._]'; then
    echo "skip processes: install libopenmpi-dev openmpi-bin and make again"
    skipped=3
else
    echo "# broken by wrong sums, or by a fit that is no option"
    mpirun --oversubscribe -n 2 dev/net/bench_allreduce >"$W/out" 2>&1
    check "bench_allreduce: sums are right, the fit is printed as options" 'sums checked' \
        '^ +3072 +[0-9]+( +[0-9.]+){8}$' '^-nl [0-9.]+ -nb [0-9.]+'
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
    echo "# broken when replicas may draw patterns of their own without a word"
    losses() { sed -nE 's/^s:[0-9]+ trl:([^ ]+).*/\1/p' "$1" | tr '\n' ' '; }
    data+=" -pe p -d 64 -rs 5"
    # shellcheck disable=SC2086 # the arguments are words
    { dev/test/train_faulty $data -b 4 >"$W/one"
      mpirun --oversubscribe -n 2 dev/test/train_faulty $data -fold 2 >"$W/two"
      PLANTED_FAULT=PATTERN_PER_REPLICA mpirun --oversubscribe -n 2 dev/test/train_faulty $data \
          -fold 2 >"$W/three"
      python3 - "$(losses "$W/one")" "$(losses "$W/two")" "$(losses "$W/three")" <<'PY'
import sys
one, two, three = ([float(x) for x in arg.split()] for arg in sys.argv[1:])
far = lambda a, b: max(abs(x - y) for x, y in zip(a, b)) if len(a) == len(b) else 9
print("%d updates, apart by %.6f and %.6f" % (len(one), far(one, two), far(one, three)))
print("seen" if len(one) == 3 and far(one, two) <= 1e-5 < far(one, three) else "not seen")
PY
      } >"$W/out" 2>&1
    check "a replica with another pattern is found by its losses" '^seen$'
fi
echo "test_plan: $passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
