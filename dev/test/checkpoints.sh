#!/usr/bin/env bash
# End-to-end tests of checkpoints: that damage is seen wherever it is, that what is not a number is
# neither saved nor loaded, that a run goes on with the options it had and says which it has not,
# and what a start removes. Needs bash and python3; writes only below a temporary folder; takes
# half a minute. That a stopped run ends in the same bytes is cli.sh's matter.
#
#     dev/test/checkpoints.sh              # TRAIN=./train_gpt2cu for another trainer
#
# Prints `ok <name>`, `FAILED <name>: <why>` or `skip <name>: <reason>` for each test, then
# `test_checkpoints: N passed, N failed, N skipped`, and exits with 1 if any failed.
set -u
. "$(dirname "$0")/trainer.sh"
finish() {
    echo "test_checkpoints: $passed passed, $failed failed, $skipped skipped"
    [ "$failed" = 0 ]; exit
}
(cd "$W/box" && python3 "$W/make.py" </dev/null) || {
    echo "FAILED setup: test files could not be made"; exit 1
}
cp "$W/box"/{train,val,tokenizer}.bin "$W/runs"
cd "$W/runs" || exit 1

# bare ARGS...: as train, with nothing given but ARGS.
bare() {
    "$TRAIN" "$@" >"$W/stdout" 2>"$W/stderr"; rc=$?
    [ "$rc" = 0 ] && [ ! -s "$W/stderr" ] ||
        bad "train_gpt2 $*" "exit status $rc: $(head -c 600 "$W/stderr")"
}
# verified FOLDER: what --verify says, a word or two for each line, and its status.
verified() {
    "$TRAIN" --verify "$1" 2>"$W/stderr" >"$W/stdout"; rc=$?
    sed -E 's/^(checkpoint [0-9]+: )(whole|broken|DONE is empty).*/\1\2/; s/^(orphan).*\//\1 /
        s/ belongs.*//' "$W/stdout" | tr '\n' ';'
    echo "$rc"
}
files() { (cd "$1" && find . -type f -exec cksum {} + | sort); } # all in a folder, in full
# back FOLDER N...: takes checkpoints N away, as if the run had been stopped before them.
back() {
    local N folder=$1; shift
    for N; do rm -f "$folder"/*_"$(printf %08d "$N")"*; done
}

# poke FILE AT VALUE: number AT of the body; from its end where AT is negative.
poke() {
    python3 -c 'import struct, sys
path, at, value = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
with open(path, "r+b") as f:
    f.seek(1024 + 4 * at if at >= 0 else 4 * at, 0 if at >= 0 else 2)
    f.write(struct.pack("<f", value))' "$@"
}
# Model files, and a checkpoint of an older version: nothing knows the hash of these.
train -x 4 -o old && : >old/DONE_00000004
cp old/model_00000004.bin model.bin && cp model.bin large.bin && poke large.bin 0 3e38

# ----------------------------------------------------------------------------
# what DONE says

echo "# DONE: broken by a hash of something else, or by anything in it that depends on the clock," \
    "the folder or the number of threads"
HOW=(-x 6 -n 2 -l 1e-2 -u 3 -q 0.1 -c 0.1 -gc 0.5 -p s)
train "${HOW[@]}" -o whole
OMP_NUM_THREADS=2 train "${HOW[@]}" -o twin
for file in {DONE_00000006,{model,state}_00000006.bin}; do
    holds "two equal commands: $file" cmp "whole/$file" "twin/$file"
done
cat >"$W/xxh64.py" <<'PY' # from the specification, in another language than the trainers'
import sys
M = (1 << 64) - 1
P = 11400714785074694791, 14029467366897019727, 1609587929392839161, 9650029242287828579, \
    2870177450012600261
word = lambda b: int.from_bytes(b, "little")
turn = lambda x, n: (x << n | x >> 64 - n) & M
step = lambda a, w: turn(a + w * P[1] & M, 31) * P[0] & M
def xxh64(data):
    lanes, whole = [P[0] + P[1] & M, P[1], 0, -P[0] & M], len(data) // 32 * 32
    for at in range(0, whole, 8):
        lanes[at // 8 % 4] = step(lanes[at // 8 % 4], word(data[at:at + 8]))
    h = P[4]
    if whole:
        h = sum(turn(a, n) for a, n in zip(lanes, (1, 7, 12, 18))) & M
        for a in lanes: h = ((h ^ step(0, a)) * P[0] + P[3]) & M
    h, rest = h + len(data) & M, data[whole:]
    while len(rest) >= 8:
        h, rest = turn(h ^ step(0, word(rest[:8])), 27) * P[0] + P[3] & M, rest[8:]
    if len(rest) >= 4:
        h, rest = turn(h ^ word(rest[:4]) * P[0] & M, 23) * P[1] + P[2] & M, rest[4:]
    for b in rest: h = turn(h ^ b * P[4] & M, 11) * P[0] & M
    h = (h ^ h >> 33) * P[1] & M
    h = (h ^ h >> 29) * P[2] & M
    return "%016x" % (h ^ h >> 32)
if __name__ == "__main__":
    done = open("whole/DONE_00000006", "rb").read()
    for kind in "model", "state":
        data = open("whole/%s_00000006.bin" % kind, "rb").read()
        print(kind, len(data), xxh64(data))
    print("hash", xxh64(done[:done.rindex(b"hash ")]))
PY
same "sizes and XXH64 of both files, and of DONE above its last line" \
    "$(grep -E '^(model|state|hash) ' whole/DONE_00000006)" "$(python3 "$W/xxh64.py")"
if command -v xxhsum >/dev/null; then
    same "xxhsum -H1 prints the same" \
        "$(sed -nE 's/^(model|state) [0-9]+ //p' whole/DONE_00000006 | tr '\n' ' ')" \
        "$(xxhsum -q -H1 whole/{model,state}_00000006.bin | cut -d' ' -f1 | tr '\n' ' ')"
else skip "xxhsum" "it is not installed (Debian: apt-get install xxhash)"; fi
run_of() { sed -n 's/^run //p' "$1"; }
same "all checkpoints of a run have its id, and its log" \
    "$(run_of whole/DONE_00000002) $(sed -n 's/^# run //p' whole/main.log)" \
    "$(run_of whole/DONE_00000006) $(run_of whole/DONE_00000006)"
train "${HOW[@]}" -rs 7 -o seven
differs "another seed, another run" "$(run_of seven/DONE_00000006)" "$(run_of whole/DONE_00000006)"
train -x 1 -l 0.012345678901234567 -o exact
same "a number is kept to its last bit" "$(python3 -c 'import sys
print(float(sys.argv[1]) == 0.012345678901234567)' "$(sed -n 's/^-l //p' exact/DONE_00000001)")" \
    True
train "${HOW[@]}" -wi linear -o linear
differs "other weights, another run" "$(run_of linear/DONE_00000006)" \
    "$(run_of whole/DONE_00000006)"

# ----------------------------------------------------------------------------
# damage

echo "# damage: broken by a byte that no hash covers, or by a check that comes after the first use"
# Flips one bit at a time in all three files of checkpoint 6; --verify and -y 1 have to see each.
cat >"$W/flip.py" <<'PY'
import os, random, subprocess, sys
folder, train = "flip", os.environ["TRAIN"]
random.seed(int(os.environ.get("SEED", 1)))
places = []
for kind in "model", "state":
    path = "%s/%s_00000006.bin" % (folder, kind)
    size = os.path.getsize(path)
    bits = [32 * i + random.randrange(32) for i in range(16)] # of each header entry in use
    bits += [8 * at + random.randrange(8) for at in (1000, 1023, 1024, size // 2, size - 1)]
    bits += [random.randrange(8 * size) for _ in range(24)]
    places += [(path, bit) for bit in bits]
path = folder + "/DONE_00000006"
places += [(path, 8 * at + at % 8) for at in range(0, os.path.getsize(path), 7)]
def run(*args):
    return subprocess.run([train, *args], capture_output=True, text=True, errors="replace")
for path, bit in places:
    with open(path, "r+b") as f:
        f.seek(bit // 8)
        byte = f.read(1)[0]
        f.seek(bit // 8)
        f.write(bytes([byte ^ 1 << bit % 8]))
        f.flush()
        verify = run("--verify", folder)
        if verify.returncode != 1 or "checkpoint 6: broken: " + folder not in verify.stdout or \
                verify.stdout.count("whole") != 2:
            print("%s bit %d: --verify: %s" % (path, bit, verify.stdout))
        resume = run("-o", folder, "-y", "1", "-x", "8", "-v", "0")
        if resume.returncode != 1 or resume.stderr.count("\n") != 1 or \
                "mv flip/DONE_00000006 flip/BROKEN_00000006" not in resume.stderr:
            print("%s bit %d: -y 1: %d %s" % (path, bit, resume.returncode, resume.stderr))
        f.seek(bit // 8)
        f.write(bytes([byte]))
print("flipped", len(places))
PY
cp -r whole flip
files flip >"$W/kept"
same "a bit flipped anywhere in model, state or DONE is seen" "$(python3 "$W/flip.py")" \
    "flipped $((2 * 45 + ($(stat -c %s flip/DONE_00000006) + 6) / 7))"
holds "and changes no file" diff "$W/kept" <(files flip)

train "${HOW[@]}" -p p -o other
model=flip/model_00000006.bin state=flip/state_00000006.bin DONE=flip/DONE_00000006
# name | what happens to flip/ | what the message has to name
while IFS='|' read -r name command file; do
    rm -rf flip && cp -r whole flip
    eval "$command"
    same "--verify: $name" "$(verified flip)" \
        "checkpoint 6: broken;checkpoint 4: whole;checkpoint 2: whole;1"
    files flip >"$W/kept"
    fails runs "${HOW[@]}" -x 8 -o flip -y 1
    same "-y 1: $name" "$(refused "$file" "to go on from checkpoint 4")" ""
    holds "-y 1: $name: no file changes" diff "$W/kept" <(files flip)
done <<'TABLE'
the model of another seed|cp seven/model_00000006.bin $model|flip/model_00000006.bin
the state of another pattern|cp other/state_00000006.bin $state|flip/state_00000006.bin
the model of another pattern|cp other/model_00000006.bin $model|flip/model_00000006.bin
the model of another checkpoint|cp flip/model_00000004.bin $model|flip/model_00000006.bin
the state of another checkpoint|cp flip/state_00000004.bin $state|flip/state_00000006.bin
the DONE of another checkpoint|cp flip/DONE_00000004 $DONE|flip/model_00000006.bin
the DONE of another run|cp seven/DONE_00000006 $DONE|flip/model_00000006.bin
a model cut off|truncate -s 20000 $model|20000 bytes
a state with a tail|echo >>$state|flip/state_00000006.bin
a model whose tail is zero|truncate -s 20000 $model; truncate -s 36608 $model|model_00000006.bin
a state whose tail is zero|truncate -s 60000 $state; truncate -s 72192 $state|state_00000006.bin
a DONE cut off|truncate -s 100 $DONE|flip/DONE_00000006
a DONE of zeros|truncate -s 0 $DONE; truncate -s 400 $DONE|flip/DONE_00000006
a DONE that is large|truncate -s 1M $DONE|1048576 bytes
a DONE that leads nowhere|ln -sf nowhere $DONE|flip/DONE_00000006
no model|rm $model|flip/model_00000006.bin
no state|rm $state|flip/state_00000006.bin
TABLE

echo "# going on from the one before: broken by an advice that does not work"
name="it's \$HOME"
cp -r whole "$name" && back "$name" 6 && echo >>"$name/state_00000004.bin"
fails runs "${HOW[@]}" -o "$name" -y 1
(eval "$(sed -nE 's/.*to go on from checkpoint 2: (mv .*) and then -y 1 again/\1/p' "$W/stderr")")
train "${HOW[@]}" -o "$name" -y 1
for file in model_00000006.bin state_00000006.bin DONE_00000006; do
    holds "the advice, copied to a shell: $file" cmp "$name/$file" "whole/$file"
done
same "the advice's checkpoint is the one that it says" \
    "$(grep -oE 'model [^/]*/model_[0-9]+' "$name/main.log" | tail -n 1)" \
    "model $name/model_00000002"
cp -r whole first && back first 4 6 && echo >>first/state_00000002.bin
fails runs "${HOW[@]}" -o first -y 1
same "nothing to go on from is said" "$(refused "state_00000002" "no checkpoint is older")" ""

echo "# -e: broken when a model is not checked that stands beside its DONE"
rm -rf flip && cp -r whole flip
train -x 0 -v 1 -e flip/model_00000006.bin -p s
printf x | dd of=flip/model_00000006.bin bs=1 seek=5000 conv=notrunc status=none
fails runs -x 0 -v 1 -e flip/model_00000006.bin -p s
same "-e of a damaged model beside its DONE" \
    "$(refused "flip/model_00000006.bin: damaged" "flip/DONE_00000006 says 36608")" ""
cp flip/model_00000006.bin alone.bin
train -x 0 -v 1 -e alone.bin -p s

echo "# --verify: broken by a status that scripts cannot use"
same "whole" "$(verified whole)" "checkpoint 6: whole;checkpoint 4: whole;checkpoint 2: whole;0"
same "DONE of an older version" "$(verified old)" "checkpoint 4: DONE is empty;0"
mkdir none && cp model.bin none/model_00000003.bin && : >none/state_00000003.bin.part
same "none, and files that belong to none" "$(verified none | tr ';' '\n' | sort | tr '\n' ';')" \
    "1;orphan model_00000003.bin;orphan state_00000003.bin.part;"
same "no folder" "$(verified nowhere)" 1

echo "# broken when checkpoints take the name of a model that somebody has put into the folder"
for goes_on in 0 1; do
    fails runs -e model.bin -x 3 -n 3 -o none -y $goes_on
    same "-y $goes_on into a folder with a model" \
        "$(refused "none/model_00000003.bin: no run has made it here" "-o needs a folder")" ""
done
holds "it is as it was" cmp model.bin none/model_00000003.bin

echo "# broken when options are read beside --verify"
for args in "whole -b 2" "-b 2 --verify whole" ""; do
    # shellcheck disable=SC2086 # some words
    case $args in -b*) set -- $args ;; *) set -- --verify $args ;; esac
    "$TRAIN" "$@" >"$W/stdout" 2>"$W/stderr"; rc=$?
    same "$* is refused" "$(refused "--verify" "no other option")" ""
