"""Attention over token graphs, timed against other libraries: ``python -m experiments.benchmarks``."""

ONE_THREAD = (
    "run backward in the calling thread, for everybody (torch.autograd.set_multithreading_enabled): the thread that "
    "PyTorch has for it takes 0.1 to 0.2 ms to wake on a virtual machine, longer than small kernels run"
)
