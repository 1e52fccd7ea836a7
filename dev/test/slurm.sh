#!/usr/bin/env bash
# End-to-end tests under a real Slurm of one node: runs that srun starts, mpirun in a job, and the
# project's own job script, stopped by a signal and queued again. munged, slurmctld and slurmd run
# in namespaces of their own (processes, network, host name) and with them they end, however this
# does. Needs root, slurm-wlm, munge, iproute2, util-linux and OpenMPI; writes only below a
# temporary folder; takes under a minute.
#
#     make train_gpt2 dev/runs/sweep && dev/test/slurm.sh    # TRAIN=./other_binary
#
# Prints `ok <name>`, `FAILED <name>: <why>` or `skip <name>: <reason>` for each test, then
# `test_slurm: N passed, N failed, N skipped`, and exits with 1 if any failed. Where Slurm does not
# come up, that is a skip.
set -u
cd "$(dirname "$0")/../.." || exit 1
. dev/test/verdicts.sh
verdict() {
    echo "test_slurm: $passed passed, $failed failed, $skipped skipped"; [ "$failed" = 0 ]; exit
}

# ----------------------------------------------------------------------------
# outside: what is needed, a folder, and the namespaces

lacking() {
    local program
    [ "$(id -u)" = 0 ] || { echo "Slurm's daemons need root here: run it as root"; return; }
    for program in munged:munge slurmctld:slurm-wlm slurmd:slurm-wlm srun:slurm-wlm ip:iproute2 \
        unshare:util-linux setpriv:util-linux mpirun:openmpi-bin mpicc:libopenmpi-dev; do
        command -v "${program%:*}" >/dev/null && continue
        echo "no program ${program%:*}: apt-get install ${program#*:}"
        return
    done
    ldd "$TRAIN" 2>/dev/null | grep -q 'libmpi[._]' || {
        echo "$TRAIN is built without MPI: apt-get install libopenmpi-dev openmpi-bin, make again"
        return
    }
    unshare "${NAMESPACES[@]}" true 2>/dev/null || echo "no permission to make namespaces here"
}

NAMESPACES=(--net --uts --ipc --mount --pid --fork --kill-child --mount-proc)
if [ -z "${SLURM_TEST:-}" ]; then
    TRAIN=${TRAIN:-./train_gpt2}
    for program in "$TRAIN" dev/runs/sweep; do
        [ -f "$program" ] && [ -x "$program" ] && continue
        echo "FAILED setup: no program $program; make train_gpt2 dev/runs/sweep, or set TRAIN"
        exit 1
    done
    TRAIN=$(realpath "$TRAIN")
    why=$(lacking)
    [ -z "$why" ] || { skip slurm "$why"; verdict; }
    W=$(mktemp -d) || exit 1
    inside=
    # Bash would report what was killed with its whole command.
    trap '{ [ -z "$inside" ] || kill -9 "$inside"; wait; } 2>/dev/null; rm -rf "$W"' EXIT
    trap 'exit 1' INT TERM HUP
    chmod 755 "$W" # munged wants its socket within everybody's reach
    SLURM_TEST=$W TRAIN=$TRAIN setpriv --pdeathsig KILL unshare "${NAMESPACES[@]}" "$BASH" "$0" &
    inside=$!
    wait "$inside" # not in the foreground: then a signal is heard at once
    rc=$?
    inside=
    exit $rc
fi

# ----------------------------------------------------------------------------
# inside: Slurm

W=$SLURM_TEST
unset "${!SLURM_@}" "${!PMI_@}" "${!PMIX_@}" "${!OMPI_COMM_@}" # of a job that this may run in
export LC_ALL=C OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_mpi_yield_when_idle=1
export OMPI_MCA_btl_vader_single_copy_mechanism=none OMPI_MCA_btl_vader_backing_directory=$W
export SLURM_CONF=$W/slurm.conf

# until_true SECONDS COMMAND...: polls.
until_true() {
    local limit=$((SECONDS + $1))
    until "${@:2}"; do
        [ "$SECONDS" -lt "$limit" ] || return 1
        sleep 0.05
    done
}
node_is() { [ "$(sinfo -h -o %T 2>/dev/null)" = "$1" ]; }

