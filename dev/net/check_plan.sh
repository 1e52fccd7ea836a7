#!/bin/sh
# dev/net/plan against runs on emulated networks. A run of t without a network is measured, the
# milliseconds per update of t, s, sppp and p on three networks are predicted from it, and then
# measured. Prints a table; asserts nothing, since it is about time. Every run on a network
# follows its own run without one, and the medians over ROUNDS such pairs are printed (of
# predicted, measured, and the error within a pair): the speed of a machine that others use drifts
# by more than the prediction is off.
#
#   make train_gpt2 dev/net/plan && dev/net/check_plan.sh          two to three minutes
#   ROUNDS=9 TRAIN=./train_gpt2 PLAN=dev/net/plan dev/net/check_plan.sh
set -eu
rounds=${ROUNDS:-3} train=${TRAIN:-./train_gpt2} plan=${PLAN:-dev/net/plan}
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
settings="-e 4x4x128 -b 12 -t 64 -v 0 -tp 2"
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

# measure OPTION...: the log of such a run is $out/run/main.log.
measure() {
    rm -rf "$out/run"
    # shellcheck disable=SC2086 # the settings are words
    "$train" $settings "$@" -o "$out/run" >"$out/stdout"
}

median() {
    sort -n | awk '{ x[NR] = $1 } END { print (x[int((NR + 1) / 2)] + x[int((NR + 2) / 2)]) / 2 }'
}

# pair LATENCY GBITS PATTERN UPDATES: prints predicted and measured ms per update;
# the first two updates warm up.
pair() {
    measure -p t -x 20
    "$plan" "$out/run/main.log" "$1" "$2" >"$out/table"
    measure -p "$3" -x "$4" -nl "$1" -nb "$2"
    measured=$(sed -n 's/^s:[0-9]* trl:.* ms:\([0-9.]*\) .*/\1/p' "$out/run/main.log" | tail -n +3 |
            median)
    awk -v p="$3" -v measured="$measured" '$1 == p { print $7, measured }' "$out/table"
}

echo "predicted from: OMP_NUM_THREADS=$OMP_NUM_THREADS $train $settings -p t -x 20"
echo "measured:       the same with -p PATTERN -nl LATENCY_US -nb GBITS; median of $rounds pairs"
echo
echo "latency    Gbit/s   pattern   predicted      measured      error of a pair"
for network in "100 10 20" "5000 1 20" "20000 0.1 6"; do
    # shellcheck disable=SC2086 # three words
    set -- $network
    for pattern in t s sppp p l; do
        round=0
        while [ $((round += 1)) -le "$rounds" ]; do
            pair "$1" "$2" $pattern "$3"
        done >"$out/pairs"
        printf '%s %s %s %s\n' $pattern "$(cut -d' ' -f1 "$out/pairs" | median)" \
            "$(cut -d' ' -f2 "$out/pairs" | median)" \
            "$(awk '{ print 100 * ($1 / $2 - 1) }' "$out/pairs" | median)" |
            awk -v latency="$1" -v gbits="$2" '{
                printf "%4g ms %9g   %-8s %8.1f ms   %8.1f ms   %+6.1f%%\n",
                       latency / 1000, gbits, $1, $2, $3, $4
            }'
    done
done
