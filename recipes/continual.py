r"""Train an encoder on tasks that come one after another by Co2L, and score all tasks after each.

    python recipes/continual.py                                  # digits, 5 tasks of 2 classes, under a minute
    python recipes/continual.py --method er --buffer-size 50     # a comparator with a smaller buffer
    python recipes/continual.py --scenario domain --num-tasks 3  # the same digits, permuted anew in each task
    python recipes/continual.py --config pml_supcon/configs/continual_cifar10.yaml
    python recipes/continual.py --output runs/mine --resume      # continue after a stop or kill, in mid-task too
    ACCELERATE_USE_CPU=1 torchrun --nproc_per_node 2 recipes/continual.py  # several processes without a GPU

A buffer keeps a few samples of past classes. `co2l` contrasts them with the present ones and keeps the similarities
of the model before the task; the comparators are `supcon_replay`, `er`, `finetune` and `joint`. `continual.json` and
`report.html` have the accuracies on each task after each task. `--help` lists the settings.
"""

from pml_supcon.evaluation.continual.app import main

if __name__ == "__main__":
    main()
