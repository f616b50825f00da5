#!/usr/bin/env bash
# Train on several hosts without SLURM: one torchrun on each host. They meet on the first host.
set -euo pipefail

usage() {
    cat <<'END'
usage: launchers/multinode.sh HOSTS [options] -- --config CONFIG [section.key=value ...]

HOSTS, one of
  --hosts A,B,...        start on all of these hosts from here
  --hostfile FILE        the same, from lines of "host slots=N" (DeepSpeed's format); # begins a comment
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

# Fills hosts and slots from the file $1. Its last line may lack its end, and it may come from Windows: with a
# byte order mark, and a carriage return in every line.
read_hostfile() {
    [ -f "$1" ] || fail "--hostfile $1: no such file"
    local line number=0 host count rest known
    local others='^([a-z_-]+=[0-9]+ *)*$' # what MPI's hostfiles say too, such as max_slots=N; not used
    while IFS= read -r line || [ -n "$line" ]; do
        number=$((number + 1))
        line=${line#$'\xef\xbb\xbf'} line=${line%%#*}
        read -r host count rest <<< "${line//$'\r'/}"
        [ -n "$host" ] || continue
        [[ $rest =~ $others && $count =~ ^(slots=0*[1-9][0-9]*)?$ ]] \
            || fail "--hostfile $1: line $number: '$host $count${rest:+ $rest}' is not \"host\" or \"host slots=N\""
        for known in "${hosts[@]}"; do
            [ "$known" != "$host" ] || fail "--hostfile $1: line $number names $host again"
        done
        count=${count#slots=} count=${count:+$((10#$count))}
        [[ ${#hosts[@]} -eq 0 || $count == "$slots" ]] \
            || fail "--hostfile $1: line $number: $host has slots=${count:-none}, the hosts before slots=${slots:-none}"
        hosts+=("$host") slots=$count
    done < "$1"
    [ ${#hosts[@]} -gt 0 ] || fail "--hostfile $1: names no host"
}

hosts=() slots= ranks= port=29500 shell=ssh node_rank= nodes= master=
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --) shift; break ;;
        --hosts | --hostfile | --ranks-per-node | --port | --shell | --node-rank | --nodes | --master)
            [ $# -ge 2 ] || fail "$1 needs a value" ;;&
        --hosts) IFS=, read -ra hosts <<< "$2" ;;
        --hostfile) read_hostfile "$2" ;;
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
ranks=${ranks:-$slots}
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