done

# ----------------------------------------------------------------------------
# going on with the same and with other options

echo "# options: broken when one that is not given falls back to its default"
cp -r whole bare && back bare 4 6
bare -o bare -y 1
for file in model_00000006.bin state_00000006.bin DONE_00000006; do
    holds "-o -y 1 and nothing else: $file" cmp "bare/$file" "whole/$file"
done
same "and nothing is said to differ" "$(grep -c "not bit for bit" "$W/stdout" bare/main.log |
    cut -d: -f2 | tr '\n' ' ')" "0 0 "

SAYS=(-v 1 -m 3 -s 2 -g 5 -gp ab -gt 0.5 -gk 9 -sd 1 -sp p -tk tokenizer.bin -n 1 -nk 2)
train "${HOW[@]}" "${SAYS[@]}" -o says && cp -r says goes && back goes 6 && bare -o goes -y 1
same "nor is what it says and saves: -j -v -m -s -g -gp -gt -gk -sd -sp -tk -n -nk" \
    "$(banner -j -v -m -s -g -gp -gt -gk -sd -sp -tk -n -nk)$(echo goes/DONE*) $(
       column tel)" \
    "-j val.bin -v 1 -m 3 -s 2 -g 5 -gp ab -gt 0.5 -gk 9 -sd 1 -sp p -tk tokenizer.bin -n 1 -nk 2 $(
       echo goes/DONE_0000000{5,6}) $(column tel says/main.log | awk '{ print $NF, "" }')"
