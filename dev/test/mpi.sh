#!/usr/bin/env bash
# End-to-end tests of real runs of several processes, `mpirun -n N ./train_gpt2`: the mesh, the same
# numbers as one process, checkpoints that cross meshes, memory, emulated networks, and what happens
# when a rank dies or is given something else. Needs bash, python3 and OpenMPI; writes only below a
# temporary folder; takes a minute or two on 2 cores.
#
#     dev/test/mpi.sh                 # TRAIN=./other_binary; SOAK=1 for the long soak
#
# Prints `ok <name>`, `FAILED <name>: <why>` or `skip <name>: <reason>` for each test, then
# `test_mpi: N passed, N failed, N skipped`, and exits with 1 if any failed.
set -u
TRAIN=${TRAIN:-./train_gpt2}
[ -f "$TRAIN" ] && [ -x "$TRAIN" ] || {
    echo "FAILED setup: no program $TRAIN; make train_gpt2, or set TRAIN"; exit 1
}
TRAIN=$(cd "$(dirname "$TRAIN")" && pwd)/$(basename "$TRAIN")
. "$(dirname "$0")/verdicts.sh"
if ! openmpi_is_here || ! ldd "$TRAIN" 2>/dev/null | grep -q 'libmpi[._]'; then
    echo "skip mpi: install libopenmpi-dev openmpi-bin and make again"
    echo "test_mpi: 0 passed, 0 failed, 1 skipped"
    exit 0
fi
export LC_ALL=C OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive TRAIN
# As root, with more ranks than cores, and in containers that forbid one process to read another's
# memory.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_mpi_yield_when_idle=1
export OMPI_MCA_btl_vader_single_copy_mechanism=none
W=$(mktemp -d) || exit 1
export OMPI_MCA_btl_vader_backing_directory=$W # killed processes leave their shared memory behind
trap 'end_all; rm -rf "$W"' EXIT
trap 'exit 1' INT TERM HUP
mkdir "$W/runs"
cp "$TRAIN" "$W/train" && TRAIN=$W/train # a path of its own, by which its processes are found

# ----------------------------------------------------------------------------
# runs, all in $W/runs

# Every run starts from these; an option given again later wins.
SMALL=(-i train.bin -j val.bin -e 4x4x32 -t 16 -b 4 -x 6 -l 3e-3 -v 3 -m 3)
MPIRUN=(timeout -k 5 90 mpirun --oversubscribe --bind-to none)

# fold ARGS...: one process. mpi N ARGS...: N processes. Both leave $rc, $W/stdout,
# $W/stderr; a failure is a failed test.
worked() { [ "$rc" = 0 ] || bad "$*" "exit status $rc: $(head -c 600 "$W/stderr" | tr '\n' ' ')"; }
fold() {
    (cd "$W/runs" && exec "$TRAIN" "${SMALL[@]}" "$@") </dev/null >"$W/stdout" 2>"$W/stderr"; rc=$?
    worked "train_gpt2 $*"
}
mpi_try() {
    (cd "$W/runs" && exec "${MPIRUN[@]}" -n "$1" "$TRAIN" "${SMALL[@]}" "${@:2}") </dev/null \
        >"$W/stdout" 2>"$W/stderr"
    rc=$?
}
mpi() { mpi_try "$@"; worked "mpirun -n $1 train_gpt2 ${*:2}"; }

# background N ARGS...: the same without waiting for the end; $launched is its process.
# ended: waits for it; leaves $rc.
background() {
    (cd "$W/runs" && exec "${MPIRUN[@]}" -n "$1" "$TRAIN" "${SMALL[@]}" "${@:2}") </dev/null \
        >"$W/stdout" 2>"$W/stderr" &
    launched=$!
}
ended() { wait "$launched" 2>/dev/null; rc=$?; }

# Processes of the trainer, whatever their rank; the one of rank $1; an end to all.
trainers() { pgrep -f "^$TRAIN "; }
trainer() {
    local pid
    for pid in $(trainers); do
        tr '\0' '\n' <"/proc/$pid/environ" 2>/dev/null | grep -qx "OMPI_COMM_WORLD_RANK=$1" &&
            echo "$pid" && return
    done
    return 1
}
end_all() { local pids; pids=$(trainers) && kill -9 $pids 2>/dev/null; true; }

reached() { grep -qE "^s:($2) trl" "$W/runs/$1/main.log" 2>/dev/null; } # folder, update
writing() { compgen -G "$W/runs/$1/*.part" >/dev/null; }                # a checkpoint, right now

steps() {
    sed -nE '/^s:/ { s/ ms:[0-9.]+ tok:[0-9]+//; s/ comm:[0-9.]+//; p }' "$W/runs/$1/main.log"
}
drawn() { steps "$1" | sed -n 's/.* pe://p' | tr '\n' ' '; }
# Complete checkpoints.
kept() { (cd "$W/runs/$1" && for f in DONE_????????; do echo "${f#DONE_}"; done | tr '\n' ' '); }
newest() {
    (cd "$W/runs/$1" 2>/dev/null && ls DONE_???????? 2>/dev/null | tail -n 1 | sed 's/DONE_0*//')
}

# identical A B: folders of two runs hold the same losses, norms and checkpoints, bit for bit.
identical() {
    local file
    [ -n "$(steps "$1")" ] && diff <(steps "$1") <(steps "$2") || return 1
    for file in model state DONE; do
        cmp "$W/runs/$1/$(cd "$W/runs/$1" && ls ${file}_* | tail -n 1)" \
            "$W/runs/$2/$(cd "$W/runs/$2" && ls ${file}_* | tail -n 1)" || return 1
    done
}

