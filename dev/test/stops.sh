#!/usr/bin/env bash
# End-to-end tests of how runs of ./train_gpt2 share the world with others: one run to a folder,
# signals, folders and logs that cannot be used or go away, and who reads what is printed. Needs
# bash and python3; writes only below a temporary folder; takes about 20 seconds.
#
#     dev/test/stops.sh              # TRAIN=./train_gpt2_asan for another binary
#
# Prints `ok <name>`, `FAILED <name>: <why>` or `skip <name>: <reason>` for each test, then
# `test_stops: N passed, N failed, N skipped`, and exits with 1 if any failed.
set -u
. "$(dirname "$0")/trainer.sh"
export ASAN_OPTIONS=${ASAN_OPTIONS:-}:detect_leaks=0 # a process that a signal ends frees nothing
(cd "$W/box" && python3 "$W/make.py" </dev/null) || {
    echo "FAILED setup: test files could not be made"; exit 1
}
cp "$W/box"/*.bin "$W/runs"

# A run that an emulated network slows down to some ms per update, and one of a second.
PACED=(-x 40 -v 7 -m 2 -u 10 -q 0 -p s -nl 2000)
SLOW=(-p s -nl 100000)

# background ARGS...: a run as a user starts it; the shell would have it deaf to SIGINT, and Python
# has it ignore what a pipe and a file size limit send. ended: waits for it; leaves $rc.
HEARING='import os, signal, sys
for name in "INT", "PIPE", "XFSZ": signal.signal(getattr(signal, "SIG" + name), signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])'
background() {
    (cd "$W/runs" && exec python3 -c "$HEARING" "$TRAIN" "${SMALL[@]}" "$@") </dev/null \
        >"$W/stdout" 2>"$W/stderr" &
    CHILD=$!
}
ended() { { wait "$CHILD"; } 2>/dev/null; rc=$? CHILD=; }
reached() { until_true grep -qE "^s:($2) trl" "$W/runs/$1/main.log" 2>/dev/null; } # folder, update
has_begun() { until_true grep -q '^# updates' "$W/runs/$1/main.log" 2>/dev/null; }
ending() { tail -n 1 "$W/runs/$1/main.log"; }
names() { (cd "$W/runs/$1" && find . -mindepth 1 -printf '%P ' | tr ' ' '\n' | sort | xargs); }

# as_undisturbed FOLDER: its last checkpoint and the lines of its log are those of `whole`.
as_undisturbed() {
    local kind
    for kind in model state; do
        cmp "$W/runs/whole/${kind}_00000040.bin" "$W/runs/$1/${kind}_00000040.bin" || return 1
    done
    diff <(steps "$W/runs/whole/main.log") <(steps "$W/runs/$1/main.log")
}
train "${PACED[@]}" -nl 0 -o whole

# ----------------------------------------------------------------------------

echo "# one run to a folder: broken when a second one writes there or waits, or when the lock" \
    "of a dead one stays"
background "${PACED[@]}" -n 5 -o held
reached held 1[0-9]
kill -STOP "$CHILD"
(cd "$W/runs/held" && stat -c '%n %s %y %z' -- * .) >"$W/before"
for how in "" "-y 1" "-y 1 -x 0" "-y 1 -e 3x3x3"; do
    # shellcheck disable=SC2086 # options are words
    fails runs -o held $how
    same "a second run is refused: -o held $how" \
        "$(refused "-o held: in use by pid $CHILD on $(hostname) since 2" "-n 5 -o held; wait")" ""
done
(cd "$W/runs/held" && stat -c '%n %s %y %z' -- * .) >"$W/after"
holds "it touches nothing" diff "$W/before" "$W/after"
train -x 0 -v 1 -e held/model_00000005.bin
same "who only reads a model is not hindered" "$(column tel | wc -w)" 1
{ kill -9 "$CHILD"; ended; } 2>/dev/null # the shell would say so
train "${PACED[@]}" -n 5 -o held -y 1
holds "the lock of a run that was killed is free" went_on "$W/runs/held/main.log" '5|[1-3][05]' 40 \
    as_undisturbed held

wrong=
for i in {1..20}; do # in turns: no folder, and one without a lock
    [ $((i % 2)) = 0 ] || mkdir "$W/runs/race$i"
    fails runs -o "race$i" 2>/dev/null & one=$!
    (cd "$W/runs" && exec "$TRAIN" "${SMALL[@]}" -o "race$i") >"$W/out2" 2>"$W/err2" & two=$!
    wait $one; wait $two; two=$?
    one=$(grep -c '^s:2 ' "$W/stdout")
    log="$(grep -c '^# -p ' "$W/runs/race$i/main.log") $(grep -c '^s:' "$W/runs/race$i/main.log")"
    [ "$one $two $log" = "1 1 1 2" ] || [ "$one $two $log" = "0 0 1 2" ] || wrong+="$one $two $log;"
    [ "$(cat "$W/stderr" "$W/err2" | grep -c '^error: -o race')" = 1 ] || wrong+="no error;"
done
same "of two that start at once, 20 times, one runs and one is refused" "$wrong" ""

train -n 1 -o old
rm "$W/runs/old/run.lock"
train -o old -y 1 -x 4
same "a folder of before locks gets one" "$(names old | grep -o 'run.lock')" run.lock
(flock 9; exec sleep 60) 9<>"$W/runs/old/run.lock" & other=$!
until_true eval '! flock -n "$W/runs/old/run.lock" true'
fails runs -o old -y 1
{ kill $other; wait $other; } 2>/dev/null
same "a lock that is not signed yet names nobody who has gone" \
    "$(refused "in use by a run that has just begun")" ""
if strace -f -o /dev/null -e inject=flock:error=ENOLCK true 2>/dev/null; then
    (cd "$W/runs" && strace -f -o /dev/null -e inject=flock:error=ENOLCK "$TRAIN" "${SMALL[@]}" \
        -o nolock) >"$W/stdout" 2>&1
    same "where there are no locks a run trains, and says so" \
        "$(grep -c '^# lock none (No locks available)' "$W/runs/nolock/main.log") $(
            column trl | wc -w)" "1 2"
else skip "a file system without locks" "no strace, or it may not trace"; fi

# ----------------------------------------------------------------------------

echo "# signals: broken when an update is cut short, a checkpoint is not saved, or the status is" \
    "another"
for signal in TERM:15 INT:2 HUP:1 USR1:10; do
    name=SIG${signal%:*} number=${signal#*:}
    rm -rf "$W/runs/cut"
    background "${PACED[@]}" -o cut
    reached cut "[5-9]|[12][0-9]"
    kill -s "${signal%:*}" "$CHILD"
    ended
    N=$(sed -nE 's/^s:([0-9]+) trl.*/\1/p' "$W/runs/cut/main.log" | tail -n 1)
    last="# stopped by $name after update $N of 40: its checkpoint is saved, -y 1 goes on from it"
    same "$name: status, log, terminal" "$rc|$(ending cut)|$(grep '^# stopped' "$W/stdout")" \
        "$((128 + number))|$last|$last"
    same "$name: its checkpoint is the only one" "$(cd "$W/runs/cut" && echo DONE_*)" \
        "$(printf 'DONE_%08d' "$N")"
    train "${PACED[@]}" -o cut -y 1
    holds "$name: resumed, the bytes and the log of a run never stopped" \
        went_on "$W/runs/cut/main.log" "$N" 40 as_undisturbed cut
