#!/usr/bin/env bash
# Tests of dev/runs/sweep, dev/runs/report and dev/runs/plot.sh, on tiny models and made-up tables.
# The report's statistics are compared with values worked out by hand and with a printed table of
# Student's t. Times are not tested.
#
#   make train_gpt2 dev/net/plan dev/runs/sweep dev/runs/report && dev/test/sweep.sh
#   SWEEP=dev/runs/sweep_asan REPORT=dev/runs/report_asan dev/test/sweep.sh
#
# Prints `ok <name>`, `FAILED <name>: <why>` or `skip <name>: <reason>`, then
# `test_sweep: N passed, N failed, N skipped`.
set -u
export LC_ALL=C OMP_NUM_THREADS=1
unset TRAINER LAUNCH DATA GPUS SHOW
cd "$(dirname "$0")/../.." || exit 1
root=$PWD SWEEP=${SWEEP:-dev/runs/sweep} REPORT=${REPORT:-dev/runs/report}
W=$(mktemp -d) || exit 1
trap 'rm -rf "$W"' EXIT
. dev/test/verdicts.sh
field() { # field NAME TABLE: a column
    awk -F'\t' -v name="$1" '
        NR == 1 { for (i = 1; i <= NF; i++) if ($i == name) c = i; next }
        { print $c }' "$2"
}
# A table without what differs from time to time, in an order of its own.
rows() {
    awk -F'\t' -v OFS='\t' '
        NR == 1 { for (i = 1; i <= NF; i++) at[$i] = i }
        { $at["ms_per_update"] = $at["date"] = $at["jobs"] = ""; print }' "$1" | sort
}

python3 -c "
import struct
header = struct.pack('<256i', 20240520, 1, 1000, 27, *[0] * 252)
tokens = bytes(b for i in range(1000) for b in (i * i % 27, 0))
open('$W/text.bin', 'wb').write(header + tokens)"
# experiment NAME OPTIONS: a script like those of dev/runs
experiment() {
    cat >"$W/$1.sh" <<END
#!/bin/sh
what=tiny trainer=./train_gpt2
settings="-i $W/text.bin -j $W/text.bin -e 2x2x16 -t 16 -b 2 -l 1e-2 -m 4 $2"
. $root/dev/runs/run.sh
END
    chmod +x "$W/$1.sh"
}
experiment tiny "-x 20 -v 10"
experiment long "-x 3000 -v 1000"
experiment saves "-x 3000 -v 1000 -n 500"

# ----------------------------------------------------------------------------
echo "# the experiments: broken by a script that the trainer does not understand, or an empty list"
for script in dev/runs/*_*.sh; do SHOW=1 "$script" OUT sppp 4 mean 7 -v 5; done >"$W/out" 2>&1
check "runs: pattern, R, rule, seed, folder and options of a script" \
    '^\./train_gpt2 .* -e 4x4x128 .* -p sppp -tp 4 -pm mean -rs 7 -o OUT -v 5$' \
    '^\./train_gpt2 .* -e 12x4x128 ' '^\./train_gpt2cu .* -e d12 .* -d 491520' \
    '^\./train_gpt2cu .*books_bpe.* -d 65536 .* -b 8$'
for gpus in 1 5 8; do SHOW=1 GPUS=$gpus dev/runs/gpt2_124m.sh OUT t; done >"$W/out" 2>&1
check "runs: 124M on 1, 5 and 8 GPUs" '^\./train_gpt2cu ' '^mpirun -n 5 ./train_gpt2cu ' \
    '^mpirun -n 8 ./train_gpt2cu '
"$SWEEP" -n -o "$W/lists" dev/runs/*.list >"$W/runs" 2>&1
why=''
[ "$(sort -u "$W/runs" | grep -c ': not run$')" = 376 ] ||
    why="$(wc -l <"$W/runs") lines, expected 376 different ones"
same "runs: every line of every list is a run, shared ones once" "$why" ""
same "runs: -n makes no folder" "$(ls -d "$W/lists" 2>/dev/null)" ""
printf '%s\n' "s 2 sum 8-10 -x 5 # 1-3" "p 2 mean 1-2" "t 2 sum 3" |
    sed "s/^/shakespeare_4x4x128 /" | "$SWEEP" -n -o "$W/lists" - >"$W/out" 2>&1
sed 's/^[^/]*\///; s/:.*//' "$W/out" | tr '\n' ' ' >"$W/t"
mv "$W/t" "$W/out"
check "runs: a line of several seeds; first seeds first" \
    '^s_R2_sum_8_-x_5 p_R2_mean_1 t_R2_sum_3 s_R2_sum_9_-x_5 p_R2_mean_2 s_R2_sum_10_-x_5 $'
dev/runs/shakespeare_4x4x128.sh "$W/one" sppp 2 sum 1337 -i "$W/text.bin" -j "$W/text.bin" \
    -x 1 -v 0 >"$W/out" 2>&1
check "runs: the trainer takes the settings" '^# merges_per_forward 2' '^s:1 trl:.* ar:4 mb:1.50'

# ----------------------------------------------------------------------------
echo "# the sweep: broken by numbers that are not the log's, runs done twice or lost, or half a row"
for seed in 1 2; do
    for p in t s p; do echo "$W/tiny.sh $p 2 sum $seed"; done