# near A B FIRST LAST: losses of updates FIRST to LAST, and validation losses there, agree within
# 1e-5.
near() {
    compute "$W/runs/$1/main.log" "$W/runs/$2/main.log" "$3" "$4" <<'PY'
import re, sys
first, last = int(sys.argv[3]), int(sys.argv[4])
def losses(path):
    found = re.findall(r"^s:(\d+) (trl|tel\S*):(\S+)", open(path).read(), re.M)
    return {(int(s), kind): float(loss) for s, kind, loss in found if first <= int(s) <= last}
a, b = losses(sys.argv[1]), losses(sys.argv[2])
if sorted(a) != sorted(b): sys.exit("lines differ: %s and %s" % (sorted(a), sorted(b)))
if sum(kind == "trl" for s, kind in a) != last - max(first, 1) + 1:
    sys.exit("only %d lines" % len(a))
worst = max(a, key=lambda k: abs(a[k] - b[k]))
if not abs(a[worst] - b[worst]) <= 1e-5:
    sys.exit("update %d %s: %f and %f" % (*worst, a[worst], b[worst]))
PY
}

# ----------------------------------------------------------------------------
# files: tokens of 65 symbols, and copies that differ in one of them

cat >"$W/tool.py" <<'PY'
import os, random, struct, sys
C, L, T, V, Vp = 32, 4, 16, 65, 128
def write(path, data):
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    open(path, "wb").write(data)
def tokens(seed, n):
    random.seed(seed)
    ids = [random.randrange(V)]
    while len(ids) < n: ids.append((ids[-1] * 7 + random.randrange(9)) % V)
    return struct.pack("<256i", 20240520, 1, n, V, *[0] * 252) + struct.pack("<%dH" % n, *ids)
def poke(source, out, tensor, element, value): # a model, or state, with one number changed
    global C, L, T, V, Vp
    data, at = bytearray(open(source, "rb").read()), element
    magic, _, *shape = struct.unpack("<8i", data[:32])
    if magic == 20240326: T, V, L, _, C, Vp = shape
    sizes = [("wte", Vp * C), ("wpe", T * C), ("ln1w", L * C), ("ln1b", L * C),
             ("qkvw", L * 3 * C * C), ("qkvb", L * 3 * C), ("attprojw", L * C * C),
             ("attprojb", L * C), ("ln2w", L * C), ("ln2b", L * C), ("fcw", L * 4 * C * C)]
    for name, size in sizes:
        if name == tensor: break
        at += size
    struct.pack_into("<f", data, 1024 + 4 * at, float(value))
    write(out, bytes(data))
if sys.argv[1] == "poke": poke(sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5]), sys.argv[6])
else:
    write("train.bin", tokens(1, 4000)), write("val.bin", tokens(2, 500))
    write("letters.bin", struct.pack("<256i", 20240328, 2, V, 0, *[0] * 252) +
          b"".join(bytes([1, 48 + i]) for i in range(V)))
    # For ranks with folders of their own.
    write("rank0/text.bin", tokens(3, 4000)), write("rank1/text.bin", tokens(4, 4000))
    for folder in "rank0", "rank1":
        write(folder + "/train.bin", tokens(1, 4000)), write(folder + "/val.bin", tokens(2, 500))
PY
(cd "$W/runs" && python3 "$W/tool.py" tokens) || { echo "FAILED setup: python3"; exit 1; }

# ----------------------------------------------------------------------------

echo "# the mesh: broken by folding where ranks could be processes, or by DP counted over ranks"
mesh() { # name, what the log says, processes, args
    mpi "$3" "${@:4}" -x 1 -v 0 -o "mesh_${1// /_}"
    same "$1" \
        "$(sed -nE 's/^# (mesh .*|process .*)/\1/p' "$W/runs/mesh_${1// /_}/main.log" |
            sed -E 's/ host [^ ]+//; s/, [0-9]+ threads? each//' | tr '\n' '|')" "$2"
}
# ranks MESH "DP FIRST LAST"...: what the log says of a mesh and its processes, each followed by |.
ranks() {
    local process=0 row
    printf 'mesh %s|' "$1"
    for row in "${@:2}"; do
        # shellcheck disable=SC2086 # a row is three words
        printf 'process %d dp_rank %d tp_ranks %d to %d|' $process $row
        process=$((process + 1))
    done
}
each="of which each process runs"
mesh "2 processes are TP 2" \
    "$(ranks "2 processes = DP 1 x TP 2, $each 1 tensor rank" "0 0 0" "0 1 1")" 2 -tp 2
mesh "4 processes are DP 2 x TP 2" \
    "$(ranks "4 processes = DP 2 x TP 2, $each 1 tensor rank" \
        "0 0 0" "0 1 1" "1 0 0" "1 1 1")" 4 -tp 2
mesh "5 processes are DP 5 with TP 2 folded" \
    "$(ranks "5 processes = DP 5 x TP 2, $each 2 tensor ranks" \
        "0 0 1" "1 0 1" "2 0 1" "3 0 1" "4 0 1")" 5 -tp 2
mesh "TP 4 on 2 processes, 2 in each" \
    "$(ranks "2 processes = DP 1 x TP 4, $each 2 tensor ranks" "0 0 1" "0 2 3")" 2 -tp 4 -fold 2
mpi_try 3 -tp 2 -fold 1 -x 1 -v 0 -o never
needs="-tp 2 -fold 1 needs a multiple of 2 processes, but there are 3; try mpirun -n 2"
found=$(grep -oE -m1 "error: rank [0-9]: $needs" "$W/stderr" | sed 's/rank [0-9]/rank N/')
same "a mesh that cannot work is an error that says what would" \
    "$((rc != 0)) $found $(ls -d "$W/runs/never" 2>/dev/null)" "1 error: rank N: $needs "

echo "# two processes give the bytes of one: broken by another order of a sum, or a term added" \
    "by both ranks"