same "the same samples" "$(sed -n '/^--- sample after update 6/,/^---$/p' "$W/stdout")" \
    "$(train "${HOW[@]}" "${SAYS[@]}" -o says2; sed -n '/^--- sample after update 6/,/^---$/p' \
        "$W/stdout")"
bare -o goes -y 1 -x 7 -s 0
same "samples are turned off by -s 0 alone" "$(grep -c '^--- sample' "$W/stdout")" 0
train -x 1 -s 1 -g 3 -gp $'a\nb' -o lines && bare -o lines -y 1 -x 2
same "a prompt of lines is not kept" "$(banner -g -gp -s)" "-g 3 -gp '' -s 1 "
train -x 1 -s 1 -g 3 -gp "$(printf '%5000s' '' | tr ' ' a)" -o long && bare -o long -y 1 -x 2
same "a prompt of 5000 bytes is not kept" "$(banner -g -gp -s)" "-g 3 -gp '' -s 1 "

echo "# options: broken when one that changes the numbers is not said, or one that does not is"
# changes ARGS...: what a run says of going on from checkpoint 4 with ARGS, on the terminal and, the
# same, in its log.
changes() {
    rm -rf go && cp -r "${from:-whole}" go && back go 6
    bare -o go -y 1 -v 0 -x 6 "$@"
    diff <(grep "not bit for bit" "$W/stdout") <(grep "not bit for bit" go/main.log) &&
        sed -n 's/^# not bit for bit: //p' "$W/stdout" | tr '\n' ';'
}
same "the same options, given" "$(changes "${SMALL[@]}" "${HOW[@]}")" ""
while read -r flag now was; do
    # shellcheck disable=SC2086 # one or two options
    same "$flag $now" "$(changes $flag $now)" "${flag##* } $now was $was;"
