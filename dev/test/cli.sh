#!/usr/bin/env bash
# End-to-end tests of ./train_gpt2 as a user runs it: what it refuses, what it writes, what it says,
# and that a stopped run goes on to the same bytes. Needs bash and python3, no network and no
# prepared data; writes only below a temporary folder; takes half a minute. What the functions
# inside compute is test_gpt2's matter.
#
#     dev/test/cli.sh              # TRAIN=./train_gpt2_asan for another binary
#     dev/test/cli.sh --short      # the groups up to samples: options, files, resuming, loading
#
# Prints `ok <name>`, `FAILED <name>: <why>` or `skip <name>: <reason>` for each test, then
# `test_cli: N passed, N failed, N skipped`, and exits with 1 if any failed.
set -u
short=
case ${1:-} in
'') ;;
--short) short=1 ;;
*) echo "error: '$1' is not an option; there is --short" >&2; exit 1 ;;
esac
. "$(dirname "$0")/trainer.sh"
DRAFTS=$(cd "$(dirname "$0")/../runs" && pwd)/drafts.sh
finish() {
    echo "test_cli: $passed passed, $failed failed, $skipped skipped"
    [ "$failed" = 0 ]; exit
}

# Bad files: format, patch | what the message has to say, beside the file's name.
BAD_FILES="
tokens    missing           | no such token file
tokens    empty             | 0 bytes | header
tokens    dir               | not a regular file
tokens    text              | magic | expected 20240520
tokens    cut=100           | 100 bytes | 1024-byte header
tokens    cut=1500          | 1500 bytes | means 5026
tokens    add=1             | 5027 bytes | means 5026
tokens    0=20240326        | magic 20240326, expected 20240520
tokens    1=2               | version 2, expected 1
tokens    2=0               | 0 tokens
tokens    2=-1              | -1 tokens
tokens    2=2147483647      | 5026 bytes | 2147483647 tokens means 4294968318
tokens    3=-1              | vocabulary of -1 | 65536
tokens    3=65537           | vocabulary of 65537 | 65536
tokens    3=26              | token 2000 is 26 | vocabulary has 26
tokens    at_7=27           | token 7 is 27 | vocabulary has 27
tokens    at_7=65535        | token 7 is 65535 | vocabulary has 27
model     missing           | No such file
model     empty             | 0 bytes | header
model     dir               | not a regular file
model     text              | magic | expected 20240326
model     cut=1023          | 1023 bytes | 1024-byte header
model     cut=5311          | 5311 bytes | means 5312
model     add=4             | 5316 bytes | means 5312
model     0=20240520        | magic 20240520, expected 20240326
model     1=4               | version 4, expected 3 or 5
model     1=5               | 5312 bytes | bf16 | means 3168
model     2=0               | maxT | 0
model     2=-16             | maxT | -16
model     2=1073741824      | maxT | 1073741824
model     3=0               | vocabulary | 0
model     3=-27             | vocabulary | -27
model     3=65537,7=65664   | vocabulary | 65537
model     3=2147483647      | vocabulary | 2147483647
model     4=0               | blocks | 0
model     4=-1              | blocks | -1
model     4=1073741824      | blocks | 1073741824
model     5=0               | heads | 0
model     5=-4              | heads | -4
model     5=3               | 4 channels | 3 heads
model     6=0               | channels | 0
model     6=-4              | channels | -4
model     6=1073741824      | channels | 1073741824
model     7=0               | padded to 0, expected 128
model     7=256             | padded to 256, expected 128
model     7=-128            | padded to -128, expected 128
model     4=1024,6=65536    | 5312 bytes | L 1024, C 65536
model     2=1048576,3=65536,7=65536,4=1024,5=4096,6=65536 | 5312 bytes | L 1024, C 65536
smodel    8=3               | 4 heads | 3 tensor ranks
smodel    8=8               | tensor ranks | 8
smodel    8=-1              | tensor ranks | -1
smodel    9=7               | merge rule | 7
smodel    9=-1              | merge rule | -1
smodel    10=1000           | pattern | 1000
smodel    10=-1             | pattern | -1
smodel    11=120            | pattern | 120
smodel    12=0              | pattern | 0
smodel    12=371            | pattern | 371
smodel    12=-13            | pattern | -13
smodel    12=46             | after a p
smodel    10=3,13=115       | sss | 2 blocks
smodel    253=-1            | list of patterns | -1
smodel    253=239           | list of patterns is 239, expected 0 to 238
smodel    253=1             | character 0 of the list of patterns has code 0
smodel    253=1,13=120      | list of patterns | 120
smodel    253=1,13=371      | list of patterns | 371
smodel    253=2,13=116,14=44 | list of patterns '': empty
smodel    253=1,13=44       | list of patterns '': empty
smodel    253=3,13=115,14=44,15=46 | list of patterns '.' | after a p
smodel    253=3,13=115,14=115,15=115 | 'sss' | 2 blocks
smodel    10=0,253=2        | length of the pattern is 0, expected 1
smodel    251=1             | field 251 is 1 | scaled partial outputs
smodel    252=-1            | field 252 is -1 | removed
kept      missing           | No such file
kept      empty             | 0 bytes
kept      dir               | not a regular file
kept      text              | magic
kept      cut=5000          | 5000 bytes | means 5312
kept      add=1             | 5313 bytes | means 5312
state     missing           | No such file
state     empty             | 0 bytes | header
state     dir               | not a regular file
state     text              | magic
state     cut=1000          | 1000 bytes | header
state     cut=9599          | 9599 bytes | expected 9600
state     add=8             | 9608 bytes | expected 9600
state     0=20240326        | magic 20240326
state     1=2               | version 2, expected 1
state     4=3               | 3 | 2
state     8=5               | 5 | 4
tokenizer missing           | No such file
tokenizer empty             | 0 bytes | header
tokenizer dir               | not a regular file
tokenizer text              | magic | expected 20240328
tokenizer cut=1023          | 1023 bytes | header
tokenizer cut=1025          | token 0 of 27 | cut off
tokenizer cut=1077          | token 26 of 27
tokenizer add=1             | 1 bytes too many
tokenizer 0=20240327        | magic 20240327, expected 20240328
tokenizer 1=1               | version 1, expected 2
tokenizer 2=0               | vocabulary of 0
tokenizer 2=-1              | vocabulary of -1
tokenizer 2=2147483647      | vocabulary of 2147483647
tokenizer 2=28              | token 27 of 28
tokenizer 2=26              | 2 bytes too many
tokenizer 3=27              | end-of-text token 27
tokenizer 3=-1              | end-of-text token -1
tokenizer at_0=353          | token 0 of 27
tokenizer at_0=0            | token 0 of 27
"
(cd "$W/box" && python3 "$W/make.py" <<<"$BAD_FILES") || {
    echo "FAILED setup: test files could not be made"; exit 1
}
cp "$W/box"/*.bin "$W/runs"

# ----------------------------------------------------------------------------
# refusals

listing >"$W/before"

# each_refuses TEXT...: refuses every `flag value text...` of stdin; the message holds flag, text
# and each TEXT, in which VALUE stands for the value.
each_refuses() {
    local flag value text
    while read -r flag value text; do
        [ "$value" != "''" ] || value=
        refuses "$flag '$value'" "$flag" "$text" "${@//VALUE/"'$value'"}" -- "$flag" "$value"
    done
}

echo "# options: broken by atoi, by a missing range check, or by a message that does not name" \
    "option, value and what is allowed"
each_refuses VALUE <<'TABLE'
-b abc integer
-b -3 from 1
-b 0 from 1
-b 65537 65536
-b 99999999999 65536
-b 99999999999999999999 65536
-b 3x integer
-b 3.5 integer
-b '' integer
-t 0 from 1
-x -2 from -1
-x 2147483648 integer
-l nan number
-l inf number
-l -1 number
-l 1e-3x number
-l '' number
-q 2 from 0 to 1
-c -1 number
-b1 1 number
-b2 1.5 number
-b1 0.99999999 from 0 to 0.9999999
-b2 0.999999999 from 0 to 0.9999999
-gc -0.1 number
-gt -1 number
-gk -1 integer
-g 0 from 1
-n -1 integer
-y 2 from 0 to 1
-a 2 from 0 to 1
-sh 2 from 0 to 1
-rs -1 integer
-k foo cosine
-k cos cosine
-k '' cosine
-pm foo sum mean streams
-pm SUM sum mean streams
-wi xavier gpt2 linear
-p x expected
-p .s .
-p s. after a p
-p p.. after a p
-p '' empty
-p . .
-p sst 2 blocks
-p ttt 2 blocks
-tp 0 from 1
-e 4x4 LxHxC
-e 4x4x LxHxC
-e 4x4x16x2 LxHxC
-e -2x2x16 LxHxC
-e +2x2x16 LxHxC
-e d13 d12
-e d LxHxC
-e '' LxHxC
-d -32 integer
-fold -1 integer
-cm foo expected one of
-r 3 from 0 to 2
-z 2 from 0 to 1
TABLE
each_refuses <<'TABLE'
-pe x -pe 'x': 'x' is not a block
-pe t,sst -pe 'sst': 3 letters cannot fill 2 blocks
-pe t, -pe '': empty
-pe ,p -pe '': empty
-pe t,,p -pe '': empty
-pe t,.s -pe '.s': a . may only stand after a p
-pe t;p -pe 't;p': ';' is not a block
-sp x -sp 'x': 'x' is not a block
-sp spp -sp 'spp': 3 letters cannot fill 2 blocks
-e 4x3x128 128 channels cannot be divided by 3 heads
-e 0x4x128 blocks (L) is 0
-e 4x0x128 heads (NH) is 0
-e 4x4x0 channels (C) is 0
-e 1025x4x16 blocks (L) is 1025
-e 4x4x65540 channels (C) is 65540
-e 99999999999x1x1 99999999999
-e 4294967298x2x16 4294967298
-e 2x4294967298x16 4294967298
-e 2x2x4294967312 4294967312
-d 48 -d 48: tokens per update must be a multiple of 32
-d 31 -d 31: tokens per update must be a multiple of 32
-tp 3 -tp 3: 2 heads cannot be divided over 3 tensor ranks, but over 1, 2
-fold 3 -fold 3: 2 tensor ranks
-fold 4 divisor of 2
-fold 1 -tp 2 -fold 1 needs a multiple of 2 processes
-zzz 1 '-zzz' is not an option; --help
--b 1 '--b' is not an option; --help
-B 1 '-B' is not an option; --help
b 1 'b' is not an option; --help
-cm nccl not built in
-r 1 not built in
-z 1 not built in
TABLE
refuses "-tp 5 with 4 heads" "-tp 5" "4 heads" -- -e 2x4x16 -tp 5
refuses "-fold 3 -tp 2" "-fold 3" "divisor of 2" -- -fold 3 -tp 2
refuses "-fold 1 -tp 2" "-tp 2 -fold 1" "2 processes" "mpirun" -- -fold 1 -tp 2
refuses "a flag without its value" "-b" "value is missing" -- -b
refuses "a flag after a flag" "-b" "-t" -- -b -t 16
refuses "a value without a flag" "'7' is not an option" -- -b 2 7 8
refuses "-p of 241 letters" "-p" "241" "240" -- -e 241x2x16 -p "$(printf 't%.0s' {1..241})"
refuses "-p of 100,000 letters" "-p" "100000" "240" -- -p "$(printf 's%.0s' {1..100000})"
refuses "-pe of 240 characters" "-pe" "240 characters" "pattern of 1" "at most 240" -- \
    -e 240x2x16 -pe "$(printf 't%.0s' {1..240})"
refuses "-e of 10,000 characters" "-e" -- -e "$(printf '1%.0s' {1..10000})"
refuses "-e of 10,000 characters .bin" "-e" -- -e "$(printf '1%.0s' {1..10000}).bin"
refuses "-i of 10,000 characters" "no such token file" -- -i "$(printf '1%.0s' {1..10000})"
refuses "a newline in a value, on one line" "-k" -- -k $'co\nsine'
refuses "controls of two bytes, of one, half a character; \303\234 and \342\202\254 are shown" \
    $'-k \'\303\234??m?\342\202\254??\'' -- -k $'\303\234\302\233m\233\342\202\254\342\202'
refuses "a line separator and a mark that turns the text" "-k 'a???b???c'" -- \
    -k $'a\342\200\250b\342\200\256c'

echo "# launchers: broken when each of several processes takes itself for the only one, or a lone" \
    "one for one of several"
PMI_SIZE=4 refuses "to be one of PMI_SIZE 4" "PMI_SIZE is 4" "unset PMI_SIZE" --
SLURM_STEP_NUM_TASKS=4 PMIX_RANK=0 refuses "to be one of 4 tasks of srun" \
    "SLURM_STEP_NUM_TASKS is 4" --
PMIX_RANK=1 refuses "to be one of several by PMIx" "PMIX_RANK is 1" --
SLURM_NTASKS=4 SLURM_PROCID=0 train
same "runs alone in the script of a Slurm job" "$(banner "mesh 1 process =")" "mesh 1 process = DP "
SLURM_STEP_NUM_TASKS=1 PMIX_RANK=0 train
same "runs alone as the one task of srun" "$(banner "mesh 1 process =")" "mesh 1 process = DP "

RESUME=(-y 1 -e 2x4x4 -x 6) # what resumes the checkpoints in the box
echo "# options that contradict each other or a file: broken when the first of the two silently" \
    "wins"
refuses "-t beyond a model's maxT" "-t 17" "16" -- -e model.bin -t 17
refuses "-y 1 without -o" "-y 1" "-o" -- -o "" -y 1
refuses "-o with an earlier checkpoint" "-o ck_model" "checkpoint 4" "-y 1" -- -o ck_model
refuses "-gp without -s" "-gp" "-s" -- -gp abc
refuses "-p against a model's" "-p t" "smodel.bin" "-p ss" -- -e smodel.bin -p t
refuses "-tp against a model's" "-tp 2" "smodel.bin" "-tp 4" -- -e smodel.bin -tp 2
refuses "-pm against a model's" "-pm sum" "smodel.bin" "-pm mean" -- -e smodel.bin -pm sum
refuses "-p against a checkpoint's" "-p sp" "ck_smodel" "-p ss" -- -o ck_smodel "${RESUME[@]}" -p sp
refuses "-tp against a checkpoint's" "-tp 1" "ck_smodel" "-tp 4" -- -o ck_smodel "${RESUME[@]}" \
    -tp 1
refuses "-pm against a checkpoint's" "-pm streams" "ck_smodel" "-pm mean" -- -o ck_smodel \
    "${RESUME[@]}" -pm streams
refuses "-e against a checkpoint's" "-e 2x2x16" "2x4x4" -- -o ck_model "${RESUME[@]}" -e 2x2x16
refuses "-e that is no model's name, resuming" "-e 'nonsense'" "LxHxC" -- -o ck_model \
    "${RESUME[@]}" -e nonsense
refuses "a path that begins with //" "//no/such.bin: no such token file" -- -i //no/such.bin
refuses "-i ''" "no such token file" -- -i ''
refuses "more tokens in a micro-batch than can be counted" "-b 65536 -t 1048576" \
    "at most 1073741824" -- -b 65536 -t 1048576
refuses "-kw without a teacher" "-kw 2" "-kd" -- -kw 2
refuses "a teacher without updates" "-kd model.bin" "-x is 0" -- -e model.bin -kd model.bin -x 0
refuses "a teacher that is not there" "none.bin" "No such file" -- -kd none.bin
refuses "a teacher of another shape" "-kd model.bin" "2 blocks of 4 channels" "2 of 16" -- \
    -kd model.bin
refuses "a teacher of another vocabulary" "-kd model.bin" "vocabulary of 27" "has 28" -- \
    -e 2x4x4 -i v28.bin -kd model.bin
refuses "a teacher that reads less" "-kd model.bin" "16 tokens" "-t is 17" -- \
    -e 2x4x4 -t 17 -kd model.bin
refuses "a teacher of another R" "-kd smodel.bin" "-tp 4" "-tp is 2" -- -e 2x4x4 -kd smodel.bin
refuses "an empty validation" "-m" -- -v 1 -m 0
refuses "an epoch of less than one update" "-d" -- -x -1 -d 3200

echo "# places: broken when folders are made before everything is known to be good"
refuses "-o below a file" "train.bin" -- -o train.bin/out
refuses "-o on a file" "train.bin" "not a folder" -- -o train.bin
refuses "-o with a name too long" "name too long" -- -o "new/deep/$(printf 'x%.0s' {1..300})"
refuses "-o of 10,000 characters" "too long" -- -o "$(printf 'x/%.0s' {1..5000})"

# ----------------------------------------------------------------------------
# what a run says and writes

echo "# --help: broken when it loses an option, or its status"
train --help
ALL="-i -j -e -o -wi -rs -p -pe -tp -pm -fold -vp -wd -wk -b -t -d -x -sh -a -l -u -q -k -c -b1 -b2"
ALL+=" -gc -kd -kw -v -m -s -g -gp -gt -gk -sd -sp -tk -w -n -nk -y -nl -nb -cm -ms -mc -r -z"
same "--help lists all options" \
    "$(sed -nE 's/^  (-[^ ]+) .*/\1/p' "$W/stdout" | tr '\n' ' ')" "$ALL --plan --verify --help "
