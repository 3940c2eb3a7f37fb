#!/usr/bin/env bash
# A real Slurm on this machine, for tests and for trying things: munge, a controller and a few nodes, all on
# loopback and all in one folder. Nothing under /etc changes, and `down` leaves no process behind.
# Tried with Slurm 22.05 (Debian 12).
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"

usage="usage: devcluster.sh up [--nodes 3] [--threads 1] [--array-size 101] [--accounting] [--submit-limit N] DIR
                                               and then: source DIR/env.sh
       devcluster.sh down DIR                  kills all its daemons and jobs
       devcluster.sh status DIR                exits 0 if all of it is up, else 1
       devcluster.sh kill-node DIR n2          SIGKILL for one slurmd; its jobs live on
       devcluster.sh start-node DIR n2         and waits until it is in service again
       devcluster.sh restart-controller DIR [SIGNAL [SECONDS]]    ends slurmctld and, so many seconds later (0),
                                               starts a new one; after KILL (the default) the last five seconds
                                               are forgotten, after TERM nothing
up starts empty: no jobs, no history. A node has 4 CPUs, of which --threads share a core. It reads DEVCLUSTER_MIN_JOB_AGE, the seconds for which squeue knows
an ended job (30; it is gone up to a minute later), and DEVCLUSTER_REQUEUE_WAIT, those a requeued job waits (10)."

die() {
    echo "devcluster: $*" >&2
    exit 1
}

# A Unix socket's name has at most 107 bytes, and slurm.conf splits at spaces. So the daemons know DIR as
# $short/dir, a link in a folder of /tmp to which DIR/short points. That is also what tells their
# processes and those of jobs from all others: only they have this name in SLURM_CONF.
locate() {
    dir=$(cd "$1" 2>/dev/null && pwd -P) || die "there is no folder $1"
    short=$(readlink "$dir/short" || true)
    [[ $short == /tmp/devcluster.* ]] || die "no devcluster is up in $dir"
    conf=$short/dir/slurm.conf
}

processes() {
    { grep -lzsFx "SLURM_CONF=$conf" /proc/[0-9]*/environ || true; } | cut -d/ -f3
}

pid_of() { # DAEMON: fails unless it lives
    [[ -s $short/pid/$1 ]] && processes | grep -x "$(<"$short/pid/$1")"
}

wait_for() { # SECONDS COMMAND…
    local end=$((SECONDS + $1))
    until "${@:2}" >/dev/null 2>&1; do
        ((SECONDS < end)) || return 1
        sleep 0.1
    done
}

give_up() { # DAEMON
    die "$1 does not come up; the end of $dir/log/$1.log:"$'\n'"$(tail -n 15 "$dir/log/$1.log")"
}

expect() { # DAEMON COMMAND…: it is up once the command succeeds
    wait_for 120 "${@:2}" || give_up "$1"
}

start() { # DAEMON COMMAND…: the command goes to the background by itself
    gone "$1" || die "$1 is running already"
    SLURM_CONF=$conf MYSQL_UNIX_PORT=$short/mysql "${@:2}" </dev/null >>"$dir/log/$1.log" 2>&1 || give_up "$1"
    expect "$1" pid_of "$1"
}

gone() { ! pid_of "$1" >/dev/null; }

end() { # DAEMON SIGNAL
    local pid
    pid=$(pid_of "$1") || die "$1 is not running"
    kill -s "$2" "$pid"
    wait_for 30 gone "$1" || die "$1 outlives SIG$2"
}

none_left() {
    local pids
    pids=$(processes)
    [[ -z $pids ]] || { xargs kill -s KILL <<<"$pids" && false; }
}

take_down() {
    wait_for 30 none_left || die "these processes outlive SIGKILL: $(processes | xargs)"
    rm -rf "$short" "$dir/short" "$dir/env.sh"
}

free_ports() { # COUNT: below the range that outgoing connections use
    python3 - "$1" <<'PYTHON'
import random, socket, sys

held = {}
while len(held) < int(sys.argv[1]):
    port = random.randrange(10000, 32000)
    try:
        held.setdefault(port, socket.socket()).bind(("", port))
    except OSError:
        del held[port]
print(*held)
PYTHON
}

