#!/usr/bin/env bash
# Draws sweeps: an SVG of every figure, by gnuplot, from FOLDER/runs.tsv and the logs beside it.
# Several folders are one sweep.
#
#   dev/runs/plot.sh [-o OUT] [-l LOG] [-c CHECK] [-p 'PATTERN...'] FOLDER...
#   dev/net/check_plan.sh >out/check_plan.txt && dev/runs/plot.sh -c out/check_plan.txt out/sweep
#
#   curves_*        training and validation loss of every pattern, and the latter minus that of t
#   allreduces_*    validation loss at the end against all-reduces per forward pass: every seed, and
#                   t's mean plus the difference to t, with the error that dev/runs/report gives it
#   clock_*         validation loss against predicted seconds on three networks
#   rules_*         merge rules side by side, where a sweep has several
#   settings        all experiments and R: differences to t in standard deviations of seeds, of
#                   patterns that two of them have
#   plan            predicted against measured time of an update
#
# One figure per experiment, R, merge rule and options; t and l are the same functions at every R,
# so their runs serve all. What the logs say about losses is kept in FOLDER/curves.tsv, so that a
# folder with runs.tsv and curves.tsv alone can be drawn again; what each figure shows is beside it
# as a .dat file. OUT is FOLDER/plots of the first; with -p only these patterns are drawn, and t.
# Where a pattern has fewer seeds than t, the circles of its seeds are moved together by what t's
# mean at these seeds differs from t's mean, so that they lie around the pattern's point.
# LOG is the measured run from which dev/net/plan predicts: a quiet one, without -nl and -nb.
# It draws the clock of its R. Without -l it is the log of a run of t of which the table says that
# it had the machine to itself (dev/runs/sweep --alone); where there is none the clock is not drawn.
# CHECK is what dev/net/check_plan.sh printed; FOLDER/check_plan.txt when there.
set -euo pipefail
export LC_ALL=C
fail() { echo "error: $*" >&2; exit 1; }
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
PLAN=${PLAN:-$root/dev/net/plan} REPORT=${REPORT:-$root/dev/runs/report}
out='' log='' check='' asked=''
usage="expected: dev/runs/plot.sh [-o OUT] [-l LOG] [-c CHECK] [-p 'PATTERN...'] FOLDER..."
while getopts o:l:c:p: option; do
    case $option in
    o) out=$OPTARG ;; l) log=$OPTARG ;; c) check=$OPTARG ;; p) asked=$OPTARG ;;
    *) fail "$usage" ;;
    esac