done <<'TABLE'
-rs 7 1337
-vp 0 1
-b 1 2
-t 8 16
-x 7 6
-sh 0 1
-a 1 0
-l 0.001 0.01
-u 0 3
-q 0.5 0.1
-k linear cosine
-c 0 0.1
-b1 0.8 0.9
-b2 0.99 0.95
-gc 1 0.5
-d 64 32
-pe t,s ''
TABLE
train "${HOW[@]}" -p t -pe t,s,s -o listed
from=listed
same "-pe of a run, not given" "$(changes)$(column pe go/main.log)" "$(column pe listed/main.log)"
same "-pe of a run, another" "$(changes -pe s)" "-pe s was t,s,s;"
same "-pe of a run, given up" "$(changes -pe '')$(verified go)" \
    "-pe '' was t,s,s;checkpoint 6: whole;checkpoint 4: whole;checkpoint 2: whole;0"
fails runs -o listed -y 1 -x 9 -p ss
same "-p that is none of its run's" "$(refused "-p ss" "-p t -pe t,s,s")" ""
from=whole
train -x 6 -n 2 -vp 0 -o uncut
same "a run of -vp 0, the default of before, goes on as it was" \
    "$(from=uncut changes)$(grep -c '^# -vp 0$' go/main.log) $(column trl go/main.log)" \
    "2 $(column trl uncut/main.log)"
