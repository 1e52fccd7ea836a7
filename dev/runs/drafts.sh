#!/usr/bin/env bash
# How many drafts a model takes, and what a token takes with them: samples with -sd 1 to 8 under
# draft patterns, greedy and at temperature 0.8. One row per model, draft pattern, temperature and
# K, tab separated.
#
#   dev/runs/drafts.sh [-R RANKS] [-t WINDOW] [-g TOKENS] [-p 'PATTERN...'] [-k 'K...']
#                      [-T 'TEMPERATURE...'] [-n NETWORK] TEXT MODEL... >drafts.tsv
#   dev/runs/drafts.sh -t 64 tinyshakespeare.txt out/t/model_00002000.bin
#   LAUNCH='mpirun -n 2 --bind-to none' dev/runs/drafts.sh -n laptops ...   what a token takes there
#
# TEXT is a file of characters. Prompts are 16 characters at PROMPTS places in its last tenth, which
# the models have not seen; each is gone on from by TOKENS tokens. The first row of a model and
# temperature is without drafts; `same` says of how many prompts the text is the one of that row.
# Two controls: the model's own pattern as the draft's (all are taken), and the character that most
# often follows the last one in the first nine tenths of TEXT, which needs no model: what share of
# the sample it foresees. Columns are of all prompts together, all-reduces and milliseconds a mean
# per token after a prompt's first. NETWORK is one that `dev/net/plan --help` lists, emulated. The
# vocabulary is whole (-vp 0).
# From the environment: TRAINER, the program; LAUNCH, what starts it; PROMPTS, 8.
set -euo pipefail
export LC_ALL=C
fail() { echo "error: $*" >&2; exit 1; }
usage="expected: dev/runs/drafts.sh [-R RANKS] [-t WINDOW] [-g TOKENS] [-p PATTERNS] [-k NUMBERS]
    [-T TEMPERATURES] [-n NETWORK] TEXT MODEL..."
ranks=2 window=64 tokens=200 patterns='t s sppp p' numbers='1 2 3 4 5 6 7 8'
temperatures='0 0.8' network='' prompts=${PROMPTS:-8}
while getopts R:t:g:p:k:T:n: option; do
    case $option in
    R) ranks=$OPTARG ;; t) window=$OPTARG ;; g) tokens=$OPTARG ;; p) patterns=$OPTARG ;;
    k) numbers=$OPTARG ;; T) temperatures=$OPTARG ;; n) network=$OPTARG ;; *) fail "$usage" ;;
    esac
done
shift $((OPTIND - 1))
[ $# -ge 2 ] || fail "$usage"
text=$1 trainer=${TRAINER:-./train_gpt2} plan=$(dirname "$0")/../net/plan
shift
[ -s "$text" ] || fail "$text: not there; expected the text that the models were trained on"
command -v "$trainer" >/dev/null || fail "$trainer is not here; make train_gpt2"
emulated=()
if [ -n "$network" ]; then
    [ -x "$plan" ] || fail "$plan is not here, which knows the networks; make dev/net/plan"
    read -ra emulated < <("$plan" --help | sed -n "s/^ *$network  *-nl/-nl/p") ||
        fail "-n $network: expected one of the networks of $plan --help"
fi
W=$(mktemp -d)
trap 'rm -rf "$W"' EXIT
size=$(stat -c %s "$text") seen=$(($(stat -c %s "$text") * 9 / 10))
head -c "$seen" "$text" >"$W/seen"
for i in $(seq "$prompts"); do
    at=$((seen + (size - seen) * i / (prompts + 1)))
    tail -c "+$at" "$text" | head -c 16 >"$W/prompt$i" || true
done

# sample MODEL TEMPERATURE OPTION...: all prompts are gone on from, into $W/said* and $W/text*.
sample() {
    local model=$1 temperature=$2 i
    shift 2
    for i in $(seq "$prompts"); do
        # shellcheck disable=SC2086 # the launcher is words
        ${LAUNCH:-} "$trainer" -x 0 -e "$model" -tp "$ranks" -vp 0 -t "$window" -g "$tokens" \
            -gt "$temperature" -gp - -rs "$((1 + i))" "${emulated[@]}" "$@" \
            <"$W/prompt$i" >"$W/said$i" 2>"$W/error" || fail "$(cat "$W/error")"
        sed -n '/^--- sample after/,/^---$/p' "$W/said$i" >"$W/text$i"
    done
}

# row FIRST_COLUMN...: these columns, then what the samples' `g:` lines and texts say.
row() {
    local i same=0
    for i in $(seq "$prompts"); do ! cmp -s "$W/text$i" "$W/plain$i" || same=$((same + 1)); done
    printf '%s\t' "$@"
    awk -v same="$same" '
        /^g:/ {
            for (i = 1; i <= NF; i++) { split($i, pair, ":"); last[pair[1]] = pair[2] }
            split("new rounds drafted accepted", names)
            for (i in names) sum[names[i]] += last[names[i]]
            after = last["new"] - 1
            all += after; sums += last["ar"] * after; ms += last["mean"] * after
        }
        END {
            printf "%d\t%d\t%d\t%d\t%d\t%.3f\t%.3f\n", sum["new"], sum["rounds"],
                   sum["drafted"], sum["accepted"], same, sums / all, ms / all
        }' "$W"/said*
}

# Share of the characters of the samples that follow their predecessor most often in the text.
foreseen() {
    awk 'BEGIN { RS = "\001" }
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
            body = substr($0, index($0, "\n") + 1) # prompt and sample, then a line of ---
            sub(/\n---\n$/, "", body)
            for (i = 17; i <= length(body); i++) {
                all++
                hit += next_of[substr(body, i - 1, 1)] == substr(body, i, 1)
            }
        }
        END { printf "%d\t%d\n", all, hit }' "$W/seen" "$W"/text*
}

printf 'model\tdraft\ttemperature\tK\ttokens\trounds\tdrafted\taccepted\tsame\tallreduces\tms\n'
for model; do
    for temperature in $temperatures; do
        sample "$model" "$temperature"
        for i in $(seq "$prompts"); do cp "$W/text$i" "$W/plain$i"; done
        row "$model" none "$temperature" 0
        read -r all hit < <(foreseen)
        printf '%s\tlikeliest next\t%s\t1\t%d\t%d\t%d\t%d\t\t\t\n' "$model" "$temperature" "$all" \
            "$all" "$all" "$hit"
        for pattern in $patterns; do
            for k in $numbers; do
                sample "$model" "$temperature" -sd "$k" -sp "$pattern"
                row "$model" "$pattern" "$temperature" "$k"
            done
        done
    done
done
