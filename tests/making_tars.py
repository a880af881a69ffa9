"""Tars header by header, as no program would write them."""

import tarfile

END = bytes(1024)


def padded(data: bytes) -> bytes:
    """Whole blocks."""
    return data + bytes(-len(data) % 512)


def base256(number: int) -> bytes:
    """A size field that is not in octal digits: 12 bytes."""
    return b"\xff" + (2**88 + number).to_bytes(11, "big") if number < 0 else b"\x80" + number.to_bytes(11, "big")


def header(name: bytes, size: int | bytes, kind: bytes = tarfile.REGTYPE, target: bytes = b"") -> bytes:
    """One block with a right checksum."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:124] = b"0000644\0" + 2 * b"0000000\0"
    block[124:136] = b"%011o\0" % size if isinstance(size, int) else size
    block[136:148] = b"%011o\0" % 0
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[157 : 157 + len(target)] = target
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def member(name: bytes, data: bytes) -> bytes:
    """A plain file."""
    return header(name, len(data)) + padded(data)


def record(key: bytes, value: bytes) -> bytes:
    """Return a record of a pax header. It begins with its own length, in which that number is included."""
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest)
    while length != len(rest) + len(b"%d" % length):
        length = len(rest) + len(b"%d" % length)
    return b"%d" % length + rest


def pax(data: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """A header that extends the next one."""
    return header(b"PaxHeader", len(data), kind) + padded(data)


def hostile(image: bytes) -> dict[str, tuple[bytes, str]]:
    """Tars that begin with a good sample, and what is wrong with them."""
    good = member(b"good.jpg", image) + member(b"good.cls", b"3")
    x, at = member(b"x.jpg", image), len(good)
    many = b"".join(pax(record(b"path", b"y.jpg")) for _ in range(3000))
    bad_sizes = {
        "minus-512": -512,
        "minus-1024": -1024,
        "back-to-the-start": -512 - at,
        "minus-2-40": -(2**40),
        "2-62": 2**62,
        "2-80": 2**80,
    }
    tars = {
        name: (good + header(b"x.jpg", base256(size)), f"the header at byte {at} claims {size} bytes")
        for name, size in bad_sizes.items()
    }
    for kind in (b"x", b"X", b"g", b"L", b"K"):
        for size in (-512, 2**33, 2**80):
            tars[f"{kind.decode()}{size}"] = (
                good + header(b"long", base256(size), kind) + padded(b"a" * 512) + x,
                f"the header at byte {at} extends another by {size} bytes",
            )
    not_a_list = f"the header at byte {at} extends another, but is not a list of keys and values"
    not_a_size = f"the header at byte {at + 1024} has a pax header with a size of "
    one_for_all = f"the header at byte {at} gives all members one name or size"
    claims = f"the header at byte {at + 1024} claims "
    return tars | {
        "digits": (good + pax(b"9" * 200_000) + x, not_a_list),
        "overlapping-records": (good + pax(b"2 " * 100_000 + b"=") + x, not_a_list),
        "long-key": (good + pax(b"3 " + b"k" * 500_000) + x, not_a_list),
        "length-0": (good + pax(b"0 a=b\n") + x, not_a_list),
        "length-beyond": (good + pax(b"99 a=b\n") + x, not_a_list),
        "pax-size-negative": (good + pax(record(b"size", b"-512")) + x, not_a_size + "'-512'"),
        "pax-size-digits": (good + pax(record(b"size", b"9" * 21)) + x, not_a_size + "'9999"),
        "pax-size-text": (good + pax(record(b"size", b"many")) + x, not_a_size + "'many'"),
        "pax-size-big": (good + pax(record(b"size", b"9" * 17)) + x, claims + "99999999999999999 bytes"),
        "global-size": (good + pax(record(b"size", b"9" * 17), b"g") + x, one_for_all),
        "global-path": (good + pax(record(b"path", b"p" * 2**19), b"g") + x * 5000, one_for_all),
        "nested": (good + many, "no header at byte"),
        "sparse-for-ever": (good + _sparse() + (b"\0" * 504 + b"\1" + b"\0" * 7) * 50, "unexpected end of data"),
        "cut-in-an-image": ((good + x)[: at + 600], f"the header at byte {at} claims {len(image)} bytes, of which 88 "),
        "cut-in-a-header": ((good + x)[: at + 100], f"no header at byte {at}, where another member or the end mark"),
        "cut-in-a-long-name": (good + header(b"long", 2000, b"L") + b"a" * 100, "unexpected end of data"),
        "no-end": (good, f"no header at byte {at}, where another member or the end mark is required"),
        "two-tars": (good + END + bytes(3072) + x + END, "another tar follows its end mark, and `tar -i` unpacks both"),
        "empty-file": (b"", "it is empty"),
        "text": (b"<!DOCTYPE html>" * 99, "it begins with b'<!DOCTYPE html><!DOC'"),
        "noise": (bytes(range(1, 256)) * 20, "it begins with b'\\x01\\x02"),
    }


def _sparse() -> bytes:
    """A header of GNU's sparse files that says that another block of its map follows."""
    block = bytearray(header(b"s.jpg", 0, tarfile.GNUTYPE_SPARSE))
    block[482] = 1
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)
