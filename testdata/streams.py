#!/usr/bin/env python3
"""Makes testdata/stream/ with a real QEMU: migration streams, the images they
are made of, and one record for each.

    testdata/streams.py            remakes everything, README.md's table included
    testdata/streams.py NAME...    remakes some streams

Needs qemu-system-x86_64 10.0, qemu-img, qemu-io and nbdinfo (libnbd); standard
library only.  For those called 3x-..., $QEMU_7_2 must be the path of a
qemu-system-x86_64 7.2 (they are left as they are without it).  The record
holds the commands and the truth about the bitmaps: SHA-256 as QEMU tells it,
and dirty ranges as nbdinfo sees them over NBD before the migration.
"""

import json
import os
import shutil
import sys
import tempfile
import time

from capture import BUSY, HALT, OLD, Capture, Qemu, Relay, digest
from make import HERE, dump

OUT = os.path.join(HERE, 'stream')


# -- the streams

STREAMS = {}


def stream(name, what):
    def register(make):
        STREAMS[name] = (make, what)
        return make
    return register


K, M = 1024, 1024 * 1024


def one(c, size=M):
    """The image of the simplest captures: 128 KiB and 512 KiB are dirty."""
    image = c.node('n0', size)
    c.bitmap(image, 'bm0', 64 * K, 'write -z 128k 64k', 'write -P 2 512k 1k')


@stream('01-single', 'one persistent enabled bitmap, 1 MiB, 64 KiB')
def single(c):
    one(c)
    c.start()
    c.simply()


@stream('02-multi-bitmap', 'four bitmaps of one node, all combinations of '
        'enabled and persistent, granularities 512 to 1 MiB')
def multi_bitmap(c):
    image = c.node('n0', 10 * M)
    c.bitmap(image, 'p-on', 512, 'write -P 1 0 512', 'write -z 1M 3M')
    c.bitmap(image, 'p-off', 4 * K, 'write -z 9M 64k', disabled=True)
    c.start(transient=[('n0', 't-on', 64 * K, False),
                       ('n0', 't-off', M, True)],
            writes=[('n0', 'write -P 3 5M 4k')])
    c.simply()


@stream('03-multi-node', 'three nodes, one of them without bitmaps')
def multi_node(c):
    first = c.node('disk0', M)
    c.node('disk1', M)
    third = c.node('disk2', 3 * M)
    c.bitmap(first, 'daily', 64 * K, 'write -P 1 0 4k')
    c.bitmap(first, 'weekly', 4 * K, 'write -P 2 700k 4k')
    c.bitmap(third, 'daily', 64 * K, 'write -z 2M 128k')
    c.start()
    c.simply()


@stream('04-aliases', 'block-bitmap-mapping: aliases, transform.persistent '
        'both ways, one bitmap and one node left out')
def aliases(c):
    image = c.node('n0', M)
    other = c.node('n1', M)
    c.bitmap(image, 'bm0', 64 * K, 'write -P 1 0 1k')
    c.bitmap(image, 'bm1', 64 * K, 'write -P 2 512k 1k')
    c.bitmap(image, 'left-out', 64 * K)
    c.bitmap(other, 'bm0', 64 * K)
    c.mapping = [
        {'node-name': 'n0', 'alias': 'drive-alias-0', 'bitmaps': [
            {'name': 'bm0', 'alias': 'bitmap alias 0'},
            {'name': 'bm1', 'alias': 'bm1-transient',
             'transform': {'persistent': False}},
            {'name': 'tmp', 'alias': 'tmp-persistent',
             'transform': {'persistent': True}}]},
        {'node-name': 'nowhere', 'alias': 'unused', 'bitmaps': []}]
    c.start(transient=[('n0', 'tmp', 4 * K, False)],
            writes=[('n0', 'write -P 3 256k 4k')])
    c.simply()


@stream('05-disabled', 'a disabled bitmap: later writes are not in it')
def disabled(c):
    image = c.node('n0', M)
    c.bitmap(image, 'bm0', 64 * K, 'write -z 0 128k', disabled=True)
    c.start(writes=[('n0', 'write -P 2 900k 4k')])
    c.simply()


@stream('06-transient', 'a bitmap that is not persistent')
def transient(c):
    c.node('n0', M)
    c.start(transient=[('n0', 'bm0', 64 * K, False)],
            writes=[('n0', 'write -P 1 100k 64k')])
    c.simply()


@stream('07-empty', 'a bitmap without any dirty bit: one ZEROES chunk')
def empty(c):
    c.bitmap(c.node('n0', M), 'bm0', 64 * K)
    c.start()
    c.simply()


