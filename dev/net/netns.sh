#!/usr/bin/env bash
# Two hosts on one machine: makes two network namespaces joined by a veth pair, runs the trainer
# across them over TCP with one rank in each, and removes them again however it ends (only kill -9
# leaves them: see `ip netns`, and `ip netns del NAME`). What crosses the pair is real traffic of
# real sockets, unlike the emulated network of -nl and -nb.
#
#     dev/net/netns.sh -- -p sppp -x 100                   # the trainer's options, or a short run
#     dev/net/netns.sh --delay 5 --rate 1000 -- -p sppp    # 5 ms each way, 1000 Mbit/s (netem, tbf)
#     dev/net/netns.sh --bench                             # dev/net/bench_allreduce instead
#     dev/net/netns.sh --test                              # TRAIN=/tmp/train_mpi: another binary
#
# Needs root, iproute2, util-linux, python3, OpenMPI 4 and a trainer built with it. Inside, the
# hosts are called netns-1 (10.77.0.1) and netns-2 (10.77.0.2); they see nothing but each other, so
# nothing else can be reached or disturbed.
#
# A run prints what the trainer prints, then on stderr how many bytes crossed; its exit status is
# mpirun's. --test prints `ok <name>`, `FAILED <name>: <why>` or `skip netns: <reason>`, then
# `netns: N passed, N failed, N skipped`, and exits with 1 if any failed.
set -u
TRAIN=${TRAIN:-./train_gpt2}
export LC_ALL=C OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

die() { echo "error: $*" >&2; exit 1; }

usage() { sed -n '2,/^set -u/ { /^#/ s/^# \{0,1\}//p }' "$0"; }

delay='' rate='' testing='' bench=''
number() {
    [[ $2 =~ ^[0-9]{1,7}(\.[0-9]{1,6})?$ && $2 =~ [1-9] ]] ||
        die "$1 $2: expected a number above 0, in $3"
}
while [ $# -gt 0 ]; do
    case $1 in
    --delay) number "$1" "${2:-}" "milliseconds"; delay=$2; shift 2 ;;
    --rate)  number "$1" "${2:-}" "Mbit/s"; rate=$2; shift 2 ;;
    --bench) bench=1 TRAIN=$(dirname "$0")/bench_allreduce; shift ;;
    --test)  testing=1; shift ;;
    --help)  usage; exit 0 ;;
    --)      shift; break ;;
    *)
        die "$1: unknown; allowed are --delay MS, --rate MBIT, --bench, --test, --help, and the" \
            "trainer's options after --"
        ;;
    esac
