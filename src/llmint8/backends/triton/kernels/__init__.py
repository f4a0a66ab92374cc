"""Triton kernels. Importing a module of this package imports Triton, and decides how its kernels run.

They are compiled, or where the environment says TRITON_INTERPRET=1 interpreted, on tensors of a CPU.
"""