same "--help has status 0, alone or last" "$(cd "$W" && "$TRAIN" --help >/dev/null; echo $?) $rc" \
    "0 0"
"$TRAIN" --help >/dev/full 2>"$W/stderr"
same "--help that cannot be written has status 1" "$? $(cat "$W/stderr")" \
    "1 error: standard output: No space left on device"
refuses "-h behind an option: its value" "-h: cannot open a tokenizer" -- -x 0 -e model.bin \
    -tk -h -gp abc
same "-h is --help" "$(cd "$W" && "$TRAIN" -h | md5sum; "$TRAIN" -h >/dev/null; echo $?)" \
    "$(cd "$W" && "$TRAIN" --help | md5sum; echo 0)"

echo "# --plan: broken when it is not what runs, or needs data"
for row in "t 16" "sppp 4" "p 2" "l 16" "d 16"; do
    read -r p ar <<<"$row"
    (cd "$W" && "$TRAIN" -i nothing.bin -e 4x4x64 -t 32 -b 4 -p "$p" --plan) >"$W/stdout" 2>&1
    same "--plan of $p: status 0, as many all-reduces as a run executes, of as many bytes" \
        "$? $(grep -cE 'all-reduce(| begins), 32768 bytes$' "$W/stdout")" "0 $ar"
done
fails box -p sppx --plan
same "--plan of what is no pattern" "$rc $(grep -c "'x' is not a block" "$W/stderr")" "1 1"