done
[ -z "$testing" ] || [ $# = 0 ] ||
    die "--test has runs of its own and takes no options of the trainer: $*"

# ----------------------------------------------------------------------------
# two hosts

HOST1=gpt2-$$-1 HOST2=gpt2-$$-2 # the namespaces; the device in each is called veth
W=$(mktemp -d) || exit 1
LIMIT= # seconds a run may take; empty for as long as it likes
CHILD= # what this script waits for: mpirun, or in a test another netns.sh

# Whatever still runs inside goes first: a namespace with a process in it would live on without a
# name.
hosts_remove() {
    local name
    for name in "$HOST1" "$HOST2"; do
        [ -e "/run/netns/$name" ] || continue
        ip netns pids "$name" 2>/dev/null | xargs -r kill -9 2>/dev/null
        ip netns del "$name" # and with the first of them the pair
    done
}

finish_child() {
    [ -n "$CHILD" ] || return 0
    kill "$CHILD" 2>/dev/null
    wait "$CHILD" 2>/dev/null
    CHILD=
}

# A TERM lets a netns.sh that a test started remove what is its own.
finish() {
    trap '' INT TERM HUP
    [ -z "$CHILD" ] || kill "$CHILD" 2>/dev/null
    # Bash would report the killed mpirun with its whole command.
    { hosts_remove; finish_child; } 2>/dev/null
    rm -rf "$W"
    local name
    for name in "$HOST1" "$HOST2"; do
        [ ! -e "/run/netns/$name" ] || echo "netns: could not remove $name: ip netns del $name" >&2
    done
}
trap finish EXIT
trap 'exit 1' INT TERM HUP

# Why two hosts cannot be made or used here; nothing if they can.
lacking() {
    [ "$(id -u)" = 0 ] || { echo "network namespaces need root: run it as root"; return; }
    command -v ip >/dev/null || { echo "no program ip: apt-get install iproute2"; return; }
    command -v unshare >/dev/null || {
        echo "no program unshare: apt-get install util-linux"; return
    }
    command -v python3 >/dev/null || { echo "no program python3: apt-get install python3"; return; }
    command -v mpirun >/dev/null || {
        echo "no program mpirun: apt-get install openmpi-bin libopenmpi-dev"; return
    }
    mpirun --version 2>&1 | grep -q 'Open MPI) 4\.' ||
        { echo "mpirun is $(mpirun --version 2>&1 | head -n 1), and this script knows Open MPI 4"
          return; }
    ldd "$TRAIN" 2>&1 | grep -q libmpi ||
        echo "$TRAIN is built without MPI: apt-get install openmpi-bin libopenmpi-dev," \
            "make train_gpt2"
}

# Both devices are born inside, so the machine's own network never sees them. Prints why it failed.
hosts_make() {
    local host
    {
        ip netns add "$HOST1" && ip netns add "$HOST2" &&
        ip link add veth netns "$HOST1" type veth peer name veth netns "$HOST2" &&
        ip -n "$HOST1" address add 10.77.0.1/30 dev veth &&
        ip -n "$HOST2" address add 10.77.0.2/30 dev veth &&
        for host in "$HOST1" "$HOST2"; do
            ip -n "$host" link set lo up && ip -n "$host" link set veth up || return 1
        done
        unshare --uts hostname netns-2
    } 2>&1
}

# Each end delays and limits what it sends. netem does both; without it the rate is left
# to tbf, and nothing can delay.
network_slow() {
    local host netem=()
    [ -n "$delay$rate" ] || return 0
    command -v tc >/dev/null ||
        die "--delay and --rate need the program tc: apt-get install iproute2"
    [ -z "$delay" ] || netem+=(delay "${delay}ms")
    [ -z "$rate" ]  || netem+=(rate "${rate}mbit")
    for host in "$HOST1" "$HOST2"; do
        tc -n "$host" qdisc add dev veth root netem "${netem[@]}" limit 100000 2>"$W/netem" &&
            continue
        [ "$host" = "$HOST2" ] ||
            echo "netns: this kernel has no netem ($(tr '\n' ' ' <"$W/netem"))" >&2
        [ -z "$delay" ] || [ "$host" = "$HOST2" ] || echo "netns: --delay $delay is left out" >&2
        [ -n "$rate" ] || continue
        # The burst holds a whole segment that the sender has not cut yet (64 KiB).
        tc -n "$host" qdisc add dev veth root tbf rate "${rate}mbit" burst 128kb latency 100ms \
            2>"$W/tbf" && continue
        [ "$host" = "$HOST2" ] ||
            echo "netns: nor tbf ($(tr '\n' ' ' <"$W/tbf")): --rate $rate is left out" >&2
    done
}

# What host 1 has sent and received over the pair, in bytes.
sent()     { ip netns exec "$HOST1" cat /sys/class/net/veth/statistics/tx_bytes; }
received() { ip netns exec "$HOST1" cat /sys/class/net/veth/statistics/rx_bytes; }

# across ARGS...: the trainer with these options, one rank on each host; the status is mpirun's, or
# 124 after $LIMIT seconds. mpirun runs on host 1 and reaches host 2 with the agent where it would
# use ssh. Each side has a host name of its own, because OpenMPI takes two daemons of one name for
# one host. Each side also believes that it has the machine for itself and would bind its rank to
# core 0, hence --bind-to none. PATH and OMP_NUM_THREADS reach host 2 through the agent.
across() {
    cat >"$W/agent" <<AGENT
#!/bin/sh
[ "\$1" = 10.77.0.2 ] || { echo "netns: no host \$1" >&2; exit 1; }
shift
exec ip netns exec $HOST2 unshare --uts sh -c 'hostname netns-2 && eval "exec \$1"' sh "\$*"
AGENT
    chmod +x "$W/agent"
    ${LIMIT:+timeout -k 5 "$LIMIT"} ip netns exec "$HOST1" unshare --uts \
        sh -c 'hostname netns-1 && exec "$@"' sh \
        mpirun --mca plm rsh --mca plm_rsh_agent "$W/agent" --mca orte_tmpdir_base "$W" \
        --mca oob_tcp_if_include 10.77.0.0/30 --mca btl_tcp_if_include 10.77.0.0/30 \
        --mca btl tcp,self --mca pml ob1 --host 10.77.0.1:1,10.77.0.2:1 --map-by node \
        --bind-to none --oversubscribe -n 2 "$TRAIN" "$@" &
    CHILD=$! # waited for, not in the foreground: then a signal is heard at once
    wait "$CHILD"; local rc=$?
    CHILD=
    return $rc
}

# Random tokens of a vocabulary of 27: enough to train on, nothing to learn.
tokens_make() {
    python3 - "$1" <<'PY'
import random, struct, sys
random.seed(1)
tokens = [random.randrange(27) for _ in range(4000)]
with open(sys.argv[1], "wb") as f:
    f.write(struct.pack("<256i", 20240520, 1, len(tokens), 27, *[0] * 252))
    f.write(struct.pack("<%dH" % len(tokens), *tokens))
PY
}

# ----------------------------------------------------------------------------
# tests

. "$(dirname "$0")/../test/verdicts.sh"
verdict() {
    echo "netns: $passed passed, $failed failed, $skipped skipped"; [ "$failed" = 0 ]; exit
}

# The lines `s:` of a log without what depends on the clock; the sum of their
# all-reduces; a file's start on one line.
steps()   { sed -nE '/^s:/ { s/ (ms|tok|comm):[^ ]+//g; p }' "$1"; }
reduces() {
    local n sum=0
    for n in $(sed -nE 's/^s:.* ar:([0-9]+).*/\1/p' "$1"); do sum=$((sum + n)); done
    echo $sum
}
start()   { head -c 800 "$1" | tr '\n' ' '; }

UPDATES=5
[ -z "$testing" ] || LIMIT=120 # a run that hangs is a failed test
TINY=(-i "$W/train.bin" -j "$W/train.bin" -t 16 -b 2 -x "$UPDATES" -v 0 -tp 2)

# test_pattern PATTERN SHAPE: across two hosts as in one process. Leaves $tx, $rx, $ar: bytes sent
# and received, all-reduces. Fails if the ranks do not meet (each would then train alone), or if the
# sum over them differs from the folded one.
test_pattern() {
    local name=$1_$2 args=("${TINY[@]}" -p "$1" -e "$2") out="$W/across_$1" folded="$W/folded_$1" rc
    if ! "$TRAIN" "${args[@]}" -o "$folded" >"$W/stdout" 2>"$W/stderr"; then
        bad "folded_$name" "$(start "$W/stderr")"; return
    fi
    tx=$(sent) rx=$(received)
    across "${args[@]}" -o "$out" >"$W/stdout" 2>"$W/stderr"; rc=$?
    tx=$(($(sent) - tx)) rx=$(($(received) - rx))
    if [ $rc = 0 ]; then
        ok "run_$name"
    else
        bad "run_$name" "status $rc: $(start "$W/stderr") $(start "$W/stdout")"; return
    fi
    ar=$(reduces "$out/main.log")
    if [ "$(grep -c '^s:[0-9]* trl:' "$out/main.log")" = $UPDATES ] &&
        [ "$(steps "$out/main.log")" = "$(steps "$folded/main.log")" ]; then
        ok "same_as_folded_$name"
    else
        bad "same_as_folded_$name" "$(diff <(steps "$out/main.log") <(steps "$folded/main.log") |
            head -n 4 | tr '\n' ' ')"
    fi
}

