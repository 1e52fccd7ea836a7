#!/bin/sh
# dev/plan against runs on emulated networks: one run of t without a network is measured, the milliseconds per update of
# t, s, sppp and p on three networks are predicted from it, and then measured. Prints a table; asserts nothing, since it is
# about time.
#
#   make train_gpt2 dev/plan && dev/check_plan.sh                     about a minute
#   UPDATES=100 TRAIN=./train_gpt2 PLAN=dev/plan dev/check_plan.sh     more updates, other programs
set -eu
updates=${UPDATES:-20} train=${TRAIN:-./train_gpt2} plan=${PLAN:-dev/plan}
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
settings="-e 4x4x128 -b 12 -t 64 -v 0 -tp 2 -o $out/run"

# measure UPDATES OPTION...: the log of such a run is $out/run/main.log.
measure() {
    rm -rf "$out/run"
    count=$1
    shift
    # shellcheck disable=SC2086 # the settings are words
    "$train" $settings -x "$count" "$@" >"$out/stdout"
}

measure $((2 * updates)) -p t
cp "$out/run/main.log" "$out/measured.log"
echo "measured once: OMP_NUM_THREADS=$OMP_NUM_THREADS $train -e 4x4x128 -b 12 -t 64 -v 0 -tp 2 -p t -x $((2 * updates))"
echo "then the same with -p PATTERN -nl LATENCY_US -nb GBITS -x $updates (20 ms: a third); median ms per update, the first fifth left out"
echo
echo "latency    Gbit/s   pattern   predicted   measured   error"
for network in "100 10 $updates" "5000 1 $updates" "20000 0.1 $((updates / 3 > 4 ? updates / 3 : 4))"; do
    # shellcheck disable=SC2086 # three words
    set -- $network
    "$plan" "$out/measured.log" "$1" "$2" >"$out/table"
    for pattern in t s sppp p; do
        measure "$3" -p $pattern -nl "$1" -nb "$2"
        predicted=$(awk -v p=$pattern '$1 == p { print $7 }' "$out/table")
        sed -n 's/^s:[0-9]* trl:.* ms:\([0-9.]*\) .*/\1/p' "$out/run/main.log" | tail -n +$(($3 / 5 + 1)) | sort -n |
            awk -v latency="$1" -v gbits="$2" -v p=$pattern -v predicted="$predicted" '
                { ms[NR] = $1 }
                END {
                    measured = (ms[int((NR + 1) / 2)] + ms[int((NR + 2) / 2)]) / 2
                    printf "%7g ms %8g   %-8s %8.1f ms %8.1f ms %+6.1f%%\n", latency / 1000, gbits, p, predicted, measured,
                        100 * (predicted / measured - 1)
                }'
    done
done
