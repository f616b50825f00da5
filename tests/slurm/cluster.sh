#!/usr/bin/env bash
# A real SLURM on one machine, from Debian's packages: a controller and two emulated nodes on loopback.
#   cluster.sh install          install the packages (root)
#   cluster.sh start FOLDER     start it with its state in FOLDER; then export SLURM_CONF=FOLDER/slurm.conf
#   cluster.sh stop FOLDER      end the processes that were started
set -euo pipefail

# The two nodes are one machine: each claims all of its cores, so that both fit.
write_conf() {
    cat > "$1/slurm.conf" <<END
ClusterName=test
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmctldPort=$2
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$1/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/linear
SchedulerParameters=bf_interval=1,sched_min_interval=500000
KillWait=60
ReturnToService=2
SlurmctldPidFile=$1/slurmctld.pid
SlurmctldLogFile=$1/slurmctld.log
StateSaveLocation=$1/state
SlurmdPidFile=$1/slurmd-%n.pid
SlurmdLogFile=$1/slurmd-%n.log
SlurmdSpoolDir=$1/spool-%n
NodeName=n1 NodeHostname=$(hostname) NodeAddr=127.0.0.1 Port=$(($2 + 1)) CPUs=$(nproc) State=UNKNOWN
NodeName=n2 NodeHostname=$(hostname) NodeAddr=127.0.0.1 Port=$(($2 + 2)) CPUs=$(nproc) State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
}

case ${1:-} in
    install)
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq slurm-wlm munge iproute2
        ;;
    start)
        folder=$(mkdir -p "$2" && cd "$2" && pwd)
        mkdir -p "$folder/state"
        chmod 755 "$folder"
        write_conf "$folder" "${SLURM_TEST_PORT:-16817}"
        export SLURM_CONF=$folder/slurm.conf
        head -c 1024 /dev/urandom > "$folder/munge.key"
        chmod 600 "$folder/munge.key"
        munged --force --socket "$folder/munge.socket" --key-file "$folder/munge.key" \
            --pid-file "$folder/munged.pid" --log-file "$folder/munged.log" --seed-file "$folder/munge.seed"
        slurmctld
        slurmd -N n1
        slurmd -N n2
        for _ in $(seq 60); do
            [ "$(sinfo -h -t idle -o %D 2>/dev/null)" = 2 ] && exit 0
            sleep 0.5
        done
        sinfo >&2
        tail -n 20 "$folder"/*.log >&2
        exit 1
        ;;
    stop)
        for file in "$2"/slurmd-n1.pid "$2"/slurmd-n2.pid "$2"/slurmctld.pid "$2"/munged.pid; do
            [ ! -f "$file" ] || kill "$(cat "$file")" 2>/dev/null || true
        done
        ;;
    *)
        sed -n '2,5p' "$0" >&2
        exit 2
        ;;
esac
