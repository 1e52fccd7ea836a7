#!/usr/bin/env bash
# Two PCs on one machine, to try the README's recipe for two to four PCs: pc1 (192.168.1.1) and pc2
# (192.168.1.2) are network namespaces joined by a veth pair. Each has a host name, an sshd, and a
# home, /tmp, /run and /etc/hosts of its own, with a copy of the trainer in ~/gpt2. What is written
# on one does not appear on the other. They see nothing but each other.
#
#     dev/net/ssh.sh                     # a shell on pc1; root's password on both is gpt2
#     dev/net/ssh.sh -- COMMAND...       # or this command, in ~/gpt2 on pc1
#     dev/net/ssh.sh --test              # the README's commands, word for word
#
# The test takes the commands from the README: those of the code blocks that follow the two lines
# "<!-- dev/net/ssh.sh runs this on ... -->". A helper answers ssh's questions in place of a person.
#
# Needs root, iproute2, util-linux, OpenSSH's server and client, perl, OpenMPI 4, and first
# `make train_gpt2 dev/net/bench_allreduce dev/net/plan`. The machine's own ssh is not used, nor its
# keys, and no file outside of a temporary folder is written. Both PCs are removed however this ends
# (only kill -9 leaves them: see `ip netns`).
#
# --test prints `ok <name>`, `FAILED <name>: <why>` or `skip ssh: <reason>`, then
# `ssh: N passed, N failed, N skipped`, and exits with 1 if any failed. It takes about a minute.
set -u
cd "$(dirname "$0")/../.." || exit 1
. dev/test/verdicts.sh
export LC_ALL=C OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" OMP_WAIT_POLICY=passive
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
PROGRAMS=(train_gpt2 dev/net/bench_allreduce dev/net/plan)
PASSWORD=gpt2

die() { echo "error: $*" >&2; exit 1; }

testing='' command=(bash)
case ${1:-} in
'') ;;
--test) testing=1 ;;
--help) sed -n '2,/^set -u/ { /^#/ s/^# \{0,1\}//p }' "$0"; exit 0 ;;
--) shift; [ $# = 0 ] || command=("$@") ;;
*) die "$1: unknown; allowed are --test, --help, and a command after --" ;;
esac

# ----------------------------------------------------------------------------
# two PCs

PC1=gpt2-ssh-$$-1 PC2=gpt2-ssh-$$-2 # the namespaces; the device in each is called veth
W=$(mktemp -d) || exit 1            # pc1 and pc2 below are their disks
SSHD1='' SSHD2=''                   # their main processes

# Whatever still runs inside goes first: a namespace with a process in it would live on without a
# name. The mounts go with the last process.
pcs_remove() {
    local name i
    for name in "$PC1" "$PC2"; do
        [ -e "/run/netns/$name" ] || continue
        for i in {1..50}; do
            [ -n "$(ip netns pids "$name" 2>/dev/null)" ] || break
            ip netns pids "$name" | xargs -r kill -9 2>/dev/null
            sleep 0.1
        done
        ip netns del "$name" # and with the first of them the pair
    done
}

finish() {
    trap '' INT TERM HUP
    { pcs_remove; wait; } 2>/dev/null # bash would report what was killed
    rm -rf "$W"
}
trap finish EXIT
trap 'exit 1' INT TERM HUP

# Why two PCs cannot be made or used here; nothing if they can.
lacking() {
    local program
    [ "$(id -u)" = 0 ] || { echo "network namespaces need root: run it as root"; return; }
    command -v ip >/dev/null || { echo "no program ip: apt-get install iproute2"; return; }
    for program in unshare nsenter; do
        command -v $program >/dev/null || {
            echo "no program $program: apt-get install util-linux"; return
        }
    done
    [ -n "$(command -v sshd)" ] && getent passwd sshd >/dev/null || {
        echo "no program sshd: apt-get install openssh-server"; return
    }
    for program in ssh ssh-keygen ssh-copy-id; do
        command -v $program >/dev/null || {
            echo "no program $program: apt-get install openssh-client"; return
        }
    done
    command -v perl >/dev/null || { echo "no program perl: apt-get install perl"; return; }
    command -v mpirun >/dev/null || {
        echo "no program mpirun: apt-get install openmpi-bin libopenmpi-dev"; return
    }
    mpirun --version 2>&1 | grep -q 'Open MPI) 4\.' ||
        { echo "mpirun is $(mpirun --version 2>&1 | head -n 1), and this script knows Open MPI 4"
          return; }
    ldd train_gpt2 2>&1 | grep -q libmpi ||
        echo "train_gpt2 is built without MPI: apt-get install openmpi-bin libopenmpi-dev," \
            "make train_gpt2"
}

