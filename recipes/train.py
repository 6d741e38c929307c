r"""Train an encoder by any method of the paper, then score it: retrieval and a linear classifier.

    python recipes/train.py                                      # digits, one process, a minute
    python recipes/train.py --method triplet --miner batch_hard  # a comparator: one flag differs
    python recipes/train.py --config pml_supcon/configs/cifar10.yaml
    python recipes/train.py --data imagefolder:my/images --epochs 100 --output runs/mine
    python recipes/train.py --output runs/mine --resume          # continue after a stop or kill
    ACCELERATE_USE_CPU=1 torchrun --nproc_per_node 2 recipes/train.py  # several processes without a GPU

Stage 1 trains the encoder under a projection head with a contrastive loss over V views of each image, under a
classifier with cross entropy, or both at once; stage 2 freezes the encoder, drops the head and trains a linear
classifier. The test split is scored once, after the last epoch. `--help` lists the settings.
"""

from pml_supcon.training.app import main

if __name__ == "__main__":
    main()
