#!/usr/bin/env bash
# Train on several hosts without SLURM: one torchrun on each host. They meet on the first host.
set -euo pipefail

usage() {
    cat <<'END'
usage: launchers/multinode.sh HOSTS [options] -- --config CONFIG [section.key=value ...]

HOSTS, one of
  --hosts A,B,...        start on all of these hosts from here
  --hostfile FILE        the same, from lines of "host slots=N" (DeepSpeed's format)
  --node-rank I --nodes N --master A
                         start on this host only. It is the I-th (from 0) of N; A is the first host's address.
                         Use this where you cannot log in to other hosts: run it on every host.
options
  --ranks-per-node N     ranks on each host (default: its GPUs, else 1; a hostfile's slots)
  --port P               port on the first host (default: 29500)
  --shell CMD            how to run a command on a host, as CMD HOST COMMAND (default: ssh)

The repository must be in the same folder on every host, with its .venv or torchrun on PATH. Run folders must
be on a file system that all hosts share. Ctrl-C stops the run on all hosts. To stop it with a checkpoint,
touch <run folder>/stop instead.
END
}

fail() { echo "error: $*; see --help" >&2; exit 2; }

hosts=() ranks= port=29500 shell=ssh node_rank= nodes= master=
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --) shift; break ;;
        --hosts | --hostfile | --ranks-per-node | --port | --shell | --node-rank | --nodes | --master)
            [ $# -ge 2 ] || fail "$1 needs a value" ;;&
        --hosts) IFS=, read -ra hosts <<< "$2" ;;
        --hostfile)
            [ -f "$2" ] || fail "--hostfile $2: no such file"
            while read -r host slots _; do
                [[ -z $host || $host == \#* ]] && continue
                hosts+=("$host")
                [[ -z $slots ]] || ranks=${ranks:-${slots#slots=}}
                [[ -z $slots || ${slots#slots=} == "$ranks" ]] \
                    || fail "--hostfile $2: slots differ among hosts"
            done < "$2" ;;
        --ranks-per-node) ranks=$2 ;;
        --port) port=$2 ;;
        --shell) shell=$2 ;;
        --node-rank) node_rank=$2 ;;
        --nodes) nodes=$2 ;;
        --master) master=$2 ;;
        *) fail "unknown option $1 (the training command's own come after --)" ;;
    esac
    shift 2
done
[ $# -ge 2 ] || fail "nothing after --: give --config CONFIG"
cd "$(dirname "$0")/.."

if [ -n "$node_rank" ]; then
    [ -n "$nodes" ] && [ -n "$master" ] || fail "--node-rank $node_rank goes with --nodes and --master"
    [ "$node_rank" -lt "$nodes" ] || fail "--node-rank $node_rank is not below --nodes $nodes"
    [ ! -d .venv/bin ] || export PATH="$PWD/.venv/bin:$PATH"
    ranks=${ranks:-$(nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true)}
    [ "${ranks:-0}" -gt 0 ] || ranks=1
    exec torchrun --nnodes "$nodes" --node-rank "$node_rank" --nproc-per-node "$ranks" \
        --master-addr "$master" --master-port "$port" --max-restarts 0 launchers/train.py "$@"
fi

[ ${#hosts[@]} -gt 0 ] || fail "no hosts: give --hosts, --hostfile or --node-rank"
pids=()
trap 'kill "${pids[@]}" 2>/dev/null' INT TERM EXIT
for i in "${!hosts[@]}"; do
    command=$(printf '%q ' "$PWD/launchers/multinode.sh" --node-rank "$i" --nodes "${#hosts[@]}" \
        --master "${hosts[0]}" --port "$port" ${ranks:+--ranks-per-node "$ranks"} -- "$@")
    $shell "${hosts[$i]}" "$command" &
    pids+=($!)
done
status=0
for i in "${!pids[@]}"; do
    wait "${pids[$i]}" || { code=$?; echo "error: ${hosts[$i]} ended with status $code" >&2; status=$code; }
done
trap - EXIT
exit $status
