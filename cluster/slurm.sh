#!/bin/bash
# A Ray cluster for the time of a Slurm job, and a study on it:
#     sbatch --nodes=4 --gpus-per-node=8 cluster/slurm.sh experiments.bosz_1m /shared/results
# The same command continues the study: after the time limit, a preemption or a fault.
#SBATCH --job-name=spectral-scaling
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
set -euo pipefail

study=${1:?usage: sbatch cluster/slurm.sh STUDY STORE}
store=${2:?usage: sbatch cluster/slurm.sh STUDY STORE}
cd "${SLURM_SUBMIT_DIR:-.}"
[[ -x .venv/bin/scaling ]] || { echo "no .venv here: run 'make .venv' in this folder once" >&2; exit 2; }
export PATH="$PWD/.venv/bin:$PATH" RAY_AUTH_MODE=token RAY_AUTH_TOKEN RAY_USAGE_STATS_ENABLED=0
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')   # of this job alone
export SCALING_CACHE=${SCALING_CACHE:-${TMPDIR:-/tmp}/spectral-scaling}   # on each node's own disk

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
port=$((20000 + SLURM_JOB_ID % 10000))
head="${nodes[0]}:$port"

cpus=${SLURM_CPUS_ON_NODE:-$(nproc)}
srun --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" \
  ray start --head --block --port="$port" --num-cpus="$cpus" --include-dashboard=false &
sleep 15
if ((${#nodes[@]} > 1)); then
  workers=$(IFS=,; echo "${nodes[*]:1}")
  srun --nodes=$((${#nodes[@]} - 1)) --ntasks=$((${#nodes[@]} - 1)) --nodelist="$workers" \
    ray start --block --address="$head" --num-cpus="$cpus" &
fi

# SIGTERM two minutes before the end reaches the study, which ends in one line; its trials resume from their checkpoints.
scaling run "$study" --store "$store" --address "$head" &
driver=$!
trap 'kill -TERM "$driver"' TERM
status=0
wait "$driver" || status=$?
kill -0 "$driver" 2>/dev/null && { status=0; wait "$driver" || status=$?; }
exit "$status"