write_slurm_conf() {
    local host
    host=$(hostname -s)
    cat >"$dir/slurm.conf" <<CONF
ClusterName=devcluster
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${ports[0]}
CommunicationParameters=$binding
AuthType=auth/munge
AuthInfo=socket=$short/munge/socket,cred_expire=${DEVCLUSTER_REQUEUE_WAIT:-10}
SlurmUser=$user
SlurmdUser=$user
StateSaveLocation=$short/dir/state
SlurmdSpoolDir=$short/dir/spool/%n
SlurmctldPidFile=$short/pid/slurmctld
SlurmdPidFile=$short/pid/%n
SlurmctldLogFile=$short/dir/log/slurmctld.log
SlurmdLogFile=$short/dir/log/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
MailProg=/bin/true

# The nodes promise more than the machine has, as jobs here are light; a job beyond its memory is killed.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=500
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill

PreemptType=preempt/partition_prio
PreemptMode=REQUEUE

# Limits within reach, and little waiting.
MaxArraySize=$array_size
MaxJobCount=20000
MinJobAge=${DEVCLUSTER_MIN_JOB_AGE:-30}
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=100000,bf_interval=2,default_queue_depth=10000
SlurmdTimeout=20
KillWait=5
ReturnToService=2

CONF
    if [[ -n $accounting ]]; then
        cat >>"$dir/slurm.conf" <<CONF
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=${ports[1]}
AccountingStoragePass=$short/munge/socket
${limit:+AccountingStorageEnforce=limits}

CONF
    fi
    for ((i = 1; i <= nodes; i++)); do
        echo "NodeName=n$i NodeHostname=$host NodeAddr=127.0.0.1 Port=${ports[i + 1]} CPUs=4 CoresPerSocket=$((4 / threads))" \
            "ThreadsPerCore=$threads RealMemory=4000"
    done >>"$dir/slurm.conf"
    cat >>"$dir/slurm.conf" <<CONF
PartitionName=main Nodes=ALL Default=YES PriorityTier=1
PartitionName=urgent Nodes=ALL PriorityTier=2
PartitionName=whole Nodes=ALL OverSubscribe=EXCLUSIVE
PartitionName=hidden Nodes=ALL Hidden=YES
CONF
}

start_munge() {
    (umask 077 && head -c 1024 /dev/urandom >"$short/munge/key")
    start munged munged --socket="$short/munge/socket" --key-file="$short/munge/key" \
        --seed-file="$short/munge/seed" --log-file="$short/munge/log" --pid-file="$short/pid/munged"
}

start_accounting() {
    local log=$dir/log/mariadbd.log
    mariadb-install-db --no-defaults --user="$user" --auth-root-authentication-method=normal \
        --skip-test-db --datadir="$short/dir/mysql" >"$log" 2>&1 || give_up mariadbd
    SLURM_CONF=$conf setsid mariadbd --no-defaults --user="$user" --skip-networking --socket="$short/mysql" \
        --datadir="$short/dir/mysql" --pid-file="$short/pid/mariadbd" </dev/null >>"$log" 2>&1 &
    disown
    expect mariadbd test -S "$short/mysql"

    (umask 077 && cat >"$dir/slurmdbd.conf") <<CONF
DbdHost=$(hostname -s)
DbdAddr=127.0.0.1
DbdPort=${ports[1]}
CommunicationParameters=$binding
AuthInfo=socket=$short/munge/socket
SlurmUser=$user
PidFile=$short/pid/slurmdbd
LogFile=$short/dir/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
CONF
    start slurmdbd slurmdbd
    expect slurmdbd register
    if [[ -n $limit ]]; then expect slurmdbd limit_submits; fi
}

limit_submits() { # of the user's jobs, waiting and running, an array's tasks each
    {
        sacctmgr -i add account "$user" && sacctmgr -i add user "$user" account="$user"
        sacctmgr -i modify user "$user" set MaxSubmitJobs="$limit"
    } >>"$dir/log/slurmdbd.log" 2>&1
}

register() { sacctmgr -i add cluster devcluster >>"$dir/log/slurmdbd.log" 2>&1; }

idle() { [[ $(sinfo -h -p main -t idle -o %D) == "$1" ]]; }

