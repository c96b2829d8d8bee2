#!/bin/sh
# A Slurm of one node on 127.0.0.1, with accounting, for the tests of sweeps. As root, where systemd is not needed:
#
#   scripts/slurm_loopback.sh start FOLDER     then export SLURM_CONF=FOLDER/slurm.conf
#   scripts/slurm_loopback.sh reboot FOLDER    kills the scheduler and starts it again
#   scripts/slurm_loopback.sh stop FOLDER
#
# Debian: apt-get install --no-install-recommends slurm-wlm slurmdbd munge mariadb-server
# FOLDER keeps state, logs and sockets. Ports from SLURM_PORT (16817) on are used.
set -eu

[ $# = 2 ] || { sed -n '2,6p' "$0" >&2; exit 2; }
mkdir -p "$2"
folder=$(cd "$2" && pwd)
port=${SLURM_PORT:-16817}
host=$(hostname -s)
export SLURM_CONF="$folder/slurm.conf"

# wait_for WHAT COMMAND...: repeat the command until it succeeds, for half a minute at most.
wait_for() {
    what=$1; shift
    for _ in $(seq 300); do
        if "$@" >/dev/null 2>&1; then return; fi
        sleep 0.1
    done
    echo "$what does not come up; see the logs in $folder" >&2
    exit 1
}

configure() {
    mkdir -p "$folder/state" "$folder/spool"
    cat >"$folder/slurm.conf" <<CONF
ClusterName=loopback
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort=$port
SlurmdPort=$((port + 1))
AuthType=auth/munge
# A job that is put back into the queue waits this long, so that the credentials of its first start have expired.
AuthInfo=socket=$folder/munge.socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((port + 2))
# With munge, this "password" is the path of its socket.
AccountingStoragePass=$folder/munge.socket
ReturnToService=2
KillWait=3
SchedulerParameters=sched_interval=2
NodeName=$host NodeAddr=127.0.0.1 $(slurmd -C | tr ' ' '\n' | grep -E '^(CPUs|Boards|SocketsPerBoard|CoresPerSocket|ThreadsPerCore|RealMemory)=' | tr '\n' ' ')
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
    cat >"$folder/slurmdbd.conf" <<CONF
AuthType=auth/munge
AuthInfo=$folder/munge.socket
DbdHost=$host
DbdAddr=127.0.0.1
DbdPort=$((port + 2))
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((port + 3))
StorageUser=slurm
StoragePass=loopback
StorageLoc=slurm
PidFile=$folder/slurmdbd.pid
LogFile=$folder/slurmdbd.log
CONF
    chmod 600 "$folder/slurmdbd.conf"
    echo "CgroupPlugin=cgroup/v1" >"$folder/cgroup.conf"
    cat >"$folder/users.sql" <<SQL
CREATE DATABASE IF NOT EXISTS slurm;
CREATE USER IF NOT EXISTS slurm@'127.0.0.1' IDENTIFIED BY 'loopback';
GRANT ALL ON slurm.* TO slurm@'127.0.0.1';
SQL
}

start() {
    configure
    [ -f "$folder/munge.key" ] || (umask 077 && head -c 128 /dev/urandom >"$folder/munge.key")
    munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
        --log-file="$folder/munged.log" --seed-file="$folder/munged.seed" 2>>"$folder/munged.log"
    [ -d "$folder/mysql" ] || mariadb-install-db --no-defaults --user=root --datadir="$folder/mysql" \
        --skip-test-db >"$folder/mariadb.log"
    mariadbd --no-defaults --user=root --datadir="$folder/mysql" --socket="$folder/mysql.socket" \
        --bind-address=127.0.0.1 --port=$((port + 3)) --pid-file="$folder/mariadbd.pid" --skip-name-resolve \
        --init-file="$folder/users.sql" >>"$folder/mariadb.log" 2>&1 &
    wait_for MariaDB mariadb-admin --no-defaults --socket="$folder/mysql.socket" ping
    slurmdbd
    wait_for slurmdbd sacctmgr -n list cluster
    sacctmgr -i add cluster loopback >/dev/null 2>&1 || true
    slurmctld
    slurmd
    # The node may have been stopped in the middle of a job.
    scontrol update "NodeName=$host" State=RESUME 2>/dev/null || true
    wait_for "the node" sh -c "sinfo -h -o %T | grep -qE 'idle|mixed|allocated'"
    echo "export SLURM_CONF=$SLURM_CONF"
}

# end NAME [SIGNAL]: signal a daemon by its pid file, and wait until it is gone.
end() {
    [ -f "$folder/$1.pid" ] || return 0
    pid=$(cat "$folder/$1.pid")
    kill "-${2:-TERM}" "$pid" 2>/dev/null || true
    for _ in $(seq 200); do
        # Not `kill -0`: it succeeds on a zombie, which may wait long for its parent.
        [ -e "/proc/$pid/exe" ] || break
        sleep 0.1
    done
    rm -f "$folder/$1.pid"
}

case $1 in
start) start ;;
reboot)
    end slurmctld KILL
    slurmctld
    wait_for slurmctld scontrol ping
    ;;
stop)
    scancel --user=root 2>/dev/null || true
    for daemon in slurmctld slurmd slurmdbd mariadbd munged; do end $daemon; done
    ;;
*) sed -n '2,6p' "$0" >&2; exit 2 ;;
esac