# The daemons talk over the pair too. A second run of the same shape with more all-reduces
# has the same talk, so what it moves beyond the first must be at least the payload of those:
# B T C floats each, out and back.
# Fails if the ranks talk past the pair (shared memory), or if p blocks did not
# save what the log says they save.
test_traffic() {
    local tx1=$1 rx1=$2 ar1=$3 tx2=$4 rx2=$5 ar2=$6 why
    local payload=$(((ar2 - ar1) * 2 * 16 * 16 * 4))
    if [ "$payload" -gt 0 ] && [ $((tx2 - tx1)) -ge $payload ] &&
        [ $((rx2 - rx1)) -ge $payload ]; then
        ok traffic
    else
        why="$ar1 all-reduces sent $tx1 and received $rx1 bytes, $ar2 sent $tx2 and received"
        bad traffic "$why $rx2: expected $payload more"
    fi
}

# Reads what the last run said. Fails if host 2's rank is not really on another host.
test_hosts() {
    local seen
    seen=$(grep -oE 'netns-[12]' "$W/stdout" | sort -u | tr '\n' ' ')
    if [ "$seen" = "netns-1 netns-2 " ]; then
        ok two_hosts
    else
        bad two_hosts "the mesh printed at the start names '$seen'"
    fi
}

# The link is cut in the middle of a run and comes back. Fails if rank 0 does not say whom it waits
# for, or if a sum is lost.
test_cut() {
    local args=("${TINY[@]}" -x 60 -nl 5000 -p t -e 2x2x16) i run
    "$TRAIN" "${args[@]}" -nl 0 -o "$W/uncut" >"$W/stdout" 2>"$W/stderr" ||
        { bad cut "$(start "$W/stderr")"; return; }
    across "${args[@]}" -wd 2 -o "$W/cut" >"$W/stdout" 2>"$W/stderr" & run=$!
    for i in {1..300}; do
        ! grep -qs '^s:5 ' "$W/cut/main.log" || break
        sleep 0.1
    done
    ip -n "$HOST2" link set veth down
    for i in {1..300}; do
        ! grep -qs '^waiting: ' "$W/stderr" || break
        sleep 0.1
    done
    ip -n "$HOST2" link set veth up
    wait "$run"
    if grep -qE '^waiting: update [0-9]+: for 2 s in .*for rank 1 on host netns-2$' "$W/stderr"
    then ok cut_is_said
    else bad cut_is_said "$(start "$W/stderr")"
    fi
    if [ "$(steps "$W/cut/main.log")" = "$(steps "$W/uncut/main.log")" ]; then ok cut_goes_on
    else bad cut_goes_on "$(tail -n 1 "$W/cut/main.log") $(start "$W/stderr")"
    fi
}