train -x 6 -n 2 -o plain -k constant -q 0.1
same "-tp of a run of t" "$(from=plain changes -tp 1)" "-tp 1 was 2;"
same "-x, where the learning rate does not depend on it" "$(from=plain changes -x 7)" ""
same "-j, -v, -n, -fold are no part of it" "$(changes -j train.bin -v 1 -m 1 -n 1 -fold 2)" ""
mkdir moved && cp train.bin moved && cp val.bin moved/val.bin
same "another path to the same text" "$(changes -i moved/train.bin)" ""
same "another text" "$(changes -i val.bin | sed -E 's/ [0-9a-f]{16}//g')" \
    "the text of -i, 200 tokens of hash, was 2001 of;"
mkdir there && cp val.bin there/train.bin && cp -r whole there && back there/whole 6
(cd there && exec "$TRAIN" -o whole -y 1 -v 0) >"$W/stdout"
same "another text under the same name" \
    "$(grep -c "^# not bit for bit: the text of -i" "$W/stdout")" 1
train -e 2x2x16 -rs 3 -o teacher && train -e 2x2x16 -rs 4 -o teacher2
cp teacher/model_00000002.bin teacher.bin
train -x 6 -n 2 -o pupil -kd teacher.bin
same "a run with a teacher, which is not named again" "$(from=pupil changes)" ""
same "without its teacher" "$(from=pupil changes -kd '' | sed -E 's/ [0-9a-f]{16}/ H/g')" \
    "the teacher of -kd, of hash H, was H (0: none);"
cp teacher2/model_00000002.bin teacher.bin
same "another teacher under the same name" "$(from=pupil changes | sed -E 's/ [0-9a-f]{16}/ H/g')" \
    "the teacher of -kd, of hash H, was H (0: none);"
same "its weight" "$(cp teacher/model_00000002.bin teacher.bin; from=pupil changes -kw 2)" \
    "-kw 2 was 1;"
