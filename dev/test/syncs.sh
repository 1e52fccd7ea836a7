#!/usr/bin/env bash
# Tests of dev/runs/syncs and dev/runs/syncs_plot.sh on a tiny model that ./train_gpt2 has trained.
# Losses, their differences and the numbers of all-reduces are compared with what the trainer says.
#
#   make train_gpt2 dev/runs/syncs && dev/test/syncs.sh
#
# Prints `ok <name>`, `FAILED <name>: <why>` or `skip <name>: <reason>` for each test, then
# `test_syncs: N passed, N failed, N skipped`.
set -u
. "$(dirname "$0")/trainer.sh"
cd "$(dirname "$0")/../.." || exit 1
SYNCS=$PWD/${SYNCS:-dev/runs/syncs} PLOT=$PWD/dev/runs/syncs_plot.sh
finish() {
    echo "test_syncs: $passed passed, $failed failed, $skipped skipped"
    [ "$failed" = 0 ]; exit
}
[ -x "$SYNCS" ] || { bad setup "no program $SYNCS; make dev/runs/syncs"; finish; }
(cd "$W/box" && : | python3 "$W/make.py") || { bad setup "make.py"; finish; }
cd "$W/box" || exit 1

# Words that follow one another by chance: 27 letters, some of which can be foreseen.
python3 - <<'PY'
import random, struct
random.seed(3)
def header(*ints): return struct.pack("<256i", *(ints + (0,) * (256 - len(ints))))
words = [[random.randrange(1, 27) for _ in range(random.randrange(2, 7))] for _ in range(12)]
def text(n):
    ids = []
    while len(ids) < n: ids += random.choice(words) + [0]
    return header(20240520, 1, n, 27) + struct.pack("<%dH" % n, *ids[:n])
for name, n in (("words_train", 20000), ("words_val", 3000), ("words_i", 1000)):
    open(name + ".bin", "wb").write(text(n))
PY
"$TRAIN" -i words_train.bin -j words_val.bin -e 4x4x32 -t 16 -b 8 -x 60 -l 1e-2 -v 0 -p t \
    -o "$W/trained" >"$W/stdout" 2>"$W/stderr" || { bad setup "$(cat "$W/stderr")"; finish; }
cp "$W/trained/model_00000060.bin" t.bin
"$TRAIN" -i words_train.bin -j words_val.bin -e t.bin -t 16 -b 8 -x 1 -v 0 -p spps -tp 2 -pm mean \
    -o "$W/spps" >"$W/stdout" 2>"$W/stderr" || { bad setup "$(cat "$W/stderr")"; finish; }
cp "$W/spps/model_00000001.bin" spps.bin

# syncs ARGS...: leaves $rc, $W/stdout, $W/stderr
syncs() { "$SYNCS" "$@" >"$W/stdout" 2>"$W/stderr"; rc=$?; }
works() { [ "$rc" = 0 ] || bad "$1" "exit status $rc: $(head -c 600 "$W/stderr")"; }
# loss MODEL PATTERN R SEQUENCES [OPTION]...: as the trainer says it
loss() {
    "$TRAIN" -i words_train.bin -j words_val.bin -e "$1" -p "$2" -tp "$3" -t 16 -b 1 -m "$4" \
        -x 0 -v 1 "${@:5}" 2>"$W/stderr" | sed -n 's/^s:0 tel://p'
}
# rows KIND FIELD...: these columns of the table
rows() {
    local kind=$1; shift
    awk -F'\t' -v kind="$kind" -v fields="$*" '
        $1 != kind { next }
        { n = split(fields, f, " "); for (i = 1; i <= n; i++) printf "%s ", $f[i]; print "" }
        ' "$W/o.tsv"
}

# ----------------------------------------------------------------------------
echo "# losses: broken by other tokens, another R or rule, a difference that is not paired"
syncs t.bin -j words_val.bin -tp 2 -n 2048 -o "$W/o.tsv" -draws 2 -sb 0.001 -esb 0.02
works "a table"
why=''
while read -r pattern merges table; do
    said=$(loss t.bin "$pattern" 2 128)
    awk -v a="$said" -v b="$table" 'BEGIN { exit !(a && (a - b) ^ 2 < 4e-12) }' ||
        why+="$pattern: $table, the trainer says '$said'; "
    plan=$("$TRAIN" -e t.bin -p "$pattern" -tp 2 --plan | grep -oE '[0-9]+ all-reduces forward')
    [ "$plan" = "$merges all-reduces forward" ] || why+="$pattern: $merges, --plan says $plan; "