done
shift $((OPTIND - 1))
[ $# != 0 ] || fail "$usage"
out=${out:-$1/plots}
command -v gnuplot >/dev/null || fail "gnuplot is not here (Debian: apt-get install gnuplot-nox)"
for folder; do
    [ -s "$folder/runs.tsv" ] || fail "$folder/runs.tsv: not there; dev/runs/sweep writes it"
    if [ -z "$check" ] && [ -f "$folder/check_plan.txt" ]; then check=$folder/check_plan.txt; fi
done
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# ----------------------------------------------------------------------------
# data

# The rows that are ok and have a loss, as: experiment R rule options pattern seed merges val_loss
# run updates alone text; the run has its folder before it. Fails on a bad row. Columns alone and
# text may be missing.
rows() { # rows FOLDER
    awk -F'\t' -v OFS='\t' -v folder="$1" -v path="$1/runs.tsv" '
        function die(why) {
            printf "error: %s:%d: %s\n", path, NR, why >"/dev/stderr"
            exit 1
        }
        NR == 1 {
            for (i = 1; i <= NF; i++) at[$i] = i
            width = NF
            names = "experiment R rule options pattern seed merges_per_forward val_loss run" \
                " updates status"
            n = split(names, want, " ")
            for (i = 1; i <= n; i++) {
                if (want[i] in at) continue
                die("no column \"" want[i] "\"; is it a table of dev/runs/sweep?")
            }
            next
        }
        NF != width { die(NF " columns, expected " width) }
        $at["status"] != "ok" || $at["val_loss"] == "-" { next }
        $at["val_loss"] !~ /^[0-9.]+$/ {
            die("val_loss is \"" $at["val_loss"] "\", expected a number")
        }
        {
            $at["run"] = folder "/" $at["run"]
            for (i = 1; i < n; i++) printf "%s%s", $at[want[i]], OFS
            print "alone" in at ? $at["alone"] : "-", "text" in at ? $at["text"] : "-"
        }' "$1/runs.tsv"
}
asked_rows() { # asked_rows COLUMN: of rows with a pattern there, those that -p asks for, and of t
    awk -F'\t' -v asked="$asked" -v column="$1" '
        BEGIN { all = !split(asked, list, " "); for (i in list) is[list[i]] }
        all || $column ~ /^t+$/ || $column in is'
}
for folder; do rows "$folder"; done | asked_rows 5 >"$work/rows"
[ -s "$work/rows" ] || fail "$*: no run${asked:+ of $asked} in it ended well"

# curves.tsv: run, train or val, update, loss. Training losses are means over 1/40 of the run, at
# the end of each.
curves_read() { # curves_read FOLDER: from its logs, where all of them are there
    local log
    rows "$1" | cut -f9 >"$work/runs"
    [ -s "$work/runs" ] || return 0
    while read -r log; do [ -f "$log/main.log" ] || return 0; done <"$work/runs"
    while read -r log; do
        awk -v OFS='\t' -v run="${log#"$1/"}" '
            /^# updates / { end = $5; every = int(end / 40) > 1 ? int(end / 40) : 1; sum = n = 0 }
            /^s:[0-9]+ tel:[0-9.]+$/ { split($1, s, ":"); print run, "val", s[2], substr($2, 5) }
            /^s:[0-9]+ trl:.* comm:[0-9.]+( kd:[0-9.e+-]+)?( pe:[a-z.]+)?$/ {
                split($1, s, ":"); sum += substr($2, 5); n++
                if (s[2] % every && s[2] != end) next
                printf "%s\ttrain\t%d\t%.6f\n", run, s[2], sum / n
                sum = n = 0
            }' "$log/main.log"
    done <"$work/runs" >"$1/curves.tsv.part"
    mv "$1/curves.tsv.part" "$1/curves.tsv"
}
for folder; do
    curves_read "$folder"
    [ -s "$folder/curves.tsv" ] ||
        fail "$folder: neither the logs of its runs nor a curves.tsv; curves cannot be drawn"
    awk -v folder="$folder" '{ print folder "/" $0 }' "$folder/curves.tsv"
done >"$work/curves"
if [ -x "$REPORT" ]; then
    "$REPORT" -d "${@/%//runs.tsv}" | asked_rows 4 >"$work/differences"
else
    echo "skip errors and settings: $REPORT is not built (make dev/runs/report)" >&2
    echo experiment >"$work/differences" # a line of names
fi

# Colour (Okabe and Ito's, without their yellow), dash and point of a pattern, the same in every
# figure; those of any other pattern by its place among the others of the figure.
others=(
    "#0072B2 4 4" "#D55E00 4 6" "#009E73 4 8" "#CC79A7 4 10" "#E69F00 5 12" "#56B4E9 5 14"
    "#666666 5 5" "#0072B2 3 7" "#D55E00 3 13" "#009E73 3 15" "#CC79A7 3 9" "#000000 3 11"
)
style() { # style PATTERN PLACE: of any other pattern with a fourth word
    case $1 in
    t) echo "#000000 1 7" ;; s) echo "#0072B2 1 5" ;; sppp) echo "#D55E00 1 9" ;;
    p) echo "#009E73 1 11" ;; l) echo "#666666 4 3" ;; d) echo "#E69F00 4 2" ;;
    tstt | ts) echo "#E69F00 1 6" ;; tsst | tss) echo "#56B4E9 1 8" ;; tsss) echo "#CC79A7 1 10" ;;
    sp) echo "#0072B2 2 4" ;; spps | spp) echo "#E69F00 2 13" ;; sspp) echo "#56B4E9 2 15" ;;
    pp.) echo "#D55E00 2 8" ;; ppp.) echo "#CC79A7 2 4" ;; pppp.) echo "#56B4E9 3 14" ;;
    pppppp.) echo "#009E73 2 10" ;; *) echo "${others[$2 % ${#others[@]}]} other" ;;
    esac
}