same "several at once, a line each" "$(changes -l 1e-3 -c 0)" "-l 0.001 was 0.01;-c 0 was 0.1;"
mv go went
bare -o went -y 1 -v 0 -x 8 -l 1e-3
same "what was changed is what the next one goes on from" \
    "$(sed -n 's/^# not bit for bit: //p' "$W/stdout")" "-x 8 was 6"
cp -r whole gone && back gone 6 && mv train.bin away.bin
fails runs -o gone -y 1
same "a text that is gone: where its name comes from" \
    "$(refused "train.bin: no such" "those of gone/DONE_00000004")" ""
mv away.bin train.bin

echo "# -e and -y 1: broken when a model is asked for that is not taken"
train -e model.bin -x 4 -n 2 -o from && back from 4
fails runs -o from -y 1 -e large.bin
same "-y 1 -e of another model" "$(refused "-e large.bin" "started with -e model.bin")" ""
fails runs -o from -y 1 -e 2x4x32
same "-y 1 -e of another shape" "$(refused "-e 2x4x32" "2x2x16")" ""
bare -o from -y 1 -v 0 -e model.bin && back from 4
bare -o from -y 1 -v 0 -e 2x2x16
same "-y 1 -e of the model it was started with, or of its shape" "$(column trl | wc -w)" 2

echo "# nothing to do: broken by a run that counts backwards, or writes a log of nothing"
files whole >"$W/kept"
for x in 6 3 0; do
    bare -o whole -y 1 -x $x
    same "-x $x after checkpoint 6: one line" \
        "$(grep -c . "$W/stdout") $(grep -oE 'checkpoint [0-9]+|-x [0-9]+' "$W/stdout" |
            tr '\n' ' ')" "1 checkpoint 6 -x $x "
done
holds "and no file changes" diff "$W/kept" <(files whole)

echo "# DONE of an older version: broken when it is refused, or taken without a word"
cp -r old older
train -x 6 -o older -y 1
same "it goes on, with a remark" "$(column trl | wc -w) $(grep -c "of an older version" \
    "$W/stdout") $(verified older)" "2 1 checkpoint 6: whole;checkpoint 4: DONE is empty;0"

echo "# checkpoint 0: broken when 0 updates mean that there is none"
train -e model.bin -p s -tp 1 -x 0 -o zero
fails runs -o zero
same "it is not overwritten" "$(refused "checkpoint 0")" ""
cp -r zero zero_broken && echo >>zero_broken/state_00000000.bin
fails runs -e model.bin -o zero_broken -y 1
same "its state is read" "$(refused "state_00000000.bin")" ""
bare -o zero -y 1 -x 2 -v 0
same "it is gone on from, with its options" "$(banner model -p -tp)$(column trl | wc -w)" \
    "model zero/model_00000000.bin -p s -tp 1 2"
train -x 0 -v 1 -o zero_said
train -x 2 -v 1 -o zero_said -y 1
same "its validation is not said again" "$(grep -o '^s:[0-9]* tel' zero_said/main.log |
    tr '\n' ' ')" "s:0 tel s:1 tel s:2 tel "

echo "# names: broken by a parser that takes more than 8 digits, or other signs"
mkdir names && touch names/DONE_{+0000009,-0000009,0x000009,000000009,00000009.part,00000009x} \
    "names/DONE_ 0000009" names/done_00000009 names/DONE_00000009.bin
train -o names -y 1
same "none of these is a checkpoint" "$(banner model) $(cd names && ls DONE_*9* | wc -l)" \
    "model new  7"

# ----------------------------------------------------------------------------
# the folder

echo "# the folder: broken by an error that means: no checkpoint, or by a link that is followed"
ln -s loop loop
fails runs -o loop -y 1
same "a folder that cannot be listed is not an empty one" \
    "$(refused "loop: cannot look for checkpoints" "symbolic links")" ""
