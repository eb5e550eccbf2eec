#!/usr/bin/env python3
"""Makes testdata/bad/ from one good image: damaged headers, extensions,
directories, tables and snapshots, one fault each.

Writes bad/cases.json: each case as a patch of bad/good.qcow2, with what we must
do with it and what qemu-img says to it.  Always gives the same patches.

    testdata/damage.py                  remakes cases.json and README.md's table
    testdata/damage.py --write DIR      also writes the damaged images to DIR
    testdata/damage.py --good           remakes good.qcow2 first

`must` in a record is one of
  refuse   no command works on it: everything ends with 1
  bitmaps  the image works, its bitmaps (all or one) do not
  corrupt  it opens; check ends with 2
  leaks    it opens; check ends with 3
  fine     it opens and is sound; what is odd about it is allowed
  either   QEMU and the spec differ, or there are two good answers
"""

import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, 'bad')
GOOD = os.path.join(OUT, 'good.qcow2')
CLUSTER = 1024
BITMAPS = 0x23852875


def make_good():
    def run(*args):
        subprocess.run(args, check=True, stdout=subprocess.DEVNULL)
    if os.path.exists(GOOD):
        os.remove(GOOD)
    run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', 'cluster_size=1k',
        GOOD, '256k')
    run('qemu-img', 'bitmap', '--add', '-g', '4k', GOOD, 'b0')
    run('qemu-io', '-c', 'write -P 1 0 2k', '-c', 'write -P 2 100k 1k', GOOD)
    run('qemu-img', 'snapshot', '-c', 'snap', GOOD)
    run('qemu-io', '-c', 'write -P 3 1k 1k', GOOD)
    run('qemu-img', 'bitmap', '--add', '--disable', '-g', '512', GOOD, 'b1')
    run('qemu-img', 'bitmap', '--merge', 'b0', GOOD, 'b1')


class Image:
    """The good image, and where its parts are."""

    def __init__(self):
        with open(GOOD, 'rb') as f:
            self.b = bytearray(f.read())
        self.b += bytes(-len(self.b) % CLUSTER)
        self.l1 = self.u64(40)
        self.l2 = [self.u64(self.l1 + 8 * i) & 0x00fffffffffffe00
                   for i in range(self.u32(36))]
        self.reftable = self.u64(48)
        self.refblock = self.u64(self.reftable)
        self.snapshots = self.u64(64)
        self.ext = self.find_ext()
        self.dir = self.u64(self.ext + 16)
        self.dir_size = self.u64(self.ext + 8)
        self.entries = []               # byte offsets of directory entries
        at = self.dir
        while at < self.dir + self.dir_size:
            self.entries.append(at)
            extra, name = self.u32(at + 20), self.u16(at + 18)
            at += (24 + extra + name + 7) & ~7
        self.table = self.u64(self.entries[0])
        self.data = self.first_data()

    def find_ext(self, magic=BITMAPS):
        at = self.u32(100)
        while self.u32(at) != magic:
            at += 8 + ((self.u32(at + 4) + 7) & ~7)
        return at + 8

    def ext_end(self):
        at = self.u32(100)
        while self.u32(at):
            at += 8 + ((self.u32(at + 4) + 7) & ~7)
        return at

    def first_data(self):
        for i in range(self.u32(self.entries[0] + 8)):
            if self.u64(self.table + 8 * i) & ~1:
                return self.table + 8 * i
        raise SystemExit('b0 has no data cluster')

    def u16(self, at):
        return struct.unpack_from('>H', self.b, at)[0]

    def u32(self, at):
        return struct.unpack_from('>I', self.b, at)[0]

    def u64(self, at):
        return struct.unpack_from('>Q', self.b, at)[0]

    def p(self, fmt, at, *values):
        struct.pack_into('>' + fmt, self.b, at, *values)


CASES = []


def case(name, must, what, damage):
    CASES.append((name, must, what, damage))


def put(fmt, where, value):
    """A damage that stores VALUE; WHERE is an offset or tells one."""
    def damage(i):
        at = where(i) if callable(where) else where
        i.p(fmt, at, value(i) if callable(value) else value)
    return damage