done

background "${SLOW[@]}" -x 9
until_true grep -q '^s:1 trl' "$W/stdout"
kill -USR1 "$CHILD"
ended
same "without -o: the update is finished, and nothing is saved" \
    "$rc $(grep -oE '^# stopped .*|^s:[0-9] trl' "$W/stdout" | tr '\n' ' ')" \
    "138 s:1 trl s:2 trl # stopped by SIGUSR1 after update 2 of 9: nothing is saved without -o "
(trap '' HUP; background "${PACED[@]}" -o deaf; reached deaf "[5-9]"; kill -HUP "$CHILD"; ended)
same "a signal that was ignored at the start, as by nohup, stays ignored" \
    "$(cd "$W/runs/deaf" && echo DONE_*) $(grep -c stopped "$W/runs/deaf/main.log")" \
    "DONE_00000040 0"
background "${SLOW[@]}" -x 9 -o second
reached second 1
kill -TERM "$CHILD"
sleep 0.3
kill -INT "$CHILD"
ended
same "a second signal ends at once: status, files" "$rc $(names second)" "130 main.log run.lock"
TORN=(-e 4x8x256 -x 3 -n 1 -nl 10000) # 13 and 26 MB to save
train "${TORN[@]}" -o plain
for attempt in 1 2 3 4; do # the file may be whole before the second signal comes
    rm -rf "$W/runs/torn"
    background "${TORN[@]}" -o torn
    reached torn 1
    kill -TERM "$CHILD"
    until_true test -e "$W/runs/torn/state_00000002.bin.part"
    { kill -TERM "$CHILD"; ended; } 2>/dev/null
    [ -e "$W/runs/torn/DONE_00000002" ] || break
done
same "a second signal while a checkpoint is written: status, checkpoints" \
    "$rc $(cd "$W/runs/torn" && echo DONE_????????)" "143 DONE_00000001"
train "${TORN[@]}" -o torn -y 1
holds "the run goes on from the one before to the same bytes" cmp \
    "$W/runs/plain/state_00000003.bin" "$W/runs/torn/state_00000003.bin"