# disk_make NAME: the home, /tmp and files of /etc of one PC.
disk_make() {
    local disk=$W/$1 hash program
    mkdir -p "$disk"/{home/gpt2/{data,dev/net},tmp,ssh} && chmod 1777 "$disk/tmp" &&
    cp -a Makefile tp_blocks.h train_gpt2.c "$disk/home/gpt2" &&
    cp -a data/*.h data/*.py data/shakespeare_char "$disk/home/gpt2/data" &&
    cp -a dev/net/*.c "$disk/home/gpt2/dev/net" || return
    for program in "${PROGRAMS[@]}"; do
        cp -a "$program" "$disk/home/gpt2/$program" || return
    done
    printf '%s\n' '127.0.0.1 localhost' '192.168.1.1 pc1' '192.168.1.2 pc2' >"$disk/hosts"
    hash=$(perl -e 'print crypt($ARGV[0], "\$6\$pcs\$")' $PASSWORD) &&
    printf '%s\n' "root:$hash:19000:0:99999:7:::" 'sshd:!:19000::::::' >"$disk/shadow" &&
    chmod 600 "$disk/shadow" &&
    ssh-keygen -q -t ed25519 -N '' -f "$disk/ssh/ssh_host_ed25519_key" &&
    : >"$disk/ssh/ssh_config" &&
    cat >"$disk/ssh/sshd_config" <<SSHD
HostKey /etc/ssh/ssh_host_ed25519_key
PermitRootLogin yes
PasswordAuthentication yes
UsePAM no
Subsystem sftp internal-sftp
SetEnv OMP_NUM_THREADS=$OMP_NUM_THREADS OMP_WAIT_POLICY=passive
SSHD
}

# pc_start NAME NAMESPACE: a PC's mounts and host name, and in them its sshd, which they live as
# long as. It becomes the process of this call. /tmp comes last: the disks may lie below it.
pc_start() {
    # shellcheck disable=SC2016 # expanded by the shell inside
    exec ip netns exec "$2" unshare --uts --mount env -u TMPDIR sh -ec '
        disk=$1 home=$2
        hostname "$3"
        mount --bind "$disk/home" "$home"
        mount --bind "$disk/ssh" /etc/ssh
        mount --bind "$disk/hosts" /etc/hosts
        mount --bind "$disk/shadow" /etc/shadow
        mount -t tmpfs run /run
        mkdir -m 755 /run/sshd
        mount --bind "$disk/tmp" /tmp
        exec "$4" -D -e' sh "$W/$1" "$HOME_OF_ROOT" "$1" "$(command -v sshd)" \
        </dev/null >"$W/$1/log" 2>&1
}

# on_pc1 COMMAND...: in the home of pc1.
on_pc1() {
    HOME=$HOME_OF_ROOT nsenter --target "$SSHD1" --net --uts --mount \
        --wd="$HOME_OF_ROOT" env -u TMPDIR "$@"
}

# Both devices are born inside, so the machine's own network never sees them.
pcs_make() {
    local name
    disk_make pc1 && disk_make pc2 && unshare --mount mount -t tmpfs run "$W/pc1/tmp" &&
    ip netns add "$PC1" && ip netns add "$PC2" &&
    ip link add veth netns "$PC1" type veth peer name veth netns "$PC2" &&
    ip -n "$PC1" address add 192.168.1.1/24 dev veth &&
    ip -n "$PC2" address add 192.168.1.2/24 dev veth || return
    for name in "$PC1" "$PC2"; do
        ip -n "$name" link set lo up && ip -n "$name" link set veth up || return
    done
}

# Returns 1 if one of them does not listen within 10 seconds, and prints why.
pcs_start() {
    local i
    pc_start pc1 "$PC1" & SSHD1=$!
    pc_start pc2 "$PC2" & SSHD2=$!
    for i in {1..100}; do
        kill -0 "$SSHD1" && kill -0 "$SSHD2" || break
        on_pc1 bash -c ': </dev/tcp/pc1/22 && : </dev/tcp/pc2/22' && return
        sleep 0.1
    done 2>/dev/null
    head -n 3 "$W"/pc?/log
    return 1
}

# ----------------------------------------------------------------------------
# tests

# readme_commands WHERE: the lines of the code block after the README's mark for WHERE.
readme_commands() {
    awk -v mark="<!-- dev/net/ssh.sh runs this on $1 -->" '
        $0 == mark { marked = 1; next }
        marked && /^```/ { if (inside) exit; inside = 1; next }
        inside' README.md
}

# commands_run COMMANDS: runs them on pc1 one after the other, as typed into one shell, up to the
# first that fails. Number n prints into home/said.n there. A command ends with a line without a \.
commands_run() {
    local home=$W/pc1/home text='' line n=0 i rc names=()
    echo "set -o pipefail; cd ~/gpt2" >"$home/script"
    while IFS= read -r line; do
        text+=$line$'\n'
        [ "${line: -1}" != \\ ] || continue
        printf '{\n%s} >~/said.%d 2>&1\nrc=$?; echo $rc >~/status.%d; [ $rc = 0 ] || exit\n' \
            "$text" $n $n >>"$home/script"
        names[n]=$(head -n 1 <<<"$text" | sed 's/  *#.*//; s/ *\\$//')
        n=$((n + 1)) text=
    done <<<"$1"
    rm -f "$home"/status.* "$home"/said.*
    SSH_ASKPASS=$HOME_OF_ROOT/answer SSH_ASKPASS_REQUIRE=force \
        on_pc1 timeout -k 5 300 bash "$HOME_OF_ROOT/script" </dev/null 2>/dev/null &
    wait $! # not in the foreground: then a signal is heard at once
    for ((i = 0; i < n; i++)); do
        rc=$(cat "$home/status.$i" 2>/dev/null)
        case $rc in
        0)  ok "${names[i]}" ;;
        '') bad "${names[i]}" "not reached, or not done in 300 s" ;;
        *)  bad "${names[i]}" "status $rc: $(head -c 800 "$home/said.$i" | tr '\n' ' ')" ;;
        esac
    done
}

