r"""Run the paper's experiments again, at the scale of your machine, and say which of its claims hold there.

    python recipes/reproduce.py losses                        # the digits, five seeds, a few minutes
    python recipes/reproduce.py all --scale digits            # all experiments, less than two hours
    python recipes/reproduce.py methods positives --scale cifar10-small
    accelerate launch --config_file pml_supcon/configs/launch/one_gpu.yaml recipes/reproduce.py methods --scale cifar10
    ACCELERATE_USE_CPU=1 torchrun --nproc_per_node 2 recipes/reproduce.py losses

Every method of a table has the same budget, and its learning rate is chosen among the same number of values on held-out
training images; then it is trained with every seed, and the test split is scored once, after the last epoch. What is
finished is not repeated: the same command continues after an interruption. Flags that `--help` does not list are
settings of all trainings, as `train.py` takes them (`--epochs 1 --warmup-epochs 0`).
"""

from pml_supcon.experiments.app import main

if __name__ == "__main__":
    main()
