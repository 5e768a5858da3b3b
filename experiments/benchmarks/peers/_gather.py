"""The kernel of the roof; imported when it is first used, because it imports Triton."""

import triton
import triton.language as tl


@triton.jit
def gather_kernel(K, V, OUT, COL, ROW, BEGIN, END, n, stride, W: tl.constexpr, R: tl.constexpr):
    """Add the K and V rows of up to ``R`` runs of edges, ``W`` channels of each, four edges of a run in flight."""
    i = tl.program_id(0) * R + tl.arange(0, R)
    begin = tl.load(BEGIN + i, mask=i < n, other=0)
    end = tl.load(END + i, mask=i < n, other=0)
    channel = (tl.program_id(1) * W + tl.arange(0, W))[None, :]
    total = tl.zeros([R, W], tl.float32)
    for step in range(0, tl.max(end - begin, 0), 4):
        e = begin + step
        s0 = tl.load(COL + e, mask=e < end, other=0).to(tl.int64)[:, None] * stride + channel
        s1 = tl.load(COL + e + 1, mask=e + 1 < end, other=0).to(tl.int64)[:, None] * stride + channel
        s2 = tl.load(COL + e + 2, mask=e + 2 < end, other=0).to(tl.int64)[:, None] * stride + channel
        s3 = tl.load(COL + e + 3, mask=e + 3 < end, other=0).to(tl.int64)[:, None] * stride + channel
        k0 = tl.load(K + s0, mask=(e < end)[:, None], other=0.0)
        v0 = tl.load(V + s0, mask=(e < end)[:, None], other=0.0)
        k1 = tl.load(K + s1, mask=(e + 1 < end)[:, None], other=0.0)
        v1 = tl.load(V + s1, mask=(e + 1 < end)[:, None], other=0.0)
        k2 = tl.load(K + s2, mask=(e + 2 < end)[:, None], other=0.0)
        v2 = tl.load(V + s2, mask=(e + 2 < end)[:, None], other=0.0)
        k3 = tl.load(K + s3, mask=(e + 3 < end)[:, None], other=0.0)
        v3 = tl.load(V + s3, mask=(e + 3 < end)[:, None], other=0.0)
        total += k0.to(tl.float32) + v0.to(tl.float32) + k1.to(tl.float32) + v1.to(tl.float32)
        total += k2.to(tl.float32) + v2.to(tl.float32) + k3.to(tl.float32) + v3.to(tl.float32)
    row = tl.load(ROW + i, mask=i < n, other=0).to(tl.int64)[:, None] * stride
    tl.store(OUT + row + channel, total.to(OUT.dtype.element_ty), mask=(i < n)[:, None])
