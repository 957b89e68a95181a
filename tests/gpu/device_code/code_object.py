"""What an AMD code object says of its kernels: the metadata note that the runtime reads too, and their instructions.

https://llvm.org/docs/AMDGPUUsage.html#code-object-metadata
"""

import struct
from dataclasses import dataclass
from pathlib import Path

NT_AMDGPU_METADATA = 32
SHT_NOTE = 7
SHT_SYMTAB = 2
STT_FUNC = 2


@dataclass(frozen=True)
class Kernel:
    """Resources of one kernel; counts are registers of a lane (VGPR, AGPR) or of a wave (SGPR), sizes are bytes."""

    name: str
    vgprs: int
    agprs: int
    sgprs: int
    vgpr_spills: int
    sgpr_spills: int
    scratch: int
    static_lds: int
    arguments: int
    most_threads: int
    wave_size: int


def unpack(data: bytes, at: int = 0):
    """One MessagePack object of `data` from `at` on, and where the next one begins."""
    kind = data[at]
    at += 1

    def number(code: str, at: int):
        size = struct.calcsize(code)
        return struct.unpack_from(">" + code, data, at)[0], at + size

    def text(n: int, at: int):
        return data[at : at + n].decode(), at + n

    def many(n: int, at: int):
        items = []
        for _ in range(n):
            item, at = unpack(data, at)
            items.append(item)
        return items, at

    def pairs(n: int, at: int):
        items, at = many(2 * n, at)
        return dict(zip(items[::2], items[1::2], strict=True)), at

    if kind < 0x80:
        return kind, at
    if kind < 0x90:
        return pairs(kind & 0x0F, at)
    if kind < 0xA0:
        return many(kind & 0x0F, at)
    if kind < 0xC0:
        return text(kind & 0x1F, at)
    if kind >= 0xE0:
        return kind - 0x100, at
    if kind in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[kind], at
    numbers = {
        0xCA: "f",
        0xCB: "d",
        0xCC: "B",
        0xCD: "H",
        0xCE: "I",
        0xCF: "Q",
        0xD0: "b",
        0xD1: "h",
        0xD2: "i",
        0xD3: "q",
    }
    if kind in numbers:
        return number(numbers[kind], at)
    sized = {0xD9: ("B", text), 0xDA: ("H", text), 0xDB: ("I", text), 0xDC: ("H", many), 0xDD: ("I", many)}
    sized |= {0xDE: ("H", pairs), 0xDF: ("I", pairs)}
    if kind in sized:
        code, read = sized[kind]
        n, at = number(code, at)
        return read(n, at)
    raise ValueError(f"MessagePack type {kind:#x} in the metadata of a code object")


def sections(elf: bytes):
    """The sections of a 64-bit little-endian ELF file: type, address, offset, size, and the section it is linked to."""
    if elf[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a 64-bit little-endian ELF file")
    (sections_at,) = struct.unpack_from("<Q", elf, 0x28)
    size, count = struct.unpack_from("<HH", elf, 0x3A)
    for n in range(count):
        _, kind, _, address, at, length, link = struct.unpack_from("<IIQQQQI", elf, sections_at + n * size)
        yield kind, address, at, length, link


def notes(elf: bytes):
    """The notes of an ELF file: type and description."""
    for kind, _, at, length, _ in sections(elf):
        end = at + length
        while kind == SHT_NOTE and at < end:
            name_size, description_size, note = struct.unpack_from("<III", elf, at)
            at += 12 + (name_size + 3) // 4 * 4
            yield note, elf[at : at + description_size]
            at += (description_size + 3) // 4 * 4


def kernels(path: Path) -> list[Kernel]:
    """The kernels of the code object at `path`."""
    found = [unpack(note)[0] for kind, note in notes(path.read_bytes()) if kind == NT_AMDGPU_METADATA]
    if len(found) != 1:
        raise ValueError(f"{path}: {len(found)} metadata notes, expected one")
    return [
        Kernel(
            name=k[".name"],
            vgprs=k[".vgpr_count"],
            agprs=k.get(".agpr_count", 0),
            sgprs=k[".sgpr_count"],
            vgpr_spills=k.get(".vgpr_spill_count", 0),
            sgpr_spills=k.get(".sgpr_spill_count", 0),
            scratch=k[".private_segment_fixed_size"],
            static_lds=k[".group_segment_fixed_size"],
            arguments=k[".kernarg_segment_size"],
            most_threads=k[".max_flat_workgroup_size"],
            wave_size=k[".wavefront_size"],
        )
        for k in found[0]["amdhsa.kernels"]
    ]


def instruction_words(path: Path, kernel: str) -> list[int]:
    """The 32-bit words of the machine code of `kernel`, of the code object at `path`."""
    elf = path.read_bytes()
    found = list(sections(elf))
    for kind, _, at, length, link in found:
        if kind != SHT_SYMTAB:
            continue
        names_at = found[link][2]
        for entry in range(at, at + length, 24):
            name, info, _, section, address, size = struct.unpack_from("<IBBHQQ", elf, entry)
            if info & 0xF == STT_FUNC and elf[names_at + name :].startswith(kernel.encode() + b"\0"):
                _, section_address, section_at, _, _ = found[section]
                code = section_at + address - section_address
                return list(struct.unpack_from(f"<{size // 4}I", elf, code))
    raise ValueError(f"{path}: no code of {kernel}")
