#!/bin/bash
# Slurm job: one run, with a rank for each GPU. docs/how-to/deploy.md explains it. In the project's folder:
#   sbatch docs/how-to/slurm.sh dataset=celeba
#SBATCH --job-name=submanifold
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1         # torchrun, which starts the ranks
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=08:00:00
#SBATCH --signal=B:USR1@120         # two minutes before its time is over
#SBATCH --requeue                   # also where a node fails, or the job is preempted
#SBATCH --open-mode=append

address=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):29400

trap 'scontrol requeue "$SLURM_JOB_ID"' USR1
srun --kill-on-bad-exit=1 .venv/bin/torchrun --nnodes="$SLURM_NNODES" --nproc-per-node="${SLURM_GPUS_ON_NODE:-1}" \
    --rdzv-id="$SLURM_JOB_ID" --rdzv-backend=c10d --rdzv-endpoint="$address" \
    -m submanifold run --pipeline=hierarchical --params="$1" &
wait $! # not srun itself, for a shell heeds no signal while a command runs
