"""The next kernel begins before the one in front of it is done: CUDA's programmatic dependent launch.

It saves the time that a launch takes. Not from Triton's library: its functions of 3.4 do not compile.
"""

import triton
import triton.language as tl


@triton.jit
def let_next_start():
    """The next kernel may begin when all programs have come here."""
    tl.inline_asm_elementwise(
        "griddepcontrol.launch_dependents; // $0", "=r", [], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def wait_for_former():
    """Nothing behind this happens before the kernel in front is done, and what it wrote can be seen."""
    tl.inline_asm_elementwise("griddepcontrol.wait; // $0", "=r", [], dtype=tl.int32, is_pure=False, pack=1)