done >"$W/tiny.list"
echo "$W/tiny.sh p 2 mean 1 -wi linear # a comment" >>"$W/tiny.list"
"$SWEEP" -j 2 -o "$W/tiny" "$W/tiny.list" >"$W/out" 2>&1
check "sweep: two at a time, seven runs, all ok" '7 of 7 done, 0 at work' 'all 7 runs are ok'
why=''
log=$W/tiny/tiny/s_R2_sum_2/main.log
found() { sed -n "s/$1/\\1/p" "$log"; }
want="tiny s 2 sum 2 - $(found '^# merges_per_forward \(.*\)')"
want+=" $(found '^s:20 trl.* ar:\([0-9]*\).*') $(found '^s:20 trl.* mb:\([0-9.]*\).*') 20"
want+=" $(found '^s:20 trl:\([0-9.]*\) .*')"
want+=" $(found '^s:20 tel:\(.*\)') $(found '^s:.* tel:\(.*\)' | sort -n | head -n 1)"
got=$(awk -F'\t' '$2 == "s" && $5 == 2' "$W/tiny/runs.tsv" | cut -f1-13 | tr '\t' ' ')
[ "$got" = "$want" ] || why="'$got', expected '$want'"
same "sweep: a row is what the log says" "$why" ""
# In the trainer's place: tells a resumed run whose best loss is not its last.
cat >"$W/teller" <<'END'
#!/bin/sh
while [ "$1" != -o ]; do shift; done
mkdir -p "$2"
cat >"$2/main.log" <<'LOG'
# updates 0 to 3
s:1 trl:4.5 lr:1 norm:1 ms:9.0 tok:1 ar:2 mb:0.10 comm:0.0
s:1 tel:3.100000
s:2 trl:4.
# merges_per_forward 2
# mesh 1 process = DP 1 x TP 2, of which each process runs 2 tensor ranks, 3 threads each
# updates 1 to 3
s:2 trl:4.2 lr:1 norm:1 ms:5.0 tok:1 ar:4 mb:0.20 comm:0.0
s:3 trl:4.1 lr:1 norm:1 ms:7.0 tok:1 ar:4 mb:0.20 comm:0.0 kd:3.1e-02
s:3 tel:3.200000
LOG
END
chmod +x "$W/teller"
echo "$W/tiny.sh s 2 sum 1" >"$W/told.list"
TRAINER="$W/teller" "$SWEEP" -o "$W/told" "$W/told.list" 2>/dev/null
tail -n 1 "$W/told/runs.tsv" | cut -f7-15,23 | tr '\t' ' ' >"$W/out"
check "sweep: best and last loss, a resumed log, a line cut short" \
    '^2 4 0\.20 3 4\.1 3\.200000 3\.100000 7\.0 3 ok$'
sed -i -E 's/^s:.* mb.*/& pe:s/; s/^(s:3 t.*) ar:4 mb:0.20(.*)s$/\1 ar:6 mb:0.30\2p/
    s/^s:3 tel.*/&\ns:3 tel[p]:1.000000/' "$W/teller"
TRAINER="$W/teller" "$SWEEP" -o "$W/drawn" "$W/told.list" 2>/dev/null
tail -n 1 "$W/drawn/runs.tsv" | cut -f7-15,23 | tr '\t' ' ' >"$W/out"
check "sweep: a run with -pe: means of all-reduces, its own pattern's losses" \
    '^2 4 0\.20 3 4\.1 3\.200000 3\.100000 7\.0 3 ok$'
why=''
ms=$(found '^s:.* ms:\([0-9.]*\) .*' | sort -n |
    awk '{ x[NR] = $1 } END { printf "%.1f", (x[10] + x[11]) / 2 }')
got=$(awk -F'\t' '$2 == "s" && $5 == 2 { print $14, $15, $16 }' "$W/tiny/runs.tsv")
[ "$got" = "$ms 1 2" ] || why="'$got', expected '$ms 1 2'"
same "sweep: median ms, threads, jobs" "$why" ""
why=$(find "$W/tiny" -name '*.bin' -o -name 'DONE*')
same "sweep: no checkpoints are left" "$why" ""
cp "$W/tiny/runs.tsv" "$W/before"
"$SWEEP" -o "$W/tiny" "$W/tiny.list" >"$W/out" 2>&1
cmp -s "$W/before" "$W/tiny/runs.tsv" || echo "rows have changed" >"$W/out"
check "sweep: what is done is not run again" '7 of them done before' 'all 7 runs are ok'

echo "$W/tiny.sh t 2 sum 1" >"$W/bad.list"
TRAINER=true "$SWEEP" -o "$W/lists" "$W/bad.list" >"$W/out" 2>&1
field status "$W/lists/runs.tsv" >"$W/out"
check "sweep: status 0 without a whole log is a failure" \
    '^failed: exit status 0, but the log ends at update 0 of -$'
echo "$W/tiny.sh ttt 2 sum 1" >"$W/bad.list"
"$SWEEP" -o "$W/tiny" "$W/bad.list" >"$W/out" 2>&1 && echo "exit status 0" >"$W/out"
field status "$W/tiny/runs.tsv" >>"$W/out"
check "sweep: a failed run is a row that says why" "^failed: exit status 1: error: -p 'ttt'" 'retry'
sed 's/2x2x16/3x2x16/' "$W/tiny.sh" >"$W/mended" && cat "$W/mended" >"$W/tiny.sh"
"$SWEEP" -o "$W/tiny" "$W/bad.list" >/dev/null 2>&1
field status "$W/tiny/runs.tsv" | grep -c failed >"$W/out"
"$SWEEP" --retry -o "$W/tiny" "$W/bad.list" >>"$W/out" 2>&1
echo "$(wc -l <"$W/tiny/runs.tsv") lines" >>"$W/out"
check "sweep: it is run again with --retry only, in place of its row" \
    '^1$' 'all 1 runs are ok' '^9 lines'

