#!/usr/bin/env bash
# Draws a table of dev/runs/syncs: loss against all-reduces, by gnuplot. What is drawn stands beside
# the SVG as a .dat file.
#
#   dev/runs/syncs_plot.sh [-o OUT.svg] [-t TITLE] TABLE.tsv      OUT is TABLE.svg
set -euo pipefail
export LC_ALL=C
fail() { echo "error: $*" >&2; exit 1; }
usage="expected: dev/runs/syncs_plot.sh [-o OUT.svg] [-t TITLE] TABLE.tsv"
here=$(cd "$(dirname "$0")" && pwd)
out='' title=''
while getopts o:t: option; do
    case $option in o) out=$OPTARG ;; t) title=$OPTARG ;; *) fail "$usage" ;; esac
done
shift $((OPTIND - 1))
[ $# = 1 ] || fail "$usage"
table=$1 out=${out:-${1%.tsv}.svg}
data=${out%.svg}.dat
[[ $out == *.svg ]] || fail "-o $out: expected a name that ends in .svg"
[ "$table" != "$out" ] || fail "$table: expected a table (.tsv)"
command -v gnuplot >/dev/null || fail "gnuplot is not here (Debian: apt-get install gnuplot-nox)"
[ -s "$table" ] || fail "$table: not there; dev/runs/syncs writes it"
columns=$'kind\titem\tpattern\tallreduces\tloss\tdifference\terror\ttier'
grep -qxF "$columns" "$table" || fail "$table: not a table of dev/runs/syncs"
grep -q '^greedy' "$table" || fail "$table: no greedy search in it; dev/runs/syncs goes on with it"

# Blocks of "allreduces loss error", with a pattern for regular ones: greedy, regular, random, mean
# of random.
awk -F'\t' '
    $1 == "greedy" { greedy = greedy $4 " " $5 " " $7 "\n" }
    $1 == "regular" { regular = regular $4 " " $5 " " $7 " " $2 "\n" }
    $1 == "random" {
        random = random $4 " " $5 "\n"; n[$4]++; sum[$4] += $5
        if ($4 > most) most = $4
    }
    END {
        none = "NaN NaN NaN -\n" # gnuplot counts blocks, and does not see an empty one
        if (!regular) regular = none
        if (!random) random = none
        print "# greedy: all-reduces, loss, error of its difference\n" greedy "\n"
        print "# regular: the same, pattern\n" regular "\n"
        print "# random: all-reduces, loss\n" random "\n"
        print "# mean of random"
        for (x = most; x > 0; x--) if (x in n) printf "%d %.6f\n", x, sum[x] / n[x]
        if (!most) printf none
    }' "$table" >"$data"
read -r shape tokens ranks rule < <(awk '
    /^# model/ { shape = $4 }
    /^# tokens/ { tokens = $3 * $5 }
    /^# R / { print shape, tokens, $3, $5; exit }' "$table")
title=${title:-$shape, R $ranks, rule $rule: loss without more training, over $tokens tokens}
gnuplot -e "set terminal svg size 1000,650 font 'DejaVu Sans,14' background '#ffffff'" \
    -e "set output '$out'; data='$data'; title='${title//\'/}'" "$here/plot/syncs.gp"
echo "$out"