echo "# without -o nothing is written; -o makes its folders and writes exactly its files, of" \
    "exactly their sizes"
find "$W/runs" | sort >"$W/tree"
train -v 1
same "a run without -o writes nothing" "$(find "$W/runs" | sort | diff "$W/tree" -)" ""
train -o a/b/c -x 3 -n 2
n=$((128 * 16 + 16 * 16 + 2 * (12 * 16 * 16 + 13 * 16) + 2 * 16))
same "checkpoints 2 and 3: names and sizes" \
    "$(cd "$W/runs/a/b/c" && find . -name '*0*' ! -name 'DONE*' -printf '%f %s\n' | sort |
        tr '\n' ' '; printf '%s ' DONE*)" \
    "$(for kind in model_%s.bin:$((1024 + 4 * n)) state_%s.bin:$((1024 + 8 * n)); do
        for N in 00000002 00000003; do printf "${kind%:*} %s " $N "${kind#*:}"; done; done
        )DONE_00000002 DONE_00000003 "
train -o keep -x 5 -n 1 -nk 2
same "-nk 2 keeps two" "$(cd "$W/runs/keep" && echo *)" \
    "DONE_00000004 DONE_00000005 main.log $(echo model_0000000{4,5}.bin) run.lock $(
        echo state_0000000{4,5}.bin)"
train -x 0 -e model.bin -o copy
holds "a model loaded and saved is the same file" cmp "$W/runs/model.bin" \
    "$W/runs/copy/model_00000000.bin"

echo "# the log: broken by a line in another format, or by fewer digits than others parse"
FORMAT='# [^ ]+ .+|s:[0-9]+ tel(\[[spt]+\])?:[0-9]+\.[0-9]{6,}|s:[0-9]+ trl:[0-9]+\.[0-9]{6,} '
FORMAT="${FORMAT}lr:[0-9]\.[0-9]{6}e[-+][0-9]+ norm:[0-9]+\.[0-9]{6,} ms:[0-9.]+ tok:[0-9]+ "
FORMAT="${FORMAT}ar:[0-9]+ mb:[0-9]+\.[0-9]+ comm:[0-9.]+( pe:[spt]+)?|"
FORMAT="${FORMAT}g:[0-9]+ new:[0-9]+ prompt:[0-9]+ "
FORMAT="^(${FORMAT}prompt_ms:[0-9.]+ ms:[0-9.]+ p99:[0-9.]+ comm:[0-9.]+ ar:[0-9.]+"
FORMAT="${FORMAT}( rounds:[0-9]+ drafted:[0-9]+ accepted:[0-9]+)? mean:[0-9.]+)\$"
train -o log -x 4 -v 2 -s 2 -g 5 -gp $'ab\ncd'
same "every line of main.log has one of its formats" \
    "$(grep -vE "$FORMAT" "$W/runs/log/main.log")" ""
same "which updates have which lines" \
    "$(grep -oE '^s:[0-9]+ tr?[el]+' "$W/runs/log/main.log" | tr '\n' ' ')" \
    "s:0 tel s:1 trl s:2 trl s:2 tel s:3 trl s:4 trl s:4 tel "
same "stdout, not a terminal, has the log's lines" "$(grep ^s: "$W/stdout")" \
    "$(grep ^s: "$W/runs/log/main.log")"
train -o again -x 4 -v 2 -s 2 -g 5 -gp ab -n 2
rm "$W"/runs/again/*_00000004*
train -o again -y 1 -x 4 -v 2 -s 2 -g 5 -gp ab -n 2
same "a resumed log has each line once" "$(grep -oE '^(s:[0-9]+ tr?[el]+|g:[0-9]+)' \
    "$W/runs/again/main.log" | tr '\n' ' ')" \
    "s:0 tel s:1 trl s:2 trl s:2 tel g:2 s:3 trl s:4 trl s:4 tel g:4 "
memory() { train -e 4x4x64 -t 16 -b 8 -x 1 -v 0 "$@"; grep -o '^# .*memory_MiB .*' "$W/stdout"; }
same "memory of drafts is had before training" "$(memory -p t -s 1 -g 2 -sd 2 -sp p)" \
    "$(memory -p p)"
memory -o large >/dev/null
same "memory of a teacher is said too" \
    "$(memory -kd large/model_00000001.bin | sed 's/ [0-9].*//')" \
    "$(printf '# memory_MiB parameters\n# teacher memory_MiB parameters')"
options=$(cd "$W/runs" && "$TRAIN" --help | awk '$1 ~ /^-[^-]/ && !/not built in/ { print $1 }' |
        sort | tr '\n' ' ')
same "main.log has a line for every option" \
    "$(sed -nE 's/^# (-[^ ]+) .*/\1/p' "$W/runs/log/main.log" | sort | tr '\n' ' ')" "$options"
if python3 -c 'import os; os.openpty()' 2>/dev/null; then
    (cd "$W/runs" && python3 -c 'import pty, sys; pty.spawn(sys.argv[1:])' "$TRAIN" "${SMALL[@]}" \
        -o tty) >"$W/stdout" 2>&1 </dev/null
    same "on a terminal no lines of the log, in the log the same as ever" \
        "$(grep -c '^s:[0-9]* trl' "$W/stdout") $(steps "$W/runs/tty/main.log" | wc -l)" "0 2"
else skip "on a terminal" "no pseudo-terminal to be had"; fi

echo "# all-reduces: broken when they are computed instead of counted, or counted once for" \
    "several micro-steps"
for row in "t 16" "tstt 14" "s 8" "psss 8" "spps 6" "pp. 4" "sppp 4" "p 2"; do
    read -r p ar <<<"$row"
    train -e 4x4x64 -t 32 -b 4 -x 1 -p "$p"
    same "-p $p over 4 blocks: ar, mb" "$(column ar)$(column mb)" \
        "$ar $(awk "BEGIN { printf \"%.2f\", $ar * 4 * 32 * 64 * 4 / 2^20 }") "
done
train -e 4x4x64 -t 32 -b 4 -x 2 -d 256 -p s
same "-d of two micro-steps doubles ar and mb, in every update" "$(column ar)$(column mb)" \
    "16 16 0.50 0.50 "
train -p s -tp 1
same "-tp 1 has no all-reduces" "$(column ar)" "0 0 "
for row in "1 0" "2 1" "4 1"; do
    read -r R cut <<<"$row"
    train -e 2x4x16 -tp "$R"
    sums=$(grep -c '^  4 all-reduces of the cut vocabulary' "$W/stdout")
    same "-tp $R: the vocabulary is cut where R > 1, and its sums are not in ar" \
        "$(banner -vp)$sums $(column ar)" \
        "-vp $cut $cut $((8 * cut)) $((8 * cut)) "
done

echo "# patterns of updates: broken by one that is never drawn, that is said and not run, or that" \
    "is another for each micro-step"
PE=(-e 4x4x16 -x 40 -m 2 -pe t,sppp,p,t)
# What updates drew; the all-reduces of each pattern.
drawn() { column pe; }
each() {
    sed -nE 's/^s:.* (ar:[0-9]+) .* (pe:.*)/\1 \2/p' "$W/stdout" | sort -u | tr '\n' ' '
}
train "${PE[@]}" -v 20 -o pe; cp "$W/stdout" "$W/pe"
same "-pe: every line of main.log has one of its formats" \
    "$(grep -vE "$FORMAT" "$W/runs/pe/main.log")" ""
draws=$(drawn)
same "-pe: draws are those of the seed, worked out in another language" "$draws" "$(python3 -c '
M = (1 << 64) - 1
def mix(x):
    x = x + 0x9E3779B97F4A7C15 & M
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & M
    x = (x ^ x >> 27) * 0x94D049BB133111EB & M
    return x ^ x >> 31
for N in range(1, 41):
    bits = mix(mix(mix(mix(1337) ^ 3) ^ N))
    print(("t", "sppp", "p", "t")[bits * 4 >> 64], end=" ")')"
same "-pe: all of them come, with the all-reduces of each" "$(each)" \
    "ar:16 pe:t ar:2 pe:p ar:4 pe:sppp "
same "-pe: after -p's a validation line for each, those given twice once" \
    "$(sed -nE 's/^(s:[0-9]+ tel[^:]*):.*/\1/p' "$W/stdout" | tr '\n' ' ')" \
    "$(for N in 0 20 40; do printf %s "s:$N tel s:$N tel[t] s:$N tel[sppp] s:$N tel[p] "; done)"
same "-pe: -p's own loss is that of its line in the list" "$(column 'tel\[t\]')" "$(column tel)"
for p in t sppp p; do
    train -x 0 -v 1 -m 2 -e pe/model_00000040.bin -p $p -pe ''
    same "-pe: the last tel[$p] is that of the saved model with -p $p" "$(column tel)" \
        "$(column "tel\\[$p\\]" "$W/pe" | cut -d' ' -f3) "
done
train "${PE[@]}" -d 96
same "-pe: micro-steps do not change the draws, and share them" "$(drawn)$(each)" \
    "${draws}ar:12 pe:sppp ar:48 pe:t ar:6 pe:p "
train "${PE[@]}" -rs 7; differs "-pe: another seed, other draws" "$(drawn)" "$draws"
train "${PE[@]}" -pe p -o pe_p; train "${PE[@]}" -pe '' -p p -o p_alone
holds "-pe p trains to the bytes of -p p" cmp -i 1024 "$W/runs/pe_p/model_00000040.bin" \
    "$W/runs/p_alone/model_00000040.bin"

