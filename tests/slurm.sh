#!/usr/bin/env bash
# A Slurm of one node on this machine, for tests: its configuration, key, sockets and logs lie in one folder.
#   tests/slurm.sh up FOLDER      start it; then `export PATH=FOLDER/bin:$PATH` and use sbatch, squeue, scancel ...
#   tests/slurm.sh down FOLDER    end its jobs and its three processes
#   tests/slurm.sh install        Debian's packages, as root (`up` installs nothing)
# Without systemd, cgroups and a database: memory is booked, not enforced, and states are asked of squeue.
set -euo pipefail
PATH=$PATH:/usr/sbin
NEEDED=(munged slurmctld slurmd sbatch srun squeue)

fail() { echo "$*" >&2; exit 1; }

usable() {
    for program in "${NEEDED[@]}"; do
        command -v "$program" >/dev/null || fail "Slurm's $program is not installed: \`tests/slurm.sh install\` as root."
    done
}

free_ports() { # three of them
    python3 -c 'import socket
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(*(each.getsockname()[1] for each in held))'
}

configure() {
    local me ports
    me=$(id -un)
    ports=($(free_ports))
    # what the hardware has, so that slurmd agrees; threads of one core count as CPUs
    local memory=$(($(awk '/MemTotal/ {print $2}' /proc/meminfo) / 1024 * 9 / 10)) cpus
    cpus=$(env -u OMP_NUM_THREADS nproc)
    cat >"$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=$me
SlurmdUser=$me
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=5
CredType=cred/munge
SlurmctldPort=${ports[0]}
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2
JobRequeue=1
PreemptType=preempt/none
KillWait=5
MinJobAge=600
ReturnToService=2
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SlurmctldDebug=info
SlurmdDebug=info
NodeName=one NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=${ports[1]} CPUs=$cpus RealMemory=$memory State=UNKNOWN
PartitionName=test Nodes=one Default=YES MaxTime=INFINITE State=UP
CONF
}

commands() { # that know the configuration; Snakemake's plugin takes SLURM_CONF out of a job's environment
    for name in sbatch srun squeue scancel scontrol sinfo sacct; do
        printf '#!/bin/sh\nexport SLURM_CONF=%q\nexec %q "$@"\n' "$folder/slurm.conf" "$(command -v "$name")" >"$folder/bin/$name"
        chmod +x "$folder/bin/$name"
    done
}

up() {
    usable
    mkdir -p "$folder"/{state,spool,bin}
    configure
    commands
    dd if=/dev/urandom of="$folder/munge.key" bs=1024 count=1 status=none
    chmod 400 "$folder/munge.key"
    munged --force --key-file "$folder/munge.key" --socket "$folder/munge.socket" --pid-file "$folder/munged.pid" \
        --log-file "$folder/munged.log" --seed-file "$folder/munged.seed"
    export SLURM_CONF=$folder/slurm.conf
    slurmctld -f "$SLURM_CONF"
    slurmd -f "$SLURM_CONF" -N one
    for _ in $(seq 60); do
        if timeout 10 sinfo --noheader --format %t 2>/dev/null | grep -q '^idle$'; then return; fi
        sleep 0.5
    done
    tail -n 5 "$folder"/*.log >&2
    down
    fail "Slurm did not start: see the logs in $folder."
}

down() {
    export SLURM_CONF=$folder/slurm.conf
    timeout 10 scancel --user "$(id -un)" 2>/dev/null || true
    for name in slurmd slurmctld munged; do
        [ -s "$folder/$name.pid" ] || continue
        local process
        process=$(cat "$folder/$name.pid")
        kill "$process" 2>/dev/null || true
        for _ in $(seq 50); do kill -0 "$process" 2>/dev/null || break; sleep 0.1; done
        kill -9 "$process" 2>/dev/null || true
    done
}

case "${1:-}" in
    install) apt-get install --yes --no-install-recommends munge slurmctld slurmd slurm-client ;;
    up | down) folder=$(realpath -m "${2:?a folder}"); "$1" ;;
    *) sed -n '2,6s/^# //p' "$0"; exit 2 ;;
esac
