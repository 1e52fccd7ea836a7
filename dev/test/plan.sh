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
. "$(dirname "$0")/verdicts.sh"

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
# The sum of partial gradients is in `ms`, not in `comm`: a network's share is not compute.
{ sed 's/ ms:25.2/ ms:28.2/' "$W/main.log"
  echo "# gradients per update: 1 all-reduces, 0.017578 MiB, 3.0000 ms"; } >"$W/gradients.log"
dev/net/plan "$W/gradients.log" 1000 1 >"$W/out" 2>&1
check "plan: what partial gradients took is not counted twice" \
    '^t +8 +16 +6\.00 +25\.0 +84\.4 +109\.4 '
# p.ppp sums as often as ppp.p and pp. do, at another place; pppp. is p over 4 blocks.
dev/net/plan "$W/main.log" 1000 1 0 p.ppp ppp.p pppp. >"$W/out" 2>&1
! grep -q '^p  ' "$W/out" || echo "p twice" >"$W/out"
check "plan: patterns with as many merges at other places" '^pp\. +2 ' '^p\.ppp +2 ' '^ppp\.p +2 '
# In bf16 a merge moves half of that: 2 + 1.573 ms, 16 of them 57.166; gradients stay fp32, 2.098.
{
    echo "# device A GPU, compute capability 9.0, CUDA 13.0, precision bf16, all-reduce by NCCL"
    sed 's/mb:6.00/mb:3.00/' "$W/main.log"
} >"$W/bf16.log"
dev/net/plan "$W/bf16.log" 1000 1 >"$W/out" 2>&1
check "plan: a log of bf16" '^t +8 +16 +3\.00 +25\.0 +59\.3 +84\.3 '
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
sed -i 's/: 3 all-red.*/: nan all-reduces, nan MiB, nan ms/' "$W/vocabulary.log"
dev/net/plan "$W/vocabulary.log" 1000 1 >"$W/out" 2>&1
check "plan: sums of a cut vocabulary that are no numbers" '^error: .*executed nan all-reduces'
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
sed '/^s:/ s/$/ kd:0.0312/' "$W/main.log" >"$W/taught.log"
dev/net/plan "$W/taught.log" 1000 1 >"$W/out" 2>&1
check "plan: a log whose times hold a teacher's is an error" '^error: .*taught.log: .* with -kd,'
{ cat "$W/taught.log"; echo "# -i text.bin"; cat "$W/main.log"; } >"$W/again.log"
dev/net/plan "$W/again.log" 1000 1 >"$W/out" 2>&1
check "plan: and not where an earlier run had one" '^t +8 +16 +6\.00 +25\.0 +84\.4 +109\.4 '
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
# Beside updates a short sample, or one with drafts, is a look at the text.
{ cat "$W/main.log"; echo "${sample/new:200/new:10}"; } >"$W/look.log"
dev/net/plan "$W/look.log" 1000 1 >"$W/out" 2>&1
check "plan: updates of a run with a short sample" '^t +8 +16 +6\.00 +25\.0 +84\.4 +109\.4 '
{ sed 's/^# -vp 0/&\n# -sd 4\n# -sp p/' "$W/main.log"
  sed -n '/^# mesh/{s/TP 4/TP 2/; s/runs 4/runs 2/; p}' "$W/tokens.log"
  echo "${sample/ar:8/ar:3.01508} rounds:50 drafted:200 accepted:149 mean:2.2"; } >"$W/look.log"
dev/net/plan "$W/look.log" 1000 1 >"$W/out" 2>&1
check "plan: updates of a run with -sd" '^t +8 +16 +6\.00 +25\.0 +84\.4 +109\.4 '
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

# Drafts for the same model, -sd 3 -sp p: 38 = 27 (a + a^2 + a^3) accepted in 27 rounds is a = 2/3.
# Of 65 tokens 38 are drafts and 27 from checks. Half of a token is all-reduces, so compute is
# 65 * 4 = 260 ms, as of 130 passes of 2 ms: 27 checks and 81 drafts, and 22/81 = 0.271605 for each
# draft that is checked, 0.543 ms. A round with K is
# K (2 + 6.036864) + 2 + 0.543210 K + 8 (6 + 0.036864 (K + 1)) = 50.294912 + 8.874986 K ms
# for 5/3, 19/9, 65/27, 211/81 tokens with K 1 to 4.
# Apart 3 (0.503731 + 6.036864) + 0.503731 * 1.814815 + 49.179648 = 69.715611 with K 3.
drafts() { # drafts NAME K PATTERN NEW ROUNDS ACCEPTED ALLREDUCES MEAN: makes the log NAME.log
    sed -e "s/^# -t 64/# -t 128\n# -gt 0.8\n# -sd $2\n# -sp $3/" -e "/^g:/d" "$W/tokens.log"
    echo "g:0 new:$4 prompt:6 prompt_ms:9.0 ms:6.000 p99:9.000 comm:3.000 ar:$7" \
        "rounds:$5 drafted:$(($2 * $5)) accepted:$6 mean:$8"
} >"$W/$1.log"
# planned LOG...: of $W, without the ending, behind that of tokens, into $W/out.
planned() {
    local logs=() name
    for name in "$@"; do logs+=("$W/$name.log"); done
    dev/net/plan "${logs[@]}" 1000 1 >"$W/out" 2>&1
}
echo "# drafts: broken by a wrong share accepted, by a check that computes or moves what a single" \
    "token does, or by its time counted once per draft"