def cut(size):
    def damage(i):
        del i.b[size(i) if callable(size) else size:]
    return damage


FAR = 1 << 40                   # aligned, far past the end of the file

# -- header

case('magic', 'refuse', 'magic is not QFI\\xfb', put('I', 0, 0x514649fc))
for n in (0, 1, 4, 0xffffffff):
    case('version-%x' % n, 'refuse', 'version %d' % n, put('I', 4, n))
for n in (0, 3, 8, 71, 100, 103):
    case('cut-at-%d' % n, 'refuse', 'the file ends after %d bytes' % n, cut(n))
case('cut-first-cluster', 'bitmaps', 'the file ends inside the extensions',
     cut(lambda i: i.ext + 4))
case('cut-tables', 'bitmaps', 'the file ends with the first cluster', cut(1024))
for n in (0, 8, 22, 31, 63, 64, 0xffffffff):
    case('cluster-bits-%x' % n, 'refuse', 'cluster_bits %d' % n, put('I', 20, n))
for n in (7, 64, 0xffffffff):
    case('refcount-order-%x' % n, 'refuse', 'refcount_order %d' % n,
         put('I', 96, n))
for n in (0, 103, 1032, 0xfffffff8):
    case('header-length-%x' % n, 'refuse', 'header_length %d' % n,
         put('I', 100, n))
case('crypt-3', 'refuse', 'crypt_method 3', put('I', 32, 3))
case('size-2-63', 'refuse', 'virtual size 2^63', put('Q', 24, 1 << 63))
case('size-max', 'refuse', 'virtual size 2^64 - 1', put('Q', 24, (1 << 64) - 1))
case('l1-size-0', 'refuse', 'L1 table too small for the disk', put('I', 36, 0))
case('l1-size-huge', 'refuse', 'L1 table of 2^32 - 1 entries',
     put('I', 36, 0xffffffff))
case('l1-unaligned', 'refuse', 'L1 table at an odd offset',
     put('Q', 40, lambda i: i.l1 + 8))
case('l1-far', 'corrupt', 'L1 table past the end of the file', put('Q', 40, FAR))
case('l1-overflow', 'refuse', 'L1 table at 2^64 - 1024',
     put('Q', 40, (1 << 64) - 1024))
case('reftable-unaligned', 'refuse', 'refcount table at an odd offset',
     put('Q', 48, lambda i: i.reftable + 8))
case('reftable-overflow', 'refuse', 'refcount table at 2^64 - 1024',
     put('Q', 48, (1 << 64) - 1024))
case('reftable-clusters-0', 'refuse', 'refcount table of 0 clusters',
     put('I', 56, 0))
case('reftable-clusters-huge', 'refuse', 'refcount table of 2^32 - 1 clusters',
     put('I', 56, 0xffffffff))
case('backing-outside', 'refuse', 'backing file name outside the first cluster',
     lambda i: (i.p('Q', 8, 4096), i.p('I', 16, 5)))
case('backing-long', 'refuse', 'backing file name of 1024 bytes',
     lambda i: (i.p('Q', 8, 900), i.p('I', 16, 1024)))
case('incompatible-10', 'refuse', 'unknown incompatible feature bit 10',
     put('Q', 72, 1 << 10))
case('incompatible-63', 'refuse', 'unknown incompatible feature bit 63',
     put('Q', 72, 1 << 63))
case('compression-7', 'refuse', 'compression type 7, its bit set',
     lambda i: (i.p('Q', 72, 8), i.p('B', 104, 7)))
case('compression-without-bit', 'refuse', 'zstd without its feature bit',
     put('B', 104, 1))
case('extended-l2-small-cluster', 'refuse',
     'extended L2 with clusters of 1 KiB', put('Q', 72, 16))
case('corrupt-bit', 'fine', 'the corrupt bit is set', put('Q', 72, 2))
case('compatible-5', 'fine', 'unknown compatible feature bit 5',
     put('Q', 80, 1 << 5))
case('autoclear-9', 'fine', 'unknown autoclear feature bit 9',
     put('Q', 88, 1 | 1 << 9))

# -- extensions