echo "# a model of several patterns: broken when it is taken for one of -p alone, or for plain" \
    "GPT-2"
model=pe/model_00000040.bin
cp "$W/runs/$model" "$W/box/listed.bin"
listing >"$W/before"
at() { od -An -td4 -j$((4 * $2)) -N$((4 * $3)) "$W/runs/$1" | tr -s ' \n' ' '; }
same "its header: R, rule, t and the list" "$(at $model 8 4)$(at $model 12 11)$(at $model 251 5)" \
    " 2 0 1 116  116 44 115 112 112 112 44 112 44 116 0  0 0 10 0 0 "
train -x 0 -e $model -v 1 -m 2
same "without updates its list is the default" "$(banner -p -pe -tp)$(column 'tel\[p\]' | wc -w)" \
    "-p t -pe t,sppp,p,t -tp 2 1"
train -x 0 -e $model -o pe_copy
holds "and it is saved as it was" cmp "$W/runs/$model" "$W/runs/pe_copy/model_00000000.bin"
train -x 1 -e $model -o pe_then
same "updates without -pe are of -p, and so is what they make" \
    "$(banner -p -pe)$(drawn)$(at pe_then/model_00000001.bin 8 4)" "-p t -pe ''  0 0 0 0 "
train -x 1 -e $model -p sppp -pe p -o pe_other
same "-p from its list, with another list" \
    "$(drawn)$(at pe_other/model_00000001.bin 10 6)$(at pe_other/model_00000001.bin 253 1)" \
    "p  4 115 112 112 112 112  1 "
refuses "-p that is not in its list" "-p s" "listed.bin" "-p t -pe t,sppp,p,t" -- -e listed.bin -p s
refuses "-tp against its own" "-tp 1" "listed.bin" "-tp 2" -- -e listed.bin -tp 1
refuses "-pm against its own" "-pm mean" "listed.bin" "-pm sum" -- -e listed.bin -pm mean
refuses "-pe that does not fit its blocks" "-pe 'sst'" "4 blocks" -- -e listed.bin -pe sst

# ----------------------------------------------------------------------------
# stopping and going on

# resumable NAME ARGS...: run A of 12 updates; then for some N what a crash after checkpoint N
# leaves (a later model without DONE, an unfinished file, a log that is ahead and cut off) resumes,
# with 3 threads, to A's bytes and A's log.
resumable() {
    local name=$1 a=$W/runs/A b=$W/runs/B n N why; shift
    local how=(-x 12 -n 1 -v 5 -m 2 -d 64 -l 1e-2 -u 3 -q 0.1 -k cosine -c 0.1 -gc 0.5 "$@")
    rm -rf "$a"
    train "${how[@]}" -o A
    for N in 1 5 11; do
        rm -rf "$b"; cp -r "$a" "$b"
        for ((n = N + 1; n <= 12; n++)); do
            rm "$b/$(printf 'DONE_%08d' $n)" "$b/$(printf 'model_%08d.bin' $n)" \
                "$b/$(printf 'state_%08d.bin' $n)"
        done
        head -c 2000 "$a/model_00000012.bin" |
            tee "$b/$(printf 'model_%08d.bin' $((N + 1)))" \
            >"$b/$(printf 'state_%08d.bin.part' $((N + 1)))"
        printf 's:12 trl:3.1' >>"$b/main.log"
        OMP_NUM_THREADS=3 train "${how[@]}" -o B -y 1
        why=$(cd "$b" && cmp model_00000012.bin "$a/model_00000012.bin" 2>&1
              cmp "$b/state_00000012.bin" "$a/state_00000012.bin" 2>&1
              cmp "$b/DONE_00000012" "$a/DONE_00000012" 2>&1
              grep -qxF "# model B/$(printf 'model_%08d.bin' $N)" main.log ||
                  echo "the log does not say that it went on from $N"
              diff <(steps "$a/main.log") <(steps "$b/main.log"))
        same "$name resumes from $N to the same bytes and log" "$(tr '\n' ' ' <<<"$why")" " "
    done
}
echo "# exact resume: broken by anything that a step depends on and a checkpoint lacks, or a" \
    "checkpoint taken without its DONE"
resumable "t" -p t
resumable "s at -tp 4" -e 2x4x16 -p s -tp 4
resumable "sppp" -e 4x2x16 -p sppp
resumable "l" -e 4x2x16 -p l
resumable "d" -e 4x2x16 -p d
resumable "-pe" -e 4x2x16 -pe t,sppp,p,l
train -e 4x2x16 -l 1e-2 -x 4 -o teacher
resumable "sppp with a teacher" -e 4x2x16 -p sppp -kd teacher/model_00000004.bin -kw 2
same "with a teacher every update says how far it is" \
    "$(grep -cE '^s:[0-9]+ trl:.* kd:[0-9]\.[0-9]{6}e[-+][0-9]+$' "$W/runs/A/main.log")" 12
resumable "-pe with a teacher" -e 4x2x16 -pe t,sppp,p -kd teacher/model_00000004.bin
resumable "sppp with rule mean" -e 4x2x16 -p sppp -pm mean
(cd "$W/runs/A" && rm -f DONE_00000012)
train -e 4x2x16 -o A -y 1 -x 12
same "a checkpoint without DONE is not one; -p, -tp, -pm come from the one before" \
    "$(banner -p -tp -pm model)" "-p sppp -tp 2 -pm mean model A/model_00000011.bin "
train -e 4x2x16 -o A -y 1 -x 12
same "resuming a finished run does nothing" "$(steps "$W/stdout")" ""
train -e 4x2x16 -o A -y 1 -x 6
same "resuming beyond -x does nothing, and does not count backwards" \
    "$(grep -E '^(s:|-)' "$W/stdout")" ""

# ----------------------------------------------------------------------------
# models of others, and samples

echo "# a model written by others: broken by another order of tensors, padding in the softmax," \
    "or a need for training text"
python3 - "$W/runs" >"$W/want" <<'PY'
import math, random, struct, sys
random.seed(2)
V, Vp, T, L, NH, C = 27, 128, 16, 2, 2, 8
n = T * C + L * (12 * C * C + 13 * C)
wte = [random.gauss(0, 1) for _ in range(Vp * C)]
lnfb = [random.gauss(0, 1) for _ in range(C)]
# lnfw 0: logits are wte . lnfb everywhere.
body = wte + [random.gauss(0, 1) for _ in range(n)] + [0.0] * C + lnfb
with open(sys.argv[1] + "/llmc.bin", "wb") as f:
    f.write(struct.pack("<256i", 20240326, 3, T, V, L, NH, C, Vp, *[0] * 248))
    f.write(struct.pack("<%df" % len(body), *body))
