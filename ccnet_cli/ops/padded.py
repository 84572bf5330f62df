"""`gemm` on CUDA: between passes, each arm of the attention begins and ends at a multiple of PADDING entries.

Tensor cores lose their accesses of 16 bytes where rows of a matrix begin anywhere. Padding is 0 in the attention.
"""

from torch import Tensor

from ccnet_cli.ops import gemm
from ccnet_cli.ops.gemm import affinity, aggregate, criss_cross_backward, scatter

__all__ = ["affinity", "aggregate", "attention_width", "criss_cross", "criss_cross_backward", "scatter"]


def attention_width(*lengths: int) -> int:
    """Entries per pixel of the attention that criss_cross returns."""
    return sum(gemm.pad_arm(length, gemm.PADDING) for length in lengths)


def criss_cross(query_BCS: Tensor, key_BCS: Tensor, value_BCS: Tensor) -> tuple[Tensor, Tensor]:
    """Output (B, C, *S) and padded attention of one pass of criss-cross attention."""
    return gemm.criss_cross(query_BCS, key_BCS, value_BCS, padded=True)
