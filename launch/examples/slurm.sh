#!/bin/bash
# A search over a whole SLURM allocation:   sbatch --nodes=4 slurm.sh data=fashion_mnist budget.minutes=120
# Or to go on with one:                      sbatch --nodes=4 --export=ALL,RESUME=runs/mine slurm.sh
# Needs on every node, at the same path: the virtual environment that is active at submission, the data, the run folder.
#SBATCH --job-name=normact
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --exclusive
set -euo pipefail

cpus=${SLURM_CPUS_PER_TASK:-$(nproc)}
nodes=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))
head=${nodes[0]}
port=$((20000 + SLURM_JOB_ID % 10000))
ip=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')
export RAY_ADDRESS=$ip:$port NORMACT_WORKERS=$((cpus * ${#nodes[@]} - 1))
# Whoever reaches an open Ray port runs code as you: a token of this job's own (Ray 2.52 or newer).
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=${RAY_AUTH_TOKEN:-$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')}

steps=()
trap 'kill "${steps[@]}" 2>/dev/null; wait' EXIT
srun --nodes=1 --ntasks=1 --nodelist="$head" \
    ray start --head --node-ip-address="$ip" --port="$port" --num-cpus="$cpus" --include-dashboard=false --block &
steps+=($!)
for node in "${nodes[@]:1}"; do
    srun --nodes=1 --ntasks=1 --nodelist="$node" ray start --address="$RAY_ADDRESS" --num-cpus="$cpus" --block &
    steps+=($!)
done
until ray status >/dev/null 2>&1; do
    kill -0 "${steps[0]}" || { echo "Ray did not start on $head" >&2; exit 1; }
    sleep 1
done

if [ -n "${RESUME:-}" ]; then
    normact resume "$RESUME"
else
    normact search pool=slurm "$@"
fi
