#!/usr/bin/env bash
# Train on two machines, each a network namespace of its own on this one, joined by a virtual cable. Needs root and
# iproute2:
#
#     benchmarks/two_machines.sh --epochs 5 --output runs/two-machines
#
# Each namespace runs the command of a real machine, with the address of the first machine.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
name=supcon$$

log=$(mktemp)

cleanup() { # also after a failure on one machine, while the other still runs or waits
    for machine in 0 1; do
        { ip netns pids "$name$machine" | xargs -r kill -KILL; } 2>/dev/null || true
    done
    wait 2>/dev/null || true
    for machine in 0 1; do
        ip netns del "$name$machine" 2>/dev/null || true
    done
    rm -f "$log"
}
trap cleanup EXIT

ip netns add "${name}0"
ip netns add "${name}1"
ip link add "v${name}0" netns "${name}0" type veth peer name "v${name}1" netns "${name}1"
for machine in 0 1; do
    ip -n "$name$machine" addr add "10.77.0.$((machine + 1))/24" dev "v$name$machine"
    ip -n "$name$machine" link set "v$name$machine" up
    ip -n "$name$machine" link set lo up
done

train() { # on machine $1
    local machine=$1
    shift
    exec ip netns exec "$name$machine" env ACCELERATE_USE_CPU=1 OMP_NUM_THREADS=1 GLOO_SOCKET_IFNAME="v$name$machine" \
        "$python" -m torch.distributed.run --nnodes 2 --nproc_per_node 1 --node_rank "$machine" \
        --master_addr 10.77.0.1 --master_port 29500 recipes/train.py "$@"
}
train 0 "$@" &
train 1 "$@" >"$log" 2>&1 &
for _ in 0 1; do # the first to end: if it fails, the run fails and the trap ends the other
    wait -n || {
        status=$?
        echo "The run failed with exit status $status. Log of machine 1:"
        cat "$log"
        exit "$status"
    } >&2
done