fold -rs 7 -x 2 -o teacher
k=0
while read -r args; do
    k=$((k + 1))
    fold $args -o folded$k
    mpi 2 $args -o real$k
    holds "bitwise: $args" identical folded$k real$k
done <<'ARGS'
-p t
-p s -d 128 -gc 0.1
-p sppp -pm sum -b 2
-p sppp -d 128 -gc 0.1
-p p -pm mean -d 128
-p sppp -pm mean
-p sppp -pm streams -gc 0.1
-p pp. -pm mean -wi linear -c 0.1
-p p -d 192 -gc 0
-p p -pm streams
-p l
-p sl -d 128 -gc 0.1
-p d -d 128 -gc 0.1
-p sdl -e 6x4x16 -vp 1
-p lp -pm mean -vp 1
-p sppp -vp 1
-p t -vp 1 -pm sum
-p sppp -kd teacher/model_00000002.bin -kw 3 -d 128
-p dl -kd teacher/model_00000002.bin -kw 30
-p t -pe t,sppp,p,l -x 20 -d 128 -n 10
ARGS
mpi 4 -p sppp -b 2 -o real_dp2
mpi 2 -p sppp -b 2 -fold 2 -o folded_dp2
holds "bitwise: two replicas, folded and real" identical folded_dp2 real_dp2

echo "# more ranks, and replicas: broken by a row read twice, a gradient scaled by DP, or a loss" \
    "of one replica alone"
R4=(-x 20 -v 10 -tp 4 -p sppp -gc 0.5)
fold "${R4[@]}" -o r4
mpi 4 "${R4[@]}" -o r4_real;              holds "R 4: four processes as one" near r4 r4_real 0 20
mpi 2 "${R4[@]}" -fold 2 -o r4_half; holds "R 4: two in each of two processes" near r4 r4_half 0 20
fold -x 20 -v 10 -p l -o l2
mpi 4 -x 20 -v 10 -p l -tp 4 -o l4_real
holds "l: four processes as two ranks in one" near l2 l4_real 0 20
DP=(-x 20 -v 10 -m -1 -p sppp -d 64 -gc 0.5)
fold "${DP[@]}" -b 4 -o dp1
mpi 2 "${DP[@]}" -b 2 -fold 2 -o dp2;     holds "DP 2 as DP 1" near dp1 dp2 0 20
mpi 4 "${DP[@]}" -b 1 -fold 2 -o dp4;     holds "DP 4 as DP 1" near dp1 dp4 0 20
mpi 4 "${DP[@]}" -b 1 -o dp2_tp2
holds "DP 2 x TP 2 with accumulation as DP 1" near dp1 dp2_tp2 0 20
PE=(-x 20 -v 10 -m -1 -d 64 -pe t,sppp,p)
fold "${PE[@]}" -b 4 -o pe1
mpi 4 "${PE[@]}" -b 2 -o pe2_tp2
holds "-pe: DP 2 x TP 2 as DP 1, under each pattern" near pe1 pe2_tp2 0 20
same "and with its draws" "$(drawn pe2_tp2)" "$(drawn pe1)"
fold -x 6 -d 80 -b 5 -p s -o five1
mpi 5 -x 6 -d 80 -b 1 -p s -m 15 -o five; holds "DP 5 as DP 1" near five1 five 0 6
same "these losses are those of 20 updates" \
    "$(steps dp1 | sed -nE 's/.* trl:([^ ]+).*/\1/p' | sort -u | wc -l)" 20

echo "# a checkpoint of one mesh on another: broken by a shard at the wrong place, or moments" \
    "that are not gathered"
GO=(-x 20 -v 5 -m -1 -d 64 -p sppp -n 10)
mpi 4 "${GO[@]}" -b 2 -o whole
stopped() {
    mkdir "$W/runs/$1" && cp "$W/runs/whole/"*_00000010* "$W/runs/whole/main.log" "$W/runs/$1/"
}
goes_on() { went_on "$W/runs/$3/main.log" 10 20 "$@"; }
stopped same
mpi 4 "${GO[@]}" -b 2 -y 1 -o same
holds "the same mesh goes on bit for bit" goes_on identical whole same
stopped one
fold "${GO[@]}" -b 4 -y 1 -o one
holds "DP 2 x TP 2 goes on in one process" goes_on near whole one 11 20
stopped two
mpi 2 "${GO[@]}" -b 4 -y 1 -o two
holds "DP 2 x TP 2 goes on as TP 2" goes_on near whole two 11 20
stopped dp
mpi 2 "${GO[@]}" -b 1 -fold 2 -y 1 -o dp
holds "DP 2 x TP 2 goes on as DP 2 folded, with accumulation" goes_on near whole dp 11 20
holds "one process and two go on alike bit for bit" identical one two
cp -r "$W/runs/one" "$W/runs/back" && rm "$W/runs/back/"*_00000020*
mpi 4 "${GO[@]}" -b 2 -y 1 -o back
holds "the way back to four processes" goes_on near whole back 11 20

echo "# memory: broken by a process that holds more than its shards"
memory() { # folder, processes of a TP group, whether the vocabulary is cut
    compute "$W/runs/$1/main.log" "$2" "$3" <<'PY'
import re, sys
n, cut, L, C, Vp, T = int(sys.argv[2]), int(sys.argv[3]), 4, 256, 128, 16
sharded = L * (3 * C * C + 3 * C + C * C + 4 * C * C + 4 * C + 4 * C * C) + cut * Vp * C
replicated = (1 - cut) * Vp * C + T * C + L * 6 * C + 2 * C
expected = (sharded / n + replicated) * 4 / 2 ** 20
lines = re.findall(r"^# .*memory_MiB.*? parameters (\S+).*? gradients (\S+).*? moments (\S+)",
                   open(sys.argv[1]).read(), re.M)
if not lines: sys.exit("no line memory_MiB")
for line in lines:
    for kind, value, want in zip(("parameters", "gradients", "moments"), line,
                                 (expected, expected, 2 * expected)):
        if abs(float(value) - want) > 0.1:
            sys.exit("%s %s MiB, expected %.1f" % (kind, value, want))
PY
}
fold -e 4x4x256 -tp 1 -x 1 -v 0 -o mem1
mpi 2 -e 4x4x256 -x 1 -v 0 -o mem2
mpi 4 -e 4x4x256 -tp 4 -x 1 -v 0 -vp 0 -o mem4
for row in "1 0" "2 1" "4 0"; do
    read -r n cut <<<"$row"
    holds "1/$n of the sharded tensors, -vp $cut, and the others whole" memory mem$n $n $cut
