# shellcheck shell=bash
# What the end-to-end tests share, read by `. dev/test/verdicts.sh`: they count what passed, failed
# and was skipped, and say so in a line each.

passed=0 failed=0 skipped=0
ok()   { passed=$((passed + 1));   echo "ok $1"; }
bad()  { failed=$((failed + 1));   echo "FAILED $1: $2"; }
skip() { skipped=$((skipped + 1)); echo "skip $1: $2"; }

# same NAME FOUND EXPECTED; differs NAME A B: neither is empty; holds NAME COMMAND...: COMMAND
# succeeds, and what it prints says why not.
same()    { if [ "$2" = "$3" ]; then ok "$1"; else bad "$1" "found '$2', expected '$3'"; fi; }
differs() {
    if [ "$2" != "$3" ] && [ -n "$2" ] && [ -n "$3" ]; then ok "$1"; else bad "$1" "'$2', '$3'"; fi
}
holds() {
    local why
    if why=$("${@:2}" 2>&1); then
        ok "$1"
    else
        bad "$1" "$(head -c 600 <<<"$why" | tr '\n' ' ')"
    fi
}
# check NAME TEXT...: what the last command printed to $W/out holds every TEXT; where one begins
# with ^error its status was 1, or $wrong_use.
check() {
    local status=$? name=$1 text why=
    shift
    for text in "$@"; do
        [[ $text != ^error* || $status = "${wrong_use:-1}" ]] ||
            why="exit status $status of an error"
        grep -qE -e "$text" "$W/out" || why="no '$text' in: $(head -c 900 "$W/out")"
    done
    same "$name" "$why" ""
}
# went_on LOG FROM TO COMMAND...: the log says that the run was resumed after update FROM (a regular
# expression), where a start from update 0 would end in the same bytes; and COMMAND succeeds.
went_on() {
    grep -qxE "# updates ($2) to $3" "$1" || { echo "it did not go on from update $2"; return 1; }
    "${@:4}"
}
# Samples and what they took in a run's output, without what depends on the clock.
sampled() {
    sed -nE '/^--- sample/,/^---$/p; s/ (prompt_ms|ms|p99|comm|mean):[0-9.]+//g; /^g:/p' "$1"
}
# A condition in Python, from stdin: sys.exit("why") if it does not hold.
compute() { python3 - "$@"; }

# Open MPI's options and variables are what the tests know.
openmpi_is_here() { mpirun --version 2>&1 | grep -q 'Open MPI\|OpenRTE'; }

# until_true COMMAND...: polls, at most a minute.
until_true() {
    local limit=$((SECONDS + 60))
    until "$@"; do
        [ "$SECONDS" -lt "$limit" ] || return 1
        sleep 0.003
    done
}

# How many processes are left of those that the script's `trainers` lists: soon none, where mpirun
# did not wait for those that it killed.
none_is_left() { ! trainers >/dev/null; }
left() { until_true none_is_left; trainers | wc -l; }
