#!/bin/sh
# Runs test programs one after the other and adds up their closing lines, "NAME: N passed, N failed,
# N skipped".
#
#   dev/test/run.sh ./test_gpt2 dev/test/cli.sh
#
# A program without such a line, with a status that does not fit it, or that checked nothing and
# skipped nothing, counts as one more failure. Exit status 1 if any.
passed=0 failed=0 skipped=0
# Threads that wait give up their core soon: others may need it.
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-1000}"
log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT
for program in "$@"; do
    echo "== $program"
    $program >"$log" 2>&1 # split into words: a program and its arguments
    status=$?
    grep -vE '^ok +|^[a-z_0-9]+: [0-9]+ passed' "$log" # what passed is counted, not shown
    closing='^[a-z_0-9]+: ([0-9]+) passed, ([0-9]+) failed, ([0-9]+) skipped$'
    set -- $(sed -nE "s/$closing/\1 \2 \3/p" "$log" | tail -n 1)
    if [ $# -ne 3 ]; then
        echo "FAILED $program: exit status $status and no closing line"
        set -- 0 1 0
    elif [ "$status" -ne 0 ] && [ "$2" -eq 0 ]; then
        echo "FAILED $program: exit status $status though nothing failed"
        set -- "$1" 1 "$3"
    elif [ "$(($1 + $2 + $3))" -eq 0 ]; then
        echo "FAILED $program: it checked nothing"
        set -- 0 1 0
    fi
    echo "   $1 passed, $2 failed, $3 skipped"
    passed=$((passed + $1)) failed=$((failed + $2)) skipped=$((skipped + $3))
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
