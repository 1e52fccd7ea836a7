#!/bin/sh
# What each block letter costs and what it saves: trains the 4x4x128 model with t, s, sppp and p
# for 500 updates each and prints one table. Every number in it was executed and measured;
# nothing is computed from the pattern.
#
#   make demo                    under 3 minutes on two cores
#   UPDATES=2000 dev/demo.sh     the run whose losses the README quotes
set -eu
updates=${UPDATES:-500}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
settings="-e 4x4x128 -b 12 -t 64 -x $updates -l 1e-3 -q 0.1 -u 100 -b2 0.99 -c 0.1"
settings="$settings -v $updates -m -1 -s $updates -g 200"
echo "text: $(cat data/shakespeare_char/source.txt)"
echo "each run: ./train_gpt2 $settings -p PATTERN -tp 2"
for pattern in t s sppp p; do
    echo "training $pattern ..."
    # shellcheck disable=SC2086 # the settings are words
    ./train_gpt2 $settings -p $pattern -tp 2 >"$out/$pattern"
done
for pattern in t s sppp p; do
    echo
    echo "sample of the model trained with $pattern:"
    sed -n '/^--- sample/,/^---$/p' "$out/$pattern" | sed -e '1d;$d' -e 's/^/    /'
done
echo
echo "text: $(cat data/shakespeare_char/source.txt)"
echo "          all-reduces executed      MiB all-reduced  validation  ms per"
echo "pattern   per forward  per update   per update       loss        update"
for pattern in t s sppp p; do
    awk -v pattern="$pattern" '
        /^s:[0-9]+ tel:/ { split($2, field, ":"); loss = field[2] }
        /^s:[0-9]+ trl:/ { split($5, field, ":"); ms[++n] = field[2] }
        / all-reduces of activations,/ { forward = $1; mib = $5 }
        / all-reduces of gradients of activations,/ { backward = $1; mib += $7 }
        END {
            for (i = 2; i <= n; i++)
                for (j = i; j > 1 && ms[j] < ms[j - 1]; j--) {
                    x = ms[j]; ms[j] = ms[j - 1]; ms[j - 1] = x
                }
            printf "%-9s %-12g %-12g %-16.2f %-11.4f %.1f\n", pattern, forward, forward + backward,
                   mib, loss, ms[int((n + 1) / 2)]
        }' "$out/$pattern"
done