@stream('08-zero-size', 'a disk of size 0: one ZEROES chunk of no sectors')
def zero_size(c):
    c.node('n0', 0)
    c.start(transient=[('n0', 'bm0', 64 * K, False)])
    c.simply()


@stream('09-coarse', '3 TiB, granularity 128 MiB: as much as QEMU can send')
def coarse(c):
    image = c.node('n0', 3 << 40, 'cluster_size=64k')
    c.bitmap(image, 'bm0', 128 * M, 'write -z 2T 1M', 'write -z 3145727M 1M')
    c.start()
    c.simply()


@stream('10-odd-size', '10 MiB + 512 with granularities 512, 4 KiB, 64 KiB')
def odd_size(c):
    image = c.node('n0', 10 * M + 512)
    c.bitmap(image, 'g512', 512)
    c.bitmap(image, 'g4k', 4 * K)
    c.bitmap(image, 'g64k', 64 * K, 'write -P 1 262656 512', 'write -z 4M 1M',
             'write -P 2 10M 512')
    c.start()
    c.simply()


@stream('12-write-during', 'written to while the migration goes on')
def write_during(c):
    one(c)
    c.start()
    c.prepare(**{'avail-switchover-bandwidth': 1})
    c.qmp('cont')
    c.migrate()
    time.sleep(0.25)
    for start, length in ((0, 4 * K), (960 * K, 64 * K)):
        c.io('n0', 'write -P 9 %d %d' % (start, length))
        c.written('n0', start, length)
    c.qmp('migrate-set-parameters', {'avail-switchover-bandwidth': 1 << 40})
    c.finish()


@stream('14-pc-paused', 'pc, paused: RAM, devices and their description')
def pc_paused(c):
    one(c)
    c.pc()
    c.start()
    c.simply()


@stream('15-pc-running', 'pc, running: pages sent again, as XBZRLE differences')
def pc_running(c):
    one(c)
    c.caps.append('xbzrle')
    c.pc('pc', BUSY)
    c.start()
    c.prepare(**{'max-bandwidth': 400 * K, 'avail-switchover-bandwidth': 50000})
    c.qmp('cont')
    c.io('n0', 'write -P 9 0 4k')
    c.written('n0', 0, 4 * K)
    c.migrate()
    c.finish()


@stream('16-no-bitmaps', 'capability on, no bitmap: a START section that only '
        'says EOS, no END section')
def no_bitmaps(c):
    c.node('n0', M)
    c.start()
    c.simply()


@stream('17-q35-paused', 'q35, paused; a UUID in the configuration')
def q35_paused(c):
    one(c)
    c.pc('q35', HALT, '-uuid', '00112233-4455-6677-8899-aabbccddeeff')
    c.caps.append('validate-uuid')
    c.start()
    c.simply()


@stream('18-mapped-ram', 'capabilities in the configuration: a reader of '
        'streams must refuse this one')
def mapped_ram(c):
    one(c)
    c.caps += ['mapped-ram', 'x-ignore-shared']
    c.start()
    c.simply()


@stream('19-multifd', 'the first connection of several: a reader must refuse it')
def multifd(c):
    one(c)
    c.caps.append('multifd')
    c.start()
    relay = Relay(c.folder, os.path.join(c.folder, c.name + '.stream'))
    c.prepare()
    c.migrate('unix:' + relay.path)
    c.finish()
    relay.join()


def postcopy(c):
    """Migrates to a real destination, so that the return path answers."""
    for node, image, size in c.nodes:
        c.m.run('qemu-img', 'create', '-q', '-f', 'qcow2', 'dest-' + image,
                str(size), log=False)
    onward = os.path.join(c.folder, 'onward')
    args = ['-machine', c.machine, '-S', '-incoming', 'defer', *c.args]
    for node, image, _ in c.nodes:
        args += ['-blockdev', json.dumps({
            'driver': 'qcow2', 'node-name': node,
            'file': {'driver': 'file', 'filename': 'dest-' + image}})]
    destination = Qemu(c.folder, args)
    destination.cmd('migrate-set-capabilities', capabilities=[
        {'capability': cap, 'state': True} for cap in c.caps])
    destination.cmd('migrate-incoming', uri='unix:' + onward)
    relay = Relay(c.folder, os.path.join(c.folder, c.name + '.stream'), onward)
    c.prepare(**{'avail-switchover-bandwidth': 1})
    c.migrate('unix:' + relay.path)
    c.qmp('migrate-start-postcopy')
    c.finish()
    destination.ended()
    for b in c.record['bitmaps']:
        if destination.sha256(b['node'], b['name']) != b['sha256']:
            sys.exit('postcopy: the destination has another digest')
    destination.quit()
    relay.join()
    c.record['return-path'] = relay.answers.hex()


