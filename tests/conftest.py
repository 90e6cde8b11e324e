"""What holds for every test, before anything heavy is imported."""

import os

# Two workers share two cores: threads of PyTorch's that wait for one another cost more than they bring.
os.environ["OMP_NUM_THREADS"] = "1"