# during FOLDER COMMAND...: COMMAND in a run after its first update. With 2 ms for each hop of 8
# all-reduces, its 20 updates take half a second.
during() {
    "$TRAIN" "${SMALL[@]}" -nl 2000 -x 20 -n 10 -o "$1" >"$W/stdout" 2>"$W/stderr" & CHILD=$!
    for ((i = 0; i < 2000; i++)); do
        grep -qs '^s:1 ' "$1/main.log" && break
        sleep 0.005
    done
    "${@:2}"
    wait $CHILD; rc=$? CHILD=
}
echo precious >victim
links() {
    local file
    for file in "$1"/{{model,state}_000000{1,2}0.bin,DONE_000000{1,2}0}.part; do
        ln -s ../victim "$file"
    done
}
during linked links linked
same ".part is not written through a link" "$rc $(cat victim) $(verified linked)" \
    "0 precious checkpoint 20: whole;checkpoint 10: whole;0"
during removed rm -rf removed
same "a folder that is removed in the run is made again" "$rc $(verified removed)" \
    "0 checkpoint 20: whole;checkpoint 10: whole;0"

echo "# pruning: broken by files that stay for ever, or by one too many that goes"
cp -r whole prune && cd prune && rm DONE_00000002
touch {model,state}_00000005.bin model_00000009.bin {model_00000003,state_00000006}.bin.part \
    DONE_00000001.part model_1.bin model_000000001.bin model_00000001.bin.old notes.txt
cd ..
train "${HOW[@]}" -o prune -y 1 -x 7
same "a start removes what is older than its checkpoint and has no DONE, and nothing else" \
    "$(cd prune && echo *)" "DONE_00000004 DONE_00000006 DONE_00000007 main.log $(
    )model_000000001.bin model_00000001.bin.old model_00000004.bin model_00000006.bin $(
    )model_00000007.bin model_00000009.bin model_1.bin notes.txt run.lock state_00000004.bin $(
    )state_00000006.bin state_00000007.bin"
cp -r whole stuck && rm stuck/DONE_00000002 && mkdir stuck/DONE_00000002
train "${HOW[@]}" -o stuck -y 1 -x 8 -nk 1
same "a DONE that cannot be removed keeps its files" "$(cd stuck && echo *)" \
    "DONE_00000002 DONE_00000008 main.log $(
    )model_00000002.bin model_00000008.bin run.lock state_00000002.bin state_00000008.bin"

# ----------------------------------------------------------------------------
# not a number

echo "# not a number: broken when it is saved, or when what is good is pruned before"
# file of old | number | value | what the message has to say
while read -r kind at value text; do
    rm -rf nan && cp -r old nan
    poke "nan/${kind}_00000004.bin" "$at" "$value"
    files nan >"$W/kept"
    fails runs -x 6 -o nan -y 1
    same "$value in $kind, number $at" "$(refused "nan/${kind}_00000004.bin: $text")" ""
    same "$value in $kind, number $at: --verify" "$(verified nan)" "checkpoint 4: broken;1"
    holds "$value in $kind, number $at: no file changes" diff "$W/kept" <(files nan)
done <<'TABLE'
model 0 nan wte is nan in block 0, row 0
model -1 -inf lnfb is -inf in block 0, row 15
model -65 inf fcprojw is inf in block 1, row 15
state 20 nan the first moment of wte is nan in block 0, row 1
state -1 inf the second moment of lnfb is inf
state -1 -1e-30 the second moment of lnfb is -1e-30 in block 0, row 15; expected a finite
TABLE
# Positions from 8 on are not read at -t 8: their gradient is 0, and only decay moves them.
poke model.bin $((128 * 16 + 9 * 16)) 3e38
train -t 8 -e model.bin -x 1 -n 1 -o saved
fails runs -t 8 -e model.bin -o saved -y 1 -x 3 -nk 1 -n 1 -l 1000 -c 1000
same "a weight that overflows is not saved" \
    "$(refused "saved/model_00000002.bin: wpe is " "row 9; expected a finite number")" ""
same "nothing is pruned or left behind" "$(cd saved && echo *)" \
    "DONE_00000001 main.log model_00000001.bin run.lock state_00000001.bin"
fails runs -e large.bin -x 0 -v 1
same "a validation loss that is none" \
    "$(refused "after update 0 the validation loss is not finite" "all weights are finite")" ""
fails runs -t 8 -e model.bin -x 1 -v 1 -m 1 -l 1000 -c 1000 -o valid
same "a validation names no tensor that it does not read" "$(refused "wpe is ")" ""
fails runs -e large.bin -x 0 -s 1
same "logits of a sample that are none" \
    "$(refused "the logits of a sample are not finite" "all weights are finite")" ""

finish
