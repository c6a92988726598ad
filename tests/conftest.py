"""Every test runs on one thread: on a busy machine several are slower, and results do not depend on the machine."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start

import torch

torch.set_num_threads(1)