background "${SLOW[@]}" -x 9 -o twice
reached twice 1
kill -TERM "$CHILD" && kill -HUP "$CHILD"
ended
same "two at the same time are one" "$((rc > 128)) $(cd "$W/runs/twice" && echo DONE_*)" \
    "1 DONE_00000002"
background "${SLOW[@]}" -x 2 -o last
reached last 1
kill -TERM "$CHILD"
ended
same "in the last update: the run is complete" \
    "$rc $(cd "$W/runs/last" && echo DONE_*) $(grep -c stopped "$W/runs/last/main.log")" \
    "0 DONE_00000002 0"
DUE=("${SLOW[@]}" -x 3 -v 1 -m 2 -s 1 -g 3)
events() { grep -oE '^(s:[0-9]+ (trl|tel):[^ ]*|g:[0-9]+)' "$W/runs/$1/main.log"; }
train "${DUE[@]}" -nl 0 -o all
background "${DUE[@]}" -o due
reached due 1
kill -TERM "$CHILD"
ended
same "a stopped run saves before all else: checkpoint, validation and sample" \
    "$(cd "$W/runs/due" && echo DONE_*) $(events due | grep -E '^(s:2 tel|g:2)')" "DONE_00000002 "
train "${DUE[@]}" -nl 0 -o due -y 1
holds "the run that goes on makes up for them" diff <(events all) <(events due)
background "${SLOW[@]}" -v 1 -m -1 -o early
has_begun early
kill -TERM "$CHILD"
ended
same "before the first update it ends at once: status, files, losses" \
    "$rc $(names early) $(steps "$W/runs/early/main.log")" "143 main.log run.lock "
background "${SLOW[@]}" -v 1 -m -1 -x 0
sleep 0.5
kill -TERM "$CHILD"
ended
same "so does a run without updates" "$rc $(column tel)" "143 "

echo "# -n and -nk: broken when they are taken without a folder to save in"
listing >"$W/before"
refuses "-n without -o" "-n 5: no folder for checkpoints; -o" -- -o "" -n 5
refuses "-nk without -o" "-nk 2: no folder for checkpoints; -o" -- -o "" -nk 2

# ----------------------------------------------------------------------------

echo "# folders: broken when training begins that cannot be saved"
# Root may write anywhere: what it cannot is tried without that privilege.
user=()
[ "$(id -u)" != 0 ] || user=(setpriv --bounding-set=-all --inh-caps=-all)
mkdir "$W/runs/locked"
: >"$W/runs/locked/main.log"
chmod 555 "$W/runs/locked"
if "${user[@]}" true 2>/dev/null && ! "${user[@]}" mkdir "$W/runs/locked/x" 2>/dev/null; then
    ("${user[@]}" sh -c 'cd "$1" && shift && exec "$@"' sh "$W/runs" "$TRAIN" "${SMALL[@]}" \
        -o locked -y 1) >"$W/stdout" 2>"$W/stderr"; rc=$?
    same "-o that cannot be written, though its log can" \
        "$(refused "-o locked: no file can be made and removed in it" "Permission denied") $(
            names locked) $(wc -c <"$W/runs/locked/main.log")" " main.log 0"
    chmod 333 "$W/runs/locked"
    rm "$W/runs/locked/main.log"
    ("${user[@]}" sh -c 'cd "$1" && shift && exec "$@"' sh "$W/runs" "$TRAIN" "${SMALL[@]}" \
        -o locked) >"$W/stdout" 2>"$W/stderr"; rc=$?
    chmod 755 "$W/runs/locked"
    same "-o that cannot be listed" "$(refused "locked" "Permission denied") $(names locked)" " "
else skip "-o that cannot be written, or listed" "no user here that may not do everything"; fi
long=$(printf 'x%.0s' {1..200}); long=$(for i in {1..20}; do printf '%s/' "$long"; done)
refuses "-o that is too long for the names in it" "-o: a path of 4084 bytes is too long" -- \
    -o "new/${long}$(printf 'y%.0s' {1..60})"

