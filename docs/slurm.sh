#!/bin/bash
# A run as a job of SLURM's, which docs/deploy.md explains. In the project's folder:
#   sbatch docs/slurm.sh dataset=celeba,method=nested
#SBATCH --job-name=submanifold
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1         # it starts a process for each GPU
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=08:00:00
#SBATCH --signal=B:USR1@120         # two minutes before its time is over
#SBATCH --requeue                   # also where a node fails, or the job is preempted
#SBATCH --open-mode=append

export SUBMANIFOLD_JOB="slurm-$SLURM_JOB_ID" # one MLflow run, however often the job is queued

params="launch.processes=${SLURM_GPUS_ON_NODE:-1}${1:+,$1}"
if ((SLURM_NNODES > 1)); then
    first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    params+=",launch.nodes=$SLURM_NNODES,launch.rendezvous=$first:29400"
fi

trap 'scontrol requeue "$SLURM_JOB_ID"' USR1
srun .venv/bin/kedro run --pipeline=hierarchical --params="$params" &
wait $! # not srun itself, for a shell heeds no signal while a command runs