# said PATTERN: whether a command on pc1 printed a line with it.
said() { grep -qhE -e "$1" "$W"/pc1/home/said.* || { echo "nobody printed '$1'"; return 1; }; }

losses() { sed -nE 's/^(s:[0-9]+ (tel|trl):[^ ]+).*/\1/p' "$@"; }

# The recipe's run and what went on from it, in one process with both ranks folded, have the same
# losses to the last digit. Fails if the ranks do not meet (each would then train alone), or if what
# they sum differs.
same_as_one_process() {
    local commands=$1 log=$W/pc1/home/gpt2/out/two/main.log
    (cd "$W/pc2/home/gpt2" && rm -rf out && eval "${commands//pcs }") >"$W/folded" 2>&1 ||
        { cat "$W/folded"; return 1; }
    grep -q '^s:300 trl:' "$log" || { echo "no update 300 in out/two/main.log"; return 1; }
    diff <(losses "$log") <(losses "$W/pc2/home/gpt2/out/two/main.log")
}

# What the machine's own ssh has: nothing of it may change.
own_ssh() {
    find /etc/ssh /etc/hosts /etc/shadow "$HOME_OF_ROOT/.ssh" -printf '%p %s %T@ %C@\n' 2>/dev/null
}

test_recipe() {
    local each first pcs
    each=$(readme_commands "each PC") first=$(readme_commands pc1)
    if [ -z "$each" ] || [ -z "$first" ]; then
        bad readme "no commands after its marks for 'each PC' and for 'pc1'"; return
    fi
    cat >"$W/pc1/home/answer" <<ANSWER
#!/bin/sh
echo "\$1" >>$HOME_OF_ROOT/asked
case \$1 in *yes/no*) echo yes ;; *) echo $PASSWORD ;; esac
ANSWER
    chmod +x "$W/pc1/home/answer"
    commands_run "$each"
    commands_run "$first"
    # With the key in place nothing is asked again.
    same asked_once "$(grep -c 'password' "$W/pc1/home/asked")" 1
    holds network_fitted said '^-nl [0-9.e-]+ -nb [0-9.e+]+$'
    holds network_planned said '^ *sppp '
    holds pc1_takes_part said '^# process 0 host pc1 '
    holds pc2_takes_part said '^# process 1 host pc2 '
    holds went_on said '^# model out/two/model_00000200.bin$'
    holds same_as_one_process same_as_one_process \
        "$(grep -e '-o out/two' <<<"$first")"
    pcs=$(grep -e '^export OMPI' -e '^pcs()' <<<"$first") # as a hostfile says it
    commands_run "printf '%s\n' 'pc1 slots=1' 'pc2 slots=1' >hosts
${pcs/--host localhost,pc2/--hostfile hosts}
pcs ./train_gpt2 -p sppp -b 12 -x 20 -v 0 -o out/hosts"
    holds hostfile said '^# process 1 host pc2 '
}

# ----------------------------------------------------------------------------
# main

verdict() { echo "ssh: $passed passed, $failed failed, $skipped skipped"; [ "$failed" = 0 ]; exit; }

HOME_OF_ROOT=$(getent passwd 0 | cut -d: -f6)
for program in "${PROGRAMS[@]}"; do
    [ -x "$program" ] && continue
    [ -n "$testing" ] || die "no program $program: make ${PROGRAMS[*]}"
    bad setup "no program $program: make ${PROGRAMS[*]}"; verdict
done
why=$(lacking)
own=$(own_ssh)
[ -n "$why" ] || pcs_make >"$W/why" 2>&1 ||
    why="no permission to make two network namespaces here: $(tr '\n' ' ' <"$W/why")"
if [ -n "$why" ]; then
    [ -n "$testing" ] || die "$why"
    skip ssh "$why"; verdict
fi
if ! pcs_start >"$W/why"; then
    [ -n "$testing" ] || die "no sshd on pc1 or pc2: $(tr '\n' ' ' <"$W/why")"
    bad sshd "$(tr '\n' ' ' <"$W/why")"; verdict
fi

if [ -z "$testing" ]; then
    echo "This is pc1; root's password on pc1 and pc2 is $PASSWORD." >&2
    # shellcheck disable=SC2016 # expanded by the shell inside
    on_pc1 sh -c 'cd gpt2 && exec "$@"' sh "${command[@]}"
    exit
fi

test_recipe
{ pcs_remove; wait; } 2>/dev/null
same removed "$(ip netns list | grep -c "^gpt2-ssh-$$-")$(pgrep -fc "$W")" 00
same own_ssh_untouched "$(own_ssh)" "$own"
verdict