background "${PACED[@]}" -o emptied
reached emptied "[5-9]"
rm -r "$W/runs/emptied"/*
until_true test -e "$W/runs/emptied/main.log"
fails runs -o emptied
same "a folder emptied during the run: the lock comes back" "$(refused "in use by pid $CHILD")" ""
ended
same "and so does the log, with a remark" "$rc $(grep -c "^# removed" "$W/runs/emptied/main.log")" \
    "0 1"
holds "with every line, and the bytes of a run left alone" as_undisturbed emptied

background "${PACED[@]}" -o edited
reached edited "[5-9]"
sed -i '/^# threads/d' "$W/runs/edited/main.log" # another file under the same name
ended
same "a log that an editor replaced during the run: status, remark" \
    "$rc $(grep -c '^# removed .*; goes on in the file there' "$W/runs/edited/main.log")" "0 1"
same "its file holds the last lines" \
    "$(steps "$W/runs/edited/main.log" | tail -n 20 | diff - <(steps "$W/runs/whole/main.log" |
        tail -n 20))" ""

background "${PACED[@]}" -n 20 -o gone
reached gone "[5-9]"
rm -r "$W/runs/gone"
ended
same "a folder removed during the run is made again when it saves: status, remarks, files" \
    "$rc $(grep -c '^# removed' "$W/runs/gone/main.log") $(cd "$W/runs/gone" && echo D* *.lock)" \
    "0 1 $(echo DONE_000000{2,4}0) run.lock"
holds "with its log, every line" as_undisturbed gone
background "${PACED[@]}" -o lost
reached lost "[5-9]"
kill -STOP "$CHILD"
mv "$W/runs/lost" "$W/runs/elsewhere"
mkdir "$W/runs/lost"
(flock 9; exec sleep 60) 9>"$W/runs/lost/run.lock" & other=$!
until_true eval '! flock -n "$W/runs/lost/run.lock" true'
kill -CONT "$CHILD"
ended
{ kill $other; wait $other; } 2>/dev/null
same "when it is another run's by then, it is left to that one" \
    "$(refused "-o lost: in use by a run that has just begun") $(names lost)" " run.lock"

# ----------------------------------------------------------------------------

echo "# logs: broken when a pipe is waited for, a device written, or an error taken for the end"
odd() { # odd NAME COMMAND...: makes odd/main.log; the run refuses and leaves it alone
    rm -rf "$W/runs/odd"
    mkdir "$W/runs/odd"
    (cd "$W/runs/odd" && "${@:2}")
    (cd "$W/runs" && exec timeout 60 "$TRAIN" "${SMALL[@]}" -o odd -y 1) >"$W/stdout" \
        2>"$W/stderr"; rc=$?
    same "main.log is $1" "$(refused "odd/main.log: not a regular file") $(names odd)" " main.log"
}
odd "a pipe" mkfifo main.log
odd "a folder" mkdir main.log
odd "a link to a device" ln -s /dev/null main.log
odd "a link to nothing" ln -s ../nothing main.log
train -n 1 -o unread
rm "$W/runs/unread/main.log"
ln -s /proc/self/mem "$W/runs/unread/main.log" # a regular file of which nothing can be read
fails runs -o unread -y 1 -x 4
same "a log that cannot be read is not cut" \
    "$(refused "main.log: read error: Input/output error") $(readlink "$W/runs/unread/main.log"
    )$(ls "$W/runs/unread" | grep part)" " /proc/self/mem"
cp "$W/runs/early/main.log" "$W/log"
fails runs -o early
same "the log of a run without a checkpoint is not gone on with" \
    "$(refused "-o early: holds main.log of an earlier run without a checkpoint; -y 1")" ""
holds "nor touched" cmp "$W/log" "$W/runs/early/main.log"
train -o early -y 1
same "-y 1 starts that run anew" "$(column trl | wc -w)" 2

# ----------------------------------------------------------------------------

echo "# what is printed: broken when a file takes its place, or nobody reads it and training ends"
for closed in '>&-' '2>&-' '<&- >&- 2>&-'; do
    rm -rf "$W/runs/closed"
    (cd "$W/runs" && eval "exec \"\$TRAIN\" \"\${SMALL[@]}\" \"\${PACED[@]}\" -nl 0 -o closed \
        $closed") >"$W/stdout" 2>"$W/stderr"
    same "started with $closed: status" "$?" 0
    holds "started with $closed: the files of any other run" as_undisturbed closed
done
(cd "$W/runs" && "$TRAIN" "${SMALL[@]}" "${PACED[@]}" -o piped 2>"$W/stderr"; echo $? >"$W/rc") |
    head -n 3 >"$W/stdout"
same "a reader who leaves after 3 lines: status, errors" "$(cat "$W/rc" "$W/stderr")" 0
holds "training goes on to its end" as_undisturbed piped
(cd "$W/runs" && "$TRAIN" "${SMALL[@]}" -x 0 -v 1 -m -1 -nl 20000 2>"$W/stderr"; echo $? >"$W/rc") |
    true
same "a run without updates ends with its reader" "$(cat "$W/rc")" 141
(cd "$W/runs" && exec "$TRAIN" "${SMALL[@]}" -o full) >/dev/full 2>"$W/stderr"; rc=$?
same "a full disk under standard output is an error" \
    "$(refused "standard output: No space left on device")" ""

echo "test_stops: $passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