{
    for words in "nothing.sh t 2 sum 1" "$W/tiny.sh t 2 sum" "$W/tiny.sh t x sum 1" \
        "$W/tiny.sh t;rm 2 sum 1" "$W/tiny.sh t 2 sum 3-1"; do
        echo "$words" >"$W/wrong"
        "$SWEEP" -o "$W/none" "$W/wrong"
    done
    TRAINER=./no_such "$SWEEP" -o "$W/none" "$W/tiny.list"
    "$SWEEP" -j 0 "$W/tiny.list"
    "$SWEEP" -o "$W/none" /no/list
} >"$W/out" 2>&1
check "sweep: what is wrong with a list is said before anything runs" 'wrong:1: .*no such script' \
    "wrong:1: .*expected SCRIPT PATTERN R RULE SEED" \
    'seeds 3-1: expected FIRST-LAST' "R 'x'" "pattern 't;rm'" \
    './no_such is not here; build it' "error: -j '0'" '/no/list: no such list'
"$SWEEP" -o "$W/none" "$W" >"$W/out" 2>&1 && echo "exit status 0" >"$W/out"
wrong_use=2 check "sweep: a folder is no list" "^error: $W: a folder, expected a list"
mkdir "$W/bare"
(cd "$W/bare" && SLURM_ARRAY_TASK_ID=1 sh "$root/dev/runs/gpt2_124m.slurm") >"$W/out" 2>&1 &&
    echo "exit status 0" >"$W/out"
wrong_use=2 check "sweep: a job without the program says what to build" \
    '^error: .*make dev/runs/sweep'

# In the trainer's place: counts and notes how it was called.
cat >"$W/counted" <<END
#!/bin/sh
echo "begun \$*" >>"$W/begun"
exec ./train_gpt2 "\$@"
END
chmod +x "$W/counted"
: >"$W/begun"
echo "$W/tiny.sh t 2 sum 1 -gp *" >"$W/star.list"
TRAINER="$W/counted" "$SWEEP" -o "$W/star" "$W/star.list" >"$W/out" 2>&1
field options "$W/star/runs.tsv" >>"$W/begun"
cp "$W/begun" "$W/out"
check "sweep: a * among options stays one" '^begun .* -gp \*$' '^-gp \*$'

mkdir "$W/left" "$W/right"
sed 's/-x 20/-x 10/' "$W/tiny.sh" >"$W/right/twin.sh"
cp "$W/tiny.sh" "$W/left/twin.sh"
chmod +x "$W/right/twin.sh"
echo "$W/left/twin.sh t 2 sum 1 -e 2x2x16" >"$W/left.list"
echo "$W/right/twin.sh t 2 sum 1 -e 2x2x16" >"$W/right.list"
"$SWEEP" -o "$W/twins" "$W/left.list" >/dev/null 2>&1
"$SWEEP" -o "$W/twins" "$W/right.list" "$W/left.list" >"$W/out" 2>&1
"$SWEEP" -n -o "$W/twins" "$W/right.list" "$W/left.list" >>"$W/out" 2>&1
awk -F'\t' 'NR > 1 { print $1, $10, $22 }' "$W/twins/runs.tsv" >>"$W/out"
check "sweep: two scripts of one name are two runs" '2 runs, 1 of them done before' \
    '^twin 20 twin/t_R2_sum_1' '^twin_[0-9]* 10 twin_[0-9]*/t_R2_sum_1' \
    '^twin_[0-9]*/t_R2_sum_1.*: ok$' '^twin/t_R2_sum_1.*: ok$' 'all 2 runs are ok'
"$SWEEP" -o "$W/twins_at_once" "$W/right.list" "$W/left.list" >/dev/null 2>&1
awk -F'\t' 'NR > 1 { print $1, $10 }' "$W/twins_at_once/runs.tsv" >"$W/out"
check "sweep: in one sweep too" '^twin 10$' '^twin_[0-9]* 20$'

: >"$W/begun"
mkdir -p "$W/stuck/runs.tsv.part" # the table cannot be written
echo "$W/tiny.sh t 2 sum 1 -e 2x2x16" >"$W/stuck.list"
TRAINER="$W/counted" "$SWEEP" -o "$W/stuck" "$W/stuck.list" >"$W/out" 2>&1
echo "exit status $?" >>"$W/out"
! grep -q 'all .* ok' "$W/out" || echo "all are ok" >"$W/out"
check "sweep: a row that cannot be written is an error" \
    '^(error): .*runs\.tsv\.part: cannot write' \
    '1 runs ended without a row' '^exit status 1$'
rmdir "$W/stuck/runs.tsv.part"
TRAINER="$W/counted" "$SWEEP" -o "$W/stuck" "$W/stuck.list" >"$W/out" 2>&1
grep -c begun "$W/begun" >>"$W/out"
check "sweep: it is written later, without another run" 'all 1 runs are ok' '^1$'

# Whether a run was alone: one that idles beside a busy process was not.
{ echo '#!/bin/sh'; echo 'sleep 1.2'; tail -n +2 "$W/teller"; } >"$W/sleeper"
chmod +x "$W/sleeper"
echo "$W/tiny.sh s 2 sum 1" >"$W/alone.list"
TRAINER="$W/teller" "$SWEEP" -o "$W/times" "$W/told.list" >/dev/null 2>&1
head -n 1 "$W/times/runs.tsv" >"$W/out"
sed -i 's/sum/mean/' "$W/alone.list"
sh -c 'while :; do :; done' & busy=$!
TRAINER="$W/sleeper" "$SWEEP" --alone -o "$W/times" "$W/alone.list" >/dev/null 2>&1
{ kill "$busy"; wait "$busy"; } 2>/dev/null
awk -F'\t' '{ print "columns", NF; print "alone", $24 }' "$W/times/runs.tsv" >>"$W/out"
"$SWEEP" --alone -j 2 -o "$W/times" "$W/alone.list" >>"$W/out" 2>&1
check "sweep: --alone notes who else was at work" 'status$' '^columns 24$' '^alone -$' \
    '^alone no: others took [0-9.]* cores$' 'error: --alone: found -j 2'