drafts thirds 3 p 66 27 38 4.56923 8.000
planned tokens thirds
check "drafts: the known answer" '-p t -sd 3 -sp p -gt 0\.8: 27 rounds, 38 of 81 accepted' \
    '^check: +2\.000 ms of compute, and 0\.543 more for each draft' \
    '^p +0\.667 +1 +1\.667 +5\.40 +35\.502 ' '^p +0\.667 +2 +2\.111 +4\.74 +32\.232 ' \
    '^p +0\.667 +3 +2\.407 +4\.57 +31\.951 +36\.5% +31\.3 +28\.959 +34\.5 *$' \
    '^p +0\.667 +4 +2\.605 +4\.61 +32\.935 ' \
    '^best: -sd 3 -sp p, 31\.951 ms per token; t without drafts 50\.295$' \
    '^best apart: -sd 3 -sp p, 28\.959 ms per token; t without drafts 48\.799$' \
    '^sppp +2 +2\.000 +12\.074 +14\.074 '
drafts one 8 p 91 10 80 1.77778 8.000
planned tokens one
check "drafts that are all accepted: the most pay most" '^p +1\.000 +8 +9\.000 +1\.78 ' \
    '^best: -sd 8 -sp p'
# A round of one: 2 + 6.036864 + 2 + 8 (6 + 2 * 0.036864).
drafts none 1 p 31 30 0 9 4.000
planned tokens none
check "drafts that are never accepted do not pay" \
    '^check: .* and 0\.000 more' '^p +0\.000 +1 +1\.000 +9\.00 +58\.627 +-16\.6%' \
    '^drafts do not pay here: 58\.627 ms per token at best, -sd 1 -sp p; t without 50\.295$'
# 6 + 19 = 20 a + 20 (a + a^2) is a = 1/2. Left are 26 * 2 - 40 = 12 passes of checks of one draft,
# and 39 * 2 - 60 = 18 of two, for 20 each: 0.6 and 0.9, so 0.3 once and 0.3 for each draft. With
# 26 * 1.6 - 40 = 1.6 a line would begin below 0: 19.6 passes for 60 drafts are 0.326667.
# A round of two takes 2 * 8.036864 + 2 * 1.9 + 48.884736 = 68.758464 ms.
drafts pool1 1 p 27 20 6 6.92308 8.000
drafts pool2 2 p 40 20 19 5.12821 8.000
drafts other 1 s 36 20 15 6.85714 8.000
planned tokens pool1 pool2
check "drafts: two logs of one pattern are one estimate" '^p +0\.500 +2 +1\.750 +5\.71 +39\.291 ' \
    '^check: +2\.600 ms of compute, and 0\.600 more'
sed -i 's/mean:8.000/mean:6.400/' "$W/pool1.log"
planned tokens pool1 pool2
check "drafts: a check computes no less than a pass" '^check: +2\.000 ms .* and 0\.653 more'
planned tokens pool1 other pool2
check "drafts: each pattern has its own" '^p +0\.500 +2 +1\.750 ' '^s +0\.750 +1 +1\.750 +6\.86 '
# Before the last token 71 are there. A window of 47 begins anew before 48, with 24 in one pass: 22
# passes for 81 + 23. The next would before 72, one of 46 does before 70.
for length in 47 46; do
    sed "s/^# -t 128/# -t $length/" "$W/thirds.log" >"$W/window$length.log"
    planned tokens window$length
    mv "$W/out" "$W/out$length"
done
cat "$W"/out4[67] >"$W/out"
check "drafts: a window that begins anew, once or twice" '^check: .* and 0\.423 more' \
    '^check: .* and 0\.346 more'
