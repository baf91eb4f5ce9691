#!/bin/bash
# Slurm job: one run. docs/how-to/deploy.md explains it. In the project's folder:
#   sbatch docs/how-to/slurm.sh dataset=celeba
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
export ADDRESS PARAMS="launch.processes=${SLURM_GPUS_ON_NODE:-1}${1:+,$1}"
if ((SLURM_NNODES > 1)); then
    ADDRESS=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):29400
    PARAMS+=",launch.machines=$SLURM_NNODES,launch.address=$ADDRESS"
fi

work() { # the first machine runs, and others join it
    if ((SLURM_NODEID == 0)); then
        exec .venv/bin/kedro run --pipeline=hierarchical --params="$PARAMS"
    else
        exec .venv/bin/kedro join "$ADDRESS"
    fi
}
export -f work

trap 'scontrol requeue "$SLURM_JOB_ID"' USR1
srun --kill-on-bad-exit=1 bash -c work &
wait $! # not srun itself, for a shell heeds no signal while a command runs
