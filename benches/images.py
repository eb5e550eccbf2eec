"""Large images for the benches: a disk without data and two bitmaps, written in one go
(a guest that made them would take hours).  qemu-img check accepts them."""

import array
import os
import random
import struct
import sys

CLUSTER = 65536
GRANULARITY_BITS = 16


def bits(count, density, seed):
    """COUNT bits as bytes; DENSITY is '0', '0.01c', '1r', '50r' or '100'."""
    size = count // 8
    rng = random.Random(seed)
    if density == '0':
        return bytes(size)
    if density == '100':
        return b'\xff' * size
    if density == '50r':
        return rng.randbytes(size)
    if density == '1r':
        # 2^-7 + 2^-9, as OR of ANDs: 0.97 %
        seven, nine = ~0, ~0
        for _ in range(7):
            seven &= int.from_bytes(rng.randbytes(size), 'little')
        for _ in range(9):
            nine &= int.from_bytes(rng.randbytes(size), 'little')
        return (seven | nine).to_bytes(size, 'little')
    if density == '0.01c':
        out = bytearray(size)           # runs of 256 bits
        for _ in range(max(1, count // 10000 // 256)):
            at = rng.randrange(size // 32) * 32
            out[at:at + 32] = b'\xff' * 32
        return bytes(out)
    raise ValueError(density)


def write(path, disk, bitmaps):
    """Writes an image of DISK bytes; BITMAPS are (name, flags, bytes)."""
    l1_entries = -(-disk // (CLUSTER * CLUSTER // 8))
    clusters = []                       # of everything after the header

    def place(data):
        """Offset where DATA will lie."""
        at = (1 + len(clusters)) * CLUSTER
        for i in range(0, len(data), CLUSTER):
            clusters.append(data[i:i + CLUSTER].ljust(CLUSTER, b'\0'))
        return at

    reftable = place(bytes(CLUSTER))
    refblock = place(bytes(CLUSTER))
    l1 = place(bytes(l1_entries * 8))
    directory = b''
    zeros = bytes(CLUSTER)
    for name, flags, data in bitmaps:
        table = []
        for i in range(0, len(data), CLUSTER):
            part = data[i:i + CLUSTER].ljust(CLUSTER, b'\0')
            table.append(0 if part == zeros else place(part))
        where = place(struct.pack('>%dQ' % len(table), *table))
        entry = struct.pack('>QIIBBHI', where, len(table), flags, 1,
                            GRANULARITY_BITS, len(name), 0) + name
        directory += entry.ljust(-(-len(entry) // 8) * 8, b'\0')
    directory_at = place(directory)
    total = 1 + len(clusters)
    assert total <= CLUSTER // 2, 'one refcount block is enough'
    clusters[reftable // CLUSTER - 1] = struct.pack('>Q', refblock).ljust(
        CLUSTER, b'\0')
    clusters[refblock // CLUSTER - 1] = (b'\0\1' * total).ljust(CLUSTER, b'\0')
    header = struct.pack(
        '>IIQIIQIIQQIIQQQQII', 0x514649fb, 3, 0, 0, 16, disk, 0, l1_entries,
        l1, reftable, 1, 0, 0, 0, 0, 1, 4, 104)
    header += struct.pack('>IIIIQQ', 0x23852875, 24, len(bitmaps), 0,
                          len(directory), directory_at) + bytes(8)
    with open(path + '.part', 'wb') as f:
        f.write(header.ljust(CLUSTER, b'\0'))
        for data in clusters:
            f.write(data)
    os.rename(path + '.part', path)


def two_bitmaps(folder, disk, density):
    """Path of an image of DISK bytes with bitmaps a (recording) and b (disabled)."""
    path = os.path.join(folder, '%dT-%s.qcow2' % (disk >> 40, density))
    if not os.path.exists(path):
        count = disk >> GRANULARITY_BITS
        write(path, disk, [(b'a', 2, bits(count, density, 1)),
                           (b'b', 0, bits(count, density, 2))])
    return path


def counted(data, l2_tables, cluster):
    """Clusters of an image with DATA clusters of the guest's: all, refcount blocks,
    refcount table, L1 table."""
    l1_clusters = -(-l2_tables * 8 // cluster)
    blocks = table = 1
    while True:                         # until the refcounts count themselves
        total = 1 + table + blocks + l1_clusters + l2_tables + data
        need = -(-total // (cluster // 2))
        if need == blocks and -(-need * 8 // cluster) == table:
            return total, blocks, table, l1_clusters
        blocks, table = need, -(-need * 8 // cluster)


def full_disk(folder, disk, scattered, cluster_bits=16):
    """Path of an image whose every guest cluster has a host cluster (a hole in the
    file), in the order of the disk or in random order."""
    cluster = 1 << cluster_bits
    path = os.path.join(folder, 'full-%dG-%dK-%s.qcow2' % (
        disk >> 30, cluster >> 10, 'scattered' if scattered else 'sequential'))
    if os.path.exists(path):
        return path
    data = disk // cluster
    l2_tables = -(-data // (cluster // 8))
    total, blocks, table, l1_clusters = counted(data, l2_tables, cluster)
    blocks_at = 1 + table
    l1_at = blocks_at + blocks
    l2_at = l1_at + l1_clusters
    data_at = l2_at + l2_tables
    order = list(range(data))
    if scattered:
        random.Random(3).shuffle(order)
    l2 = array.array('Q', ((1 << 63) | (data_at + i) * cluster for i in order))
    if sys.byteorder == 'little':
        l2.byteswap()
    header = struct.pack(
        '>IIQIIQIIQQIIQQQQII', 0x514649fb, 3, 0, 0, cluster_bits, disk, 0, l2_tables,
        l1_at * cluster, cluster, table, 0, 0, 0, 0, 0, 4, 104)
    with open(path + '.part', 'wb') as f:
        f.write(header)
        f.seek(cluster)
        f.write(struct.pack('>%dQ' % blocks,
                            *((blocks_at + i) * cluster for i in range(blocks))))
        f.seek(blocks_at * cluster)
        f.write(b'\0\1' * total)
        f.seek(l1_at * cluster)
        f.write(struct.pack('>%dQ' % l2_tables,
                            *((1 << 63) | (l2_at + i) * cluster
                              for i in range(l2_tables))))
        f.seek(l2_at * cluster)
        l2.tofile(f)
        f.truncate(total * cluster)
    os.rename(path + '.part', path)
    return path


def raw_disk(folder, mib):
    """Path of a raw disk: of each 8 MiB five are data that compresses to about a half, two
    are a hole, and one is data that doesn't compress."""
    path = os.path.join(folder, 'raw-%dM.raw' % mib)
    if os.path.exists(path):
        return path
    rng = random.Random(4)
    words = [rng.randbytes(8) for _ in range(4096)]
    with open(path + '.part', 'wb') as f:
        for at in range(0, mib << 20, 1 << 20):
            f.seek(at)
            kind = (at >> 20) % 8
            if kind < 5:
                half = [w for w in rng.choices(words, k=1 << 16)]
                f.write(b''.join(half) + b''.join(w[:4] * 2 for w in half))
            elif kind < 6:
                f.write(rng.randbytes(1 << 20))
        f.truncate(mib << 20)
    os.rename(path + '.part', path)
    return path


def fragmented(folder, raw, cluster_bits):
    """Path of an image of the disk RAW whose clusters lie as a guest leaves them that wrote
    here and there: one half in pieces of 16 clusters on average, the other half cluster
    by cluster, all of them anywhere.  Clusters of zeros are left out."""
    cluster = 1 << cluster_bits
    path = os.path.join(folder, 'fragmented-%dK.qcow2' % (cluster >> 10))
    if os.path.exists(path):
        return path
    disk = os.path.getsize(raw)
    rng = random.Random(5)
    zeros = bytes(cluster)
    pieces = []                         # guest clusters that follow each other in the file
    with open(raw, 'rb') as f:
        for at in range(disk // cluster):
            if f.read(cluster) == zeros:
                continue
            adjoins = pieces and pieces[-1][-1] == at - 1
            if adjoins and at // 4096 % 2 == 0 and rng.randrange(16):
                pieces[-1].append(at)
            else:
                pieces.append([at])
    rng.shuffle(pieces)
    order = [at for piece in pieces for at in piece]
    l2_entries = cluster // 8
    l2_tables = -(-(disk // cluster) // l2_entries)
    total, blocks, table, l1_clusters = counted(len(order), l2_tables, cluster)
    blocks_at = 1 + table
    l1_at = blocks_at + blocks
    l2_at = l1_at + l1_clusters
    data_at = l2_at + l2_tables
    l2 = array.array('Q', bytes(l2_tables * cluster))
    for i, at in enumerate(order):
        l2[at] = (1 << 63) | (data_at + i) * cluster
    if sys.byteorder == 'little':
        l2.byteswap()
    header = struct.pack(
        '>IIQIIQIIQQIIQQQQII', 0x514649fb, 3, 0, 0, cluster_bits, disk, 0, l2_tables,
        l1_at * cluster, cluster, table, 0, 0, 0, 0, 0, 4, 104)

    def numbers(first, count, flag=0):
        return struct.pack('>%dQ' % count, *(
            flag | (first + i) * cluster for i in range(count)))
    with open(raw, 'rb') as source, open(path + '.part', 'wb') as f:
        for at, data in ((0, header), (1, numbers(blocks_at, blocks)),
                         (blocks_at, b'\0\1' * total),
                         (l1_at, numbers(l2_at, l2_tables, 1 << 63)),
                         (l2_at, l2.tobytes())):
            f.seek(at * cluster)
            f.write(data)
        f.seek(data_at * cluster)
        for at in order:
            source.seek(at * cluster)
            f.write(source.read(cluster))
    os.rename(path + '.part', path)
    return path