done < <(for kind in base s pp regular greedy; do rows $kind 3 4 5; done | sort -u)
[ "$(rows greedy 3 | wc -l)" = 8 ] || why+="$(rows greedy 3 | wc -l) greedy rows; "
same "losses and all-reduces of all patterns are the trainer's" "$why" ""
cp "$W/o.tsv" "$W/whole.tsv"
holds "rows: kinds, pairs, tiers, what greedy and random search may leave out" compute \
    "$W/whole.tsv" <<'PY'
import sys
rows = [line.rstrip("\n").split("\t") for line in open(sys.argv[1]) if line[0] != "#"][1:]
def of(kind): return [r for r in rows if r[0] == kind]
if [r[2] for r in of("s")] != ["sttt", "tstt", "ttst", "ttts"]: sys.exit(of("s"))
if [r[2] for r in of("pp")] != ["pptt", "tppt", "ttpp"]: sys.exit(of("pp"))
if [(r[1], r[2]) for r in of("regular")] != [
        ("t", "tttt"), ("s", "ssss"), ("sppp", "sppp"), ("p", "pppp"), ("pp.", "pp.pp")]:
    sys.exit(of("regular"))
base = float(of("base")[0][4])
for r in rows:
    if abs(float(r[5]) - (float(r[4]) - base)) > 3e-9: sys.exit("difference: %s" % r)
    if r[2] != "tttt" and not 0 < float(r[6]) < 1: sys.exit("error: %s" % r)
tiers = {"ISB": (-1, 0.001), "SB": (0.001, 0.02), "ESB": (0.02, 9)}
for r in of("s"):
    low, high = tiers[r[7]]
    if not low < float(r[5]) <= high: sys.exit("tier: %s" % r)
def plan(pattern): # the flags: 1 where a merge stands after a sub-block
    flags, letters = [], pattern.replace(".", "")
    for i, c in enumerate(pattern):
        if c == ".": flags[-1] = 1
        elif c == "t": flags += [1, 1]
        elif c == "s": flags += [0, 1]
        else: flags += [0, 0 if pattern[i + 1:i + 2] == "p" else 1]
    return flags
def moves(flags): # without one merge more
    for k in range(len(flags) - 1):
        if flags[k] and (k % 2 == 0 or not flags[k - 1] and not flags[k + 1]):
            yield k, flags[:k] + [0] + flags[k + 1:]