# Beside 20 checks that have 0.9 left each, 27 and a window have 22/28, though they are longer.
planned tokens window47 pool2
check "drafts: more tokens compute no less" '^check: +3\.667 ms of compute, and 0\.000 more'
# Besides 27 + 81 embeddings, 81 + 65 tokens drawn. A draft takes 12.039984 ms more; a check 6 + 4 *
# 0.036864 and of 65/27 tokens 6.003120 each: 133.639234 ms for them.
sed -e 's/# -vp 0/# -vp 1/; s/mean:8/mean:14/' "$W/thirds.log" >"$W/thirds_cut.log"
echo "# vocabulary per token: 3.90769 all-reduces, 0.003178 MiB, 3.0000 ms" >>"$W/thirds_cut.log"
{ sed 's/# -vp 0/# -vp 1/; s/ ms:2.2/ ms:5.2/' "$W/tokens.log"
  echo "# vocabulary per token: 2 all-reduces, 0.003178 MiB, 3.0000 ms"; } >"$W/plain_cut.log"
planned plain_cut thirds_cut
check "drafts: the known answer with a cut vocabulary" '^p +0\.667 +3 +2\.407 +4\.57 +55\.512 '
# l hides 7 of 8 behind 1.814815 * 0.249378 ms: 3 * 8.036864 + 3.629630 + 46.011623 ms.
sed 's/^# -p t/# -p l/' "$W/tokens.log" >"$W/plain_l.log"
sed 's/^# -p t/# -p l/' "$W/thirds.log" >"$W/thirds_l.log"
planned plain_l thirds_l
check "drafts: a check hides as much as it computes" '^p +0\.667 +3 +2\.407 +4\.57 +30\.635 '
# undrafted NAME EDIT TEXT: the log with drafts, edited, is an error that holds the text.
undrafted() {
    sed -E "$2" "$W/thirds.log" >"$W/cut.log"
    planned tokens thirds cut
    check "drafts: $1 is an error" "^error: .*cut.log.*$3"
}
undrafted "another pattern" 's/^# -p t/# -p tt/' 'with -p tt, but .*tokens.log with t'
undrafted "another rule" 's/-pm sum/-pm mean/' 'with -pm mean, but .*tokens.log with sum'
undrafted "another shape" 's/NH 12/NH 4/' '4x4x768 .*tokens.log of 4x12x768'
undrafted "another temperature" 's/-gt 0.8/-gt 1/' 'with -gt 1, but .*thirds.log with 0\.8'
undrafted "ranks folded otherwise" 's/runs 4/runs 2/' '2 ranks in a process'
undrafted "a wrong count of all-reduces" 's/ar:4.5/ar:4.4/' '4\.46923 .*expected 4\.56923'
undrafted "more accepted than drafted" 's/accepted:38/accepted:82/' '82 were accepted'
undrafted "more drafted than asked for" 's/# -sd 3/# -sd 2/' '-sd 2 took 27 rounds, 81 drafts'
undrafted "no line -sp" '/^# -sp/d' '-sd 3, but no line'
undrafted "a log without rounds" 's/ rounds:.*//' 'rounds:'
undrafted "a text without drafts" 's/ar.*/ar:8 rounds:0 drafted:0 accepted:0 mean:8.0/' 'no drafts'
planned tokens thirds tokens
check "drafts: a second log without -sd is an error" '^error: .*tokens.log: measured without -sd'
planned thirds
check "drafts: no log without -sd is an error" \
    '^error: .*thirds.log: measured with -sd 3; expected before it the log of a run without -sd'
{ grep '^#' "$W/tokens.log"
  for s in 1 2 3; do echo "s:$s trl:4.1 lr:1e-5 ms:25.2 tok:38788 ar:16 mb:12.00 comm:0.2"; done
} >"$W/trained.log"
planned trained thirds
check "drafts: a log of updates alone before it is an error" '^error: .*trained.log: no sample'

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

if [ ! -x dev/test/train_faulty ]; then
    bad processes "no program dev/test/train_faulty; make it"
elif ! openmpi_is_here || ! ldd dev/test/train_faulty | grep -q 'libmpi[._]'; then
    skip processes "install libopenmpi-dev openmpi-bin and make again"
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
        'error: rank 1: after update 1 .*replicated tensors .* differs'
    echo "# broken when a sum's bits that differ between tensor ranks go on to the weights"
    for fault in NONE RANKS_SUM_APART; do
        # shellcheck disable=SC2086 # the arguments are words
        PLANTED_FAULT=$fault mpirun --oversubscribe -n 6 dev/test/train_faulty $data -tp 2 \
            >"$W/$fault" 2>&1 || echo "failed" >>"$W/$fault"
    done
    steps() { sed -nE 's/^(s:[0-9]+ trl:.* norm:[^ ]+).*/\1/p' "$1"; }
    { steps "$W/NONE"; diff <(steps "$W/NONE") <(steps "$W/RANKS_SUM_APART") && echo same
      grep -hE '^error|failed' "$W/NONE" "$W/RANKS_SUM_APART"; } >"$W/out" 2>&1
    check "three replicas of two ranks: the first one's bits count" '^s:3 ' '^same$'
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