@stream('20-postcopy', 'postcopy of two bitmaps with return path')
def postcopy_of_two(c):
    image = c.node('n0', 10 * M)
    c.bitmap(image, 'a', 512, 'write -z 1M 3M', disabled=True)
    c.bitmap(image, 'b', 64 * K, 'write -z 9M 64k')
    c.caps.append('return-path')
    c.start()
    postcopy(c)


@stream('30-old-single', 'QEMU 7.2: no SWITCHOVER_START, shorter description')
def old_single(c):
    c.binary = OLD
    one(c)
    c.start()
    relay = Relay(c.folder, os.path.join(c.folder, c.name + '.stream'))
    c.prepare()
    c.migrate('unix:' + relay.path)
    c.finish()
    relay.join()


@stream('31-old-block', 'QEMU 7.2: the disk itself in a `block` section, its '
        'first MiB zero, the last block a whole MiB though the disk ends within')
def old_block(c):
    c.binary, c.drives = OLD, True
    image = c.node('n0', 3 * M // 2)
    c.bitmap(image, 'bm0', 64 * K, 'write -P 3 1M 4k', 'write -P 4 1535k 1k')
    c.caps.append('zero-blocks')
    c.start()
    relay = Relay(c.folder, os.path.join(c.folder, c.name + '.stream'))
    c.prepare(**{'max-bandwidth': 65536, 'downtime-limit': 10})
    c.migrate('unix:' + relay.path, blk=True)
    c.finish()
    relay.join()


@stream('minimal', 'the smallest that QEMU 7.2 and 10.0 load, on any machine '
        'type; put together by hand')
def minimal(c):
    """An empty machine name, one FULL section, no device, no description."""
    ranges = [[128 * K, 64 * K], [512 * K, 64 * K]]
    parts = [b'QEVM', b'\0\0\0\3',                         # version 3
             b'\7', bytes(4),                              # CONFIGURATION ""
             b'\4', b'\0\0\0\1', b'\x0cdirty-bitmap',     # FULL, id 1
             b'\0\0\0\0', b'\0\0\0\1',                    # instance, version
             b'\x1c', b'\2n0', b'\3bm0', b'\0\1\0\0', b'\3',
             b'\x40', bytes(8), b'\0\0\x08\0', bytes(7) + b'\x20',
             b'\4\1' + bytes(30), b'\x20', b'\1',
             b'\x7e', b'\0\0\0\1', b'\0']                 # footer, EOF
    with open(os.path.join(c.folder, 'minimal.stream'), 'wb') as f:
        f.write(b''.join(parts))
    c.machine = ''
    c.record['bitmaps'] = [{
        'node': 'n0', 'name': 'bm0', 'granularity': 64 * K, 'enabled': True,
        'persistent': True, 'sha256': digest(M, 64 * K, ranges),
        'dirty-bytes': 128 * K, 'count': 128 * K, 'dirty-from': 'the maker',
        'dirty': ranges}]
    c.alias(c.record['bitmaps'][0])


def write_readme(records):
    lines = ['| stream | what | bytes | bitmaps |', '|---|---|---|---|']
    for r in records:
        maps = ', '.join('%s/%s' % (b['node-alias'], b['bitmap-alias'])
                         for b in r['bitmaps'] if b['migrated'])
        lines.append('| `%s` | %s | %d | %s |' % (
            r['stream'], r['description'], r['stream-size'], maps))
    path = os.path.join(HERE, 'README.md')
    with open(path) as f:
        text = f.read()
    begin, end = '<!-- made by streams.py -->', '<!-- end -->'
    head, rest = text.split(begin, 1)
    tail = rest.split(end, 1)[1]
    with open(path, 'w') as f:
        f.write('%s%s\n%s\n%s%s' % (head, begin, '\n'.join(lines), end, tail))


def main():
    wanted = sys.argv[1:] or [name for name in STREAMS
                              if OLD or not name.startswith('3')]
    os.makedirs(OUT, exist_ok=True)
    for name in wanted:
        make, what = STREAMS[name]
        with tempfile.TemporaryDirectory() as folder:
            c = Capture(folder, name)
            make(c)
            for file in c.done(what):
                shutil.copyfile(os.path.join(folder, file),
                                os.path.join(OUT, file))
            with open(os.path.join(OUT, name + '.json'), 'w') as f:
                f.write(dump(c.record))
            print(name, c.record['stream-size'])
    records = []
    for file in sorted(os.listdir(OUT)):
        if file.endswith('.json'):
            with open(os.path.join(OUT, file)) as f:
                records.append(json.load(f))
    write_readme(records)


if __name__ == '__main__':
    main()
