#!/usr/bin/env bash
# How many drafts a model takes: samples with -sd 1 to 8 under draft patterns, greedy and at
# temperature 0.8. One row per model, draft pattern, temperature and K, tab separated.
#
#   dev/runs/drafts.sh [-t WINDOW] [-p 'PATTERN...'] [-k 'K...'] TEXT MODEL... >drafts.tsv
#   dev/runs/drafts.sh -t 64 data/shakespeare_char/source.bin out/t/model_00002000.bin
#
# TEXT is a file of characters. Prompts are eight places in its last tenth, which the models have
# not seen; each is gone on from by 200 tokens. Two controls: the model's own pattern as the draft's
# (all are taken), and the character that most often follows the last one in the first nine tenths
# of TEXT, which needs no model: what share of the sample it foresees. From the environment:
# TRAINER, SEED.
set -euo pipefail
export LC_ALL=C
fail() { echo "error: $*" >&2; exit 1; }
usage="expected: dev/runs/drafts.sh [-t WINDOW] [-p PATTERNS] [-k NUMBERS] TEXT MODEL..."
window=64 patterns='t s sppp p' numbers='1 2 3 4 5 6 7 8' prompts=8
while getopts t:p:k: option; do
    case $option in
    t) window=$OPTARG ;; p) patterns=$OPTARG ;; k) numbers=$OPTARG ;; *) fail "$usage" ;;
    esac
done
shift $((OPTIND - 1))
[ $# -ge 2 ] || fail "$usage"
text=$1 trainer=${TRAINER:-./train_gpt2}
shift
[ -s "$text" ] || fail "$text: not there; expected the text that the models were trained on"
command -v "$trainer" >/dev/null || fail "$trainer is not here; make train_gpt2"
W=$(mktemp -d)
trap 'rm -rf "$W"' EXIT
size=$(stat -c %s "$text") seen=$(($(stat -c %s "$text") * 9 / 10))
head -c "$seen" "$text" >"$W/seen"
for i in $(seq "$prompts"); do
    at=$((seen + (size - seen) * i / (prompts + 1)))
    tail -c "+$at" "$text" | head -c 16 >"$W/prompt$i" || true
done

# Numbers of the `g:` lines of all prompts, added up.
draft() { # model, temperature, more options: tokens, rounds, drafted, accepted, ms, sums
    local model=$1 temperature=$2 i
    shift 2
    for i in $(seq "$prompts"); do
        "$trainer" -x 0 -e "$model" -t "$window" -g 200 -gt "$temperature" -gp - -rs "$((1 + i))" \
            "$@" <"$W/prompt$i" >"$W/said$i" 2>"$W/error" || fail "$(cat "$W/error")"
    done
    awk '/^g:/ {
            for (i = 1; i <= NF; i++) { split($i, pair, ":"); sum[pair[1]] += pair[2] }
        }
        END {
            print sum["new"], sum["rounds"] + 0, sum["drafted"] + 0, sum["accepted"] + 0
        }' "$W"/said*
}

# Share of the characters of the samples that follow their predecessor most often in the text.
foreseen() {
    awk 'BEGIN { RS = "\001"; for (i = 0; i < 256; i++) ord[sprintf("%c", i)] = i }
        FNR == NR {
            n = length($0)
            for (i = 1; i < n; i++) count[substr($0, i, 2)]++
            for (pair in count) {
                first = substr(pair, 1, 1)
                if (count[pair] > most[first]) {
                    most[first] = count[pair]
                    next_of[first] = substr(pair, 2, 1)
                }
            }
            next
        }
        {
            begin = index($0, "--- sample after update") # the line, then prompt and text
            body = substr($0, begin)
            body = substr(body, index(body, "\n") + 1)
            sub(/\n---\n.*/, "", body)
            for (i = 17; i <= length(body); i++) {
                all++
                hit += next_of[substr(body, i - 1, 1)] == substr(body, i, 1)
            }
        }
        END { printf "%d\t%d\n", all, hit }' "$W/seen" "$W"/said*
}

printf 'model\tdraft\ttemperature\tK\ttokens\trounds\tdrafted\taccepted\n'
for model; do
    for temperature in 0 0.8; do
        draft "$model" "$temperature" >"$W/plain"
        read -r all hit < <(foreseen)
        printf '%s\tlikeliest next\t%s\t1\t%d\t%d\t%d\t%d\n' "$model" "$temperature" "$all" "$all" \
            "$all" "$hit"
        for pattern in $patterns; do
            for k in $numbers; do
                read -r tokens rounds drafted accepted \
                    < <(draft "$model" "$temperature" -sd "$k" -sp "$pattern")
                printf '%s\t%s\t%s\t%d\t%d\t%d\t%d\t%d\n' "$model" "$pattern" "$temperature" "$k" \
                    "$tokens" "$rounds" "$drafted" "$accepted"
            done
        done
    done
done