# Ended in the middle of a run, by a signal that only the script gets, nothing may be left.
# Fails if the trap is lost or waits for the run's end.
test_removed() {
    local pid i left
    TRAIN=$TRAIN "$0" -- "${TINY[@]}" -x 99999999 -e 2x2x16 -p t -o "$W/endless" >"$W/stdout" \
        2>"$W/stderr" & pid=$! CHILD=$!
    for i in {1..300}; do
        grep -qs '^s:' "$W/endless/main.log" && break
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    if ! grep -qs '^s:' "$W/endless/main.log"; then
        bad removed_when_ended "no update in 30 s: $(start "$W/stderr")"; finish_child; return
    fi
    finish_child
    for i in {1..20}; do # what is killed needs a moment to be gone
        left=$(ip netns list | grep "^gpt2-$pid-";
                grep -lsF -f - /proc/[0-9]*/cmdline <<<"$W/endless")
        [ -n "$left" ] || break
        sleep 0.1
    done
    if [ -z "$left" ]; then
        ok removed_when_ended
    else
        bad removed_when_ended "left: $(tr '\n' ' ' <<<"$left")"
    fi
}

# ----------------------------------------------------------------------------
# main

if ! [ -f "$TRAIN" ] || ! [ -x "$TRAIN" ]; then
    [ -z "$testing" ] || {
        echo "FAILED setup: no program $TRAIN; make train_gpt2, or set TRAIN"; exit 1
    }
    die "no program $TRAIN; make train_gpt2, or set TRAIN"
fi
TRAIN=$(cd "$(dirname "$TRAIN")" && pwd)/$(basename "$TRAIN")

why=$(lacking)
[ -n "$why" ] || said=$(hosts_make) ||
    why="no permission to make two namespaces and a veth pair here: $(tr '\n' ' ' <<<"$said")"
if [ -n "$why" ]; then
    [ -n "$testing" ] || die "$why"
    skip netns "$why"; verdict
fi
network_slow
tokens_make "$W/train.bin" || die "could not write $W/train.bin"

if [ -z "$testing" ]; then
    [ $# -gt 0 ] || [ -n "$bench" ] ||
        set -- -i "$W/train.bin" -j "$W/train.bin" -e 4x4x64 -p sppp -x 10 -v 0
    across "$@"; rc=$?
    echo "netns: $(sent) bytes sent and $(received) received over the veth pair by host 1, the" \
        "daemons' talk included" >&2
    exit $rc
fi

tx=0 rx=0 ar=0
test_pattern sp 2x2x16
test_hosts
test_pattern sppp 4x2x16; tx1=$tx rx1=$rx ar1=$ar
test_pattern t 4x2x16
test_traffic "$tx1" "$rx1" "$ar1" "$tx" "$rx" "$ar"
test_cut
test_removed
hosts_remove
if ip netns list | grep -q "^gpt2-$$-"; then
    bad removed "$(ip netns list | tr '\n' ' ')"
else
    ok removed
fi
verdict