case('extension-too-long', 'refuse', 'an extension that leaves the first cluster',
     put('I', lambda i: i.ext - 4, 4096))
case('extension-max', 'refuse', 'an extension of 2^32 - 1 bytes',
     put('I', lambda i: i.ext - 4, 0xffffffff))
case('extension-unknown', 'fine', 'an unknown extension of 5 bytes',
     lambda i: i.p('II8s', i.ext_end(), 0x12345678, 5, b'hello\0\0\0'))
case('backing-format-long', 'either', 'backing format of 20 bytes',
     lambda i: i.p('II24s', i.ext_end(), 0xe2792aca, 20, b'q' * 20))
case('bitmaps-extension-16', 'bitmaps', 'bitmaps extension of 16 bytes',
     put('I', lambda i: i.ext - 4, 16))
case('bitmaps-extension-32', 'bitmaps', 'bitmaps extension of 32 bytes',
     lambda i: i.p('I', i.ext - 4, 32))
case('bitmaps-reserved', 'bitmaps', 'reserved field of the extension is 1',
     put('I', lambda i: i.ext + 4, 1))
for n in (0, 1, 3, 65536, 0xffffffff):
    # With 1, what comes after the first is damage; the first itself is sound.
    case('bitmaps-count-%x' % n, 'either' if n == 1 else 'bitmaps',
         'extension says %d bitmaps, the directory has 2' % n,
         put('I', lambda i: i.ext, n))
for n in (0, 8, 24, 1 << 26, (1 << 64) - 1):
    case('directory-size-%x' % n, 'bitmaps', 'directory of %d bytes' % n,
         put('Q', lambda i: i.ext + 8, n))
case('directory-unaligned', 'bitmaps', 'directory at an odd offset',
     put('Q', lambda i: i.ext + 16, lambda i: i.dir + 8))
case('directory-0', 'bitmaps', 'directory at offset 0',
     put('Q', lambda i: i.ext + 16, 0))
case('directory-far', 'bitmaps', 'directory past the end of the file',
     put('Q', lambda i: i.ext + 16, FAR))
case('directory-overflow', 'bitmaps', 'directory at 2^64 - 1024',
     put('Q', lambda i: i.ext + 16, (1 << 64) - 1024))
case('directory-in-refblock', 'bitmaps', 'directory over a refcount block',
     put('Q', lambda i: i.ext + 16, lambda i: i.refblock))
case('bitmaps-twice', 'either', 'two bitmaps extensions',
     lambda i: i.p('II24s', i.ext_end(), BITMAPS, 24,
                   bytes(i.b[i.ext:i.ext + 24])))

# -- directory entries (of b0)


def entry(field):
    return lambda i: i.entries[0] + field


def name_at(i):
    return i.entries[0] + 24


case('name-size-0', 'bitmaps', 'a bitmap without a name',
     put('H', entry(18), 0))
case('name-size-1024', 'bitmaps', 'a name of 1024 bytes',
     put('H', entry(18), 1024))
case('name-size-max', 'bitmaps', 'a name of 65535 bytes',
     put('H', entry(18), 0xffff))
case('name-not-utf8', 'fine', 'a name that is not UTF-8',
     lambda i: i.b.__setitem__(slice(name_at(i), name_at(i) + 2), b'\xff\xfe'))
case('name-nul', 'bitmaps', 'a name that begins with NUL',
     lambda i: i.p('B', name_at(i), 0))
case('name-control', 'fine', 'a name with an escape character',
     lambda i: i.b.__setitem__(slice(name_at(i), name_at(i) + 2), b'\x1b['))
case('name-duplicate', 'bitmaps', 'two bitmaps of one name',
     lambda i: i.b.__setitem__(slice(name_at(i), name_at(i) + 2), b'b1'))
for n in (0, 8, 32, 63, 64, 255):
    case('granularity-bits-%d' % n, 'bitmaps', 'granularity_bits %d' % n,
         put('B', entry(17), n))
for n in (0, 2, 255):
    case('type-%d' % n, 'bitmaps', 'bitmap type %d' % n, put('B', entry(16), n))
