#!/usr/bin/env python3
"""Makes the first inputs of the fuzzers with qemu-img and qemu-io.

  make_seeds.py FOLDER     writes FOLDER/<fuzzer>/seed-...

What the fuzzers find from there on is kept in corpus/ (scripts/fuzz.sh).
"""

import os
import struct
import subprocess
import sys
import tempfile
import zlib

PROGRAM = bytes([0x20, 3, 0x61, 9, 0x42, 5, 0x23, 2, 0x44, 70, 6, 0, 0, 1, 6, 2])
COMPRESSING = bytes([0xc1, 0, 0xc2, 9, 0x21, 1, 4, 0, 0xc3, 0, 0xf1, 200, 0x42, 4, 0xc5, 255])
IDLE = bytes([6, 129, 7, 0, 0x20, 3, 6, 130, 7, 0, 6, 131, 7, 0, 6, 132])


def run(*command):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def make_image(path, options, commands=(), size="64k", snapshots=(), bitmaps=(), backing=None,
               secret=None):
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", options]
    opened = ["-f", "qcow2", path]
    if secret:
        objects = ["--object", f"secret,id=s,data={secret}"]
        create += objects
        opened = objects + ["--image-opts",
                            f"driver=qcow2,file.filename={path},encrypt.key-secret=s"]
    if backing:
        create += ["-b", backing, "-F", "raw"]
    run(*create, path, size)
    for name in bitmaps:
        run("qemu-img", "bitmap", "--add", "-g", "512", path, name)
    for command in commands:
        run("qemu-io", "-c", command, *opened)
    for name in snapshots:
        run("qemu-img", "snapshot", "-c", name, path)
        run("qemu-io", "-f", "qcow2", "-c", "write -P 9 1k 1k", path)
    with open(path, "rb") as file:
        return file.read()


def make_images():
    """Yields (name, bytes): one small image for each feature; in this folder."""
    path, backing, data = "image.qcow2", "b", "d"
    with open(backing, "wb") as file:
        file.write(b"B" * 4096)
    writes = ["write -P 1 0 3k", "write -z 4k 1k", "write -P 2 40k 512", "discard 1k 512"]
    compressed = ["write -c -P 3 0 512", "write -c -P 4 512 512", "write -P 5 2k 512"]
    small = "cluster_size=512"
    v2 = small + ",compat=0.10"
    yield "plain", make_image(path, small, writes)
    yield "v2", make_image(path, v2, writes[:1])
    yield "empty", make_image(path, small, size="0")
    yield "compressed", make_image(path, small, compressed)
    yield "zstd", make_image(path, "cluster_size=4k,compression_type=zstd",
                             ["write -c -P 3 0 4k", "write -c -P 4 4k 4k"])
    yield "lazy", make_image(path, small + ",lazy_refcounts=on", writes)
    yield "snapshots", make_image(path, v2, writes[:1], snapshots=["a", "b"])
    for bits in (1, 64):
        yield f"refcount{bits}", make_image(path, f"{small},refcount_bits={bits}", writes)
    yield "preallocated", make_image(path, small + ",preallocation=metadata", size="16k")
    yield "backing", make_image(path, v2, writes[:1], backing=backing)
    yield "bitmaps", make_image(path, "cluster_size=1k", writes, bitmaps=["x", "yy"])
    yield "extended", make_image(path, "cluster_size=16k,extended_l2=on", writes)
    aes = "cluster_size=1k,encrypt.format=aes,encrypt.key-secret=s"
    yield "aes", make_image(path, aes, writes, secret="s")
    yield "data_file", make_image(path, f"cluster_size=1k,data_file={data}", writes[:1])


def make_vdi_images():
    """Yields (name, bytes): VDI images of a few blocks."""
    path = "image.vdi"
    for name, options, size in (("empty", "static=off", "0"), ("new", "static=off", "3M"),
                                ("odd", "static=off", "200000000"),
                                ("static", "static=on", "1k"),
                                ("written", "static=off", "1100k")):
        run("qemu-img", "create", "-q", "-f", "vdi", "-o", options, path, size)
        if name == "written":
            run("qemu-io", "-f", "vdi", "-c", "write -P 1 1M 4k", path)
        with open(path, "rb") as file:
            image = file.read()
        # Without the UUIDs, and all but the first sectors of the data.
        yield name, image[:0x188] + bytes(32) + image[0x1a8:4096]