done

echo "# emulated networks: broken by a wait that is left out where ranks are folded, or a wrong" \
    "number of hops"
network() { # folder, R, latency, Gbit/s: comm of every update is at least the formula's
    compute "$W/runs/$1/main.log" "${@:2}" <<'PY'
import re, sys
R, a, g = int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
us = 2 * (R - 1) * a + (2 * (R - 1) / R * 8 * 4 * 16 * 32 * 4 / (g * 1e3) if g else 0)
found = re.findall(r"^s:(\d+) trl.* ar:(\d+).* comm:(\S+)", open(sys.argv[1]).read(), re.M)
if len(found) != 2: sys.exit("%d updates, expected 2" % len(found))
for s, ar, comm in found:
    expected = int(ar) * us * 1e-3
    if not float(comm) >= expected - 0.06:
        sys.exit("update %s: comm %s ms, expected %.1f" % (s, comm, expected))
    if not int(ar): sys.exit("no all-reduces")
PY
}
fold -x 2 -v 0 -p sppp -o net
for net in "1000 0" "0 0.01" "500 0.05"; do
    set -- $net
    fold -x 2 -v 0 -p sppp -nl $1 -nb $2 -o "net_folded_$1_$2"
    mpi 2 -x 2 -v 0 -p sppp -nl $1 -nb $2 -o "net_real_$1_$2"
    holds "-nl $1 -nb $2: folded" network "net_folded_$1_$2" 2 $1 $2
    holds "-nl $1 -nb $2: two processes" network "net_real_$1_$2" 2 $1 $2
    same "-nl $1 -nb $2 changes no number" \
        "$(steps "net_folded_$1_$2" | md5sum; steps "net_real_$1_$2" | md5sum)" \
        "$(steps net | md5sum; steps net | md5sum)"
done
# Ladder: an all-reduce is waited for only beyond the sub-block it is hidden
# behind. A slower machine hides more.
hides() { # folder of t, of l
    compute "$W/runs/$1/main.log" "$W/runs/$2/main.log" <<'PY'
import re, sys
t, l = (re.findall(r"^s:\d+ trl.* ar:(\d+).* comm:(\S+)", open(path).read(), re.M)[1:]
        for path in sys.argv[1:])
if len(t) != 5 or [ar for ar, comm in t] != [ar for ar, comm in l]:
    sys.exit("all-reduces: %s and %s" % (t, l))
# The least, as other work on the machine has ranks wait for each other.
waited_t, waited_l = (min(float(comm) for ar, comm in x) for x in (t, l))
if not waited_l < 0.7 * waited_t:
    sys.exit("comm %.1f ms with l, %.1f with t" % (waited_l, waited_t))
PY
}
# A machine with other work may take as long at either: once in five tries is enough.
hides_once() { # NAME COMMAND...: what runs it
    local p attempt
    for attempt in 1 2 3 4 5; do
        for p in t l; do
            rm -rf "$W/runs/hide_$p"
            "${@:2}" -v 0 -e 4x4x128 -b 16 -p $p -nl 300 -o hide_$p
        done
        hides hide_t hide_l >/dev/null && break
    done
    holds "l hides most of its all-reduces: $1" hides hide_t hide_l
}
hides_once folded fold
hides_once "two processes" mpi 2
mpi 2 -x 2 -v 0 -tp 4 -fold 2 -p t -nl 300 -nb 0.1 -o net4
holds "-tp 4 -fold 2 -nl 300 -nb 0.1" network net4 4 300 0.1

# ----------------------------------------------------------------------------

echo "# a run that goes on with other replicas: broken when nobody says so, or one rank ends alone"
mpi 4 -v 0 -p s -x 4 -n 2 -o replicas
(cd "$W/runs/replicas" && rm *_00000004*)
mpi 2 -v 0 -p s -x 4 -y 1 -b 8 -o replicas
same "DP 1 that was 2" "$(sed -n 's/^# not bit for bit: //p' "$W/stdout" | tr '\n' ';')" \
    "-b 8 was 4;DP 1 was 2;"
mpi 3 -v 0 -p s -x 1 -n 1 -fold 2 -o three
mpi 6 -v 0 -p s -x 2 -y 1 -o three
same "three replicas of two processes that were of one" \
    "$(sed -n 's/^# not bit for bit: //p' "$W/stdout" | tr '\n' ';')" \
    "processes per replica 2 was 1;"
fold "${R4[@]}" -x 21 -y 1 -o r4
mpi 4 "${R4[@]}" -x 22 -y 1 -o r4
same "R 4 in four processes that was in one" \
    "$(sed -n 's/^# not bit for bit: //p' "$W/runs/r4/main.log" | grep processes)" \
    "processes per replica 4 was 1"