# slurm_start CGROUPS: whether the node comes up. It has more CPUs than the machine, and GPUs that
# nobody uses, since the project's job asks for them.
slurm_start() {
    local slurmctld slurmd
    echo "CgroupPlugin=$1" >"$W/cgroup.conf"
    slurmctld -D -c >"$W/slurmctld.out" 2>&1 & slurmctld=$!
    slurmd -D >"$W/slurmd.out" 2>&1 & slurmd=$!
    until_true 20 node_is_or_dead idle $slurmd
    node_is idle && return
    { kill $slurmctld $slurmd; wait $slurmctld $slurmd; } 2>/dev/null
    return 1
}
node_is_or_dead() { node_is "$1" || ! kill -0 "$2" 2>/dev/null; }

mkdir "$W/state" "$W/spool" "$W/runs"
# A device with an address beside lo's: without one, programs take the host to have no network.
hostname node && ip link set lo up && ip link add veth type veth peer name end &&
    ip address add 10.88.0.1/30 dev veth && ip link set veth up && ip link set end up ||
    { skip slurm "no network of its own"; verdict; }
dd if=/dev/urandom of="$W/munge.key" bs=128 count=1 2>/dev/null && chmod 400 "$W/munge.key"
munged --foreground --force --key-file="$W/munge.key" --socket="$W/munge.socket" \
    --pid-file="$W/munged.pid" --log-file="$W/munged.log" --seed-file="$W/munge.seed" \
    >"$W/munged.out" 2>&1 &
until_true 10 test -S "$W/munge.socket"
touch "$W"/gpu{0..7}
echo "Name=gpu File=$W/gpu[0-7]" >"$W/gres.conf"
# A job that is queued again may start once its credentials have expired, normally after 2 minutes.
cat >"$W/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=node(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$W/munge.socket,cred_expire=20
StateSaveLocation=$W/state
SlurmdSpoolDir=$W/spool
SlurmctldPidFile=$W/slurmctld.pid
SlurmdPidFile=$W/slurmd.pid
ProctrackType=proctrack/linuxproc
MessageTimeout=60
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1
ReturnToService=2
GresTypes=gpu
NodeName=node NodeAddr=127.0.0.1 CPUs=64 Gres=gpu:8
PartitionName=all Nodes=ALL Default=YES
CONF
if ! slurm_start disabled && ! slurm_start cgroup/v1; then # by its version; the latter never mounts
    skip slurm "no node came up: $(tail -n 3 "$W"/{munged,slurmctld,slurmd}.out | tr '\n' ' ')"
    verdict
fi

# ----------------------------------------------------------------------------
# runs, all in $W/runs

SMALL=(-i train.bin -j train.bin -e 4x2x16 -t 16 -b 2 -v 3 -m 2 -x 6 -p sppp)
(cd "$W/runs" && compute) <<'PY'
import random, struct
random.seed(1)
tokens = [random.randrange(27) for _ in range(4000)]
with open("train.bin", "wb") as f:
    f.write(struct.pack("<256i", 20240520, 1, len(tokens), 27, *[0] * 252))
    f.write(struct.pack("<%dH" % len(tokens), *tokens))
PY

# in_runs COMMAND...: leaves $rc, $W/stdout, $W/stderr.
in_runs() {
    (cd "$W/runs" && exec timeout -k 5 120 "$@") </dev/null >"$W/stdout" 2>"$W/stderr"; rc=$?
}
said() { head -c 600 "$W/stderr" | tr '\n' ' '; }

# Lines of a log, without what depends on the clock; what a run left: its logs' headers and its
# checkpoints.
steps() { sed -nE '/^s:/ { s/ (ms|tok|comm):[^ ]+//g; p }' "$1/main.log"; }
left()  { grep -c '^# mesh' "$1/main.log"; (cd "$1" && ls DONE_* model_* state_*); }

# as_folded FOLDER: the same losses and files, bit for bit, as of the run in one process.
as_folded() {
    local kind
    [ "$rc" = 0 ] || { echo "exit status $rc: $(said)"; return 1; }
    diff <(left "$W/runs/folded") <(left "$W/runs/$1") &&
        diff <(steps "$W/runs/folded") <(steps "$W/runs/$1") || return 1
    for kind in model state; do
        cmp "$W/runs/folded/${kind}_00000006.bin" "$W/runs/$1/${kind}_00000006.bin" || return 1
    done
}

