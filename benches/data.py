"""Rows about the disk's data: map, check, measure, compare, bench, convert."""

import os
import subprocess

import images

GIB = 1 << 30


def rows(bench, folder, only):
    def wanted(name):
        return not only or name in only

    def both(name, detail, arguments, image='', writes=False, **names):
        if wanted(name):
            bench.both('%s, %s' % (name, detail), [name] + arguments, image,
                       writes, **names)

    metadata(both, folder, wanted)
    content(bench, both, folder, wanted)


def metadata(both, folder, wanted):
    """What reads tables only, on disks of which every cluster is there."""
    if not any(map(wanted, ('map', 'measure', 'check of a full disk'))):
        return
    for disk, scattered, bits, detail in (
            (1024 * GIB, False, 16, 'full 1 TiB, sequential'),
            (64 * GIB, True, 16, 'full 64 GiB, scattered'),
            (4 * GIB, True, 12, 'a million clusters of 4 KiB, scattered')):
        image = images.full_disk(folder, disk, scattered, bits)
        both('map', detail + ', json', ['--output=json', '{image}'], image)
        both('measure', detail, ['-O', 'qcow2', '{image}'], image)
        if bits == 12:
            both('map', detail, ['{image}'], image)
            if wanted('check of a full disk'):
                both('check', detail, ['{image}'], image)


def content(bench, both, folder, wanted):
    """What reads and writes the guest's data."""
    if not any(map(wanted, ('compare', 'bench', 'convert'))):
        return
    raw = images.raw_disk(folder, 1024)

    def made(name, *options):
        path = os.path.join(folder, name)
        if not os.path.exists(path):
            subprocess.run(['qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2',
                            *options, raw, path], check=True)
        return path

    plain = made('plain.qcow2')
    small = made('small.qcow2', '-o', 'cluster_size=4k')
    zlib = made('zlib.qcow2', '-c')
    zstd = made('zstd.qcow2', '-c', '-o', 'compression_type=zstd')
    pieces = [(images.fragmented(folder, raw, bits), detail) for bits, detail in (
        (16, 'fragmented'), (12, 'fragmented 4 KiB clusters'))]

    for image, detail in ((plain, 'dense'), (small, '4 KiB clusters'),
                          *pieces, (zlib, 'zlib'), (zstd, 'zstd')):
        both('compare', '1 GiB raw with qcow2, ' + detail,
             ['-f', 'raw', '-F', 'qcow2', raw, '{image}'], image)

    # The step is odd in clusters, so that requests go all over the disk.
    far = ['-S', str((389 << 20) + (77 << 12)), '-s', '4k', '-c', '200000']
    for image, detail in ((raw, 'raw'), (plain, 'qcow2'),
                          (small, 'qcow2, 4 KiB clusters')):
        kind = 'raw' if image == raw else 'qcow2'
        both('bench', '200000 reads of 4 KiB all over, ' + detail,
             ['-f', kind, *far, '{image}'], image)

    def created(name, *options):
        path = os.path.join(folder, name)
        if not os.path.exists(path):
            subprocess.run(['qemu-img', 'create', '-q', '-f', 'qcow2',
                            *options, path, '1G'], check=True)
        return path

    empty = created('empty.qcow2')
    few = far[:-1] + ['20000']
    both('bench', '20000 writes of 4 KiB all over, allocated',
         ['-w', '-f', 'qcow2', *few, '{image}'], plain, True)
    both('bench', '20000 writes of 4 KiB all over, empty',
         ['-w', '-f', 'qcow2', *few, '{image}'], empty, True)
    both('bench', '4000 writes of 256 KiB in order, empty',
         ['-w', '-f', 'qcow2', '-c', '4000', '-s', '256k', '{image}'], empty,
         True)

    has_convert = subprocess.run([bench.args.qimg, 'convert', '--help'],
                                 capture_output=True).returncode == 0
    if not has_convert:
        return
    out = os.path.join(folder, 'out')
    for detail, source, options in (
            ('qcow2 to raw', plain, ['-O', 'raw']),
            ('4 KiB clusters to raw', small, ['-O', 'raw']),
            *((detail + ' to raw', image, ['-O', 'raw'])
              for image, detail in pieces),
            ('zlib to raw', zlib, ['-O', 'raw']),
            ('zstd to raw', zstd, ['-O', 'raw']),
            ('raw to qcow2', raw, ['-O', 'qcow2']),
            ('qcow2 to qcow2', plain, ['-O', 'qcow2']),
            ('-c zlib', raw, ['-c', '-O', 'qcow2']),
            ('-c zstd', raw,
             ['-c', '-O', 'qcow2', '-o', 'compression_type=zstd'])):
        kind = 'raw' if source == raw else 'qcow2'
        both('convert', '1 GiB, ' + detail,
             ['-f', kind, *options, '{image}', '{out}'], source, out=out)
    if os.path.exists(out):
        os.remove(out)
    into = ['-c', '-n', '-f', 'raw', '-O', 'qcow2', raw, '{image}']
    both('convert', '1 GiB, -c -n zlib', into, empty, True)
    both('convert', '1 GiB, -c -n zstd', into,
         created('empty-zstd.qcow2', '-o', 'compression_type=zstd'), True)