# Interruptions: of the sweep alone (its runs go on), of one run, of all at once.
for name in long saves; do
    for p in t s p; do echo "$W/$name.sh $p 2 sum 1"; done >"$W/$name.list"
    "$SWEEP" -j 2 -o "$W/whole" "$W/$name.list" >/dev/null 2>&1
    tries=0 hits=0
    while [ $((tries += 1)) -lt 40 ]; do
        setsid "$SWEEP" -j 2 -o "$W/cut_$name" "$W/$name.list" >"$W/out" 2>&1 &
        sweep=$!
        sleep 0.$((1 + tries % 4))
        case $((tries % 3)) in
        0) kill -9 "$sweep" ;;
        1)
            run=$(pgrep -g "$sweep" -x train_gpt2 | head -n 1)
            [ -n "$run" ] && kill -9 "$run"
            ;;
        2) kill -9 -- "-$sweep" ;;
        esac 2>/dev/null && hits=$((hits + 1))
        if wait "$sweep" 2>/dev/null && grep -q 'runs are ok' "$W/out"; then
            [ $hits -gt 0 ] && break
            rm -rf "$W/cut_$name" # it was done before anything could be interrupted
        fi
        [ $tries -gt 6 ] && "$SWEEP" -j 2 -o "$W/cut_$name" "$W/$name.list" >/dev/null 2>&1
    done
    why=''
    rows "$W/whole/runs.tsv" | grep -E "^(experiment|$name)	" >"$W/a"
    rows "$W/cut_$name/runs.tsv" >"$W/b"
    cmp -s "$W/a" "$W/b" || why="rows differ: $(diff "$W/a" "$W/b" | head -c 600)"
    begun=$(grep -c '^s:1 trl' "$W/cut_$name/$name"/*/main.log | cut -d: -f2 | sort -u)
    [ "$begun" = 1 ] || why="a log holds two runs"
    [ $hits -gt 0 ] || why="nothing was interrupted"
    same "sweep: killed with -9 ($name), the rows are those of a sweep never stopped" "$why" ""
done
lock=$W/cut_long/long/t_R2_sum_1/lock
( flock 9; exec sleep 60 ) 9>>"$lock" & holder=$! # one who is still running it
sed -i '/	t	2	sum	1	/d' "$W/cut_long/runs.tsv"
until ! flock -n "$lock" true; do sleep 0.02; done
: >"$W/begun"
export TRAINER="$W/counted"
"$SWEEP" -j 2 -o "$W/cut_long" "$W/long.list" >"$W/a" 2>&1 &
"$SWEEP" -j 2 -o "$W/cut_long" "$W/long.list" >"$W/out" 2>&1 &
for _ in {1..600}; do grep -qs 'waits for the one' "$W/a" "$W/out" && break; sleep 0.1; done
{ kill "$holder"; wait; } 2>/dev/null
unset TRAINER
cat "$W/a" "$W/begun" >>"$W/out"
[ "$(wc -l <"$W/begun")" = 1 ] || echo "the run was begun $(wc -l <"$W/begun") times" >"$W/out"
twice=$(cut -f22 "$W/cut_long/runs.tsv" | sort | uniq -d)
[ -z "$twice" ] || echo "a run has two rows" >"$W/out"
check "sweep: two on one folder take turns" 'waits for the one who is running it' \
    'all 3 runs are ok'
printf 'a\tb\n' >"$W/other.tsv"
mkdir "$W/other"
mv "$W/other.tsv" "$W/other/runs.tsv"
"$SWEEP" -o "$W/other" "$W/tiny.list" >"$W/out" 2>&1
check "sweep: a table of another kind is left alone" 'error: .*other columns'

# ----------------------------------------------------------------------------
echo "# the report: broken by a wrong distribution, wrong pairs or degrees of freedom," \
    "or a verdict that does not follow its rule"
# Student's t, two-sided: closed forms for 1 and 2 degrees of freedom, the printed table's 5%, 1%
# and 0.1% for others.
why=''
while read -r t freedom p within; do
    found=$("$REPORT" -t "$t" "$freedom")
    awk -v found="$found" -v p="$p" -v within="$within" 'BEGIN {
        exit !((found - p) / p < within && (p - found) / p < within)
    }' || why+="t $t, $freedom: $found not $p; "
done <<END
1 1 0.5 1e-9
12.706204736 1 0.05 1e-8
1 2 0.42264973081 1e-9
4.3026527297 2 0.05 1e-8
9.924843201 2 0.01 1e-8
31.599054577 2 0.001 1e-8
-2.7764451052 4 0.05 1e-8
2.2281388520 10 0.05 1e-8
3.1692726726 10 0.01 1e-8
2.0422724563 30 0.05 1e-8
1.9599639845 1e7 0.05 1e-5
0 3 1 1e-12
END
same "report: Student's t against known values" "$why" ""
header="experiment pattern R rule seed options merges_per_forward allreduces_per_update"
header+=" mib_per_update updates train_loss val_loss best_val_loss ms_per_update threads jobs"
header+=" machine program commit date text run status"
# Differences to t, at the seeds 1 2 3,
# of s:  0.01 0.02 0.03: mean 0.02, standard error 0.01/sqrt(3) = 0.0057735, t = 3.4641 with 2
#        degrees of freedom, p = 0.0742; above 0.01: t = 1.7321, p = 0.1127;
# of p:  -0.01 -0.01 -0.04: mean -0.02, standard error 0.01, t = -2, p = 0.1835;
#        below 0.01: t = -3, p = 0.0477;
# of sp: 0.110 0.111 0.112: t = 174.9 above 0.01, p < 0.0001.
machine="1 1 cpu abc c0ffee"
{
    echo "$header" | tr ' ' '\t'
    while read -r p merges seed loss best; do
        echo "e $p 2 sum $seed - $merges $((2 * merges)) 1.50 100 2.0 $loss $best 10.0 $machine" \
            "2026-01-0${seed}T00:00Z text e/${p}_$seed ok" | tr ' ' '\t'
    done <<END
t 8 1 2.000 2.000
t 8 2 2.010 1.990
t 8 3 2.020 1.980
s 4 1 2.010 2.000
s 4 2 2.030 2.000
s 4 3 2.050 2.000
p 1 3 1.980 1.900
p 1 1 1.990 1.900
p 1 2 2.000 1.900
sp 4 1 2.110 2.100
sp 4 2 2.121 2.100
sp 4 3 2.132 2.100
pp. 2 1 1.900 1.900
END
    # p with -wi linear beside p, at the seeds 1 2: -0.01 -0.03: mean -0.02, standard error 0.01,
    # t = -2 with 1 degree of freedom, p = 0.2952; beside t: -0.02 -0.04: t = -3, p = 0.2048.
    while read -r seed loss; do
        echo "e p 2 sum $seed -wi_linear 1 2 1.50 100 2.0 $loss 1.900 10.0 $machine" \
            "2026-01-02T00:00Z text e/p_${seed}_wi ok" | tr ' ' '\t' | sed 's/-wi_/-wi /'
    done <<END
1 1.980
2 1.970
END
    echo "e pppp 2 sum 1 - - - - - - - - - $machine 2026-01-01T00:00Z - e/pppp_1" \
        "failed:_no_luck" | tr ' _' '\t '
} >"$W/hand.tsv"
"$REPORT" "$W/hand.tsv" >"$W/out" 2>&1
# Seeds take off -0.01025 0.0025 0.00775 of the losses of t, s, p, sp; what is left has squares of
# 1.1375e-5, 2.51375e-4, 4.76375e-4 and 1.7375e-5: with 6 degrees of freedom 0.0112287, of three
# pairs 0.0091682.
difference='\+0\.0200 ± 0\.0092 \| 0\.0719 \| \+1\.00%'
check "report: mean, standard error, paired difference and p, by hand" \
    '^\| t \| 8 \| 16 \| 1\.50 \| 2\.0100 ± 0\.0058 \| 3 \| 1\.9900 \| – \| – \|' \
    "^\| s \| 4 \| 8 \| 1\.50 \| 2\.0300 ± 0\.0115 \| 3 \| 2\.0000 \| $difference \|$" \
    '^\| p \| 1 \| 2 \| 1\.50 \| 1\.9900 ± 0\.0058 \| 3 \| 1\.9000 \| -0\.0200 ± 0\.0092' \
    '^\| p .* \| -0\.0200 ± 0\.0092 \| 0\.0719 \| -1\.00%' 'of 0\.0134; 0\.0112 is left when' \
    '^in all patterns is taken off \(6 degrees of freedom\)'
! grep -q '^| pattern .* ms |$' "$W/out" || echo "a column of ms" >"$W/out"
# Holm, of three verdicts: p is t = -3.2722 from 0.01, p = 0.008494, times 3; of s and sp 1. Of its
# own three pairs p is t = -3, p = 0.0477.
check "report: verdicts follow the rule, corrected by hand" '^- \*\*s\*\*.*\*\*open\*\*' \
    '^- \*\*p\*\*.*\*\*holds\*\*: no worse than t by more than 0\.01 \(p = 0\.0255; own$' \
    '^  p = 0\.0477\)\.$' \
    '^- \*\*sp\*\*.*\*\*fails\*\*: worse than t by more than 0\.01 \(p < 0\.0001; own$' \
    '^  p < 0\.0001\)\.$' \
    '^- \*\*pp\.\*\*.*one seed: no verdict'
check "report: the older questions" 'within 2% of the baseline.s\? Not of sp \(\+5\.52%\)' \
    'smallest count that holds.* 1 per forward pass, with p \(t: 8\)'
check "report: machine, commit, dates, failed runs" '^- machine: cpu$' '^- commit: c0ffee$' \
    '2026-01-01T00:00Z to 2026-01-03T00:00Z' '^- e/pppp 1: failed: no luck$' '16 runs, of which 15'
check "report: what an option changes" \
    '^\| e p R 2 sum -wi linear \| 1\.9750 ± 0\.0050 \| 2 \| 1\.9900 \| -0\.0200 ± 0\.0100' \
    '\| -0\.0200 ± 0\.0100 \| 0\.2952 \| -0\.0300 ± 0\.0100 \| 0\.2048 \|$'
# A second sweep: R 4, without a t, and with an l of R 8. t of R 2 serves it, p of R 2 does not.
{
    head -1 "$W/hand.tsv"
    while read -r p R merges seed loss; do
        echo "e $p $R sum $seed - $merges $((2 * merges)) 1.50 100 2.0 $loss $loss 10.0 $machine" \
            "2026-01-0${seed}T00:00Z text e/${p}_R${R}_$seed ok" | tr ' ' '\t'
    done <<END
s 4 4 1 2.003
s 4 4 2 2.014
s 4 4 3 2.025
l 8 8 1 2.101
l 8 8 2 2.112
d 4 8 1 2.001
END
} >"$W/R4.tsv"
"$REPORT" "$W/hand.tsv" "$W/R4.tsv" >"$W/t" 2>&1
awk '/^## e, R 4$/ { on = 1 } /^## e, R 8$/ { on = 0 } on' "$W/t" >"$W/out"
! grep -q '^| pp*\.* |' "$W/out" || echo "p of R 2" >"$W/out"
check "report: runs of t and l serve every R, other tables add theirs" \
    '^\| t \| 8 \| 16 \| 1\.50 \| 2\.0100 ± 0\.0058 \| 3 ' \
    '^\| s \| 4 .* \+0\.0040 ± 0\.0076 ' '^\| l \| 8 .* \+0\.1015 ± 0\.0093 ' \
    '^- R of the runs: 2; 8; 4$' '^- \*\*l\*\*, .*; judged at R 8\.$' '^- \*\*s\*\*.*p = 0\.2239;'
cp "$W/t" "$W/out" # s at R 4 minus s at R 2: -0.007 -0.016 -0.025
check "report: what R changes" '^\| s \| \+0\.0200 ± 0\.0076 \| \+0\.0040 ± 0\.0076 \|$' \
    '^\| e, R 2 to 4 \| s \| -0\.0160 ± 0\.0076 \| 0\.0634 \|$'
awk -F'\t' -v OFS='\t' 'NR > 1 { $1 = "f"; $22 = "f" $22 } NR == 1 || $5 == 1' "$W/hand.tsv" >"$W/t"
"$REPORT" "$W/hand.tsv" "$W/t" >"$W/out" 2>&1
check "report: from one experiment to the next, where it has one seed" \
    '^\| e to f, R 2 \| s \| -0\.0100 \| – \|$'
"$REPORT" -d "$W/hand.tsv" "$W/R4.tsv" | tr '\t' ' ' >"$W/out" 2>&1
# noise: squares 2e-4 (t), 8e-4 (s), 2e-4 (p), 2.42e-4 (sp), 2.42e-4 (s at R 4), 6.05e-5 (l) over 11
# degrees of freedom; of seeds and patterns 0.00925693, with 9 (least squares)
check "report: differences as a table" \
    '^e 2 - s sum 4 8 3 0\.020000 0\.007558 0\.012593 1\.000000 0\.218443$' \
    '^e 2 - pp\. sum 2 8 1 -0\.100000 NaN 0\.012593 NaN NaN$' \
    '^e 2 - p sum 1 8 3 -0\.020000 0\.007558 0\.012593 0\.004888 0\.998371$' \
    '^e 4 - s sum 4 8 3 0\.004000 0\.007558 0\.012593 0\.223858 0\.776142$' \
    '^e 8 - l sum 8 8 2 0\.101500 0\.009257 0\.012593 0\.999998 0\.000002$'
# What must not be compared: other updates; a list of patterns, which is no t at R 4; no loss.
awk -F'\t' -v OFS='\t' '$2 == "t" { $10 = 200 } NR == 1 || $2 == "t"' "$W/hand.tsv" >"$W/t"
awk -F'\t' '$2 == "s"' "$W/hand.tsv" | cat "$W/t" - >"$W/t2"
"$REPORT" "$W/t2" >"$W/out" 2>&1
check "report: runs of other updates are refused" \
    't2:5: 100 updates, but .*t2:2 of the same experiment, R and options has 200'
"$REPORT" "$W/t" "$W/R4.tsv" >"$W/t2" 2>&1
awk '/^## e, R 4$/ { on = 1 } /^## e, R 8$/ { on = 0 } on' "$W/t2" >"$W/out"
check "report: t of other updates does not serve" '^No run of t with these options'
awk -F'\t' -v OFS='\t' 'NR > 1 { $6 = "-pe t,p"; $22 = $22 "_pe" } NR == 1 || $2 == "t"' \
    "$W/hand.tsv" >"$W/t"
awk -F'\t' -v OFS='\t' 'NR > 1 { $6 = "-pe t,p"; $22 = $22 "_pe" } { print }' "$W/R4.tsv" >"$W/t2"
"$REPORT" "$W/t" "$W/t2" >"$W/all" 2>&1
awk '/^## e, R 4, -pe t,p$/ { on = 1 } /^## e, R 8/ { on = 0 } on' "$W/all" >"$W/out"
check "report: t of a list of patterns does not serve" '^No run of t with these options'
awk -F'\t' -v OFS='\t' '$22 == "e/p_3" { $12 = "-" } { print }' "$W/hand.tsv" >"$W/t"
"$REPORT" "$W/t" >"$W/out" 2>&1
check "report: a run without a validation loss is named" '^- e/p_3: no validation loss$' \
    '^\| p \| 1 \| 2 \| 1\.50 \| 1\.9950 ± 0\.0050 \| 2 ' \
    '^- \*\*p\*\*, .*open\*\*: 1 of its runs did not end well \(p = 0\.0158 of'
awk -F'\t' -v OFS='\t' '$22 == "e/p_3" { $4 = "mean"; $12 = "-" } { print }' "$W/hand.tsv" >"$W/t"
"$REPORT" "$W/t" >"$W/out" 2>&1
! grep -q "its runs did not end well" "$W/out" || echo "another rule's run counts" >"$W/out"
check "report: a run of another rule does not count" '^- \*\*p\*\*, .*holds'
{
    head -1 "$W/hand.tsv"
    while read -r p seed loss; do
        echo "e $p 2 sum $seed - 4 8 1.50 100 2.0 $loss $loss 10.0 $machine" \
            "2026-01-01T00:00Z text e/${p}_$seed ok" | tr ' ' '\t'
    done <<END
t 1 1.00
t 2 1.01
t 3 1.20
t 4 1.21
s 1 1.05
s 2 1.06
p 3 1.21
p 4 1.20
END
} >"$W/t"
"$REPORT" "$W/t" >"$W/out" 2>&1
check "report: the worst pattern is the one that is furthest above t at equal seeds" \
    'Not of s \(\+4\.52%\)'
"$REPORT" "$W/hand.tsv" "$W/hand.tsv" >"$W/out" 2>&1
check "report: a table twice is an error" \
    'hand\.tsv:2: the run e/t_1 has a row already.*hand\.tsv:2'
"$REPORT" -p "pp. s" "$W/hand.tsv" >"$W/out" 2>&1 # t = 1.0907 from 0.01, p = 0.1586
! grep -Eq '^\| (p|sp) \|' "$W/out" || echo "patterns that were not asked for" >"$W/out"
check "report: patterns on request, with the noise of all" '(^| )s,( |$)' \
    '^\| s \| 4 .* \+0\.0200 ± 0\.0092 ' 'nor to be beyond it \(p = 0\.1586\)\.$' \
    'left when' '^in all patterns is taken off \(6 degrees of freedom\)'
"$REPORT" -p "s sppq" "$W/hand.tsv" >"$W/out" 2>&1
check "report: a pattern on request that nobody ran is an error" '^error: -p: no run of sppq'
awk -F'\t' -v OFS='\t' '$2 == "s" { $2 = "ss"; $22 = $22 "s"; print }' "$W/hand.tsv" |
    cat "$W/hand.tsv" - >"$W/t"
"$REPORT" "$W/t" >"$W/out" 2>&1
check "report: one function under two names is an error" \
    't:18: ss has the losses of s, .*t:5, at 3 seeds; are they one function'
"$REPORT" -m 0.05 "$W/hand.tsv" >"$W/out" 2>&1
check "report: the margin is an option" \
    '^- \*\*s\*\*.*\*\*holds\*\*: no worse than t by more than 0\.05 \(p = 0\.0170;' # t = -3.2722
"$REPORT" -b "$W/hand.tsv" >"$W/out" 2>&1
check "report: the best loss on request" \
    '^\| s \| 4 .* 2\.0000 ± 0\.0000 \| 3 \| 2\.0300 \| \+0\.0100 ± 0\.0041'
awk -F'\t' -v OFS='\t' '{ print $0, NR == 1 ? "alone" : "yes: others took 0.02 cores" }' \
    "$W/hand.tsv" >"$W/alone.tsv"
"$REPORT" "$W/alone.tsv" >"$W/out" 2>&1
check "report: times of runs that were alone" '^\| pattern .* ms \|$' \
    '^\| s \| 4 \| 8 \| 1\.50 \| .* \| \+1\.00% \| 10\.0 \|$'
sed -e '3s/yes: others/no: others/' -e '/-wi linear/s/yes: others/no: others/' \
    "$W/alone.tsv" >"$W/t" # two groups
"$REPORT" "$W/t" >"$W/out" 2>&1
! grep -q '^| pattern .* ms |$' "$W/out" || echo "a column of ms" >"$W/out"
check "report: no times where one run was not alone" \
    '^\| s \| 4 \| 8 \| 1\.50 \| .* \| \+1\.00% \|$'
while read -r p loss; do
    printf 'e\t%s\t2\tsum\t-\t%s\t0.02\thand\n' "$p" "$loss"
done >"$W/known" <<END
s 2.035
p 2.035
q 2
END
printf 'f\tp\t2\tsum\t-\t2\t0.02\thand\n' >>"$W/known" # of an experiment that is not here
"$REPORT" -k "$W/known" "$W/hand.tsv" >"$W/out" 2>&1
! grep -q '^| f p' "$W/out" || echo "another experiment" >"$W/out"
check "report: what others found" 'e s R 2 sum .* -0\.0050 \| yes, 0\.02' \
    'e p R 2 sum .* -0\.0450 \| \*\*no,\*\* 0\.02' 'e q R 2 sum .*not run'
{
    head -c -30 "$W/hand.tsv" >"$W/t" && "$REPORT" "$W/t"
    sed '5s/	ok$//' "$W/hand.tsv" >"$W/t" && "$REPORT" "$W/t"
    sed '6s/2\.030/2.0x/' "$W/hand.tsv" >"$W/t" && "$REPORT" "$W/t"
    sed '1s/val_loss/loss/' "$W/hand.tsv" >"$W/t" && "$REPORT" "$W/t"
    sed 4p "$W/hand.tsv" >"$W/t" && "$REPORT" "$W/t"
    : >"$W/t" && "$REPORT" "$W/t"
    "$REPORT" "$W/none.tsv"
} >/dev/null 2>"$W/out"
check "report: lines cut off, garbled, doubled or missing are errors with their place" \
    't:17: cut off' 't:5: 22 columns, expected 23' "t:6: column val_loss is '2.0x'" \
    "t:1: no column 'val_loss'" 't:5: .*row already: .*t:4' 't: empty' 'none.tsv: No such file'
"$REPORT" "$W/tiny/runs.tsv" >"$W/out" 2>&1
check "report: a real sweep's table" '^## tiny, R 2$' '^## tiny, R 2, -wi linear$' 'No run of t'

# ----------------------------------------------------------------------------
echo "# the plots: broken by a figure that is not drawn"
if ! command -v gnuplot >/dev/null; then
    skip plots "install gnuplot-nox"
else
    while read -r latency gbits pattern predicted measured error; do
        printf '%4g ms %9g   %-8s %8.1f ms   %8.1f ms   %+6.1f%%\n' "$latency" "$gbits" "$pattern" \
            "$predicted" "$measured" "$error"
    done >"$W/check" <<END
0.1 10 t 50 52 -4
5 1 t 200 210 -5
5 1 p 80 81 -1
END
    dev/runs/plot.sh -c "$W/check" -l "$W/whole/long/t_R2_sum_1/main.log" "$W/whole" \
        >"$W/out" 2>"$W/err"
    why=$(head -c 300 "$W/err")
    for figure in curves_long_R2_sum allreduces_long_R2_sum clock_long_R2_sum curves_saves_R2_sum \
        plan; do
        [ -s "$W/whole/plots/$figure.svg" ] || why+=" no $figure.svg"
    done
    same "plots: curves, all-reduces, clock and plan, without a word of complaint" "$why" ""
    dev/runs/plot.sh -o "$W/busy" "$W/whole" >"$W/out" 2>&1
    why=$(ls "$W/busy"/clock_* 2>/dev/null)
    grep -q 'skip clock_long_R2_sum: .*alone' "$W/out" || why+=$(head -c 300 "$W/out")
    same "plots: no clock from runs that were not alone" "$why" ""
    mkdir "$W/alone"
    cp "$W"/whole/*.tsv "$W/alone"
    dev/runs/plot.sh -o "$W/again" "$W/alone" >"$W/out" 2>&1
    why=''
    cmp -s "$W/whole/plots/curves_long_R2_sum.val.dat" "$W/again/curves_long_R2_sum.val.dat" ||
        why="$(head -c 300 "$W/out")"
    same "plots: the tables alone, without logs, give the same curves" "$why" ""
    rm -f "$W/alone/curves.tsv"
    dev/runs/plot.sh "$W/alone" >"$W/out" 2>&1
    sed '3s/	[^	]*$//' "$W/whole/runs.tsv" >"$W/alone/runs.tsv"
    dev/runs/plot.sh "$W/alone" >>"$W/out" 2>&1
    dev/runs/plot.sh "$W/none" >>"$W/out" 2>&1
    check "plots: missing logs, garbled rows and no table are errors" \
        'neither the logs .* nor a curves.tsv' 'runs.tsv:3: 22 columns, expected 23' \
        'none/runs.tsv: not there'
    awk -F'\t' -v OFS='\t' 'NR > 1 { $4 = "mean"; $22 = $22 "m" } { print }' "$W/hand.tsv" |
        cat "$W/hand.tsv" - | awk 'NR == 1 || !/^experiment/' >"$W/alone/runs.tsv"
    for seed in 1 2 3; do
        printf "e/t_$seed\t%s\n" 'val	0	3.0' 'val	100	2.0' 'train	100	2.0'
    done >"$W/alone/curves.tsv"
    dev/runs/plot.sh "$W/alone" >"$W/out" 2>&1
    check "plots: merge rules, and curves that are not there are said" 'rules_e_R2.svg' \
        'skip the curve of s in curves_e_R2_sum: curves.tsv lacks runs of it'
    sed '2,$s/	text	/	NOT it: a fallback, 9 characters	/' "$W/alone/runs.tsv" >"$W/t"
    mv "$W/t" "$W/alone/runs.tsv"
    dev/runs/plot.sh -o "$W/asked" -p "s pp." "$W/alone" >"$W/out" 2>&1
    cat "$W/asked/allreduces_e_R2_sum.dat" "$W/asked/allreduces_e_R2_sum.svg" >"$W/out"
    ! grep -q '^# p:' "$W/out" || echo "a pattern that was not asked for" >"$W/out"
    check "plots: patterns on request, circles around their point, a fallback text is named" \
        '^2 1\.910000 NaN 1\.910000 0 pp\. 1\.910000$' '^4 2\.030000 .* 2\.050000 0 s 2\.050000' \
        '\(NOT it: a fallback\)'
    mkdir "$W/R4"
    cp "$W/R4.tsv" "$W/R4/runs.tsv"
    sed 's,e/t_1,e/s_R4_1,' "$W/alone/curves.tsv" >"$W/R4/curves.tsv"
    REPORT=$REPORT dev/runs/plot.sh -o "$W/both" "$W/alone" "$W/R4" >"$W/out" 2>&1
    cat "$W/both/allreduces_e_R4_sum.dat" "$W/both/settings.dat" >>"$W/out"
    check "plots: two folders, t of one for the other's R, all settings" 'settings.svg' \
        '^# t: all-reduces' '^8 2\.010000 NaN 2\.000000 ' '^# e,_R_4$' \
        '^0\.5 0\.331 0\.65' '^4 2\.014000 0\.007968 2\.003000 '
    cp "$W/both/settings.dat" "$W/out"
    all=$(awk 'NF == 4 { printf "%s ", $4 }' "$W/out")
    REPORT=$REPORT dev/runs/plot.sh -o "$W/both" -p "$all" "$W/alone" "$W/R4" >/dev/null 2>&1
    why=$(diff "$W/both/settings.dat" "$W/out" 2>&1)
    same "plots: settings of all patterns, asked for by name, are those of all" "$why" ""
    cp "$W/both/allreduces_e_R4_sum.svg" "$W/out"
    check "plots: the line at t is t's though d stands before it" 'mean of t'
    sed 's/^# -tp 2$/# -tp 4/' "$W/whole/long/t_R2_sum_1/main.log" >"$W/t"
    dev/runs/plot.sh -o "$W/again" -l "$W/t" "$W/whole" >"$W/out" 2>&1
    check "plots: no clock from a log of another R" 'skip clock_long_R2_sum: .*is not of R 2'
fi
echo "test_sweep: $passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