logits = [sum(wte[v * C + c] * lnfb[c] for c in range(C)) for v in range(V)]
total = math.log(sum(math.exp(x) for x in logits))
text = open(sys.argv[1] + "/val.bin", "rb").read()[1024:]
ids = struct.unpack("<%dH" % (len(text) // 2), text)
print(sum(total - logits[i] for i in ids[1:65]) / 64)
PY
train -x 0 -e llmc.bin -i /nowhere.bin -v 1 -m 2
holds "validation loss of a model of llm.c's, without training text" compute "$(column tel)" \
    "$(cat "$W/want")" <<'PY'
import sys
if not abs(float(sys.argv[1]) - float(sys.argv[2])) < 1e-5:
    sys.exit("found %s, expected %s" % tuple(sys.argv[1:]))
PY
train -x 0 -e smodel.bin
same "a model of ss brings -p, -tp, -pm" "$(banner -p -tp -pm blocks)" \
    "-p ss -tp 4 -pm mean blocks ss "
train -e smodel.bin -p ss -tp 4 -pm mean -o named
holds "they may be named, and are saved with it" cmp -n 1024 "$W/runs/smodel.bin" \
    "$W/runs/named/model_00000002.bin"
train -x 0 -e model.bin -p s -tp 4 -o brand
same "a plain model takes any pattern and R, and keeps it" \
    "$(od -An -td4 -j32 -N16 "$W/runs/brand/model_00000000.bin" | tr -s ' ')" " 4 0 1 115"

echo "# going on: broken when a trained model begins anew under another pattern, or goes back to" \
    "its own"
train -x 0 -e teacher/model_00000004.bin -p sppp -v 1
zero_shot=$(column tel)
train -x 3 -e teacher/model_00000004.bin -p sppp -v 3 -o sparser
same "a model of t goes on as sppp from the loss it has as sppp" "$(column tel | cut -d' ' -f1) " \
    "$zero_shot"
train -x 0 -e sparser/model_00000003.bin -v 1
same "and is saved as sppp, with its loss" "$(banner -p -tp blocks)$(column tel)" \
    "-p sppp -tp 2 blocks sppp $(column tel "$W/runs/sparser/main.log" | cut -d' ' -f2) "
train -x 0 -e teacher/model_00000004.bin -v 1
holds "which is not its loss as t" test "$(column tel)" != "$zero_shot"
train -x 3 -e teacher/model_00000004.bin -kd teacher/model_00000004.bin -o pupil
same "its own teacher is no distance away, and then some" \
    "$(column kd | sed -E 's/ [1-9]\.[0-9]{6}e-[0-9]+/ some/g')" "0.000000e+00 some some "
fails runs -e 4x4x16 -tp 4 -kd teacher/model_00000004.bin
same "refuses a teacher whose heads R does not divide" \
    "$(refused "-kd teacher/model_00000004.bin" "2 heads" "-tp 4")" ""
(cd "$W/runs" && exec "$TRAIN" -e 4x2x16 -t 16 -p sppp -kd teacher/model_00000004.bin --plan) \
    >"$W/stdout" 2>&1
same "--plan says where: before the gradient of a segment goes into that of the one before" \
    "$(grep -oE ' G (\+= w [^)]*|= G)' "$W/stdout" | tr -d '\n')" \
    " G += w (x8 - y8 G = G G += w (x2 - y2 G = G"

echo "# samples: broken by a wrong offset in the tokenizer, a seed that is not used, or top-k" \
    "off by one"
sample() {
    train -x 0 -e model.bin -i /nowhere.bin -tk tokenizer.bin -s 1 -g 40 "$@"
    text=$(sed -n '/^--- sample/,/^---$/p' "$W/stdout" | sed '1d;$d'; echo .)
}
sample; first=$text
sample; same "the same seed, the same text" "$text" "$first"
sample -rs 2; differs "another seed, another text" "$text" "$first"
same "40 tokens of 1 character" \
    "$(tr -d 'a-z\n.' <<<"$text" | wc -c) $(printf %s "$text" | wc -c)" "0 42"
sample -gt 0; likeliest=$text
sample -gt 0 -rs 2; same "-gt 0 takes no notice of the seed" "$text" "$likeliest"
sample -gk 1; same "-gk 1 is -gt 0" "$text" "$likeliest"
sample -gk 27; same "-gk of the whole vocabulary is all of it" "$text" "$first"
alone() { train -x 0 -e model.bin -i /nowhere.bin -j /nowhere.bin -tk tokenizer.bin "$@"; }
generated() { sed -n '/^--- sample after update 0$/,/^---$/p' "$W/stdout" | sed '1d;$d'; }
# Of the last run, without what depends on the clock.
took() { sed -nE 's/ (prompt_ms|ms|p99|comm|mean):[0-9.]+//g; /^g:/p' "${1:-$W/stdout}"; }
train -x 0 -s 1 -v 0 -e model.bin -i /nowhere.bin -tk tokenizer.bin -gp abc -g 40; text=$(generated)
alone -v 0 -gp abc -g 40
same "-x 0 with -gp is a sample; text of -i and -j is not needed" "$(generated)" "$text"
same "what it took" "$(took)" "g:0 new:40 prompt:3 ar:4"
alone -g 12; same "-g alone, from the end of text" "$(took)" "g:0 new:12 prompt:1 ar:4"
alone -g 1; same "one token" "$(took)" "g:0 new:1 prompt:1 ar:0"
(cd "$W/runs" && printf abc | "$TRAIN" "${SMALL[@]}" -x 0 -e model.bin -i /nowhere.bin -v 0 \
    -tk tokenizer.bin -gp - -g 40) >"$W/stdout"
same "-gp - reads the prompt from standard input" "$(generated)" "$text"
mkdir -p "$W/runs/beside"; cp "$W/runs/model.bin" "$W/runs/tokenizer.bin" "$W/runs/beside"
(cd "$W/runs/beside" && "$TRAIN" -x 0 -e ./model.bin -t 16 -b 2 -gp abc -g 40) >"$W/stdout"
same "without -i the tokenizer beside the model is taken" "$(generated)" "$text"
mkdir -p "$W/runs/made/by" && cp "$W/runs/tokenizer.bin" "$W/runs/made"
cp "$W/runs/train.bin" "$W/runs/made/text.bin"
train -i made/text.bin -e model.bin -x 1 -l 0 -o made/by
(cd "$W/runs" && "$TRAIN" -x 0 -e made/by/model_00000001.bin -t 16 -gp abc -g 40) >"$W/stdout"
same "or else that of the run whose checkpoint it is" "$(generated)" "$text"
alone -gp abc -g 40 -o logged; same "the log has the line too" "$(took "$W/runs/logged/main.log")" \
    "g:0 new:40 prompt:3 ar:4"
same "nothing else is written" "$(cd "$W/runs/logged" && echo *)" "main.log run.lock"
alone -gp abcdefghijklmnopqrstuvwxyz -g 20 -gt 0; long=$(generated)
alone -gp abcdefghijklmnopqrstuvwxyz -g 20 -gt 0 -tp 1
same "a prompt longer than the window; folded ranks and one" "$(generated)" "$long"
same "and how much of it is read" "$(grep "^# prompt" "$W/stdout")" \
    "# prompt 26 tokens, of which the window of -t 16 takes the last 10"
alone -gp ab -g 20 -t 1; same "a window of one token" "$(took)" "g:0 new:20 prompt:2 ar:4"
alone -gp abc -g 40 -gt 0 -w bf16; same "-w bf16" "$(took)" "g:0 new:40 prompt:3 ar:4"
refuses "-g 0" "-g" "from 1" -- -g 0
refuses "nine drafts" "-sd '9'" "0 to 8" -- -sd 9
for option in "-sd 2" "-sp t" "-g 9" "-gt 0" "-gk 1" "-tk tokenizer.bin"; do
    # shellcheck disable=SC2086 # two words
    refuses "$option without samples" "${option% *}" "-s N" "-x 0" -- $option
done
refuses "a pattern of no drafts" "-sp t" "-sd N" -- -x 0 -e model.bin -tk tokenizer.bin -g 5 -sp t
refuses "drafts in a window of one token" "-sd 2" "-t 1" "at least 2" -- -x 0 -e model.bin \
    -tk tokenizer.bin -g 5 -t 1 -sd 2
refuses "drafts by a pattern that does not fit" "-sp 'spp'" "3 letters" "2 blocks" -- -x 0 \
    -e model.bin -tk tokenizer.bin -g 5 -sd 2 -sp spp
refuses "drafts by what is no pattern" "-sp 'x'" "not a block" -- -x 0 -e model.bin \
    -tk tokenizer.bin -g 5 -sd 1 -sp x
python3 - "$W/runs" <<'PY'
import struct, sys
data = bytearray(open(sys.argv[1] + "/model.bin", "rb").read())
data[1024:1028] = struct.pack("<f", 3.4e38) # rounds to infinity
open(sys.argv[1] + "/infinite.bin", "wb").write(data)
PY
fails runs -e infinite.bin -tk tokenizer.bin -x 0 -g 3 -gp $'\n' -w bf16 -vp 0
same "-w bf16 of what it cannot hold is an error" "$(refused "wte is inf")" ""
refuses "-w bf16 with updates" "-w bf16" "-x 0" -- -w bf16 -x 2
refuses "-gp with updates and without samples" "-gp" "-s N" "-x 0" -- -gp abc
refuses "an empty standard input" "-gp -" "empty" -- -x 0 -e model.bin -tk tokenizer.bin -gp -
python3 - "$W/runs" <<'PY'
import struct, sys
ids = [1 + i % 8 for i in range(1000)] # abcdefgh, again and again
open(sys.argv[1] + "/circle.bin", "wb").write(
    struct.pack("<256i", 20240520, 1, 1000, 27, *[0] * 252) + struct.pack("<1000H", *ids))
PY
train -i circle.bin -x 60 -l 2e-2 -s 60 -g 12 -gt 0 -gp abc
same "a model of abcdefgh goes on after a prompt, beyond -t; tokenizer.bin beside -i" \
    "$(sed -n '/^--- sample after update 60$/,/^---$/p' "$W/stdout" | tr '\n' ' ')" \
    "--- sample after update 60 abcdefghabcdefg --- "

echo "# what a terminal would obey or not know never reaches it: a model of abcdefgh, whose tokens
# are parts of characters, a control as U+009B and as a byte, a mark that turns the text"
python3 - "$W/runs" <<'PY'
import struct, sys
def write(name, end, texts):
    with open("%s/%s.bin" % (sys.argv[1], name), "wb") as f:
        f.write(struct.pack("<256i", 20240328, 2, len(texts), end, *[0] * 252))
        f.write(b"".join(bytes([len(t)]) + t for t in texts))
others = [bytes([c]) for c in range(ord("i"), ord("z") + 1)]
write("parts", 1, [b"\n", b"x", b"\xc3", b"\x9c", b"y\xc2", b"\x9b[", b"\x9b", b"\xe2\x80", b"\xae",
                   *others])
write("controls", 1, [b"\n", b"a", b"\xc2\x9b", b"\xc3\x9c", b"d", b"e", b"f", b"g", b"h", *others])
PY
train -i circle.bin -x 60 -l 2e-2 -o circle
circle() {
    train -x 0 -e circle/model_00000060.bin -i /nowhere.bin -s 1 -gt 0 "$@"
    text=$(sed -n '/^--- sample/,/^---$/p' "$W/stdout" | sed '1d;$d')
}
circle -tk parts.bin -g 15
same "tokens that are parts of characters are printed as whole ones, or as U+FFFD" "$text" \
    $'\303\234y\357\277\275[\357\277\275\357\277\275x\303\234y\357\277\275[\357\277\275\357\277\275'
circle -tk parts.bin -g 1
same "a sample that ends inside a character" "$text" $'\357\277\275'
circle -tk controls.bin -g 3 -gp $'a\302\233\303\234'
same "a control in -gp" "$text" $'a\357\277\275\303\234def'
holds "a control in -gp is not in the banner either" grep -qF -e $'-gp a??\303\234' "$W/stdout"

echo "# drafts: broken by a key of a draft that stays, or by drafts beyond window or text"
drafts() { alone -e circle/model_00000060.bin -gp abc -g 50 "$@"; }
drafts -gt 0; text=$(generated)
same "without" "$text" "abc$(printf 'defghabc%.0s' 1 2 3 4 5 6)de"
for options in "-sd 1" "-sd 4" "-sd 8 -sp s" "-sd 3 -sp l" "-sd 5 -sp pp. -w bf16"; do
    drafts -gt 0 $options; same "$options: the same text" "$(generated)" "$text"
done
# Window 16. 4 tokens are there after the prompt's pass, and a round begins with 4, 7, 10 and 13 of
# them. The token after 16 comes alone, and that after 17, for which the window begins anew; rounds
# with 18 and 21, again after 8 more, and one with 50.
drafts -gt 2 -sd 2 -sp t; text=$(generated)
same "a pattern that drafts for itself, sampled: all are accepted" \
    "$(took)" "g:0 new:50 prompt:3 ar:4 rounds:13 drafted:26 accepted:26"
drafts -gt 2; same "and the text is that without" "$(generated)" "$text"
# The table of dev/runs/drafts.sh for this model, which knows its circle of letters by heart.
cp "$W/box/tokenizer.bin" "$W/runs/circle/"
for _ in {1..99}; do printf abcdefgh; done >"$W/letters"
PROMPTS=2 TRAINER=$TRAIN "$DRAFTS" -t 16 -g 20 -k 3 -p t -T 0 "$W/letters" \
    "$W/runs/circle/model_00000060.bin" >"$W/stdout" 2>"$W/stderr"
same "drafts.sh: without drafts, by the letter before, and with" \
    "$(cut -f 2-10 "$W/stdout" | tr '\t' , | tail -n +2) $(cat "$W/stderr")" \
    "none,0,0,40,0,0,0,2,4.000
likeliest next,0,1,40,40,40,40,,
t,0,3,40,10,22,22,2,4.000 "
same "drafts.sh: a text that is not there is refused" \
    "$(TRAINER=$TRAIN "$DRAFTS" here "$W/runs/circle/model_00000060.bin" 2>&1) $?" \
    "error: here: not there; expected the text that the models were trained on 1"

[ -z "$short" ] || finish

# ----------------------------------------------------------------------------
# files that cannot be used, and numbers that cannot be

echo "# files: broken by a reader that trusts a header, or does not check a size"
while IFS='|' read -r what t1 t2 t3; do
    read -r format patch <<<"$what"
    texts=("$t1" "$t2" "$t3")
    file=bad/${format}_$patch.bin
    case $format in
        tokens)
            refuses "-i $patch" "$file" "${texts[@]}" -- -i "$file"
            refuses "-j $patch" "$file" "${texts[@]}" -- -v 1 -j "$file";;
        kept)
            refuses "checkpoint's model $patch" "bad/kept_$patch/model_00000004.bin" \
                "${texts[@]}" -- -o "bad/kept_$patch" "${RESUME[@]}";;
        state)
            refuses "state $patch" "bad/state_$patch/state_00000004.bin" "${texts[@]}" -- \
                -o "bad/state_$patch" "${RESUME[@]}";;
        tokenizer)
            refuses "-tk $patch" "$file" "${texts[@]}" -- -s 1 -tk "$file";;
        *)
            refuses "-e $format $patch" "$file" "${texts[@]}" -- -e "$file";;
    esac
