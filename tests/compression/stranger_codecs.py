"""A reader of every codec but ``compeft.v2`` (:mod:`.stranger_gaps`), from docs/reference/codecs.md alone.

It has NumPy for fp32, fp64 and Philox, and nothing of headwater. Tensors are shapes, in order of name.
"""

import math
import struct

import numpy as np

from tests.compression.stranger_gaps import decode as compeft_gaps
from tests.compression.stranger_gaps import varint

F32 = np.float32
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023,
    1.0,
]  # fmt: skip
"""Dettmers et al. 2023, appendix E."""


class Bytes:
    def __init__(self, data):
        self.data, self.at = data, 0

    def byte(self):
        return self.take(1)[0]

    def take(self, count):
        self.at += count
        assert self.at <= len(self.data)
        return self.data[self.at - count : self.at]

    def varint(self):
        value, self.at = varint(self.data, self.at)
        return value

    def f32(self, count):
        return np.frombuffer(self.take(4 * count), "<f4")

    def rest(self):
        return self.take(len(self.data) - self.at)


def stream(data, blocks):
    """Symbols of each block, which is its list of counts."""
    data += bytes(-len(data) % 4)
    words = [word for (word,) in struct.iter_unpack("<I", data)]
    state = words.pop() if words else 0
    state = state << 32 | words.pop() if words else state
    found = []
    for counts in blocks:
        total = sum(counts)
        if total in counts:  # one symbol everywhere, or no place
            found.append([counts.index(total)] * total)
            continue
        e = [c * (2**24 - len(counts)) // total for c in counts]
        e[counts.index(max(counts))] += 2**24 - len(counts) - sum(e)
        weights = [1 + part for part in e]
        symbols = []
        for _ in range(total):
            q, low, s = state % 2**24, 0, 0
            while q >= low + weights[s]:
                low, s = low + weights[s], s + 1
            state = (state >> 24) * weights[s] + q - low
            if state < 2**32 and words:
                state = state << 32 | words.pop()
            symbols.append(s)
        assert [symbols.count(s) for s in range(len(counts))] == counts
        found.append(symbols)
    assert (state, words) == (0, [])
    return found


def histogram(bytes_):
    first, length = bytes_.byte(), 1 + bytes_.byte()
    counts = []
    while len(counts) < length:
        counts.append(bytes_.varint())
        if not counts[-1]:
            counts += [0] * bytes_.varint()
    return first, counts


def symbols_of(bytes_, count, alphabet):
    if bytes_.byte():
        first, counts = histogram(bytes_)
        return [first + s for s in stream(bytes_.rest(), [counts])[0]]
    width = next(w for w in (1, 2, 4, 8) if 2**w >= alphabet)
    bits = "".join(f"{byte:08b}" for byte in bytes_.take(-(-count * width // 8)))
    return [int(bits[i * width : (i + 1) * width], 2) for i in range(count)]


def groups_of(sizes):
    small = [i for i, size in enumerate(sizes) if size < 2048]
    return [[i] for i, size in enumerate(sizes) if size >= 2048] + ([small] if small else [])


def ternary(b, sizes):
    out, blocks, used = [np.zeros(n, F32) for n in sizes], [], []
    for members in groups_of(sizes):
        plus, minus = b.varint(), b.varint()
        if plus or minus:
            scales = [b.f32(1)[0] for _ in members]
            blocks.append([sum(sizes[i] for i in members) - plus - minus, plus, minus])
            used.append((members, scales))
    for symbols, (members, scales) in zip(stream(b.rest(), blocks), used, strict=True):
        places = iter(symbols)
        for i, scale in zip(members, scales, strict=True):
            out[i] = np.array([(F32(0), scale, -scale)[next(places)] for _ in range(sizes[i])], F32)
    return out


def dense(b, sizes, kind):
    if kind == "bf16":
        return [(np.frombuffer(b.take(2 * n), "<u2").astype(np.uint32) << 16).view(F32) for n in sizes]
    dtype = {"fp32": "<f4", "fp16": "<f2"}[kind]
    return [np.frombuffer(b.take(n * np.dtype(dtype).itemsize), dtype).astype(F32) for n in sizes]


def blockwise(b, sizes, levels):
    """Also qsgd, whose levels are made from its second byte."""
    size = b.varint()
    cuts = [(i, at, min(at + size, n)) for i, n in enumerate(sizes) for at in range(0, n, size)]
    scales = b.f32(len(cuts))
    count = sum(end - at for (_, at, end), scale in zip(cuts, scales, strict=True) if scale)
    symbols, out = iter(symbols_of(b, count, len(levels))), [np.zeros(n, F32) for n in sizes]
    for (i, at, end), scale in zip(cuts, scales, strict=True):
        if scale:
            out[i][at:end] = [levels[next(symbols)] * scale for _ in range(at, end)]
    return out


def lossless(b, sizes):
    out, groups, planes, blocks = [None] * len(sizes), groups_of(sizes), [], []
    for members in groups:
        count = sum(sizes[i] for i in members)
        for plane in range(4):
            if b.byte():
                first, counts = histogram(b)
                planes.append((first, len(blocks)))
                blocks.append(counts)
                zeros = counts[255 - first] if first + len(counts) == 256 else 0
            else:
                planes.append(b.take(count))
                zeros = planes[-1].count(255)
            count -= 0 if plane else zeros
    coded = stream(b.rest(), blocks)
    for number, members in enumerate(groups):
        of = [
            iter(p if isinstance(p, bytes) else [p[0] + s for s in coded[p[1]]])
            for p in planes[4 * number : 4 * number + 4]
        ]
        for i in members:
            words = []
            for _ in range(sizes[i]):
                if (exponent := next(of[0])) == 255:
                    words.append(0)
                    continue
                low = sum(next(plane) << shift for plane, shift in zip(of[1:], (16, 8, 0), strict=True))
                words.append((low & 1) << 31 | exponent << 23 | low >> 1)
            out[i] = np.array(words, np.uint32).view(F32)
    return out


def kept_places(b, sizes):
    groups = groups_of(sizes)
    kept = [b.varint() for _ in groups]
    blocks = [[sum(sizes[i] for i in m) - k, k] for m, k in zip(groups, kept, strict=True)]
    rows, places = stream(b.take(b.varint()), blocks), [None] * len(sizes)
    for members, row in zip(groups, rows, strict=True):
        at = 0
        for i in members:
            places[i] = [place for place in range(sizes[i]) if row[at + place]]
            at += sizes[i]
    return places


def put(sizes, places, values):
    out = [np.zeros(n, F32) for n in sizes]
    for mine, at, these in zip(out, places, values, strict=True):
        mine[at] = these
    return out


def topk(b, sizes):
    bits, places = b.byte(), kept_places(b, sizes)
    counts = [len(at) for at in places]
    heads = [b.f32({16: 0, 8: 1, 2: 2}[bits]) if n else None for n in counts]
    if bits == 16:
        return put(sizes, places, dense(b, counts, "bf16"))
    symbols = iter(symbols_of(b, sum(counts), {8: 255, 2: 4}[bits]))

    def value(head):
        c = next(symbols)
        if bits == 8:
            return (F32(c) - F32(127)) / F32(127) * head[0]
        return -head[c >> 1] if c & 1 else head[c >> 1]

    return put(
        sizes, places, [[value(head) for _ in range(n)] for head, n in zip(heads, counts, strict=True)]
    )


def drawn(b, sizes):
    draw = np.random.Philox(key=int.from_bytes(b.take(16), "big"))
    places = []
    for n in sizes:
        raw = draw.random_raw(-(-n // 2))
        words = [int(r) >> shift & 0xFFFFFFFF for r in np.atleast_1d(raw) for shift in (0, 32)][:n]
        places.append(sorted(range(n), key=lambda i, words=words: (words[i], i)))
    return [sorted(at[: b.varint()]) for at in places]


def logquant(b, sizes):
    mode, tops = b.byte(), [b.f32(1)[0] for _ in sizes]
    count = sum(n for n, top in zip(sizes, tops, strict=True) if top)
    if mode:
        first = b.byte()
        counts = [b.varint() for _ in range(257 - first)]
        codes = iter([s + first - 1 if s else 0 for s in stream(b.rest(), [counts])[0]])
    else:
        codes = iter(b.take(count))

    def value(c, top):
        octaves, rest = divmod(-2 * (255 - c), 12)
        return F32(np.ldexp(2.0 ** (rest / 12), octaves) * float(top)) if c else F32(0)

    return [
        np.array([value(next(codes), top) for _ in range(n)], F32) if top else np.zeros(n, F32)
        for n, top in zip(sizes, tops, strict=True)
    ]


def nnadq(b, sizes):
    out = []
    for n in sizes:
        if bits := b.byte():
            step, zero = b.f32(1)[0], b.byte()
            part = Bytes(b.take(b.varint()))
            out.append(np.array([F32(c - zero) * step for c in symbols_of(part, n, 2**bits)], F32))
        else:
            out.append(np.zeros(n, F32))
    return out


def powersgd(b, shapes):
    rank, out = b.varint(), []
    for shape in shapes:
        n = math.prod(shape)
        m = shape[0] if len(shape) > 1 and n else 1
        if len(shape) > 1 and rank * (m + n // m) < n:
            p, q = b.f32(m * rank).reshape(m, rank).astype(float), b.f32(n // m * rank).reshape(-1, rank)
            total = np.zeros((m, n // m))
            for k in range(rank):
                total += p[:, k : k + 1] * q.astype(float)[:, k]
            out.append(total.astype(F32).reshape(-1))
        else:
            out.append(b.f32(n))
    return out


def decode(id, body, shapes):
    """The values of each tensor, flat."""
    sizes, b = [math.prod(shape) for shape in shapes], Bytes(body)
    if id == "compeft.v2":
        return [np.array(values, F32) for values in compeft_gaps(body, sizes)]
    if id.startswith("dense-"):
        found = dense(b, sizes, id[6:10])
    else:
        assert b.byte() == 1
        found = _version_1(id, b, shapes, sizes)
    assert b.at == len(body)
    return found


def _version_1(id, b, shapes, sizes):
    if id == "stc.v1":
        return np.split(ternary(b, [sum(sizes)])[0], np.cumsum(sizes)[:-1])
    if id in ("compeft.v1", "sign.v1"):
        return ternary(b, sizes)
    if id in ("int8.v1", "int4.v1"):
        half = {"int8.v1": 127, "int4.v1": 7}[id]
        return blockwise(b, sizes, [F32(c - half) / F32(half) for c in range(2 * half + 1)])
    if id == "qsgd.v1":
        s = b.byte()
        return blockwise(b, sizes, [F32(c - s) / F32(s) for c in range(2 * s + 1)])
    if id in ("topk.v1", "sparseloco.v1"):
        return topk(b, sizes)
    if id == "randk.v1":
        places = drawn(b, sizes)
        factors = [F32(n / len(at)) for n, at in zip(sizes, places, strict=True)]
        return put(sizes, places, [b.f32(len(at)) * f for at, f in zip(places, factors, strict=True)])
    if id == "chain.v1":
        places = drawn(b, sizes) if (random := b.byte()) else kept_places(b, sizes)
        values = decode(b.take(b.byte()).decode(), b.rest(), [(len(at),) for at in places])
        if random:
            values = [v * F32(n / len(v)) for v, n in zip(values, sizes, strict=True)]
        return put(sizes, places, values)
    if id == "by-module.v1":
        ids = [b.take(b.byte()).decode() for _ in range(b.varint())]
        whose, out = [b.varint() for _ in shapes], [None] * len(shapes)
        for part, own in enumerate(ids):
            mine = [i for i, p in enumerate(whose) if p == part]
            for i, values in zip(
                mine, decode(own, b.take(b.varint()), [shapes[i] for i in mine]), strict=True
            ):
                out[i] = values
        return out
    readers = {"lossless.v1": lossless, "logquant8.v1": logquant, "nnadq.v1": nnadq}
    if id in readers:
        return readers[id](b, sizes)
    if id == "nf4.v1":
        return blockwise(b, sizes, [F32(level) for level in NF4])
    assert id == "powersgd.v1"
    return powersgd(b, shapes)