# draw SCRIPT NAME SIZE VARIABLE=TEXT...: the figure.
draw() {
    local script=$1 name=$2 size=$3 variable set=''
    shift 3
    for variable in "$@"; do
        local text=${variable#*=}
        set+="${variable%%=*}='${text//\'/\'\'}'; "
    done
    gnuplot -e "set terminal svg size $size font 'DejaVu Sans,14' background '#ffffff'" \
        -e "set output '$out/$name.svg'; $set" "$here/plot/$script"
    echo "$out/$name.svg"
}

# The styles of $patterns, in their order, into colours, dashes and points.
styles() {
    colours='' dashes='' points=''
    local p place=0
    for p in $patterns; do
        read -r colour dash point other < <(style "$p" "$place")
        [ -z "$other" ] || place=$((place + 1))
        colours+="$colour " dashes+="$dash " points+="$point "
    done
}

# The runs of one figure into $work/members: pattern seed merges loss run. t has no run of p and
# serves every rule; t and l are the same functions at every R above 1.
members() { # members EXPERIMENT R RULE OPTIONS
    awk -F'\t' -v OFS='\t' -v e="$1" -v R="$2" -v rule="$3" -v o="$4" '
        $1 != e || $4 != o { next }
        NR == FNR && $2 == R && updates && $10 != updates {
            printf "error: %s has %s updates, others of its experiment, R and options %s\n", $9,
                $10, updates >"/dev/stderr"
            exit 1
        }
        NR == FNR && $2 == R { updates = $10 }
        NR == FNR ? $2 == R && ($3 == rule || $5 ~ /^t+$/) : $2 != R && $2 > 1 && R > 1 && \
            $10 == updates && $5 ~ /^[tl]+$/ && o !~ /(^| )-pe / {
            if ($5 ~ /^[tl]+$/ && seen[$5, $6]++) next
            print $5, $6, $7, $8, $9
        }' "$work/rows" "$work/rows" | sort -t"$(printf '\t')" -k3,3nr -s >"$work/members"
    updates=$(awk -F'\t' -v e="$1" -v R="$2" -v o="$4" '
        $1 == e && $2 == R && $4 == o { print $10; exit }' "$work/rows")
    patterns=$(awk -F'\t' '!seen[$1]++ { printf "%s ", $1 }' "$work/members")
    styles
    seeds=$(cut -f1 "$work/members" | sort | uniq -c | awk '
        NR == 1 || $1 < few { few = $1 }
        $1 > many { many = $1 }
        END {
            if (many == 1) print "one seed"
            else print "mean of " (few == many ? "" : few " to ") many " seeds"
        }')
}

# Blocks of "update mean difference_to_t", one per pattern in the order of members, at updates that
# all its seeds have.
curves() { # curves KIND
    awk -F'\t' -v kind="$1" '
        FNR == NR {
            if (!($1 in n)) order[++m] = $1
            n[$1]++; pattern[$5] = $1; seed[$5] = $2
            next
        }
        $2 == kind && $1 in pattern {
            p = pattern[$1]; sum[p, $3] += $4; have[p, $3]++; loss[p, seed[$1], $3] = $4
            if (!(($3) in known)) { known[$3]; updates[++u] = $3 + 0 }
            seeds[p] = seeds[p] " " seed[$1]
        }
        END {
            for (i = 2; i <= u; i++) for (j = i; j > 1 && updates[j] < updates[j - 1]; j--) {
                x = updates[j]; updates[j] = updates[j - 1]; updates[j - 1] = x
            }
            for (i = 1; i <= m; i++) {
                p = order[i]
                printf "# %s\nNaN NaN NaN\n", p # gnuplot does not count empty blocks
                for (j = 1; j <= u; j++) {
                    N = updates[j]
                    if (have[p, N] != n[p]) continue
                    above = pairs = 0
                    split("", done)
                    k = split(seeds[p], list, " ")
                    for (l = 1; l <= k; l++) {
                        if (list[l] in done) continue
                        done[list[l]]
                        if (!(("t", list[l], N) in loss) || !((p, list[l], N) in loss)) continue
                        above += loss[p, list[l], N] - loss["t", list[l], N]; pairs++
                    }
                    printf "%d %.6f ", N, sum[p, N] / n[p]
                    print pairs ? sprintf("%.6f", above / pairs) : "NaN"
                }
                printf "\n\n"
            }
        }' "$work/members" "$work/curves"
}

# ----------------------------------------------------------------------------
# figures

title_of() { # title_of EXPERIMENT R RULE OPTIONS
    local text=${1//_/ }
    text="${text^}, R $2${3:+, rule $3}"
    [ "$4" = - ] || text+=", $4"
    text+=$(awk -F'\t' -v e="$1" '$1 == e && $12 ~ /^NOT / {
        sub(",.*", "", $12); print " (" $12 ")"; exit }' "$work/rows")
    echo "${text//\'/}"
}

# The differences to t and their errors are the report's; l's hold at every R. A label for every
# point of the mean: patterns with equal counts stand side by side.
allreduces() { # allreduces EXPERIMENT R RULE OPTIONS
    awk -F'\t' -v e="$1" -v R="$2" -v rule="$3" -v o="$4" '
        FNR == NR {
            if ($1 != e || $3 != o || $4 ~ /p/ && $5 != rule) next
            if ($2 == R || $4 ~ /^l[tl]*$|^t[tl]*$/) { to_t[$4] = $9; error[$4] = $10 }
            next
        }
        !($1 in n) { order[++m] = $1; x[$1] = $3; same[$3]++; place[$1] = same[$3] }
        {
            n[$1]++; sum[$1] += $4; all[$1, n[$1]] = $4; if ($4 > top[$1]) top[$1] = $4
            at[$1, $2] = $4; seed[$1, n[$1]] = $2
        }
        END {
            for (i = 1; i <= m; i++) {
                p = order[i]; mean = sum[p] / n[p]; pairs = of_t = move = 0
                for (k = 1; k <= n[p]; k++) {
                    if (!(("t", seed[p, k]) in at)) continue
                    pairs++; of_t += at["t", seed[p, k]]
                }
                if (pairs) move = sum["t"] / n["t"] - of_t / pairs
                if (p in to_t && "t" in n) mean = sum["t"] / n["t"] + to_t[p]
                beside = place[p] - (same[x[p]] + 1) / 2
                printf "# %s: all-reduces, mean, error to t, loss of a seed, ", p
                print "place beside others with as many, pattern, highest of loss and error"
                highest = top[p] + move
                if (p in error && mean + error[p] > highest) highest = mean + error[p]
                for (k = 1; k <= n[p]; k++) {
                    printf "%g %.6f %s ", x[p], mean, p in error ? error[p] : "NaN"
                    printf "%.6f ", all[p, k] + move
                    printf "%s %s %.6f\n", beside, p, highest
                }
                printf "\n\n"
            }
        }' "$work/differences" "$work/members"
}

# What dev/net/plan predicts for each pattern on a network: "pattern ms" per update. A table of
# tokens may follow.
predict() { # predict LOG LATENCY GBITS
    # shellcheck disable=SC2086 # patterns are words
    "$PLAN" "$1" "$2" "$3" 0 $patterns |
        awk 'go && !NF { exit } go { print $1, $7 } $1 == "pattern" { go = 1 }'
}

clock() { # clock NAME TITLE EXPERIMENT R OPTIONS
    local measured=$log compute latency gbits i=0 run
    if [ -z "$measured" ]; then
        run=$(awk -F'\t' -v e="$3" -v R="$4" -v o="$5" '
            $1 != e || $2 != R || $4 != o || $5 != "t" { next }
            $11 ~ /^yes/ { print $9; exit }' "$work/rows")
        [ -z "$run" ] || measured=$run/main.log
    fi
    skip() { echo "skip clock_$1: $2" >&2; }
    [ -x "$PLAN" ] || { skip "$1" "$PLAN is not built (make dev/net/plan)"; return; }
    [ "$4" != 1 ] || { skip "$1" "with R 1 nothing is all-reduced"; return; }
    [ -n "$measured" ] || { skip "$1" "no run of t was alone here; -l names a log"; return; }
    [ -f "$measured" ] || { skip "$1" "$measured is not there; -l names a log"; return; }
    grep -qx "# -tp $4" "$measured" || { skip "$1" "$measured is not of R $4"; return; }
    : >"$work/seconds"
    for network in "100 10" "5000 1" "20000 0.1"; do
        read -r latency gbits <<<"$network"
        predict "$measured" "$latency" "$gbits" | sed "s/^/$i /" >>"$work/seconds" ||
            { skip "$1" "see above"; return; }
        i=$((i + 1))
    done
    compute=$("$PLAN" "$measured" 100 10 | sed -n 's/^compute: *\([0-9.]* ms\).*/\1/p')
    # blocks: network 0 patterns.., network 1 patterns.., network 2; "seconds loss"
    awk -v patterns="$patterns" '
        FNR == 1 { file++ }
        file == 1 { ms[$1, $2] = $3; next }
        /^# / { p = $2; next }
        NF { n[p]++; update[p, n[p]] = $1; loss[p, n[p]] = $2 }
        END {
            m = split(patterns, order, " ")
            for (i = 0; i < 3; i++) for (k = 1; k <= m; k++) {
                p = order[k]
                printf "# network %d, %s, %s ms per update: seconds, loss\n", i, p, ms[i, p]
                if (!((i, p) in ms)) print "NaN NaN"
                else for (j = 1; j <= n[p]; j++) {
                    if (update[p, j] <= 0) continue
                    printf "%.3f %s\n", update[p, j] * ms[i, p] / 1000, loss[p, j]
                }
                printf "\n\n"
            }
        }' "$work/seconds" "$out/curves_$1.val.dat" >"$out/clock_$1.dat"
    local note="Times are predicted, not run: dev/net/plan, from a run measured at $compute of"
    note+=" computing per update, plus the formula of each all-reduce; $seeds"
    draw clock.gp "clock_$1" 1400,620 "data=$out/clock_$1.dat" "note=$note" \
        "title=$2: validation loss against time on three networks" "patterns=$patterns" \
        "colours=$colours" "dashes=$dashes" "points=$points"
}

cut -f1-4 "$work/rows" | sort -u | while IFS=$'\t' read -r experiment R rule options; do
    members "$experiment" "$R" "$rule" "$options"
    [ "$(wc -w <<<"$patterns")" -gt 1 ] || continue
    name=${experiment}_R${R}_$rule
    [ "$options" = - ] || name+=_$(tr -sc 'A-Za-z0-9.\n' _ <<<"${options#-}")
    title=$(title_of "$experiment" "$R" "$rule" "$options")
    style_words=("patterns=$patterns" "colours=$colours" "dashes=$dashes" "points=$points")
    curves train >"$out/curves_$name.train.dat"
    curves val >"$out/curves_$name.val.dat"
    allreduces "$experiment" "$R" "$rule" "$options" >"$out/allreduces_$name.dat"
    draw allreduces.gp "allreduces_$name" 1100,700 "data=$out/allreduces_$name.dat" \
        "title=$title: loss against all-reduces" "note=$updates updates, $seeds" \
        "${style_words[@]}"
    if ! grep -q '^[0-9]' "$out/curves_$name.train.dat" ||
        ! grep -q '^[1-9]' "$out/curves_$name.val.dat"; then
        echo "skip curves_$name, clock_$name: no curves.tsv has its runs" >&2
        continue
    fi
    awk '/^# / { p = $2; order[++n] = p } /^[0-9]/ { has[p] }
        END { for (i = 1; i <= n; i++) if (!(order[i] in has)) print order[i] }' \
        "$out/curves_$name.val.dat" | while read -r p; do
        echo "skip the curve of $p in curves_$name: curves.tsv lacks runs of it" >&2
    done
    draw curves.gp "curves_$name" 1400,900 "train=$out/curves_$name.train.dat" \
        "val=$out/curves_$name.val.dat" "title=$title" "seeds=$seeds" "${style_words[@]}"
    clock "$name" "$title" "$experiment" "$R" "$options"
done

# Merge rules: one column per pattern that was run with two rules or more.
cut -f1,2,4 "$work/rows" | sort -u | while IFS=$'\t' read -r experiment R options; do
    name=${experiment}_R$R
    [ "$options" = - ] || name+=_$(tr -sc 'A-Za-z0-9.\n' _ <<<"${options#-}")
    awk -F'\t' -v e="$experiment" -v R="$R" -v o="$options" '
        $1 != e || $2 != R || $4 != o { next }
        $5 ~ /^t+$/ { t += $8; nt++; next }
        !(($5, $3) in n) { rules[$5]++ }
        !($5 in known) { known[$5]; order[++m] = $5; merges[$5] = $7 }
        { n[$5, $3]++; sum[$5, $3] += $8; all[$5, $3, n[$5, $3]] = $8 }
        END {
            split("sum mean streams", names, " ")
            for (r = 1; r <= 3; r++) {
                rule = names[r]; place = 0
                printf "# rule %s: x, mean, standard error, seed loss, pattern and its ", rule
                print "all-reduces"
                for (i = 1; i <= m; i++) {
                    p = order[i]
                    if (rules[p] < 2) continue
                    place++
                    if (!((p, rule) in n)) continue
                    N = n[p, rule]; mean = sum[p, rule] / N; squares = 0
                    for (k = 1; k <= N; k++) squares += (all[p, rule, k] - mean) ^ 2
                    error = N > 1 ? sprintf("%.6f", sqrt(squares / (N - 1) / N)) : "NaN"
                    for (k = 1; k <= N; k++) {
                        printf "%g %.6f %s ", place + (r - 2) * 0.22, mean, error
                        printf "%.6f \"%s (%s)\"\n", all[p, rule, k], p, merges[p]
                    }
                }
                if (!place) exit
                printf "\n\n"
            }
            if (nt) printf "# t\n%.6f\n", t / nt
        }' "$work/rows" >"$work/rules"
    grep -q '^[0-9.]* [0-9.]* .*"' "$work/rules" || continue
    cp "$work/rules" "$out/rules_$name.dat"
    draw rules.gp "rules_$name" 1100,640 "data=$out/rules_$name.dat" \
        "title=$(title_of "$experiment" "$R" '' "$options"): merge rules of runs of p" \
        "plain=$(awk '/^# t$/ { getline; print $1 }' "$work/rules")"
done

# All settings in one figure. Blocks, a setting each: share of t's all-reduces, difference / noise,
# error / noise, pattern.
awk -F'\t' '
    $3 != "-" || $5 != "sum" || $11 + 0 <= 0 { next } # with the line of names, where it is
    { name = $1 ",_R_" $2; sub("_", " ", name); gsub(" ", "_", name) }
    !(name in n) { order[++m] = name }
    {
        error = $10 == "NaN" ? "NaN" : $10 / $11
        n[name]++
        row[name, n[name]] = sprintf("%g %.3f %s %s", $6 / $7, $9 / $11, error, $4)
    }
    END {
        for (i = 1; i <= m; i++) {
            printf "# %s\n", order[i]
            for (k = 1; k <= n[order[i]]; k++) print row[order[i], k]
            printf "\n\n"
        }
    }' "$work/differences" >"$out/settings.dat"
settings=$(sed -n 's/^# //p' "$out/settings.dat" | tr '\n' ' ')
patterns=$(awk 'NF == 4 && ++n[$4] == 2 { printf "%s ", $4 }' "$out/settings.dat")
styles
[ "$(wc -w <<<"$settings")" -lt 2 ] || [ -z "$patterns" ] ||
    draw settings.gp settings 1100,700 "data=$out/settings.dat" "settings=$settings" \
        "patterns=$patterns" "points=$points"

if [ -n "$check" ]; then
    # latency_ms gbits pattern predicted measured
    awk '$2 == "ms" && $6 == "ms" && $8 == "ms" { print $1, $3, $4, $5, $7 }' "$check" >"$work/plan"
    form='LATENCY ms GBITS PATTERN PREDICTED ms MEASURED ms'
    [ -s "$work/plan" ] || fail "$check: no line '$form'; is it what dev/net/check_plan.sh printed?"
    networks=$(awk '!seen[$1, $2]++ { printf "%s_ms,_%s_Gbit/s ", $1, $2 }' "$work/plan")
    patterns=$(awk '!seen[$3]++ { printf "%s ", $3 }' "$work/plan")
    styles
    awk -v networks="$networks" -v patterns="$patterns" '
        { at[$1 "_ms,_" $2 "_Gbit/s", $3] = $5 " " $4 }
        END {
            n = split(networks, network, " "); m = split(patterns, pattern, " ")
            for (i = 1; i <= n; i++) for (k = 1; k <= m; k++) {
                printf "# %s %s: measured, predicted ms per update\n", network[i], pattern[k]
                there = (network[i], pattern[k]) in at
                print (there ? at[network[i], pattern[k]] : "NaN NaN") "\n\n"
            }
        }' "$work/plan" >"$out/plan.dat"
    draw plan.gp plan 800,760 "data=$out/plan.dat" "networks=$networks" "patterns=$patterns" \
        "points=$points"
else
    echo "skip plan: -c names what dev/net/check_plan.sh printed" >&2
fi