mpi 2 -v 0 -p s -x 3 -y 1 -b 8 -o replicas
same "nothing to do: all ranks end well, with one line" "$rc $(grep -c . "$W/stdout")" "0 1"
echo >>"$W/runs/replicas/state_00000004.bin"
mpi_try 2 -v 0 -p s -x 6 -y 1 -b 8 -o replicas
same "a damaged checkpoint ends all ranks, with an advice" \
    "$((rc != 0)) $(left) $(grep -oE '^error: rank [01]: .*; to go on from.*' \
        "$W/stderr" | sed 's/.*; //' | sort -u)" \
    "1 0 to go on from checkpoint 2: mv replicas/DONE_00000004 replicas/BROKEN_00000004 and $(
    )then -y 1 again"
(cd "$W/runs" && "${MPIRUN[@]}" -n 2 "$TRAIN" --verify replicas) >"$W/stdout" 2>"$W/stderr"; rc=$?
same "--verify in two processes: one list" \
    "$((rc != 0)) $(left) $(grep -c ^checkpoint "$W/stdout")" "1 0 2"

echo "# a rank killed: broken by ranks that wait for it for ever, or a checkpoint that is not one"
# What must hold after `kill` at time $1 (seconds) of a run in folder $2 with the name $3.
after_kill() {
    local n seconds
    ended
    seconds=$(($(date +%s) - $1))
    if [ "$rc" = 0 ] || [ "$seconds" -gt 60 ]; then
        bad "$3: mpirun ends with an error" "status $rc after $seconds s"
    else
        ok "$3: mpirun ends with an error"
    fi
    holds "$3: the output names a rank" grep -qE '[Rr]ank [0-9]' "$W/stdout" "$W/stderr"
    same "$3: no process is left" "$(left)" 0
    end_all
    n=$(newest "$2")
    [ -n "$n" ] || { bad "$3: a checkpoint is there" "none in $2"; return; }
    fold "${@:4}" -y 1 -o "$2" -x $((n + 2)) -n 0
    holds "$3: checkpoint $n goes on in one process" reached "$2" $((n + 2))
}
LONG=(-v 0 -x 1000000 -p sppp -nl 300 -n 5 -nk 2)
killed_in_update() { # ranks, rank, folder
    background "$1" "${LONG[@]}" -o "$3"
    until_true reached "$3" "1[0-9]|[2-9][0-9]" ||
        bad "rank $2 of $1 killed in an update: it starts" \
        "$(head -c 300 "$W/stderr" | tr '\n' ' ')"
    kill -9 $(trainer "$2") 2>/dev/null
    after_kill "$(date +%s)" "$3" "rank $2 of $1 killed in an update" -p sppp
}
killed_in_update 2 1 kill1
killed_in_update 2 0 kill0
killed_in_update 4 2 kill2

# The kill is sent while a file is being written. Up to 4 attempts for one that leaves it
# half done, since the file may have become whole in between; after these, what the last one
# left is looked at all the same.
killed_in_checkpoint() { # rank, folder
    local attempt pid limit now
    for attempt in 1 2 3 4; do
        end_all
        rm -rf "$W/runs/$2"
        background 2 -v 0 -e 4x4x128 -p sppp -b 1 -x 1000000 -n 1 -nk 2 -o "$2"
        until_true reached "$2" "[3-9]"
        pid=$(trainer "$1") limit=$((SECONDS + 20))
        until writing "$2" || [ "$SECONDS" -ge "$limit" ]; do :; done
        kill -9 $pid 2>/dev/null
        now=$(date +%s)
        wait "$launched" 2>/dev/null
        writing "$2" && break
    done
    after_kill "$now" "$2" "rank $1 killed in a checkpoint" -e 4x4x128 -b 1 -p sppp
}
killed_in_checkpoint 0 killc0
killed_in_checkpoint 1 killc1

# From the first line on: a rank killed inside MPI_Init leaves Open MPI 4.1's mpirun waiting for
# ever, whatever its program, about once in ten.
killed_at_start() { # rank, folder with a checkpoint
    rm -f "$W/stdout"
    background 2 "${LONG[@]}" -y 1 -o "$2"
    until_true test -s "$W/stdout"
    kill -9 $(trainer "$1") 2>/dev/null
    after_kill "$(date +%s)" "$2" "rank $1 killed at the start" -p sppp
}
killed_at_start 1 kill1
killed_at_start 0 kill0

echo "# a signal to stop: broken by a rank that makes one update more than the others, or by a" \
    "checkpoint that mpirun's haste leaves half done"
CALM=(-x 40 -v 7 -p sppp -nl 10000 -u 5)
mpi 2 "${CALM[@]}" -nl 0 -o calm2
mpi 4 "${CALM[@]}" -nl 0 -o calm4
# told RANKS SIGNAL WHOM STATUS LINE: a run stops when mpirun, or one rank, is told to; resumed, it
# ends in the bytes of one that was not.
told() {
    local name="SIG$2 to $3, $1 ranks" folder="told_$1_$2" whom
    background "$1" "${CALM[@]}" -o "$folder"
    until_true reached "$folder" "[5-9]|[123][0-9]"
    case $3 in
        mpirun) whom=$(pgrep -P "$launched" mpirun);;
        *) whom=$(trainer "${3#rank }");;
    esac
    kill -s "$2" "$whom"
    ended
    same "$name: status, and what the log says" \
        "$rc $(tail -n 1 "$W/runs/$folder/main.log" | sed -E 's/ update [0-9]+/ update N/')" \
        "$4 # stopped by $5 after update N of 40: its checkpoint is saved, -y 1 goes on from it"
    same "$name: no process, no unfinished file is left" \
        "$(left)$(cd "$W/runs/$folder" && find . -name '*.part')" 0
    mpi "$1" "${CALM[@]}" -nl 0 -o "$folder" -y 1
    holds "$name: resumed, the bytes and the log of a run never stopped" \
        went_on "$W/runs/$folder/main.log" '[1-9][0-9]*' 40 identical "calm$1" "$folder"
}
told 2 USR1 mpirun 138 SIGUSR1
# A rank has this long to end its update and save, after mpirun was told; its own limit is 1 s.
OMPI_MCA_odls_base_sigkill_timeout=3 told 2 TERM mpirun 1 SIGTERM
told 2 INT "rank 0" 130 SIGINT
told 4 HUP "rank 3" 129 SIGHUP