done < <(sed 's/ *| */|/g; /^$/d' <<<"$BAD_FILES")
refuses "a glob with a bad shard" "shards_bad/1.bin" "5025 bytes" -- -i 'shards_bad/*.bin'
refuses "a glob with another vocabulary" "shards_v/1.bin" "28" "shards_v/0.bin" "27" -- \
    -i 'shards_v/*.bin'
refuses "a glob with an id beyond V" "shards_id/1.bin" "token 400 is 27" -- -i 'shards_id/*.bin'
refuses "a glob of nothing" "none/*.bin" -- -i 'none/*.bin'
mkdir "$W/runs/set[1]" && cp "$W/box/train.bin" "$W/runs/set[1]"
train -i 'set[1]/train.bin'
same "a path that is none as a glob" "$rc" 0
ln -s loop "$W/loop" # root, too, cannot read this one
refuses "a glob in a folder that cannot be read" "loop: cannot read this folder" -- \
    -i "$W/loop/*.bin"
if [ "$(id -u)" = 0 ] && ! setpriv --reuid 65534 --clear-groups true 2>/dev/null; then
    skip "a glob that finds one of two folders" "no setpriv to become another user than root"
else
    mkdir -p "$W/some/a" "$W/some/b"; cp "$W/box/train.bin" "$W/some/a"
    cp "$TRAIN" "$W/copy"
    chmod -R 755 "$W"; chmod 0 "$W/some/b"
    as=(); [ "$(id -u)" != 0 ] || as=(setpriv --reuid 65534 --clear-groups)
    for pattern in '*/*.bin' '*/train.bin' '*/./../a/train.bin'; do
        ASAN_OPTIONS=${ASAN_OPTIONS:-}:detect_leaks=0 "${as[@]}" "$W/copy" "${SMALL[@]}" \
            -i "$W/some/$pattern" >"$W/stdout" 2>"$W/stderr"; rc=$?
        same "-i $pattern, where one of two folders cannot be read" \
            "$(refused "some/b: cannot read this folder: Permission denied")" ""
    done
    chmod 755 "$W/some/b"
fi
refuses "training text under one batch" "few.bin" "32 tokens" "33" "-b" -- -i few.bin
refuses "validation text under one batch" "few.bin" "32 tokens" "33" "-b" -- -v 1 -j few.bin
refuses "validation text of another vocabulary" "v28.bin" "28" "27" -- -v 1 -j v28.bin
refuses "training text of another vocabulary than the model's" "v28.bin" "28" "27" -- -e model.bin \
    -i v28.bin
(cd "$W/box" && exec "$TRAIN" -i train.bin -e 2x2x16 -t 16 -x 1) >"$W/stdout" 2>"$W/stderr"; rc=$?
same "-i of another text, without -j" "$(refused "shakespeare_char/val.bin" "-j names the")" ""
refuses "a tokenizer of another vocabulary than the model's" "tokenizer.bin" "27" "28" -- \
    -i v28.bin -s 1
refuses "-gp outside the vocabulary" "-gp" "'X'" -- -s 1 -gp abXc
refuses "-gp outside the vocabulary, two bytes" "-gp" $'\303\234' -- -s 1 -gp $'ab\303\234c'
refuses "-gp with neither characters nor byte pairs" "-gp" "characters or of byte pairs" "26" -- \
    -s 1 -gp abc -tk words.bin
refuses "-gp that is not UTF-8" "-gp" "0xFF" "offset 2" -- -s 1 -gp $'ab\377'

refuses "a NaN weight" "nan.bin" "fcprojw is nan in block 0, row 2" -- -e nan.bin

echo "# NaN: broken when a run goes on, or saves what it computed"
fails runs -e large.bin -o nan -n 1
same "a gradient that overflows stops the run, naming the update" "$(refused "update 1:")" ""
same "and leaves no checkpoint" "$(cd "$W/runs/nan" && echo *)" "main.log run.lock"
fails runs -l 1000 -c 1000 -x 20 -n 1 -o burst
same "weights that overflow stop the run" "$(refused "update ")" ""
holds "weights that overflow are in no checkpoint" compute "$W/runs/burst" <<'PY'
import array, glob, math, sys
for path in sorted(glob.glob(sys.argv[1] + "/model_*.bin")):
    bad = sum(not math.isfinite(x) for x in array.array("f", open(path, "rb").read()[1024:]))
    if bad: sys.exit("%s: %d weights are not finite" % (path.split("/")[-1], bad))
PY

# ----------------------------------------------------------------------------
# runs that are stopped

echo "# kill -9, again and again, at any moment: the same bytes at the end"
STOPPED=(-x 60 -n 1 -v 7 -m 2 -u 10 -q 0 -p s)
train "${STOPPED[@]}" -o whole
kills=0 N=0 resumes=
while [ $kills -lt 4 ]; do
    next=$W/runs/shot/$(printf 'DONE_%08d' $((N + 5)))           # when this is there, and a little
    (cd "$W/runs" && exec "$TRAIN" "${SMALL[@]}" "${STOPPED[@]}" -o shot -y 1) >/dev/null \
        2>"$W/stderr" & CHILD=$!
    while kill -0 $CHILD 2>/dev/null && [ ! -e "$next" ]; do sleep 0.002; done
    kill -9 $CHILD 2>/dev/null
    { wait $CHILD; } 2>/dev/null
    rc=$? CHILD=
    [ $rc = 137 ] && [ ! -e "$W/runs/shot/DONE_00000060" ] || break
    kills=$((kills + 1))
    N=$(cd "$W/runs/shot" && printf '%s\n' DONE_???????? | tail -n 1 | sed 's/DONE_0*//')
    resumes+="# updates $N to 60 "