# background ARGS... -o FOLDER: two tasks, when they have done 6 updates; $srun is the process that
# started them, $step Slurm's name for them. ended: waits for their end; leaves $rc.
background() {
    (cd "$W/runs" && exec timeout -k 5 120 srun --mpi=$understood -n 2 "$TRAIN" "${SMALL[@]}" \
        "$@") </dev/null >"$W/stdout" 2>"$W/stderr" &
    launched=$!
    until_true 60 grep -qs '^s:6 trl' "$W/runs/${*: -1}/main.log" || bad "$*: it runs" "$(said)"
    srun=$(pgrep -P $launched -x srun) step=$(squeue --steps -h -o %i | grep -m1 '\.0$')
}
ended() { wait $launched; rc=$?; }
trainers() { pgrep -fc "^$TRAIN "; }

# A job's output in $W/job, when it has ended.
job_run() { # sbatch's options and script
    rm -f "$W/job"
    in_runs sbatch --wait --parsable --output="$W/job" "$@"
}

in_runs "$TRAIN" "${SMALL[@]}" -o folded
[ "$rc" = 0 ] || { bad folded "$(said)"; verdict; }

srun -n 2 true 2>"$W/stderr" || { skip slurm "srun starts nothing: $(said)"; verdict; }

echo "# srun: broken when each task takes itself for the only one"
# What MPI understands is asked of a program that does nothing else.
mpicc -x c - -o "$W/size" <<'C' || { skip slurm "mpicc cannot build"; verdict; }
#include <mpi.h>
#include <stdio.h>
int main(void) {
    int n;
    MPI_Init(0, 0);
    MPI_Comm_size(MPI_COMM_WORLD, &n);
    printf("%d\n", n);
    return MPI_Finalize();
}
C
types=$(srun --mpi=list 2>&1)
understood=
for type in none pmi2 pmix; do
    grep -qw "$type" <<<"$types" || { skip "srun --mpi=$type" "this Slurm has no such plugin"
        continue; }
    in_runs srun --mpi=$type -n 2 "$W/size"
    found=$(tr '\n' ' ' <"$W/stdout")
    in_runs srun --mpi=$type -n 2 "$TRAIN" "${SMALL[@]}" -o "srun_$type"
    if [ "$found" = "2 2 " ]; then
        understood=$type
        holds "srun --mpi=$type is one run" as_folded "srun_$type"
    else
        # MPI says it, or takes each task for the only one: then the trainer does.
        why=MPI_Init
        [ -z "$found" ] || why='^error: (PMI_SIZE|SLURM_STEP_NUM_TASKS) is 2, but MPI finds 1 '
        same "srun --mpi=$type, which this MPI does not understand, is refused" \
            "$rc $(ls -d "$W/runs/srun_$type" 2>/dev/null) $(grep -qE "$why" "$W/stderr" &&
                echo said)" "1  said"
    fi
done
in_runs srun --mpi=none -n 1 "$TRAIN" "${SMALL[@]}" -o srun_one
holds "one task alone needs no MPI" as_folded srun_one

echo "# a job's script: broken when the job's size is taken for a launcher's"
printf '#!/bin/sh\nexec "$@"\n' >"$W/script"
job_run -n 2 "$W/script" "$TRAIN" "${SMALL[@]}" -o script_alone
holds "what it runs without srun is alone" as_folded script_alone
job_run -n 2 "$W/script" mpirun -n 2 "$TRAIN" "${SMALL[@]}" -o script_mpirun
holds "what it runs by mpirun is one run" as_folded script_mpirun
same "of two processes" "$(grep -o '^# mesh [0-9]* proc' "$W/runs/script_mpirun/main.log")" \
    "# mesh 2 proc"

echo "# signals: broken by a task that does not hear them, or by a checkpoint that srun's haste" \
    "leaves half done"
