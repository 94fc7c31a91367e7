"""What the PyTorch trainers here learn: a small network with dropout, on samples by number."""

import random
from typing import Any

import numpy as np
import torch

SAMPLES, WIDTH, BATCH = 96, 16, 4

# Small matrices are multiplied no faster by more threads.
torch.set_num_threads(1)


class Samples(torch.utils.data.Dataset[Any]):
    """Each is a function of the seed and its number."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, number: int) -> Any:
        generator = torch.Generator().manual_seed(self.seed * SAMPLES + number)
        values = torch.randn(WIDTH, generator=generator)
        return values, values.sin().sum(0, keepdim=True)


def network(seed: int, bytes: int) -> torch.nn.Sequential:
    """One whose weights and two moments have about so many bytes; and all generators at `seed`."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    hidden = max(8, bytes // (12 * (WIDTH + 2)))
    layers = [torch.nn.Linear(WIDTH, hidden), torch.nn.Dropout(0.2), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(hidden, 1))