up() {
    local target='' nodes=3 threads=1 array_size=101 accounting='' limit='' program i binding ports user
    while (($#)); do
        case $1 in
        --nodes) nodes=${2:-} && shift ;;
        --threads) threads=${2:-} && shift ;;
        --array-size) array_size=${2:-} && shift ;;
        --accounting) accounting=yes ;;
        --submit-limit) limit=${2:-} accounting=yes && shift ;;
        -*) die "there is no option $1"$'\n'"$usage" ;;
        *)
            [[ -z $target ]] || die "up takes one DIR; quote it if it has spaces"
            target=$1
            ;;
        esac
        shift
    done
    [[ -n $target && $nodes =~ ^[1-9][0-9]?$ && $threads =~ ^[124]$ && $array_size$limit =~ ^[0-9]+$ ]] ||
        die "up takes 1 to 99 nodes, 1, 2 or 4 threads, an array size, a number of jobs and a DIR"$'\n'"$usage"
    for program in slurmctld slurmd sinfo munged ${accounting:+slurmdbd mariadbd mariadb-install-db}; do
        [[ -n $(command -v "$program") ]] || die "$program is missing: apt-get install" \
            "slurm-wlm munge${accounting:+ slurmdbd mariadb-server}"
    done

    mkdir -p -- "$target"
    if [[ -L $target/short ]]; then
        locate "$target"
        if status >/dev/null; then
            echo "devcluster: it is up already; source $dir/env.sh"
            return
        fi
        take_down
    fi
    [[ -e $target/.devcluster || -z $(ls -A -- "$target") ]] ||
        die "$target holds other things; name a new or an empty folder"
    dir=$(cd -- "$target" && pwd -P)
    user=$(id -un)
    touch "$dir/.devcluster"
    rm -rf "${dir:?}"/{log,mysql,spool,state,slurmdbd.conf}

    short=$(mktemp -d /tmp/devcluster.XXXXXX)
    conf=$short/dir/slurm.conf
    trap take_down EXIT
    chmod 755 "$short"
    ln -s "$dir" "$short/dir"
    ln -s "$short" "$dir/short"
    mkdir -p "$dir"/{log,state} "$short"/{munge,pid}
    for ((i = 1; i <= nodes; i++)); do mkdir -p "$dir/spool/n$i"; done

    # Slurm's daemons listen at every address, or only at the one that the host's name has.
    if [[ $(getent ahostsv4 "$(hostname)") == 127.* ]]; then
        binding=NoCtldInAddrAny,NoInAddrAny
    else
        binding=''
        echo "devcluster: $(hostname) is no loopback address in /etc/hosts, so Slurm listens at every address" >&2
    fi
    read -ra ports <<<"$(free_ports $((nodes + 2)))"
    write_slurm_conf
    printf 'export SLURM_CONF=%q\n' "$dir/slurm.conf" >"$dir/env.sh"
    export SLURM_CONF=$dir/slurm.conf

    start_munge
    if [[ -n $accounting ]]; then start_accounting; fi
    start slurmctld slurmctld
    for ((i = 1; i <= nodes; i++)); do start "n$i" slurmd -N "n$i"; done
    expect slurmctld idle "$nodes"
    trap - EXIT
    echo "devcluster: up; source $dir/env.sh"
}

status() {
    local file down=0
    for file in "$short"/pid/*; do
        if gone "${file##*/}"; then
            echo "${file##*/} is down"
            down=1
        else
            echo "${file##*/} is up"
        fi
    done
    SLURM_CONF=$dir/slurm.conf timeout 10 sinfo || down=1
    return $down
}

in_service() { # NODE: Slurm drains a node that came back with a job it had given up
    [[ $(sinfo -h -p main -n "$1" -o %T) =~ ^(idle|mixed|allocated)$ ]] ||
        { scontrol update NodeName="$1" State=RESUME && false; }
}

start_node() { # NODE
    start "$1" slurmd -N "$1"
    SLURM_CONF=$dir/slurm.conf expect "$1" in_service "$1"
}

case ${1:-}/$# in
up/*) up "${@:2}" ;;
down/2) locate "$2" && take_down ;;
status/2) locate "$2" && status ;;
kill-node/3) locate "$2" && end "$3" KILL ;;
start-node/3) locate "$2" && start_node "$3" ;;
restart-controller/[234]) locate "$2" && end slurmctld "${3:-KILL}" && sleep "${4:-0}" && start slurmctld slurmctld ;;
*) die "$usage" ;;
esac