def make_qcow_images():
    """Yields (name, bytes): small qcow images."""
    path, backing = "image.qcow", "b"
    with open(backing, "wb") as file:
        file.write(b"B" * 4096)
    # What QEMU makes: clusters of 4 KiB, and over a backing file of 512 bytes.
    for name, more, commands in (("new", [], []),
                                 ("written", [], ["write -P 1 512 9k", "write -P 2 60k 4k"]),
                                 ("compressed", [], ["write -c -P 3 0 4k", "write -c -P 4 8k 4k"]),
                                 ("overlay", ["-b", backing, "-F", "raw"],
                                  ["write -P 5 512 1k", "write -c -P 6 3k 512"])):
        run("qemu-img", "create", "-q", "-f", "qcow", *more, path, "64k")
        for command in commands:
            run("qemu-io", "-f", "qcow", "-c", command, path)
        with open(path, "rb") as file:
            yield name, file.read()
    secret = ["--object", "secret,id=s,data=s"]
    run("qemu-img", "create", "-q", "-f", "qcow", *secret,
        "-o", "encrypt.format=aes,encrypt.key-secret=s", path, "64k")
    run("qemu-io", *secret, "-c", "write -P 1 512 9k", "--image-opts",
        f"driver=qcow,encrypt.key-secret=s,file.filename={path}")
    with open(path, "rb") as file:
        yield "encrypted", file.read()
    # The smallest tables: each maps 32 KiB.
    header = struct.pack(">IIQIIQBBHIQ", 0x514649fb, 1, 0, 0, 0, 1 << 18, 9, 6, 0, 0, 48)
    with open(path, "wb") as file:
        file.write(header + bytes(512))
    for command in ("write -P 7 0 3k", "write -P 8 100k 1k", "write -c -P 9 200k 512"):
        run("qemu-io", "-f", "qcow", "-c", command, path)
    with open(path, "rb") as file:
        yield "small_tables", file.read()


def deflate(data):
    compressor = zlib.compressobj(level=9, wbits=-12)
    return compressor.compress(data) + compressor.flush()


def snapshot_entry(l1_offset, l1_size, identity, name):
    extra = struct.pack(">QQQ", 0, 65536, 2**64 - 1)
    entry = struct.pack(">QIHHIIQII", l1_offset, l1_size, len(identity), len(name),
                        1, 2, 3, 0, len(extra)) + extra + identity + name
    return entry + bytes(-len(entry) % 8)


def bitmap_entry(table_offset, table_size, flags, granularity_bits, name):
    entry = struct.pack(">QIIBBHI", table_offset, table_size, flags, 1,
                        granularity_bits, len(name), 0) + name
    return entry + bytes(-len(entry) % 8)


def main():
    folder = os.path.abspath(sys.argv[1])

    def put(fuzzer, name, data):
        os.makedirs(os.path.join(folder, fuzzer), exist_ok=True)
        with open(os.path.join(folder, fuzzer, "seed-" + name), "wb") as file:
            file.write(data)

    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)  # what images name is relative
        for name, image in make_images():
            put("header_fuzzer", name, image[:4096])
            if len(image) < 1 << 19:
                put("image_fuzzer", name, PROGRAM + image)
            if name in ("plain", "compressed", "snapshots"):
                put("tables_fuzzer", name, PROGRAM + image[512:])
        for name, image in make_vdi_images():
            put("vdi_fuzzer", name, PROGRAM + image)
        for name, image in make_qcow_images():
            put("qcow_fuzzer", name, PROGRAM + image)
            put("qcow_fuzzer", name + "_compressing", COMPRESSING + image)
    # Nothing changed; another method; an extension and a header out of place.
    put("encryption_fuzzer", "same", PROGRAM)
    put("encryption_fuzzer", "aes", PROGRAM + b"\3")
    put("encryption_fuzzer", "offset", PROGRAM + bytes(7) + b"\x10")
    put("encryption_fuzzer", "length", PROGRAM + bytes(15) + b"\x10")
    put("encryption_fuzzer", "payload", PROGRAM + bytes(17 + 106) + b"\x02")
    put("encryption_fuzzer", "slot", PROGRAM + bytes(17 + 208 + 40) + b"\0\0\0\x10")
    for count in (1, 2):
        table = b"".join(snapshot_entry(5 * 512, 1, str(i).encode(), b"name") for i in range(count))
        put("snapshots_fuzzer", str(count), PROGRAM + bytes([count]) + table)
        directory = b"".join(bitmap_entry(6 * 512, 1, i * 2, 9, b"bitmap%d" % i)
                             for i in range(count))
        put("bitmaps_fuzzer", str(count), IDLE + bytes([count]) + directory)
    put("compressed_fuzzer", "zlib", b"\0" + deflate(b"x" * 512))
    put("compressed_fuzzer", "text", b"\2" + deflate(bytes(range(256)) * 4))
    # A zstd frame of 512 bytes "x", as a run-length block.
    put("compressed_fuzzer", "zstd",
        b"\1" + bytes.fromhex("28b52ffd6000010300") + b"\x10\x00\x78")


if __name__ == "__main__":
    main()
