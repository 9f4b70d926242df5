"""One thread everywhere: runs that must come out the same bits are made here and in processes of their own."""

import os

import torch

os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
