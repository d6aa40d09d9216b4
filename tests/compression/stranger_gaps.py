"""A reader of ``compeft.v2`` written from docs/reference/codecs.md alone: no numpy, no headwater."""

import struct


def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def counts_of(data, at, sizes):
    last, counts = {}, []
    for size in dict.fromkeys(sizes):
        last[size], at = varint(data, at)
    changes, after = {}, 0
    repeated = [i for i, size in enumerate(sizes) if size in sizes[:i]]
    if repeated:
        many, at = varint(data, at)
        for _ in range(many):
            equal, at = varint(data, at)
            after += equal
            changes[repeated[after]], at = varint(data, at)
            after += 1
    for i, size in enumerate(sizes):
        last[size] = changes.get(i, last[size])
        counts.append(last[size])
    return counts, at


def table(numel, count):
    shift = 0
    while count * 2 ** (shift + 1) * 4 <= numel:
        shift += 1
    stays = (numel - count) * 2**40 // numel
    for _ in range(shift):
        stays = stays**2 // 2**40
    tails = [2**40]
    while tails[-1] > 2**32:
        tails.append(tails[-1] * stays // 2**40)
    free = 2**24 - len(tails)
    units = [1 + (a - b) * free // 2**40 for a, b in zip(tails, [*tails[1:], 0], strict=True)]
    units[0] += 2**24 - sum(units)
    return shift, units


class Stack:
    def __init__(self, data):
        data += bytes(-len(data) % 4)
        self.words = [word for (word,) in struct.iter_unpack("<I", data)]
        self.state = self.words.pop()
        if self.words:
            self.state = self.state << 32 | self.words.pop()

    def symbol(self, units):
        quantile, left, symbol = self.state & 0xFFFFFF, 0, 0
        while quantile >= left + units[symbol]:
            left += units[symbol]
            symbol += 1
        self.state = (self.state >> 24) * units[symbol] + quantile - left
        if self.state < 2**32 and self.words:
            self.state = self.state << 32 | self.words.pop()
        return symbol

    def rest(self):
        """The bits that are left below the mark, the first one first."""
        number = sum(word << 32 * i for i, word in enumerate([*self.words, self.state]))
        return [number >> i & 1 for i in range(number.bit_length() - 1)]


def decode(data, sizes):
    """The values of each tensor, given their sizes in order of name."""
    values = [[0.0] * size for size in sizes]
    precision = data[0]
    if not precision:
        assert len(data) == 1
        return values
    counts, at = counts_of(data, 1, sizes)
    scaled = [i for i, count in enumerate(counts) if count]
    width = 0
    if len(scaled) > 1:
        width, at = data[at], at + 1
    groups = []
    for size, count in sorted({(sizes[i], counts[i]) for i in scaled}):
        members = [i for i in scaled if (sizes[i], counts[i]) == (size, count)]
        shift, units, escapes = 0, None, 0
        if count < size:
            shift, units = table(size, count)
            if (size - count) // ((len(units) - 1) << shift):
                escapes, at = varint(data, at)
        groups.append((members, size, count, shift, units, escapes))
    length, at = varint(data, at)
    assert length == len(data) - at
    stack = Stack(data[at:])
    coded = [
        [] if units is None else [stack.symbol(units) for _ in range(len(members) * count + escapes)]
        for members, size, count, shift, units, escapes in groups
    ]
    bits = iter(stack.rest())
    signs, places = {}, {}
    for symbols, (members, _size, count, shift, units, _escapes) in zip(coded, groups, strict=True):
        minus = [[next(bits) for _ in range(count)] for _ in members]
        low = [0] * (count * len(members))
        for plane in range(shift):
            low = [value + (next(bits) << plane) for value in low]
        gaps, high = [], 0
        for symbol in symbols:
            high += symbol
            if symbol < len(units) - 1:
                gaps.append((high << shift) + low[len(gaps)])
                high = 0
        for row, member in enumerate(members):
            place, signs[member], places[member] = -1, minus[row], []
            for gap in gaps[row * count : (row + 1) * count] if units else [0] * count:
                place += gap + 1
                places[member].append(place)

    def number(width):
        return sum(next(bits) << i for i in range(width))

    least = number(precision + 7)
    for i in scaled:
        (scale,) = struct.unpack("<f", struct.pack("<I", (least + number(width)) << (24 - precision)))
        for place, minus in zip(places[i], signs[i], strict=True):
            values[i][place] = -scale if minus else scale
    assert next(bits, None) is None
    return values