done
train "${STOPPED[@]}" -o shot -y 1
if [ $kills = 0 ]; then skip "killed runs" "this machine finished before it could be killed"
else
    same "killed $kills times: each time it goes on from the last checkpoint" \
        "$(grep -E '^# updates ([1-9]|[1-5][0-9]) to 60$' "$W/runs/shot/main.log" | tr '\n' ' ')" \
        "$resumes"
    holds "killed $kills times: the same model" cmp "$W/runs/whole/model_00000060.bin" \
        "$W/runs/shot/model_00000060.bin"
    holds "killed $kills times: the same state" cmp "$W/runs/whole/state_00000060.bin" \
        "$W/runs/shot/state_00000060.bin"
    holds "killed $kills times: the same log" diff <(steps "$W/runs/whole/main.log") \
        <(steps "$W/runs/shot/main.log")
    same "killed $kills times: no unfinished files left" \
        "$(cd "$W/runs/shot" && find . -name '*.part')" ""
fi
mkdir "$W/runs/early"
# Killed before its first checkpoint.
sed '/^s:1 /,$d' "$W/runs/whole/main.log" >"$W/runs/early/main.log"
train "${STOPPED[@]}" -o early -y 1
holds "killed before the first checkpoint: the same log" diff <(steps "$W/runs/whole/main.log") \
    <(steps "$W/runs/early/main.log")

echo "# a token file that is cut while it is mapped: the run names it, where a signal would kill it"
python3 - "$W/runs" <<'PY'
import struct, sys
for name in "ctrain", "cval", "clast":
    with open("%s/%s.bin" % (sys.argv[1], name), "wb") as f:
        f.write(struct.pack("<256i", 20240520, 1, 100000, 27, *[0] * 252))
        f.write(struct.pack("<100000H", *[i % 27 for i in range(100000)]))