for n in (1 << 3, 1 << 31):
    case('flags-%x' % n, 'bitmaps', 'flags %#x' % n, put('I', entry(12), 2 | n))
case('flags-4', 'either', 'flags 0x4, allowed by the spec, not by QEMU',
     put('I', entry(12), 2 | 1 << 2))
case('in-use', 'bitmaps', 'b0 is in use', put('I', entry(12), 3))
case('extra-data-8', 'bitmaps', 'extra data runs into the next entry',
     put('I', entry(20), 8))
case('extra-data-max', 'bitmaps', 'extra data of 2^32 - 1 bytes',
     put('I', entry(20), 0xffffffff))
case('table-unaligned', 'bitmaps', 'bitmap table at an odd offset',
     put('Q', entry(0), lambda i: i.table + 8))
case('table-0', 'bitmaps', 'bitmap table at offset 0', put('Q', entry(0), 0))
case('table-far', 'bitmaps', 'bitmap table past the end of the file',
     put('Q', entry(0), FAR))
case('table-overflow', 'bitmaps', 'bitmap table at 2^64 - 1024',
     put('Q', entry(0), (1 << 64) - 1024))
for n in (0, 2, 1 << 27, 0xffffffff):
    case('table-size-%x' % n, 'bitmaps', 'bitmap table of %d entries' % n,
         put('I', entry(8), n))
case('table-in-l1', 'bitmaps', 'bitmap table over the L1 table',
     put('Q', entry(0), lambda i: i.l1))
case('tables-shared', 'corrupt', 'two bitmaps share a table',
     lambda i: i.p('Q', i.entries[1], i.table))

# -- bitmap table entries (the first data cluster of b0)


def bits(i):
    return i.data


case('data-unaligned', 'bitmaps', 'bitmap data at an odd offset',
     put('Q', bits, lambda i: i.u64(i.data) + 512))
case('data-reserved-low', 'bitmaps', 'reserved bit 3 of a table entry',
     put('Q', bits, lambda i: i.u64(i.data) | 8))
case('data-reserved-high', 'bitmaps', 'reserved bit 60 of a table entry',
     put('Q', bits, lambda i: i.u64(i.data) | 1 << 60))
case('data-and-ones', 'bitmaps', 'bitmap data that is also all ones',
     put('Q', bits, lambda i: i.u64(i.data) | 1))
case('data-far', 'bitmaps', 'bitmap data past the end of the file',
     put('Q', bits, FAR))
case('data-in-header', 'corrupt', 'bitmap data in the refcount table',
     put('Q', bits, lambda i: i.reftable))
case('data-all-ones', 'leaks', 'all ones instead of a data cluster',
     put('Q', bits, 1))

# -- guest tables and refcounts, for check

case('l2-far', 'corrupt', 'an L1 entry past the end of the file',
     put('Q', lambda i: i.l1, 1 << 63 | FAR))
case('l2-unaligned', 'corrupt', 'an L1 entry at an odd offset',
     put('Q', lambda i: i.l1, lambda i: 1 << 63 | i.l2[0] + 512))
case('l2-reserved', 'corrupt', 'reserved bits of an L1 entry',
     put('Q', lambda i: i.l1, lambda i: 1 << 63 | i.l2[0] | 1 << 60))
case('cluster-0', 'fine', 'a guest cluster at offset 0 (means unallocated)',
     put('Q', lambda i: i.l2[0] + 16, 1 << 63))
case('cluster-unaligned', 'corrupt', 'a guest cluster at an odd offset',
     put('Q', lambda i: i.l2[0], lambda i: i.u64(i.l2[0]) + 512))
case('cluster-far', 'corrupt', 'a guest cluster past the end of the file',
     put('Q', lambda i: i.l2[0], 1 << 63 | FAR))
case('refcount-0', 'corrupt', 'refcount 0 of the header cluster',
     put('H', lambda i: i.refblock, 0))
case('refcount-5', 'leaks', 'refcount 5 of the header cluster',
     put('H', lambda i: i.refblock, 5))
case('refblock-far', 'corrupt', 'a refcount block past the end of the file',
     put('Q', lambda i: i.reftable, FAR))