echo "# one run to a folder: broken when every rank locks it, or none"
background 2 "${LONG[@]}" -o held
until_true reached held "[5-9]"
mpi_try 2 "${LONG[@]}" -o held -y 1
holds "a second mpirun is refused" grep -qE \
    "^error: rank 0: -o held: in use by pid $(trainer 0) on .*: $TRAIN .*-o held; wait" "$W/stderr"
kill -USR1 "$(pgrep -P "$launched" mpirun)"
ended
mpi 2 "${LONG[@]}" -o held -y 1 -x $(($(newest held) + 1))
holds "when the first has ended the folder is free" reached held "$(newest held)"

# ----------------------------------------------------------------------------

echo "# ranks that differ: broken by a hash that is not compared, or by a rank that waits for" \
    "one that left"
# pair NAME WHAT "ARGS of rank 0" "ARGS of rank 1" [FOLDER of rank 0, of rank 1]: an error of a rank
# that begins with WHAT, within a minute, before anything is written.
pair() {
    local begun; begun=$(date +%s)
    rm -rf "$W/runs/never" "$W/runs"/*/never
    (cd "$W/runs" && exec "${MPIRUN[@]}" -n 1 -wdir "$W/runs/${5:-.}" "$TRAIN" "${SMALL[@]}" \
        -o never $3 : -n 1 -wdir "$W/runs/${6:-.}" "$TRAIN" "${SMALL[@]}" -o never $4) \
        </dev/null >"$W/stdout" 2>"$W/stderr"; rc=$?
    if [ "$rc" = 0 ]; then bad "$1" "exit status 0"
    elif [ $(($(date +%s) - begun)) -gt 60 ]; then bad "$1" "took more than a minute"
    elif ! grep -qE "^error: rank [01]: $2" "$W/stderr"; then
        bad "$1" "no error that begins with $2: $(grep -m2 error: "$W/stderr" | tr '\n' ' ')"
    elif [ -n "$(find "$W/runs" -name never)" ]; then bad "$1" "wrote the folder of -o"
    elif [ "$(left)" != 0 ]; then bad "$1" "a process is left"; end_all
    else ok "$1"; fi
}
pair "a rank without its text ends all" "absent.bin: no such token file" "" "-i absent.bin"
pair "so does rank 0"                     "absent.bin: no such token file" "-i absent.bin" ""
pair "a rank with a bad option ends all"  "-x 'many': expected an integer" "" "-x many"
pair "another -b"  "-b '2', but rank 0 has -b '4'"  "-b 4" "-b 2"
pair "another -p"  "-p 's', but rank 0 has -p 't'"  "-p t" "-p s"
pair "another -rs" "-rs '2', but rank 0 has -rs '1'" "-rs 1" "-rs 2"
pair "another -l"  "-l '0.0010001', but rank 0 has -l '0.001'" "-l 1e-3" "-l 1.0001e-3"
pair "another -tp" "-tp '1', but rank 0 has -tp '2'" "-tp 2" "-tp 1"
pair "another -pm" "-pm 'mean', but rank 0 has -pm 'sum'" "-p p" "-p p -pm mean"
pair "another -x"  "-x '7', but rank 0 has -x '6'" "-x 6" "-x 7"
pair "another -n"  "-n '2', but rank 0 has -n '3'" "-n 3" "-n 2"
pair "another name of -i" "-i 'rank0/text.bin', but rank 0 has -i 'train.bin'" "" \
    "-i rank0/text.bin"
pair "another text under the same name" "the text of -i differs from rank 0's" "-i text.bin" \
    "-i text.bin" rank0 rank1
if mpicc -std=gnu11 -fopenmp -O1 -ffp-contract=off -DUSE_MPI "$(dirname "$0")/../../train_gpt2.c" \
    -o "$W/other" -lm 2>"$W/stderr"; then
    (cd "$W/runs" && exec "${MPIRUN[@]}" -n 1 "$TRAIN" "${SMALL[@]}" : -n 1 "$W/other" \
        "${SMALL[@]}") </dev/null >"$W/stdout" 2>"$W/stderr"
    same "another build of the trainer: an error after the first update" "$? $(sed -nE \
        's/.*(rank 1: after update 1 .*CFLAGS.*differs).*/found/p' "$W/stderr")" "1 found"
else
    bad "another build of the trainer" "$(head -n 3 "$W/stderr")"
fi
fold -x 0 -v 0 -p s -o base
cp "$W/runs/base/model_00000000.bin" "$W/runs/rank0/model.bin"
poke() { python3 "$W/tool.py" poke "$@"; }
poke "$W/runs/rank0/model.bin" "$W/runs/rank1/model.bin" wpe 5 0.5
pair "another model under the same name" "the model of -e differs from rank 0's" "-e model.bin" \
    "-e model.bin" rank0 rank1
cp "$W/runs/rank0/model.bin" "$W/runs/rank1/model.bin"
cp "$W/runs/letters.bin" "$W/runs/rank0/letters.bin"
# 65 symbols, in another order
python3 - "$W/runs/letters.bin" "$W/runs/rank1/letters.bin" <<'PY'
import sys
data = bytearray(open(sys.argv[1], "rb").read())
at = [i for i in range(1024, len(data)) if data[i:i + 1] in (b"h", b"e")]
for i in at: data[i] = ord("h") + ord("e") - data[i]
assert len(at) == 2
open(sys.argv[2], "wb").write(data)
PY
pair "another tokenizer under the same name" "the prompt, as tokens by -tk's file, differs" \
    "-s 3 -e model.bin -tk letters.bin -gp hello" "-s 3 -e model.bin -tk letters.bin -gp hello" \
    rank0 rank1
poke "$W/runs/rank0/model.bin" "$W/runs/rank1/model.bin" fcw 7 0.5
pair "another model, which differs in a sharded tensor" "the model of -e differs from rank 0's" \
    "-e model.bin" "-e model.bin" rank0 rank1
mkdir "$W/runs/rank0/ck" "$W/runs/rank1/ck"
fold -x 4 -n 2 -v 0 -p s -o ck
cp "$W/runs/ck/"* "$W/runs/rank0/ck" &&
    cp "$W/runs/ck/"*_00000002* "$W/runs/ck/main.log" "$W/runs/rank1/ck"
pair "another checkpoint to resume from" "the checkpoint that -y resumes from differs" \
    "-o ck -y 1" "-o ck -y 1" rank0 rank1
rm "$W/runs/rank1/ck"/*
pair "a rank without the checkpoint" "the checkpoint that -y resumes from differs" "-o ck -y 1" \
    "-o ck -y 1" rank0 rank1
rm -r "$W/runs/rank1/ck" && cp -r "$W/runs/ck" "$W/runs/rank1/ck"
# Moments begin as a model does.
poke "$W/runs/ck/state_00000004.bin" "$W/runs/rank1/ck/state_00000004.bin" qkvw 7 0.5
pair "the same checkpoint with other moments" "ck/state_00000004.bin: damaged" "-o ck -y 1" \
    "-o ck -y 1" rank0 rank1
for rank in 0 1; do : >"$W/runs/rank$rank/ck/DONE_00000004"; done # as of an older version
pair "and where nothing says what its files were" "the checkpoint that -y resumes from differs" \
    "-o ck -y 1 -x 6 -p s" "-o ck -y 1 -x 6 -p s" rank0 rank1

echo "# generation over real ranks: broken by keys and values of another rank, or a token that" \
    "ranks draw apart"
# generate NAME N OPTION...: text and line g: of one process (N 1, "fold") or of N.
generate() {
    local n=$2 how=(-x 0 -wi linear -tk letters.bin -t 16 -g 50 -gp hello "${@:3}")
    if [ "$n" = 1 ]; then fold "${how[@]}"; else mpi "$n" "${how[@]}"; fi
    sampled "$W/stdout" >"$W/text_$1"
}
same_text() { # name, processes, options: what one process makes
    generate folded 1 "${@:3}"
    generate real "$2" "${@:3}"
    holds "$1" cmp "$W/text_folded" "$W/text_real"
}
for row in "t 8" "sppp 2" "p 1" "l 8"; do
    read -r pattern ar <<<"$row"
    same_text "-p $pattern: two ranks make the text of one process" 2 -p $pattern
    same "-p $pattern: so many all-reduces per token" "$(grep -o 'ar:.*' "$W/text_folded")" "ar:$ar"
done
same_text "four ranks, vocabulary cut over them" 4 -p sppp -tp 4 -vp 1 -gt 0
for options in "-p t -sd 4 -sp p" "-p t -sd 8 -sp l -gt 0" "-p sppp -sd 3 -sp s -vp 1"; do
    same_text "$options: two ranks make the text of one process, in as many rounds" 2 $options
done
same_text "drafts of four ranks" 4 -p t -tp 4 -sd 4 -gt 0
same_text "two replicas make the same, in bf16" 4 -p s -w bf16
# bf16 makes 64 of 64.24, and 64.5 of 64.26: another loss than that of matrices kept in fp32.
fold -e 2x4x4 -tp 4 -wi linear -x 100 -l 0.1 -v 0 -n 100 -o narrow
cp "$W/runs/narrow/model_00000100.bin" "$W/runs/narrow.bin"
for i in {0..31}; do
    value=$((i % 3 ? 64 : -64)).2$((4 + i / 4 % 2 * 2))
    poke "$W/runs/narrow.bin" "$W/runs/narrow.bin" attprojw "$i" "$value"
done
fold -e narrow.bin -tp 4 -x 0 -v 1; whole=$(sed -n 's/^s:0 tel://p' "$W/stdout")
fold -e narrow.bin -tp 4 -x 0 -v 1 -w bf16; folded=$(sed -n 's/^s:0 tel://p' "$W/stdout")
holds "bf16 changes the loss of these weights" \
    awk -v a="$whole" -v b="$folded" 'BEGIN { print a, b; exit !((a - b) ^ 2 > 1e-8) }'
mpi 4 -e narrow.bin -tp 4 -x 0 -v 1 -w bf16
same "matrices cut to one column are held in bf16 too" \
    "$(printf '%.5f' "$(sed -n 's/^s:0 tel://p' "$W/stdout")")" "$(printf '%.5f' "$folded")"
(cd "$W/runs" && "${MPIRUN[@]}" -n 2 "$TRAIN" --help) >"$W/stdout" 2>"$W/stderr"; rc=$?
same "--help in two processes: once, and status 0" "$rc $(grep -c ^usage "$W/stdout")" "0 1"
(cd "$W/runs" && printf hello | "${MPIRUN[@]}" -n 2 "$TRAIN" "${SMALL[@]}" -x 0 -wi linear \
    -tk letters.bin -t 16 -g 50 -p s -w bf16 -gp -) >"$W/stdout" 2>&1
holds "the prompt from standard input reaches all ranks" \
    cmp "$W/text_folded" <(sampled "$W/stdout")

echo "# a loss that is not a number: broken by max and isnan that lose it, or by ranks that go" \
    "on without the others"
mpi 2 -v 0 -p sppp -x 4 -n 2 -o nan
# Last block, rank 1's.
poke "$W/runs/nan/model_00000004.bin" "$W/runs/nan/model_00000004.bin" qkvw \
    $((3 * 3 * 32 * 32 + 3 * 32 * 32 - 1)) nan
mpi_try 2 -v 0 -p sppp -x 8 -n 2 -y 1 -o nan
same "NaN in a checkpoint ends all ranks with its file and the tensor" \
    "$((rc != 0)) $(grep -oE '^error: rank [01]: nan/model_00000004.bin: qkvw is nan' "$W/stderr" |
        cut -d: -f3- | sort -u) $(left)" "1  nan/model_00000004.bin: qkvw is nan 0"
rm "$W/runs/nan/"*_00000004*
# Finite weights; those of rank 1's logits are not.
poke "$W/runs/base/model_00000000.bin" "$W/runs/large.bin" wte 5 3e38
for row in "update 1:|-x 4 -v 0" "after update 0 the validation loss is not finite|-x 4 -v 1" \
    "after update 0 the logits of a sample are not finite|-x 0 -v 0 -s 1 -tk letters.bin"; do
    mpi_try 2 -p s -e large.bin -o never ${row#*|}
    same "all ranks end with: ${row%|*}" \
        "$((rc != 0)) $(grep -cE "^error: rank 0: ${row%|*}" "$W/stderr") $(left)" \
        "1 1 0"
    same "and leave no checkpoint" \
        "$(cd "$W/runs" && ls never 2>/dev/null | grep -vxE 'main.log|run.lock')" ""
    rm -rf "$W/runs/never"
done
same "the checkpoints of before stay" "$(kept nan)" "00000002 "
mpi 2 -v 0 -p sppp -x 4 -n 2 -y 1 -o nan
holds "the run goes on from the one before" reached nan 4

# ----------------------------------------------------------------------------

echo "# ranks that are stopped: broken by a wait that is not noted, or by one that is taken for a" \
    "rank's when the whole run was stopped"
WATCHED=(-v 0 -x 60 -n 60 -p sppp -nl 3000 -b 2)
waits() { grep -q '^waiting: ' "$W/stderr"; }
# stopped RANKS RANK FOLDER ARGS...: runs, and stops a rank after update 5; leaves its $pid.
stopped() {
    background "$1" "${WATCHED[@]}" -o "$3" "${@:4}"
    until_true reached "$3" "[5-9]" || bad "rank $2 of $1 stopped: it starts" "$(said)"
    pid=$(trainer "$2") && kill -STOP "$pid"
}
said() { head -c 600 "$W/stderr" | tr '\n' ' '; }
stopped_and_on() { # ranks, rank, folder, folder of a run that was never stopped
    local whom at text sums="all-reduce [1-4] of the (for|back)ward pass"
    sums+="|an all-reduce of (partial gradients|the cut vocabulary)"
    stopped "$1" "$2" "$3" -wd 2
    until_true waits
    whom="rank $2 (process $pid of this host)"
    at=$(steps "$3" | sed -nE '$ s/s:([0-9]+) .*/\1/p')
    text=$(sed -nE "s/($sums|a collective of the (tensor ranks|replicas));/SUM;/; /^waiting: /p" \
        "$W/stderr")
    kill -CONT "$pid"
    ended
    same "rank $2 of $1 stopped: rank 0 says which update and whom it waits for" "$text" \
        "waiting: update $((at + 1)): for 2 s in SUM; $whom is stopped"
    holds "rank $2 of $1 goes on: the bytes of a run never stopped" identical "$4" "$3"
}
fold "${WATCHED[@]}" -nl 0 -o quiet_watch
mpi 4 "${WATCHED[@]}" -nl 0 -o quiet_watch4
stopped_and_on 2 1 stop2 quiet_watch
stopped_and_on 4 3 stop4 quiet_watch4