flags, tries, step = [1] * 8, [], 0
for r in [r for r in rows if r[0] in ("try", "greedy")][1:]:
    if r[0] == "try":
        tries.append((r[1], plan(r[2]), float(r[4])))
        continue
    expected = [("%d%s" % (k // 2, "am"[k % 2]), m) for k, m in moves(flags)]
    if [t[:2] for t in tries] != expected: sys.exit("tried %s, expected %s" % (tries, expected))
    best = min(tries, key=lambda t: t[2])
    if (r[1], plan(r[2]), float(r[4])) != best: sys.exit("chose %s, expected %s" % (r, best))
    flags, tries, step = best[1], [], step + 1
    if int(r[3]) != 8 - step or sum(flags) != 8 - step: sys.exit("counts: %s" % r)
if step != 7 or sum(flags) != 1: sys.exit("ended after %d with %s" % (step, flags))
for draw in "0", "1":
    flags = [1] * 8
    for r in [r for r in of("random") if r[1] == draw]:
        if plan(r[2]) not in [m for _, m in moves(flags)]: sys.exit("draw: %s" % r)
        flags = plan(r[2])
    if sum(flags) != 1: sys.exit("draw %s ended with %s" % (draw, flags))
PY
# Two sequences: the differences of each are known from the first alone and both.
rm "$W/o.tsv"
syncs t.bin -j words_val.bin -tp 4 -n 32 -o "$W/o.tsv" -draws 0; works "two sequences"
holds "difference and its error over sequences" compute "$(loss t.bin t 4 1)" \
    "$(loss t.bin t 4 2)" "$(loss t.bin s 4 1)" "$(loss t.bin s 4 2)" \
    "$(rows regular 2 6 7 | grep '^s ')" <<'PY'
import sys
t1, t, s1, s = map(float, sys.argv[1:5])
difference, error = map(float, sys.argv[5].split()[1:])
d1, d2 = s1 - t1, 2 * (s - t) - (s1 - t1)
if abs(difference - (d1 + d2) / 2) > 4e-6 or abs(error - abs(d1 - d2) / 2) > 4e-6:
    sys.exit("%g %g, expected %g %g" % (difference, error, (d1 + d2) / 2, abs(d1 - d2) / 2))
PY
# The rule matters to runs of p; a model of another pattern is compared with itself.
rm "$W/o.tsv"
syncs spps.bin -j words_val.bin -n 512 -o "$W/o.tsv" -draws 0; works "a model of spps"
same "a model of spps brings R and rule, and is the base" \
    "$(rows base 3 4) $(sed -n 's/^# R //p' "$W/o.tsv")" "spps 3  2 rule mean"
said=$(loss spps.bin spps 2 32 -pm mean)
holds "its loss is the trainer's" compute "$said" "$(rows base 5)" <<'PY'
import sys
if abs(float(sys.argv[1]) - float(sys.argv[2])) > 2e-6: sys.exit(sys.argv[1:])
PY

# ----------------------------------------------------------------------------
echo "# going on: broken by a row lost, computed twice, or kept in part"
TABLE=(t.bin -j words_val.bin -tp 2 -n 2048 -o "$W/o.tsv" -draws 2 -sb 0.001 -esb 0.02)
bytes=$(wc -c <"$W/whole.tsv") why=''
for at in 0 7 100 $((bytes / 4)) $((bytes / 2)) $((bytes - 1)) "$bytes"; do
    head -c "$at" "$W/whole.tsv" >"$W/o.tsv"
    syncs "${TABLE[@]}"
    cmp -s "$W/o.tsv" "$W/whole.tsv" || why+="cut at $at: $(head -c 300 "$W/stderr") "
done
same "a table cut anywhere ends in the same bytes" "$why" ""
rm "$W/o.tsv"
"$SYNCS" "${TABLE[@]}" >/dev/null 2>&1 &
CHILD=$!
until_true grep -qs '^try' "$W/o.tsv"
kill -9 $CHILD
wait $CHILD 2>/dev/null
syncs "${TABLE[@]}" -b 3
holds "killed, and other batches: the same bytes" cmp "$W/o.tsv" "$W/whole.tsv"
# A row's loss is changed, with nothing of that pattern behind it: what is there is not computed.
awk -F'\t' -v OFS='\t' '{ print } $3 == "tstt" { exit }' "$W/whole.tsv" |
    awk -F'\t' -v OFS='\t' '$3 == "tstt" { $7 = "0.123456789" } { print }' >"$W/o.tsv"
syncs "${TABLE[@]}"; works "a row of old"
same "rows that are there are not computed again" "$(grep -c 0.123456789 "$W/o.tsv")" \
    "$(grep -c "$(printf '\ttstt\t')" "$W/whole.tsv")"

# refuses NAME TEXT... -- ARGS...: one line with every TEXT, status 1; the table stays as it is
refuses() {
    local name=$1 texts=() why; shift
    while [ "$1" != -- ]; do texts+=("$1"); shift; done; shift
    syncs "$@"
    why=$(refused "${texts[@]}")
    cmp -s "$W/o.tsv" "$W/whole.tsv" || why+="; the table changed"
    cp "$W/whole.tsv" "$W/o.tsv"
    same "refuses $name" "$why" ""
}
cp "$W/whole.tsv" "$W/o.tsv"
other="another -o keeps both"
refuses "other tokens" "tokens 128 x 16" "tokens 64 x 16" "$other" -- "${TABLE[@]}" -n 1024
refuses "another R" "R 2 rule sum" "R 4 rule sum" "$other" -- "${TABLE[@]}" -tp 4
refuses "another rule" "R 2 rule sum" "R 2 rule mean" "$other" -- "${TABLE[@]}" -pm mean
refuses "other draws" "-draws 2 -rs 1337" "-draws 2 -rs 1" "$other" -- "${TABLE[@]}" -rs 1
refuses "another text" "# text " "$other" -- "${TABLE[@]}" -j words_i.bin -n 900
refuses "another model" "# model " "$other" -- spps.bin "${TABLE[@]:1}"
sed 's/^s\t1\t/s\t2\t/' "$W/whole.tsv" >"$W/swapped.tsv"
refuses "rows of another order" "tstt" "$other" -- "${TABLE[@]}" -o "$W/swapped.tsv"
sed 's/^s\t1\ttstt\t7/s\t1\ttstt\tx/' "$W/whole.tsv" >"$W/swapped.tsv"
refuses "a row that is none" "a row that cannot be read" -- "${TABLE[@]}" -o "$W/swapped.tsv"
echo "these are words" >"$W/words"
refuses "a file that is no table" "these are words" "expected '# dev/runs/syncs'" -- \
    "${TABLE[@]}" -o "$W/words"
same "and leaves it alone" "$(cat "$W/words")" "these are words"
refuses "a folder as a table" "-o $W: " -- "${TABLE[@]}" -o "$W"
same "a page that cannot be written is an error" \
    "$("$SYNCS" --help 2>&1 >/dev/full; echo "$?") $("$SYNCS" t.bin -j words_val.bin -n 64 \
        -draws 0 2>&1 >/dev/full | grep -c '^error: standard')" \
    "error: standard output: No space left on device
1 1"
exec 9>>"$W/o.tsv"
flock 9
refuses "a table that another process writes" "another process" -- "${TABLE[@]}"
exec 9>&-
refuses "no model" "no model" -- -tp 2
refuses "two models" "'b.bin': one model at a time" -- a.bin b.bin
refuses "a model that is missing" "missing.bin" "No such file" -- missing.bin
refuses "an unknown option" "'-z' is not an option" -- "${TABLE[@]}" -z 1
refuses "an option without its value" "-n: a value is missing" -- "${TABLE[@]}" -n
refuses "a value that is no number" "-n 'x': expected an integer" -- "${TABLE[@]}" -n x
refuses "one rank" "-tp '1': expected an integer from 2" -- "${TABLE[@]}" -tp 1
refuses "ranks that do not divide the heads" "-tp 3: 4 heads" -- "${TABLE[@]}" -tp 3
refuses "ranks that a model was not trained for" "-tp 4, but spps.bin was trained with -tp 2" -- \
    spps.bin -j words_val.bin -tp 4
refuses "a text that is missing" "no such token file" -- "${TABLE[@]}" -j missing.bin
refuses "another vocabulary" "v28.bin: a vocabulary of 28, but the model has 27" -- \
    "${TABLE[@]}" -j v28.bin
refuses "more tokens than the text has" "words_val.bin: 3000 tokens, but" -- "${TABLE[@]}" -n 3008
refuses "one sequence" "two sequences of 16 tokens" -- "${TABLE[@]}" -n 31
refuses "sequences that are too long" "-t 17: the model reads at most 16" -- "${TABLE[@]}" -t 17
refuses "tiers upside down" "-esb 0.001: expected at least -sb 0.01" -- "${TABLE[@]}" -sb 0.01 \
    -esb 0.001
syncs --help
same "--help: a line for each option" "$rc $(grep -c '^  -' "$W/stdout")" "0 11"

# ----------------------------------------------------------------------------
echo "# the picture: broken by a table that gnuplot cannot read"
if command -v gnuplot >/dev/null; then
    "$PLOT" -o "$W/o.svg" "$W/whole.tsv" >"$W/stdout" 2>"$W/stderr"; rc=$?
    same "a picture, and nothing said but its name" "$rc $(cat "$W/stdout" "$W/stderr")" \
        "0 $W/o.svg"
    same "the greedy points in it" "$(awk '/^#/ { n++ } n == 1 && NF == 3' "$W/o.dat")" \
        "$(cp "$W/whole.tsv" "$W/o.tsv"; rows greedy 4 5 7 | sed 's/ $//')"
    grep -v '^greedy' "$W/whole.tsv" >"$W/part.tsv"
    "$PLOT" "$W/part.tsv" >"$W/stdout" 2>"$W/stderr"; rc=$?
    same "a table that is not far enough is refused" \
        "$rc $(grep -c 'no greedy search' "$W/stderr")" "1 1"
else
    skip "the picture" "gnuplot is not here (Debian: apt-get install gnuplot-nox)"
fi
finish