case('refblock-unaligned', 'corrupt', 'a refcount block at an odd offset',
     put('Q', lambda i: i.reftable, lambda i: i.refblock + 512))
case('refblock-0', 'corrupt', 'no refcount block at all',
     put('Q', lambda i: i.reftable, 0))

# -- snapshots

case('snapshots-huge', 'refuse', '2^32 - 1 snapshots', put('I', 60, 0xffffffff))
case('snapshots-unaligned', 'refuse', 'snapshot table at an odd offset',
     put('Q', 64, lambda i: i.snapshots + 8))
case('snapshots-far', 'corrupt', 'snapshot table past the end of the file',
     put('Q', 64, FAR))
case('snapshot-l1-unaligned', 'corrupt', 'L1 table of a snapshot at an odd offset',
     put('Q', lambda i: i.snapshots, lambda i: i.u64(i.snapshots) + 8))
case('snapshot-l1-huge', 'corrupt', 'L1 table of a snapshot with 2^32 - 1 entries',
     put('I', lambda i: i.snapshots + 8, 0xffffffff))
case('snapshot-extra-huge', 'either', 'snapshot with 2^32 - 1 bytes of extra data',
     put('I', lambda i: i.snapshots + 36, 0xffffffff))
case('snapshot-name-long', 'corrupt', 'snapshot name that leaves the table',
     put('H', lambda i: i.snapshots + 14, 0xffff))


def ask(image, *args, after=()):
    """Exit code and first line of complaint of qemu-img."""
    try:
        p = subprocess.run(['qemu-img', *args, image, *after], timeout=20,
                           capture_output=True, cwd=OUT)
    except subprocess.TimeoutExpired:
        return {'exit': 'timeout'}
    said = p.stderr.decode('utf-8', 'backslashreplace').strip().split('\n')[0]
    if os.path.isabs(image):
        said = said.replace(os.path.dirname(image) + '/', '')
    return {'exit': p.returncode, 'says': said}


def patches(before, after):
    """[[offset, hex], ...] that turn BEFORE into AFTER (which may be shorter)."""
    out = []
    for at, byte in enumerate(after):
        if byte == before[at]:
            continue
        if out and out[-1][0] + len(out[-1][1]) // 2 == at:
            out[-1][1] += '%02x' % byte
        else:
            out.append([at, '%02x' % byte])
    return out


def main():
    if '--good' in sys.argv:
        make_good()
    keep = sys.argv[sys.argv.index('--write') + 1] if '--write' in sys.argv \
        else None
    good = Image().b
    rows = ['| case | what | must | qemu-img info, check, bitmap --add |',
            '|---|---|---|---|']
    records = []
    for name, must, what, damage in CASES:
        image = Image()
        damage(image)
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, name + '.qcow2')
            with open(path, 'wb') as f:
                f.write(image.b)
            if keep:
                shutil.copy(path, keep)
            qemu = {
                'info': ask(path, 'info', '-f', 'qcow2'),
                'check': ask(path, 'check', '-f', 'qcow2'),
                'bitmap-add': ask(path, 'bitmap', '-f', 'qcow2', '--add',
                                  after=['new']),
            }
        records.append({'name': name, 'what': what, 'must': must,
                        'length': len(image.b),
                        'patch': patches(good, image.b), 'qemu': qemu})
        rows.append('| `%s` | %s | %s | %s, %s, %s |' % (
            name, what, must, *(qemu[k]['exit'] for k in
                                ('info', 'check', 'bitmap-add'))))
    with open(os.path.join(OUT, 'cases.json'), 'w') as f:
        f.write('[\n' + ',\n'.join(json.dumps(r) for r in records) + '\n]\n')
    readme(rows)


def readme(rows):
    path = os.path.join(HERE, 'README.md')
    with open(path) as f:
        text = f.read()
    begin, end = '<!-- made by damage.py -->', '<!-- end bad -->'
    head, rest = text.split(begin, 1)
    tail = rest.split(end, 1)[1]
    with open(path, 'w') as f:
        f.write('%s%s\n%s\n%s%s' % (head, begin, '\n'.join(rows), end, tail))


if __name__ == '__main__':
    main()