stopped 2 1 stop_end -wd 0 -wk 2
ended
same "-wk ends the run, the stopped rank too" \
    "$rc $(grep -cE "^error: rank 0: update .*rank 1 .*is stopped \(-wk 2\)$" "$W/stderr") $(
        left)" "1 1 0"
end_all

stopped 2 1 stop_all -wd 2 -wk 3
all=$(trainers) && kill -STOP $all && sleep 4 && kill -CONT $all
ended
same "a run stopped as a whole waits for nobody" "$rc $(grep -c '^waiting: ' "$W/stderr")" "0 0"

# ----------------------------------------------------------------------------

if [ -n "${SOAK:-}" ]; then updates=2000 kills=10 every=20; else updates=40 kills=3 every=1; fi
echo "# soak: $updates updates killed and resumed $kills times: broken by state that is not in" \
    "the checkpoint"
RANDOM=${SEED:-$$}
LASTING=(-x $updates -n $every -nk 3 -v 10 -p sppp -nl 1500 -u 5 -gc 0.5)
mpi 2 "${LASTING[@]}" -o quiet
points=
for ((k = 0; k < kills; k++)); do
    at=$((k * (updates / kills) + 2 + RANDOM % (updates / kills - 8)))
    rank=$((RANDOM % 2))
    points="$points $at (rank $rank)"
    rm -f "$W/stdout"
    background 2 "${LASTING[@]}" -y 1 -o noisy
    until_true grep -qsE '^s:[0-9]+ trl' "$W/stdout" # the log may be beyond $at already
    limit=$((SECONDS + 60))
    until reached noisy $at || [ "$SECONDS" -ge "$limit" ]; do sleep 0.003; done
    kill -9 $(trainer $rank) 2>/dev/null
    ended
    [ "$rc" != 0 ] || bad "soak: kill at $at" "the run had ended"
done
mpi 2 "${LASTING[@]}" -y 1 -o noisy
holds "killed at$points: the same model, moments and log" identical quiet noisy

echo "test_mpi: $passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