# told SIGNAL WHOM [STATUS LINE]: a run stops with this status, and with LINE at the log's end; when
# resumed it has the losses of one that was never stopped.
CALM=(-x 40 -nl 15000)
told() {
    local folder=told_$1_$2
    background "${CALM[@]}" -n 5 -o "$folder"
    case $2 in
    scancel) scancel --signal="$1" "$step" ;;
    srun) kill -s "$1" "$srun" ;;
    esac
    ended
    [ -z "${3:-}" ] || same "$1 by $2: status, and what the log says" \
        "$rc $(tail -n 1 "$W/runs/$folder/main.log" | grep -oE "^$4")" "$3 $4"
    same "$1 by $2: no task is left" "$(trainers)" 0
    in_runs srun --mpi=$understood -n 2 "$TRAIN" "${SMALL[@]}" "${CALM[@]}" -nl 0 -o "$folder" -y 1
    holds "$1 by $2: resumed, as a run never stopped" \
        went_on "$W/runs/$folder/main.log" '[1-9][0-9]*' 40 \
        diff <(steps "$W/runs/calm") <(steps "$W/runs/$folder")
}
signal_tests() {
    in_runs "$TRAIN" "${SMALL[@]}" "${CALM[@]}" -nl 0 -o calm
    told USR1 scancel 138 "# stopped by SIGUSR1 after update"
    told TERM scancel 143 "# stopped by SIGTERM after update"
    told USR1 srun 138 "# stopped by SIGUSR1 after update"
    told TERM srun # which kills its tasks then: the checkpoint before is left
    background "${CALM[@]}" -wd 0 -wk 2 -o stopped
    kill -STOP "$(pgrep -f "^$TRAIN " | while read -r pid; do
        tr '\0' '\n' <"/proc/$pid/environ" | grep -qx SLURM_PROCID=1 && echo "$pid"; done)"
    ended
    same "-wk ends a run with a stopped task" \
        "$rc $(grep -c '^error: rank 0: .*is stopped (-wk 2)' "$W/stderr") $(trainers)" "1 1 0"
}
if [ "${understood:-none}" = none ]; then
    skip "signals" "this MPI does not understand srun"
else
    signal_tests
fi

echo "# the project's job script: broken when a job that was stopped is not queued again, or" \
    "begins at update 0"
job_test() {
    local job at folder list=$W/list
    local options=(-i "$W/runs/train.bin" -j "$W/runs/train.bin" -e 4x2x16 -t 16 -b 2 -d 32 -x 300)
    options+=(-v 100 -m 2 -n 10 -u 50)
    printf '%s\n' "# a list" "gpt2_124m t 2 sum 1337" \
        "gpt2_124m sppp 2 sum 1337 ${options[*]} -nl 2000" >"$list"
    TRAINER=$TRAIN SHOW='' dev/runs/gpt2_124m.sh "$W/never_stopped" sppp 2 sum 1337 \
        "${options[@]}" >"$W/stdout" 2>"$W/stderr" || { bad "a run alone" "$(said)"; return; }
    job=$(RESULTS=$W/sweep LIST=$list TRAINER=$TRAIN LAUNCH="srun --ntasks=2 --mpi=$understood" \
        sbatch --parsable --array=2 --cpus-per-task=1 --output="$W/job_%a" \
        dev/runs/gpt2_124m.slurm 2>&1) || { bad "the job is queued" "$job"; return; }
    reached() { grep -qs '^s:20 trl' "$W"/sweep/gpt2_124m/sppp_*/main.log; }
    gone() { [ -z "$(squeue -h -j "$job" 2>&1)" ]; }
    until_true 60 reached || { bad "the job runs" "$(tail -n 5 "$W/job_2" | tr '\n' ' ')"; return; }
    scancel --signal=USR1 "$job"
    until_true 120 gone || bad "the job ends" "$(squeue -h -j "$job") $(tail -n 5 "$W/job_2")"
    folder=$(echo "$W"/sweep/gpt2_124m/sppp_*)
    at=$(sed -nE 's/^# stopped by SIGUSR1 after update ([0-9]+) of .*/\1/p' "$folder/main.log")
    same "a job stopped by USR1 is queued again, once, and goes on from there" \
        "$(grep '^# updates ' "$folder/main.log" | tr '\n' ' ')" \
        "# updates 0 to 300 # updates $at to 300 "
    same "to the end, which is noted" \
        "$(awk -F '\t' 'NR > 1 { print $2, $23 }' "$W/sweep/runs.tsv")" "sppp ok"
    holds "with the losses of a run that was never stopped" diff <(steps "$W/never_stopped") \
        <(steps "$folder")
}
if [ "${understood:-none}" = none ]; then
    skip "the job script" "this MPI does not understand srun"
else
    job_test
fi
verdict
