#!/bin/sh
# What each block letter costs and what it saves: trains the 4x4x128 model with t, s, sppp and p
# for 500 updates each and prints one table; then 20 updates of each on an emulated slow network
# and a second table. Every number was executed and measured; none is computed from the pattern.
#
#   make demo                    under 3 minutes on two cores
#   UPDATES=2000 dev/demo.sh     trains longer
set -eu
export LC_ALL=C
updates=${UPDATES:-500}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
model="-e 4x4x128 -b 12 -t 64 -tp 2 -vp 0" # the all-reduces of the blocks alone
settings="-x $updates -l 1e-3 -q 0.1 -u 100 -b2 0.99 -c 0.1 -v $updates -m -1 -s $updates -g 200"
network="-nl 5000 -nb 1"

# ms_median LOG: ms per update; the first update warms up.
ms_median() {
    sed -n 's/^s:[0-9]* trl:.* ms:\([0-9.]*\) .*/\1/p' "$1" | tail -n +2 | sort -n |
        awk '{ ms[NR] = $1 } END { print ms[int((NR + 1) / 2)] }'
}

text="text: $(cat data/shakespeare_char/source.txt 2>/dev/null || echo "of unknown source")"
echo "$text"
echo "each run: ./train_gpt2 $model $settings -p PATTERN"
for pattern in t s sppp p; do
    echo "training $pattern ..."
    # shellcheck disable=SC2086 # the settings are words
    ./train_gpt2 $model $settings -p $pattern >"$out/$pattern"
done
for pattern in t s sppp p; do
    echo "20 updates of $pattern on the emulated network ..."
    # shellcheck disable=SC2086
    ./train_gpt2 $model -x 20 -v 0 $network -p $pattern >"$out/$pattern.network"
done
for pattern in t s sppp p; do
    echo
    echo "sample of the model trained with $pattern:"
    sed -n '/^--- sample/,/^---$/p' "$out/$pattern" | sed -e '1d;$d' -e 's/^/    /'
done
echo
echo "$text"
echo "          all-reduces executed      MiB all-reduced  validation  ms per"
echo "pattern   per forward  per update   per update       loss        update"
for pattern in t s sppp p; do
    awk -v pattern="$pattern" -v ms="$(ms_median "$out/$pattern")" '
        /^s:[0-9]+ tel:/ { split($2, field, ":"); loss = field[2] }
        / all-reduces of activations,/ { forward = $1; mib = $5 }
        / all-reduces of gradients of activations,/ { backward = $1; mib += $7 }
        END {
            printf "%-9s %-12g %-12g %-16.2f %-11.4f %.1f\n", pattern, forward, forward + backward,
                   mib, loss, ms
        }' "$out/$pattern"
done
cat <<END

Both ranks ran in one process, where an all-reduce costs almost nothing: s and p save no time there.
The same with all-reduces over a link of 5 ms and 1 Gbit/s, emulated ($network), 20 updates each:

pattern   ms per update
END
for pattern in t s sppp p; do
    printf '%-9s %.1f\n' $pattern "$(ms_median "$out/$pattern.network")"
done
