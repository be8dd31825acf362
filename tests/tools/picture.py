"""Images as the coordinator writes them, and how far one is from another."""

import collections
import math
import zlib


def pixels(file):
    """The values of a PNG of 8-bit RGB."""
    with open(file, "rb") as image:
        data = image.read()
    at, packed = 8, b""
    while at < len(data):
        length, kind = int.from_bytes(data[at:at + 4], "big"), data[at + 4:at + 8]
        if kind == b"IHDR":
            width = int.from_bytes(data[at + 8:at + 12], "big")
        if kind == b"IDAT":
            packed += data[at + 8:at + 8 + length]
        at += 12 + length
    raw, stride, out = zlib.decompress(packed), 3 * width, bytearray()
    before = bytes(stride)
    for at in range(0, len(raw), stride + 1):
        row = unfiltered(raw[at], raw[at + 1:at + 1 + stride], before)
        out += row
        before = row
    return bytes(out)


def unfiltered(way, coded, before):
    """A row of which each value was coded as what it differs in from a guess, made one of five ways."""
    row = bytearray(coded)
    for place in range(len(row)):
        left, above = row[place - 3] if place >= 3 else 0, before[place]
        if way == 4:
            corner = before[place - 3] if place >= 3 else 0
            distances = (abs(above - corner), 0, left), (abs(left - corner), 1, above), (abs(left + above - 2 * corner), 2, corner)
            guess = min(distances)[2]
        else:
            guess = (0, left, above, (left + above) // 2)[way]
        row[place] = row[place] + guess & 0xFF
    return row


def compare(one, other):
    """The largest difference of two values at the same place, and the peak signal to noise ratio in dB."""
    differences = collections.Counter(abs(near - far) for near, far in zip(one, other, strict=True))
    error = sum(count * difference**2 for difference, count in differences.items()) / len(one)
    return max(differences), 10 * math.log10(255**2 / error) if error else math.inf
