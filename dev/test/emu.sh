#!/bin/sh
# The tests of the stand-in for CUDA (dev/emu) in each of its builds: what one build
# cannot look for, another does.
cd "$(dirname "$0")/../.." || exit 1
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
passed=0 failed=0 skipped=0
log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT

# run NAME COMMAND...: counts what passed and failed; what it skipped, the other builds do not.
run() {
    name=$1
    shift
    "$@" >"$log" 2>/dev/null
    status=$?
    grep '^FAILED' "$log"
    set -- $(sed -nE 's/^test_emu: ([0-9]+) passed, ([0-9]+) failed, .*/\1 \2/p' "$log" | tail -n 1)
    if [ $# -ne 2 ] || { [ "$status" -ne 0 ] && [ "$2" -eq 0 ]; }; then
        echo "FAILED $name: exit status $status" && tail -n 20 "$log"
        set -- 0 1
    fi
    passed=$((passed + $1)) failed=$((failed + $2))
}

run "test_emu" dev/emu/test_emu
run "test_emu, other orders" env EMU_SEED=5 dev/emu/test_emu
# MPI keeps memory of its own until the end: no leaks are looked for.
run "test_emu with the address sanitizer" env ASAN_OPTIONS=detect_leaks=0 dev/emu/test_emu_asan
if command -v mpirun >/dev/null; then
    run "test_emu, three processes" mpirun -n 3 dev/emu/test_emu
else
    skipped=1 &&
        echo "skip   collectives of several processes: no mpirun (Debian: apt-get install" \
        "libopenmpi-dev openmpi-bin)"
fi
echo "test_emu: $passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
