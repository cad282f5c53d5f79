"""The sandbox's inner half: what this process forbids itself by seccomp."""

from __future__ import annotations

import ctypes
import platform
import struct
import sys

# Forbidden system calls: new processes, programs, sockets, signals, changes of files, limits and namespaces.
_X86 = "41 42 57 58 59 62 76 77 82 83 84 85 86 87 88 90 91 92 93 94 101 109 112 132 133 155 160 161 165 166 169 175"
_X86 += " 188 189 197 198 200 234 235 250 258 259 260 261 263 264 265 266 268 272 280 302 308 311 316 321 322 424"
_X86 += " 425 434 438 452"
_ARM = "5 6 14 15 33 34 35 36 37 38 39 40 41 45 46 51 52 53 54 55 88 97 105 117 129 130 131 142 154 157 164 198 203 217"
_ARM += " 221 261 268 271 276 280 281 424 425 434 438 452"
SYSTEMS = {  # architecture: audit number, forbidden, (open, the place of its flags), clone
    "x86_64": (0xC000003E, _X86, ((257, 2), (2, 1)), 56),
    "aarch64": (0xC00000B7, _ARM, ((56, 2),), 220),
}


def restrict() -> bool:
    """Forbids this process to start others, to use sockets and to write files; False where that is not known."""
    system = SYSTEMS.get(platform.machine())
    if sys.platform != "linux" or system is None or sys.byteorder != "little":
        return False
    audit, forbidden, opens, clone = system
    deny, missing, allow = 0x00050000 | 1, 0x00050000 | 38, 0x7FFF0000
    load, equal, bits, greater, give = 0x20, 0x15, 0x45, 0x35, 0x06
    program = [(load, 0, 0, 4), (equal, 1, 0, audit), (give, 0, 0, 0), (load, 0, 0, 0)]
    program += [(greater, 0, 1, 0x40000000), (give, 0, 0, deny)]
    for number in map(int, forbidden.split()):
        program += [(equal, 0, 1, number), (give, 0, 0, deny)]
    for number in (435, 437):  # clone3 and openat2 hide their flags: glibc falls back
        program += [(equal, 0, 1, number), (give, 0, 0, missing)]
    for number, place in opens:  # opening for writing
        program += [(equal, 0, 4, number), (load, 0, 0, 16 + 8 * place), (bits, 0, 1, 0o3 | 0o100), (give, 0, 0, deny)]
        program += [(give, 0, 0, allow)]
    program += [(equal, 0, 4, clone), (load, 0, 0, 16), (bits, 1, 0, 0x10000), (give, 0, 0, deny), (give, 0, 0, allow)]
    program += [(give, 0, 0, allow)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *line) for line in program))
    header = struct.pack("<HxxxxxxQ", len(program), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]
    return bool(libc.prctl(38, 1, None, 0, 0) == 0 and libc.prctl(22, 2, header, 0, 0) == 0)