PY
for what in "9000 -i ctrain" "9000 -v 1 -m -1 -j cval" "200900 -i clast"; do
    read -r size what <<<"$what"
    file=${what##* }
    : >"$W/stdout"
    (cd "$W/runs" && exec "$TRAIN" "${SMALL[@]}" -x 99999999 $what.bin) >"$W/stdout" \
        2>"$W/stderr" & CHILD=$!
    for _ in {1..500}; do grep -q ^s: "$W/stdout" && break; sleep 0.02; done
    truncate -s "$size" "$W/runs/$file.bin"
    for _ in {1..500}; do kill -0 $CHILD 2>/dev/null || break; sleep 0.02; done
    kill -9 $CHILD 2>/dev/null
    { wait $CHILD; } 2>/dev/null
    rc=$? CHILD=
    same "$file.bin cut to $size bytes while it is mapped" "$(refused "$file.bin" "was cut")" ""
done

echo "# a full disk: broken by an unchecked write, a rename before a sync, or pruning before saving"
# Sourced by what limits the disk: resumes checkpoint 2 of FULL there; prints what is wrong.
cat >"$W/full.sh" <<'SH'
before=$(cksum *_0000000[12]*)
log=$(wc -l <main.log)
ASAN_OPTIONS=${ASAN_OPTIONS:-}:detect_leaks=0 "$TRAIN" -i ../train.bin -e 2x2x16 -t 16 -b 2 \
    -v 0 -o . -x 9 -n 1 -nk 1 -y 1 >/dev/null 2>"$W/stderr"
rc=$?
[ $rc = 1 ] || echo "exit status $rc, expected 1."
grep -qE "^error: .*(File too large|No space left)" "$W/stderr" &&
    [ "$(wc -l <"$W/stderr")" = 1 ] || echo "stderr: $(cat "$W/stderr")"
[ "$before" = "$(cksum *_0000000[12]*)" ] || echo "checkpoint 2 changed."
[ "$(wc -l <main.log)" -ge "$log" ] || echo "the log lost lines."
ls | grep -E 'part$|DONE_0000000[^12]'
SH
export W
train -x 2 -n 1 -nk 1 -o full
# name, what limits it in KiB: a file's size; or a disk's size beside what is there already
for row in "at a model 30 20" "at a state 50 60"; do
    read -r _ _ what limit room <<<"$row"
    rm -rf "$W/runs/limited"; cp -r "$W/runs/full" "$W/runs/limited"
    same "file size limited, stopped $what $limit KiB" \
        "$(cd "$W/runs/limited" && ulimit -f "$limit" && . "$W/full.sh" 2>&1)" ""
done
mkdir "$W/runs/disk"
space=
for try in "unshare -m" "unshare -rm"; do
    $try mount -t tmpfs -o size=64k none "$W/runs/disk" 2>/dev/null && space=$try && break
done
used=$(stat -c %s "$W/runs/full"/* | awk -v page="$(getconf PAGESIZE)" '
    { n += int(($1 + page - 1) / page) } END { print n * page / 1024 }')
for row in "model $((used + 16))" "state $((used + 52))" "log 0"; do
    read -r what size <<<"$row"
    if [ -z "$space" ]; then
        skip "disk full at a $what" "no permission to mount a small disk (try as root)"; continue
    fi
    same "disk full at a $what" "$($space bash -c '
        cd "$W/runs" && mount -t tmpfs -o size=$(($1 > 0 ? $1 : 400))k none disk &&
            cp full/* disk && cd disk || exit
        [ $1 -gt 0 ] || { cat /dev/zero >filler 2>/dev/null; true; }
        . "$W/full.sh"' bash "$size" 2>&1)" ""
done

# ----------------------------------------------------------------------------
# what options do

echo "# the same run twice gives the same bytes; folding and t's R change nothing, seed and" \
    "weights change everything"
LONG=(-x 8 -v 4 -m 2 -l 1e-2 -e 2x4x16)
train "${LONG[@]}" -p s -o twin1; cp "$W/stdout" "$W/twin1"
OMP_NUM_THREADS=2 train "${LONG[@]}" -p s -o twin2
holds "the same run twice, 1 and 2 threads: model" cmp "$W/runs/twin1/model_00000008.bin" \
    "$W/runs/twin2/model_00000008.bin"
holds "the same run twice, 1 and 2 threads: state" cmp "$W/runs/twin1/state_00000008.bin" \
    "$W/runs/twin2/state_00000008.bin"
train "${LONG[@]}" -p s -vp 1
holds "-vp 1 is the default of two ranks" diff <(steps "$W/twin1") <(steps "$W/stdout")
train "${LONG[@]}" -p s -fold 2 -tp 2
holds "-fold 2 -tp 2 is the default mesh" diff <(steps "$W/twin1") <(steps "$W/stdout")
train "${LONG[@]}" -tp 1; one="$(column trl)$(column tel)"
train "${LONG[@]}" -tp 2; two="$(column trl)$(column tel)"
holds "-p t: losses at -tp 1 and 2 within 1e-5" compute "$one" "$two" <<'PY'
import sys
a, b = [[float(x) for x in s.split()] for s in sys.argv[1:]]
if len(a) != 11 or len(a) != len(b) or max(abs(x - y) for x, y in zip(a, b)) > 1e-5:
    sys.exit("%s\n%s" % (a, b))
PY
train "${LONG[@]}" -p s -tp 4
differs "-p s at -tp 4 is another function than at 2" "$(column trl)" "$(column trl "$W/twin1")"
train "${LONG[@]}" -p s -rs 7
differs "-rs 7 is another run" "$(column trl)" "$(column trl "$W/twin1")"
train "${LONG[@]}" -p s -wi linear
differs "-wi linear starts elsewhere" "$(column tel)" "$(column tel "$W/twin1")"

echo "# data order, at learning rate 0, where a loss says which rows were read; three.bin is" \
    "three batches and a token"
python3 - "$W/runs" <<'PY'
import struct, sys
for name, n in ("three", 97), ("short", 96):
    ids = [(i * i + i // 7) % 27 for i in range(n)]
    with open("%s/%s.bin" % (sys.argv[1], name), "wb") as f:
        f.write(struct.pack("<256i", 20240520, 1, n, 27, *[0] * 252))
        f.write(struct.pack("<%dH" % n, *ids))
PY
cat >"$W/rounds.py" <<'PY'
import sys
a, (first, last) = [[float(x) for x in s.split()] for s in sys.argv[1:3]]
n = int(sys.argv[3]) # batches in the text
if a[:n] != a[n:] or len(set(a)) != n: sys.exit("losses %s" % a)
if abs(first - sum(a[:n]) / n) > 2e-6 or first != last:
    sys.exit("validation %s, losses %s" % (first, a))
PY
STILL=(-i three.bin -j three.bin -l 0)
train "${STILL[@]}" -i short.bin -j short.bin -b 1 -sh 0 -x 10 -v 10 -m -1
holds "a text that lacks one token for a sixth row has five" python3 "$W/rounds.py" \
    "$(column trl)" "$(column tel)" 5
train "${STILL[@]}" -sh 0 -x 6 -v 6 -m -1; rows=$(column trl) mean=$(column tel)
holds "-sh 0 reads rows in order and begins again; -m -1 validates on all of them" python3 \
    "$W/rounds.py" "$rows" "$mean" 3
train "${STILL[@]}" -sh 0 -x 2 -v 2 -m 1
same "-m 1 validates on the first batch" "$(column tel | cut -d' ' -f1)" \
    "$(cut -d' ' -f1 <<<"$rows")"
train "${STILL[@]}" -sh 0 -x 3 -v 3 -m 99
same "-m beyond the text validates on all of it" "$(column tel)" "$mean"
train "${STILL[@]}" -sh 1 -x 6; differs "-sh 1 draws offsets" "$(column trl)" "$rows"
train "${STILL[@]}" -a 1 -x 3
same "-a 1 reads the same rows in every update" "$(column trl | tr ' ' '\n' | sort -u | wc -w)" 1
train "${STILL[@]}" -sh 0 -x 2 -d 96
same "-d 96 is the mean of three micro-steps" "$(column trl)" "$mean"
train -i train.bin -x -1 -d 64; same "-x -1 is one epoch" "$(column trl | wc -w)" $((2000 / 64))
train -i enough.bin -x 1; same "a text of exactly one batch is enough" "$(column trl | wc -w)" 1
train -v 0 -x 3; same "-v 0 never validates" "$(column tel)" ""
train -a 1 -x 60 -l 1e-2; loss=$(column trl)
holds "-a 1 overfits" compute "$loss" <<'PY'
import sys
a = [float(x) for x in sys.argv[1].split()]
if not a[-1] < 0.5 * a[0]: sys.exit("loss %g, then %g" % (a[0], a[-1]))
PY

echo "# -b1, -b2: broken where float takes the largest for 1"
for flag in -b1 -b2; do
    bound=$("$TRAIN" --help | awk -v flag=$flag '$1 == flag { print $5 }')
    holds "the largest $flag is below 1 as float" compute "$bound" <<'PY'
import struct, sys
as_float, = struct.unpack("f", struct.pack("f", float(sys.argv[1])))
if not 0.999 < as_float < 1: sys.exit("%s is %r" % (sys.argv[1], as_float))
PY
done
train -x 20 -l 1e-2 -b1 0.9999999 -b2 0.9999999; loss=$(column trl)
holds "the largest -b1 and -b2 train" compute "$loss" <<'PY'
import sys
a = [float(x) for x in sys.argv[1].split()]
if not a[-1] < 4: sys.exit(sys.argv[1])
PY

echo "# learning rate and clipping: broken when an option does not reach the update"
for row in "cosine 1.000000e-03" "linear 1.000000e-03" "constant 1.000000e-02" \
    "wsd 1.000000e-03"; do
    read -r k last <<<"$row"
    train -x 10 -l 1e-2 -u 2 -q 0.1 -k "$k"
    same "-k $k: warm-up, top, end" "$(column lr | cut -d' ' -f1,2,10)" \
        "5.000000e-03 1.000000e-02 $last"
    rates="${rates:-}$(column lr | cut -d' ' -f9) "
done
same "-k: four schedules" "$(tr ' ' '\n' <<<"$rates" | sort -u | wc -w)" 4
train -x 4 -l 1e-2 -gc 0; off=$(column trl) norm=$(column norm | cut -d' ' -f1)
train -x 4 -l 1e-2 -gc 1e30; same "-gc 0 is no clipping" "$(column trl)" "$off"
train -x 4 -l 1e-2 -gc 1e-9; differs "-gc clips" "$(column trl)" "$off"
same "norm is that before clipping" "$(column norm | cut -d' ' -f1)" "$norm"
train -x 4 -l 1e-2 -gc 0 -c 1; differs "-c decays" "$(column trl)" "$off"

echo "# initial weights, and AdamW from its options: broken by a scale or a decay that is another" \
    "tensor's, or by options that are mixed up"
cat >"$W/weights.py" <<'PY'
import math, re, struct, sys
MATRICES = ("wte", "wpe", "qkvw", "attprojw", "fcw", "fcprojw")
def read(path, sets=1): # V, L, C and for each set of tensors {name: values}
    data, at = open(path, "rb").read(), 1024
    T, V, L, _, C, Vp = struct.unpack_from("<6i", data, 8)
    sizes = [("wte", Vp * C), ("wpe", T * C), ("ln1w", L * C), ("ln1b", L * C),
             ("qkvw", L * 3 * C * C), ("qkvb", L * 3 * C), ("attprojw", L * C * C),
             ("attprojb", L * C), ("ln2w", L * C), ("ln2b", L * C), ("fcw", L * 4 * C * C),
             ("fcb", L * 4 * C), ("fcprojw", L * 4 * C * C), ("fcprojb", L * C), ("lnfw", C),
             ("lnfb", C)]
    found = [V, L, C]
    for _ in range(sets):
        found.append({})
        for name, n in sizes:
            found[-1][name] = struct.unpack_from("<%df" % n, data, at)
            at += 4 * n
    return found

def initial(path, how):
    V, L, C, w = read(path)
    drawn = []
    for name, x in w.items():
        if name == "wte":
            if any(x[V * C:]): sys.exit("rows past V are not 0")
            x = x[:V * C]
        n, bound = len(x), 0
        if how == "linear" and name[:-1] in ("qkv", "attproj", "fc", "fcproj"):
            bound = 1 / math.sqrt(4 * C if name[:-1] == "fcproj" else C)
            deviation = bound / math.sqrt(3)
        elif name in MATRICES:
            deviation = 0.02 / (math.sqrt(2 * L) if "proj" in name else 1)
        else:
            constant = 1 if name in ("ln1w", "ln2w", "lnfw") else 0
            if set(x) != {constant}: sys.exit("%s is not %d everywhere" % (name, constant))
            continue
        mean, found = sum(x) / n, math.sqrt(sum(a * a for a in x) / n)
        if not (abs(mean) <= 4 * deviation / math.sqrt(n) and
                abs(found / deviation - 1) <= 4 / math.sqrt(2 * n)):
            sys.exit("%s: mean %g, deviation %g, expected %g" % (name, mean, found, deviation))
        if bound and not bound * (1 - 20 / n) < min(max(x), -min(x)) <= max(map(abs, x)) <= bound:
            sys.exit("%s: %g to %g, expected +-%g" % (name, min(x), max(x), bound))
        beyond = sum(abs(a) > 2 * deviation for a in x) / n # of normal ones 0.0455
        if not bound and not abs(beyond - 0.0455) <= 4 * math.sqrt(0.0455 / n):
            sys.exit("%s: %g beyond two deviations, expected 0.0455" % (name, beyond))
        drawn += x
    if len(set(drawn)) < 0.99 * len(drawn): sys.exit("the same values twice")

# Three updates as the first moments tell them: m gives the gradient, whose norm is in the log or is
# clipped; that gives v, and both the weights. `free` is the folder of a run without clipping.
def updates(start, out, clip, free):
    _, _, _, w = read(start)
    steps = re.findall(r"^s:\d+ trl:.* lr:(\S+) norm:(\S+)", open(out + "/main.log").read(), re.M)
    if len(steps) != 3: sys.exit("%d updates" % len(steps))
    b1, b2, decay = struct.unpack("3f", struct.pack("3f", 0.83, 0.91, 0.3))
    m = v = {name: [0] * len(x) for name, x in w.items()}
    for N, (rate, norm) in enumerate(steps, 1):
        _, _, _, w1 = read("%s/model_%08d.bin" % (out, N))
        _, _, _, m1, v1 = read("%s/state_%08d.bin" % (out, N), 2)
        squares = 0
        for name in w:
            shrink = decay if name in MATRICES else 0
            for x, was, second, x1, now, second1 in zip(w[name], m[name], v[name], w1[name],
                                                        m1[name], v1[name]):
                g = (now - b1 * was) / (1 - b1)
                rounded = 3e-7 * (abs(now) + abs(was)) / (1 - b1)
                expected = b2 * second + (1 - b2) * g * g
                if not abs(second1 - expected) <= (1e-6 * expected + 1e-40 +
                                                   (1 - b2) * (2 * abs(g) + rounded) * rounded):
                    sys.exit("update %d %s: v %g, expected %g" % (N, name, second1, expected))
                move = float(rate) * (shrink * x + now / (1 - b1 ** N) /
                                      (math.sqrt(second1 / (1 - b2 ** N)) + 1e-8))
                if not abs(x1 - (x - move)) <= 3e-6 * abs(move) + 1e-7 * abs(x):
                    sys.exit("update %d %s: %r, then %r, expected %r" % (N, name, x, x1, x - move))
                squares += g * g
        expected = clip or float(norm)
        if not abs(math.sqrt(squares) / expected - 1) <= 1e-5:
            sys.exit("update %d: a gradient of norm %g, expected %g" %
                     (N, math.sqrt(squares), expected))
        if clip and N == 1:
            _, _, _, whole, _ = read(free + "/state_00000001.bin", 2)
            for name in w:
                for a, b in zip(m1[name], whole[name]):
                    if not abs(a - b * clip / float(norm)) <= 2e-6 * abs(a) + 1e-40:
                        sys.exit("%s: %g clipped from %g" % (name, a, b))
        w, m, v = w1, m1, v1

if sys.argv[1] == "initial": initial(*sys.argv[2:])
else: updates(*sys.argv[2:4], float(sys.argv[4]), sys.argv[5])
PY
for how in gpt2 linear; do
    train -e 4x4x64 -x 0 -wi $how -o start_$how
    holds "-wi $how: deviations and limits of all tensors" \
        python3 "$W/weights.py" initial "$W/runs/start_$how/model_00000000.bin" $how
done
train -x 0 -wi linear -o start
ADAMW=(-wi linear -x 3 -n 1 -l 7e-3 -u 2 -q 0.2 -k linear -b1 0.83 -b2 0.91 -c 0.3)
for clip in 0 1e-7; do # clipped to that, eps of 1e-8 is most of the denominator
    train "${ADAMW[@]}" -gc $clip -o adamw_$clip
    holds "-l -b1 -b2 -c -gc $clip: moments and weights of three updates" python3 "$W/weights.py" \
        updates "$W/runs/start/model_00000000.bin" "$W/runs/adamw_$clip" $clip "$W/runs/adamw_0"
done

finish
