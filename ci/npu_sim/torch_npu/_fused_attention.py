"""npu_fusion_attention: attention in float32 by its formula, softmax(mask(scale * (q k^T + pse))) v."""

import torch



def npu_fusion_attention(query, key, value, head_num, input_layout, pse=None, padding_mask=None, atten_mask=None, scale=1.0,
                         keep_prob=1.0, pre_tockens=2147483647, next_tockens=2147483647, inner_precise=0, prefix=None,
                         actual_seq_qlen=None, actual_seq_kvlen=None, sparse_mode=0, gen_mask_parallel=True, sync=False,
                         softmax_layout=""):
    """Returns (attention of the query's shape and dtype, maximum and sum of the softmax as (B, N, S, 8) in float32, an empty
    tensor, seed, offset and length of the dropout mask, which are 0 here). A true value in `atten_mask` masks its place."""
    if input_layout not in ("BNSD", "BSND", "BSH", "SBH") or prefix is not None or sparse_mode not in (0, 1, 2, 3):
        raise NotImplementedError("npu_fusion_attention: simulated are the layouts BNSD, BSND, BSH and SBH with sparse_mode 0 to 3"
                                  f", not {input_layout!r} with {sparse_mode}{' and a prefix' if prefix is not None else ''}")
    if not query.dtype == key.dtype == value.dtype:
        raise RuntimeError(f"npu_fusion_attention: query, key and value are {query.dtype}, {key.dtype} and {value.dtype}")
    size = query.shape[-1] // head_num if input_layout.endswith("H") else query.shape[-1]
    q, k, v = (_heads(t.float(), input_layout, size) for t in (query, key, value))
    k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for t in (k, v))
    scores = q @ k.transpose(-1, -2)
    scores = (scores if pse is None else scores + pse.float()) * scale
    if atten_mask is not None:
        scores = scores.masked_fill(_mask(atten_mask, scores, sparse_mode), torch.finfo(torch.float32).min)
    top = scores.amax(-1, keepdim=True).detach()
    weights = (scores - top).exp()
    total = weights.sum(-1, keepdim=True)
    out = torch.dropout(weights / total, 1 - keep_prob, True) @ v
    wide = [t.detach().expand(*t.shape[:-1], 8).contiguous() for t in (top, total)]
    return (_flat(out, input_layout).to(query.dtype), *wide, query.new_empty(0), 0, 0, 0)


def _heads(t, layout, size):
    """A tensor in any layout as (B, N, S, D)."""
    if layout.endswith("H"):
        t = t.unflatten(-1, (-1, size))
    return t if layout == "BNSD" else t.permute(1, 2, 0, 3) if layout == "SBH" else t.transpose(1, 2)


def _flat(t, layout):
    t = t if layout == "BNSD" else t.permute(2, 0, 1, 3) if layout == "SBH" else t.transpose(1, 2)
    return (t.flatten(-2) if layout.endswith("H") else t).contiguous()


def _mask(given, scores, sparse_mode):
    """The places to mask. Modes 2 and 3 are causal, from the upper left and the lower right; their `given` is compressed."""
    if sparse_mode < 2:
        return given.bool()
    rows, columns = scores.shape[-2:]
    shift = columns - rows if sparse_mode == 3 else 0
    return torch.ones(rows, columns, dtype=torch.bool, device=scores.device).triu(1 + shift)
