r"""Score a frozen encoder in all the ways of the paper, and write a report: one HTML file and its figures as JSON.

    python recipes/evaluate.py runs/mine                         # a run of train.py, on its own data
    python recipes/evaluate.py runs/mine --compare runs/other    # two runs side by side
    python recipes/evaluate.py my/encoder --data imagefolder:my/images
    python recipes/evaluate.py resnet50.a1_in1k --data hf:cifar10 --sections retrieval,linear_probe
    python recipes/evaluate.py runs/mine --transfer torchvision:SVHN,torchvision:DTD
    ACCELERATE_USE_CPU=1 torchrun --nproc_per_node 2 recipes/evaluate.py runs/mine

Retrieval, linear probes with all labels and with few, calibration, corruptions, what the projection head throws away,
where the gradient goes, transfer. Features are computed on all processes, once, and kept: a second evaluation reads
them. `--help` lists the settings; the page of the docs says how to read the report.
"""

from pml_supcon.evaluation.app import main

if __name__ == "__main__":
    main()
